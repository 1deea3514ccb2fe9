# mypy: ignore-errors
"""Farneback's method in compiled loops: polynomial expansion, and the field of one level.

Importing this module imports Numba and compiles nothing: `flowkit.flow.farneback` compiles `expand`
and `solve_level` and keeps the result on disk. Row kernels work on a row of pixels, or on four, the
functions at the end of each part run the rows. A row is passed as its place in a whole array, since
the references to a slice would be counted on every row.

The answer is OpenCV's to the last bit, so every operation is done in OpenCV's order and precision:
no fast math, no fused multiply-add, float32 and float64 where OpenCV has them. Loops run over whole
rows of `columns(width)` cells; those right of the frame hold finite values that no pixel reads.

Numba, not mypy, types these functions. They are in one file, `lanes` apart, because Numba knows
compiled code to be stale by the file of its entry function alone.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from flowkit.flow.lanes import LANES, LINE, NoAlias, Vectors, aligned, pointers, wide

# Planes of an expansion: y, x, y^2, x^2, xy; those of a matrix row: G11, G12, G22, h1, h2
PLANES = 5
SPARE = LANES  # floats behind an interleaved expansion: a pixel is read as so many
BLOCK = 4  # rows of the field that are solved together: their kernels are written for four
REGULARIZATION = 1e-3  # added to the determinant

ZERO, QUARTER, HALF, ONE = np.float32(0), np.float32(0.25), np.float32(0.5), np.float32(1)


def columns(width):
    """Cells in a row that holds `width` pixels."""
    return LINE * -(-width // LINE)


pixel = njit(error_model="numpy", forceinline=True)
row = njit(error_model="numpy", pipeline_class=NoAlias)
whole = njit(error_model="numpy", nogil=True)


# --- polynomial expansion ---


def expand_down(n):
    """The row kernel that sums 2n + 1 pixels of each column under the weights 1, y and y^2.

    n is a constant of the compiled code, so that the sums stay in registers.
    """

    @row
    def down(y, bottom, count, image, g, xg, xxg, sums):
        wide()
        for x in range(count):
            s0, s1, s2 = image[y, x] * g[0], ZERO, ZERO
            for k in range(1, n + 1):
                above, below = image[max(y - k, 0), x], image[min(y + k, bottom), x]
                both = above + below
                s0 += g[k] * both
                s1 += xg[k] * (below - above)
                s2 += xxg[k] * both
            at = np.uintp(x) + np.uintp(LINE)  # unsigned: no test for an index from the end
            sums[0, at], sums[1, at], sums[2, at] = s0, s1, s2

    return down


def expand_along(n, real):
    """The row kernel that sums 2n + 1 columns and solves for the polynomial's coefficients.

    `real` is the type that it sums in: OpenCV's is float64.
    """

    @row
    def along(y, count, sums, g, xg, xxg, i11, i03, i33, i55, planes):
        wide()
        y = np.uintp(y)
        for x in range(count):
            at = np.uintp(x) + np.uintp(LINE)
            b1 = real(sums[0, at] * g[0])
            b3 = real(sums[1, at] * g[0])
            b5 = real(sums[2, at] * g[0])
            b2 = b4 = b6 = real(0)
            for k in range(1, n + 1):
                left, right = at - np.uintp(k), at + np.uintp(k)
                both = real(sums[0, right] + sums[0, left])
                b1 += both * real(g[k])
                b4 += both * real(xxg[k])
                b2 += real((sums[0, right] - sums[0, left]) * xg[k])
                b3 += real((sums[1, right] + sums[1, left]) * g[k])
                b6 += real((sums[1, right] - sums[1, left]) * xg[k])
                b5 += real((sums[2, right] + sums[2, left]) * g[k])
            planes[y, 0, x] = np.float32(b3 * i11)
            planes[y, 1, x] = np.float32(b2 * i11)
            planes[y, 2, x] = np.float32(b1 * i03 + b5 * i33)
            planes[y, 3, x] = np.float32(b1 * i03 + b4 * i33)
            planes[y, 4, x] = np.float32(b6 * i55)

    return along


down5, along5 = expand_down(5), expand_along(5, np.float64)
down7, along7 = expand_down(7), expand_along(7, np.float64)
along7_single = expand_along(7, np.float32)


@whole
def expand(image, width, weights, inverse, single, planes):
    """The coefficients of y, x, y^2, x^2 and xy around every pixel.

    image: float32 (H, columns(width)). weights: float32 (3, n + 1), the Gaussian g(k), k g(k) and
    k^2 g(k) from its center outward, n 5 or 7. inverse: float64 (4,), the elements (1, 1), (0, 3),
    (3, 3) and (5, 5) of the inverted metric. planes, the result: float32 (H, PLANES, columns).
    Pixels outside the frame equal the nearest one inside. `single`, for n 7, sums in float32, where
    OpenCV does it in float64.
    """
    height, count = image.shape
    n = weights.shape[1] - 1
    g, xg, xxg = weights[0], weights[1], weights[2]
    i11, i03, i33, i55 = inverse
    beside = count + 2 * LINE
    sums = aligned(3 * beside).reshape(3, beside)
    for y in range(height):
        if n == 5:
            down5(y, height - 1, count, image, g, xg, xxg, sums)
        else:
            down7(y, height - 1, count, image, g, xg, xxg, sums)
        repeat_edges(sums, LINE, width, n)
        if n == 5:
            along5(y, count, sums, g, xg, xxg, i11, i03, i33, i55, planes)
        elif single:
            along7_single(
                y, count, sums, g, xg, xxg, np.float32(i11), np.float32(i03), np.float32(i33),
                np.float32(i55), planes,
            )  # fmt: skip
        else:
            along7(y, count, sums, g, xg, xxg, i11, i03, i33, i55, planes)


@whole
def repeat_edges(rows, first, width, times):
    """Repeat the first and the last of `width` cells that start at `first`, to either side."""
    for c in range(rows.shape[0]):
        left, right = rows[c, first], rows[c, first + width - 1]
        for k in range(times):
            rows[c, first - 1 - k] = left
            rows[c, first + width + k] = right


# --- the matrices of a row: both expansions at the present field ---


@intrinsic
def sample_eight(typingctx, pixels, stride, starts, w00, w01, w10, w11, x, sampled, columns):
    """PLANES channels of eight pixels of a row from `x` on, each under its 2 x 2 weights.

    `pixels` is flat, its channels interleaved; `starts` holds the indices of the upper left
    pixels' first channel, a negative one counts as 0; `stride` is that of a row. The result goes to
    `sampled`, rows of `columns` cells. Written in vectors, a pixel's channels side by side and then
    turned, because LLVM's vectorizer would load them one by one.
    """
    signature = types.void(
        pixels, types.intp, starts, w00, w01, w10, w11, types.intp, sampled, types.intp
    )

    def codegen(context, builder, signature, args):
        flat, index, *weights, target = pointers(
            context, builder, signature, args, (0, 2, 3, 4, 5, 6, 8)
        )
        stride, x, columns = args[1], args[7], args[9]
        vectors, number, none = Vectors(builder, flags=()), x.type, ir.IntType(32)(0)
        rows = []
        for lane in range(LANES):
            place = builder.add(x, number(lane))
            start = builder.load(builder.gep(index, [place]))
            start = builder.select(builder.icmp_signed("<", start, none), none, start)
            start = builder.sext(start, number)
            below, right = builder.add(start, stride), number(PLANES)
            corners = (start, builder.add(start, right), below, builder.add(below, right))
            total = None
            for corner, weight in zip(corners, weights, strict=True):
                one = vectors.load(flat, corner)
                term = vectors.multiply(one, vectors.spread(weight, place))
                total = term if total is None else vectors.add(total, term)
            rows.append(total)
        for channel, values in enumerate(vectors.turn(rows)[:PLANES]):
            place = builder.add(builder.mul(number(channel), columns), x)
            vectors.store(values, target, place)
        return context.get_dummy_value()

    return signature, codegen


@pixel
def clamp(value, low, high):
    """The value within low and high; NaN becomes low."""
    value = value if value > low else low
    return value if value < high else high


@row
def tap_row(y, width, u, v, starts, w00, w01, w10, w11):
    """Where the four pixels around each position x + u begin, and their weights.

    `starts` is -1 where not all four are in the frame.
    """
    wide()
    height, count = u.shape
    outside, right, bottom = np.float32(-1), np.float32(width), np.float32(height)
    row, here = np.uintp(y), np.float32(np.int32(y))
    for x in range(count):
        at_x = np.float32(np.int32(x)) + u[row, x]
        at_y = here + v[row, x]
        left, top = np.floor(at_x), np.floor(at_y)
        column = np.int32(clamp(left, outside, right))
        line = np.int32(clamp(top, outside, bottom))
        inside = (column >= 0) & (column < width - 1) & (line >= 0) & (line < height - 1)
        start = (line * np.int32(width) + column) * np.int32(PLANES)
        starts[x] = start if inside else np.int32(-1)
        fx, fy = at_x - left, at_y - top
        w00[x] = (ONE - fx) * (ONE - fy)
        w01[x] = fx * (ONE - fy)
        w10[x] = (ONE - fx) * fy
        w11[x] = fx * fy


@row
def sample_row(width, pixels, starts, w00, w01, w10, w11, sampled):
    """The second frame's coefficients at the taps of a row, into `sampled` (PLANES, columns)."""
    count, stride = sampled.shape[1], width * PLANES
    for x in range(0, count, LANES):
        sample_eight(pixels, stride, starts, w00, w01, w10, w11, x, sampled, count)


@row
def matrix_row(y, height, u, v, first, starts, second, edges, ring):
    """G11, G12, G22, h1 and h2 of a row, whose blurred equations G (v, u) = h give the field.

    Where the position lies outside the frame, the second frame counts as the first one's curvature
    with no slope. `edges` are the weights of the pixels.
    """
    wide()
    edge = np.uintp(y if y < 6 else max(5, len(edges) - (height - y)))
    slot, y = np.uintp(y) & np.uintp(len(ring) - 1), np.uintp(y)
    for x in range(len(starts)):
        inside = starts[x] >= 0
        y0, x0, yy0 = first[y, 0, x], first[y, 1, x], first[y, 2, x]
        xx0, xy0 = first[y, 3, x], first[y, 4, x]
        y1, x1, yy1, xx1, xy1 = second[0, x], second[1, x], second[2, x], second[3, x], second[4, x]
        y1 = y1 if inside else ZERO
        x1 = x1 if inside else ZERO
        yy1 = yy1 if inside else yy0
        xx1 = xx1 if inside else xx0
        xy1 = xy1 if inside else xy0
        yy = (yy0 + yy1) * HALF
        xx = (xx0 + xx1) * HALF
        xy = (xy0 + xy1) * QUARTER
        down = (y0 - y1) * HALF + (yy * v[y, x] + xy * u[y, x])
        along = (x0 - x1) * HALF + (xy * v[y, x] + xx * u[y, x])
        weight = edges[edge, x]
        down *= weight
        along *= weight
        yy *= weight
        xx *= weight
        xy *= weight
        ring[slot, 0, x] = yy * yy + xy * xy
        ring[slot, 1, x] = (yy + xx) * xy
        ring[slot, 2, x] = xx * xx + xy * xy
        ring[slot, 3, x] = yy * down + xy * along
        ring[slot, 4, x] = xy * down + xx * along


@row
def interleave_row(y, width, planes, pixels):
    y = np.uintp(y)
    start = y * np.uintp(width) * np.uintp(PLANES)
    for x in range(width):
        at = start + np.uintp(x) * np.uintp(PLANES)
        pixels[at] = planes[y, 0, x]
        pixels[at + np.uintp(1)] = planes[y, 1, x]
        pixels[at + np.uintp(2)] = planes[y, 2, x]
        pixels[at + np.uintp(3)] = planes[y, 3, x]
        pixels[at + np.uintp(4)] = planes[y, 4, x]


@whole
def interleave(planes, width):
    """An expansion (H, PLANES, columns) as one row of pixels with their channels together."""
    height = planes.shape[0]
    pixels = np.empty(height * width * PLANES + SPARE, np.float32)
    pixels[height * width * PLANES :] = ZERO
    for y in range(height):
        interleave_row(y, width, planes, pixels)
    return pixels


# --- the blur and the field of a row ---


@row
def start_sums(height, width, half, ring, kept, first):
    """The column sums before row 0 is reached: its window less its last row, plus row 0 once."""
    wide()
    first = np.uintp(first)
    for c in range(PLANES):
        for x in range(width):
            kept[c, first + np.uintp(x)] = np.float64(ring[0, c, x] * np.float32(half + 2))
        for y in range(1, half):
            row = np.uintp(min(y, height - 1))
            for x in range(width):
                kept[c, first + np.uintp(x)] += np.float64(ring[row, c, x])


@pixel
def change(y, height, half, ring, c, x):
    """What the window of row y holds in a column, less what that of the row above holds."""
    slots = np.uintp(len(ring) - 1)
    new = np.uintp(min(y + half, height - 1)) & slots
    old = np.uintp(max(y - half - 1, 0)) & slots
    return np.float64(ring[new, c, x] - ring[old, c, x])


@row
def move_sums(y, height, half, ring, c, kept, first, sums):
    """The column sums of the rows from y on from those that are kept of the row above."""
    wide()
    c, first = np.uintp(c), np.uintp(first)
    r0, r1, r2, r3 = np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(3)
    for x in range(ring.shape[2]):
        at = first + np.uintp(x)
        sum0 = kept[c, at] + change(y, height, half, ring, c, x)
        sum1 = sum0 + change(y + 1, height, half, ring, c, x)
        sum2 = sum1 + change(y + 2, height, half, ring, c, x)
        sum3 = sum2 + change(y + 3, height, half, ring, c, x)
        sums[r0, at], sums[r1, at], sums[r2, at], sums[r3, at] = sum0, sum1, sum2, sum3
        kept[c, at] = sum3


@intrinsic
def run_along(typingctx, totals, changes, count, stride):
    """Running sums, begun at `totals` (PLANES, BLOCK), of changes (PLANES, count, BLOCK), in place.

    All at once, since the sums of one row wait for each other. A plane of `changes`, which is flat,
    begins `stride` after the one before.
    """
    signature = types.void(totals, changes, types.intp, types.intp)

    def codegen(context, builder, signature, args):
        begin, flat = pointers(context, builder, signature, args, (0, 1))
        count, stride = args[2:]
        number, vector = stride.type, ir.VectorType(ir.DoubleType(), BLOCK)

        def vector_at(base, place):
            return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())

        sums = []
        for plane in range(PLANES):
            first = builder.load(vector_at(begin, number(plane * BLOCK)), align=8)
            sums.append(cgutils.alloca_once_value(builder, first))
        with cgutils.for_range(builder, count) as loop:
            x = builder.mul(loop.index, number(BLOCK))
            for plane, total in enumerate(sums):
                place = vector_at(flat, builder.add(x, builder.mul(stride, number(plane))))
                value = builder.fadd(builder.load(total), builder.load(place, align=8))
                builder.store(value, total)
                builder.store(value, place, align=8)
        return context.get_dummy_value()

    return signature, codegen


@row
def box_changes(width, half, sums, first, c, totals, changes):
    """What the box of each column holds less what the one before holds, of four rows side by side.

    changes: (PLANES, columns, BLOCK), flat. totals (PLANES, BLOCK): the box before the first one.
    """
    wide()
    new, old = np.uintp(first + half), np.uintp(first - half - 1)
    r0, r1, r2, r3 = np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(3)
    start = np.uintp(c) * np.uintp(len(changes) // PLANES)
    for k in range(width):
        x = np.uintp(k)
        at = start + x * np.uintp(BLOCK)
        changes[at] = sums[r0, x + new] - sums[r0, x + old]
        changes[at + r1] = sums[r1, x + new] - sums[r1, x + old]
        changes[at + r2] = sums[r2, x + new] - sums[r2, x + old]
        changes[at + r3] = sums[r3, x + new] - sums[r3, x + old]
    for r in range(BLOCK):
        total = sums[r, first] * np.float64(half + 2)
        for x in range(first + 1, first + half):
            total += sums[r, x]
        totals[c, r] = total


@pixel
def near(ring, y, c, x, height):
    """A cell of a row that the ring keeps; of one beyond the level, its nearest."""
    return ring[np.uintp(min(max(y, 0), height - 1)) & np.uintp(len(ring) - 1), c, x]


@pixel
def pair(ring, y, k, c, x, height):
    """The sum of the cells k rows above and below."""
    return near(ring, y + k, c, x, height) + near(ring, y - k, c, x, height)


@row
def down_window(y, r, height, ring, weights, sums, first):
    """Row y + r of matrices blurred down, by a window of any length, into sums[r]."""
    wide()
    start = np.uintp(first)
    for c in range(PLANES):
        for x in range(ring.shape[2]):
            sums[r, c, start + np.uintp(x)] = near(ring, y + r, c, x, height) * weights[0]
        for k in range(1, len(weights)):
            for x in range(ring.shape[2]):
                both = pair(ring, y + r, k, c, x, height)
                sums[r, c, start + np.uintp(x)] += both * weights[k]


@row
def along_window(r, sums, first, weights, blurred):
    """sums[r] blurred along, by a window of any length."""
    wide()
    r = np.uintp(r)
    for c in range(PLANES):
        for x in range(blurred.shape[1]):
            blurred[c, x] = sums[r, c, np.uintp(first) + np.uintp(x)] * weights[0]
        for k in range(1, len(weights)):
            left, right = np.uintp(first - k), np.uintp(first + k)
            for x in range(blurred.shape[1]):
                both = sums[r, c, right + np.uintp(x)] + sums[r, c, left + np.uintp(x)]
                blurred[c, x] += both * weights[k]


def all_taps(n):
    """The row kernels of a window of 2n + 1: n is constant, so that sums stay in registers."""

    @intrinsic
    def down_sixteen(typingctx, ring, places, weights, x, sums, target, stride):
        """Four rows of LINE cells blurred down, from `x` on, of 2n + 4 rows that begin at `places`.

        The result goes to `target`, and `stride` cells further for each row.
        """
        signature = types.void(ring, places, weights, types.intp, sums, types.intp, types.intp)

        def codegen(context, builder, signature, args):
            source, starts, factors, result = pointers(
                context, builder, signature, args, (0, 1, 2, 4)
            )
            x, target, stride = args[3], args[5], args[6]
            vectors, number = Vectors(builder, LINE, flags=()), x.type
            rows = [
                vectors.load(source, builder.add(x, builder.load(builder.gep(starts, [number(k)]))))
                for k in range(2 * n + BLOCK)
            ]
            weights = [vectors.spread(factors, number(k)) for k in range(n + 1)]
            for r in range(BLOCK):
                center = n + r
                total = vectors.multiply(rows[center], weights[0])
                for k in range(1, n + 1):
                    both = vectors.add(rows[center + k], rows[center - k])
                    total = vectors.add(total, vectors.multiply(both, weights[k]))
                place = builder.add(builder.add(target, x), builder.mul(stride, number(r)))
                vectors.store(total, result, place)
            return context.get_dummy_value()

        return signature, codegen

    @row
    def down(y, height, ring, places, weights, sums, first):
        slots, count, beside = np.uintp(len(ring) - 1), ring.shape[2], sums.shape[2]
        for c in range(PLANES):
            for k in range(2 * n + BLOCK):
                slot = np.uintp(min(max(y + k - n, 0), height - 1)) & slots
                places[k] = (np.intp(slot) * PLANES + c) * count
            for x in range(0, count, LINE):
                down_sixteen(
                    ring, places, weights, x, sums, c * beside + first, PLANES * beside
                )  # fmt: skip

    @row
    def along(r, sums, first, weights, blurred):
        wide()
        r = np.uintp(r)
        for c in range(PLANES):
            for x in range(blurred.shape[1]):
                at = np.uintp(first) + np.uintp(x)
                total = sums[r, c, at] * weights[0]
                for k in range(1, n + 1):
                    both = sums[r, c, at + np.uintp(k)] + sums[r, c, at - np.uintp(k)]
                    total += both * weights[k]
                blurred[c, x] = total

    return down, along


down_window5, along_window5 = all_taps(5)
down_window6, along_window6 = all_taps(6)


@pixel
def solve(g11, g12, g22, h1, h2):
    """The field of a pixel: the solution of its 2 x 2 equations, float64."""
    inverse = 1.0 / (g11 * g22 - g12 * g12 + REGULARIZATION)
    return np.float32((g11 * h2 - g12 * h1) * inverse), np.float32((g22 * h1 - g12 * h2) * inverse)


@row
def solve_row(y, blurred, u, v):
    """The field of a row of blurred equations."""
    wide()
    y = np.uintp(y)
    for x in range(blurred.shape[1]):
        u[y, x], v[y, x] = solve(
            np.float64(blurred[0, x]), np.float64(blurred[1, x]), np.float64(blurred[2, x]),
            np.float64(blurred[3, x]), np.float64(blurred[4, x]),
        )  # fmt: skip


@row
def solve_side_by_side(box, scale, along, down):
    """The field of four rows whose cells, in `box` (PLANES, columns, BLOCK), lie side by side."""
    wide()
    stride = np.uintp(len(along))
    for k in range(len(along)):
        x = np.uintp(k)
        along[x], down[x] = solve(
            box[x] * scale, box[stride + x] * scale, box[np.uintp(2) * stride + x] * scale,
            box[np.uintp(3) * stride + x] * scale, box[np.uintp(4) * stride + x] * scale,
        )  # fmt: skip


@row
def part_row(y, r, along, down, u, v):
    """Row y + r of the field from four rows side by side."""
    wide()
    y, r = np.uintp(y + r), np.uintp(r)
    for x in range(u.shape[1]):
        u[y, x] = along[np.uintp(x) * np.uintp(BLOCK) + r]
        v[y, x] = down[np.uintp(x) * np.uintp(BLOCK) + r]


@whole
def blur_down(y, rows, height, ring, places, gaussian, sums, left):
    """`rows` rows of matrices from y on under a Gaussian down, into sums[0], sums[1], ..."""
    if len(gaussian) == 6:
        down_window5(y, height, ring, places, gaussian, sums, left)
    elif len(gaussian) == 7:
        down_window6(y, height, ring, places, gaussian, sums, left)
    else:
        for r in range(rows):
            down_window(y, r, height, ring, gaussian, sums, left)


@whole
def blur_along(r, sums, left, gaussian, blurred):
    """sums[r], its edges repeated, under a Gaussian along."""
    if len(gaussian) == 6:
        along_window5(r, sums, left, gaussian, blurred)
    elif len(gaussian) == 7:
        along_window6(r, sums, left, gaussian, blurred)
    else:
        along_window(r, sums, left, gaussian, blurred)


# --- a level ---


@whole
def solve_level(flow, first, second, width, edges, win_size, gaussian, iterations):
    """The field of one level, in place: `flow` holds its start, then its result.

    flow: float32 (2, H, columns(width)), u and v. first, second: expansions, float32 (H, PLANES,
    columns). edges: float32 (min(H, 11), columns), the weights of the five upper rows, of those
    between and of the five lower rows. gaussian: float32, the window from its center outward, or
    empty for a box of `win_size`. Does not hold the GIL.

    One pass an iteration, four rows at a time: the matrices of a row are made just before the
    window reaches it, a ring keeps those of the windows, and a row is solved once its own are made.
    """
    height, count = flow.shape[1:]
    half = win_size // 2
    box = len(gaussian) == 0
    scale = 1.0 / (win_size * win_size)
    u, v = flow[0], flow[1]
    pixels = interleave(second, width)
    starts = np.zeros(count, np.int32)
    w00, w01, w10, w11 = aligned(count), aligned(count), aligned(count), aligned(count)
    sampled = aligned(PLANES * count).reshape(PLANES, count)
    slots = 1  # a power of two, so that a row's place costs no division
    while slots < 2 * half + 1 + BLOCK:
        slots *= 2
    ring = aligned(slots * PLANES * count).reshape(slots, PLANES, count)
    left = LINE * -(-(half + 1) // LINE)
    beside = count + 2 * left
    all_sums = aligned(BLOCK * PLANES * beside).reshape(BLOCK * PLANES, beside)
    sums = all_sums.reshape(BLOCK, PLANES, beside)
    places = np.zeros(2 * half + BLOCK, np.intp)
    blurred = aligned(PLANES * count).reshape(PLANES, count)
    kept = aligned(2 * PLANES * beside).view(np.float64).reshape(PLANES, beside)
    box_sums = aligned(2 * BLOCK * beside).view(np.float64).reshape(BLOCK, beside)
    boxes = aligned(2 * BLOCK * PLANES * count).view(np.float64)
    totals = np.zeros((PLANES, BLOCK))
    along, down = aligned(BLOCK * count), aligned(BLOCK * count)

    for _ in range(iterations):
        made = 0
        for y in range(0, height, BLOCK):
            while made < min(y + half + BLOCK, height):
                tap_row(made, width, u, v, starts, w00, w01, w10, w11)
                sample_row(width, pixels, starts, w00, w01, w10, w11, sampled)
                matrix_row(made, height, u, v, first, starts, sampled, edges, ring)
                made += 1
            rows = min(BLOCK, height - y)
            if box:
                if y == 0:
                    start_sums(height, width, half, ring, kept, left)
                for c in range(PLANES):
                    move_sums(y, height, half, ring, c, kept, left, box_sums)
                    repeat_edges(box_sums, left, width, half + 1)
                    box_changes(width, half, box_sums, left, c, totals, boxes)
                run_along(totals, boxes, width, BLOCK * count)
                solve_side_by_side(boxes, scale, along, down)
                for r in range(rows):
                    part_row(y, r, along, down, u, v)
            else:
                blur_down(y, rows, height, ring, places, gaussian, sums, left)
                repeat_edges(all_sums, left, width, half)
                for r in range(rows):
                    blur_along(r, sums, left, gaussian, blurred)
                    solve_row(y + r, blurred, u, v)


_rows = types.float32[:, ::1]
_cube = types.float32[:, :, ::1]
EXPAND = (_rows, types.int64, _rows, types.float64[::1], types.boolean, _cube)
SOLVE_LEVEL = (
    _cube, _cube, _cube, types.int64, _rows, types.int64, types.float32[::1], types.int64,
)  # fmt: skip
