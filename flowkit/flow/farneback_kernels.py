# mypy: ignore-errors
"""Farneback's method in compiled loops: polynomial expansion, and the field of one level.

Importing this module imports Numba and compiles nothing: `flowkit.flow.farneback` compiles `expand`
and `solve_level` and keeps the result on disk. Row kernels work on a row of pixels, the functions
at the end of each part run the rows.

The answer is OpenCV's to the last bit, so every operation is done in OpenCV's order and precision:
no fast math, no fused multiply-add, float32 and float64 where OpenCV has them. Loops run over whole
rows of `columns(width)` cells; those right of the frame hold finite values that no pixel reads.

Numba, not mypy, types these functions. They are in one file because Numba knows compiled code to
be stale by the file of its entry function alone.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from flowkit.flow.lanes import NoAlias

LANES = 16  # float32 in the widest vector register (AVX-512)
# Planes of an expansion: y, x, y^2, x^2, xy; those of a matrix row: G11, G12, G22, h1, h2
PLANES = 5
SPARE = 8  # floats behind an interleaved expansion: the last pixel is read eight at a time
REGULARIZATION = 1e-3  # added to the determinant

ZERO, QUARTER, HALF, ONE = np.float32(0), np.float32(0.25), np.float32(0.5), np.float32(1)


def columns(width):
    """Cells in a row that holds `width` pixels."""
    return LANES * -(-width // LANES)


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
        for x in range(count):
            s0, s1, s2 = image[y, x] * g[0], ZERO, ZERO
            for k in range(1, n + 1):
                above, below = image[max(y - k, 0), x], image[min(y + k, bottom), x]
                both = above + below
                s0 += g[k] * both
                s1 += xg[k] * (below - above)
                s2 += xxg[k] * both
            at = np.uintp(x) + np.uintp(n)  # unsigned: no test for an index from the end
            sums[0, at], sums[1, at], sums[2, at] = s0, s1, s2

    return down


def expand_along(n, real):
    """The row kernel that sums 2n + 1 columns and solves for the polynomial's coefficients.

    `real` is the type that it sums in: OpenCV's is float64.
    """

    @row
    def along(count, sums, g, xg, xxg, i11, i03, i33, i55, c_y, c_x, c_yy, c_xx, c_xy):
        for x in range(count):
            at = np.uintp(x) + np.uintp(n)
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
            c_y[x] = np.float32(b3 * i11)
            c_x[x] = np.float32(b2 * i11)
            c_yy[x] = np.float32(b1 * i03 + b5 * i33)
            c_xx[x] = np.float32(b1 * i03 + b4 * i33)
            c_xy[x] = np.float32(b6 * i55)

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
    sums = np.zeros((3, count + 2 * n), np.float32)
    for y in range(height):
        if n == 5:
            down5(y, height - 1, count, image, g, xg, xxg, sums)
        else:
            down7(y, height - 1, count, image, g, xg, xxg, sums)
        repeat_edges(sums, n, width, n)
        out = planes[y]
        c_y, c_x, c_yy, c_xx, c_xy = out[0], out[1], out[2], out[3], out[4]
        if n == 5:
            along5(count, sums, g, xg, xxg, i11, i03, i33, i55, c_y, c_x, c_yy, c_xx, c_xy)
        elif single:
            along7_single(
                count, sums, g, xg, xxg, np.float32(i11), np.float32(i03), np.float32(i33),
                np.float32(i55), c_y, c_x, c_yy, c_xx, c_xy,
            )  # fmt: skip
        else:
            along7(count, sums, g, xg, xxg, i11, i03, i33, i55, c_y, c_x, c_yy, c_xx, c_xy)


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
        flat, index, *weights, target = (
            context.make_array(signature.args[k])(context, builder, args[k]).data
            for k in (0, 2, 3, 4, 5, 6, 8)
        )
        stride, x, columns = args[1], args[7], args[9]
        i32, i64, lanes = ir.IntType(32), stride.type, range(SPARE)
        vector = ir.VectorType(ir.FloatType(), SPARE)
        undefined = ir.Constant(vector, ir.Undefined)

        def shuffle(one, other, places):
            mask = ir.Constant(ir.VectorType(i32, SPARE), places)
            return builder.shuffle_vector(one, other, mask)

        def vector_at(base, place):
            return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())

        pixel_rows = []
        for lane in lanes:
            place = builder.add(x, i64(lane))
            start = builder.load(builder.gep(index, [place]))
            start = builder.select(builder.icmp_signed("<", start, i32(0)), i32(0), start)
            start = builder.sext(start, i64)
            below = builder.add(start, stride)
            right = i64(PLANES)
            corners = [start, builder.add(start, right), below, builder.add(below, right)]
            total = None
            for corner, weight in zip(corners, weights, strict=True):
                one = builder.load(builder.gep(weight, [place]))
                spread = builder.insert_element(undefined, one, i32(0))
                spread = shuffle(spread, undefined, [0] * SPARE)
                term = builder.fmul(builder.load(vector_at(flat, corner), align=4), spread)
                total = term if total is None else builder.fadd(total, term)
            pixel_rows.append(total)
        # rows of pixels to rows of channels: pairs, fours, then halves are interleaved
        low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
        pairs = [
            [shuffle(*pixel_rows[k : k + 2], mask) for mask in (low, high)] for k in (0, 2, 4, 6)
        ]
        first, second = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
        fours = [
            [shuffle(a, b, mask) for a, b in zip(pairs[k], pairs[k + 1], strict=True)
             for mask in (first, second)]
            for k in (0, 2)
        ]  # fmt: skip
        halves = ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
        for channel in range(PLANES):
            left, right = (four[channel % 4] for four in fours)
            place = builder.add(builder.mul(i64(channel), columns), x)
            values = shuffle(left, right, halves[channel // 4])
            builder.store(values, vector_at(target, place), align=4)
        return context.get_dummy_value()

    return signature, codegen


@pixel
def clamp(value, low, high):
    """The value within low and high; NaN becomes low."""
    value = value if value > low else low
    return value if value < high else high


@row
def tap_row(y, height, width, count, u, v, starts, w00, w01, w10, w11):
    """Where the four pixels around each position x + u begin, and their weights.

    `starts` is -1 where not all four are in the frame.
    """
    outside, right, bottom = np.float32(-1), np.float32(width), np.float32(height)
    for x in range(count):
        at_x = np.float32(np.int32(x)) + u[x]
        at_y = np.float32(np.int32(y)) + v[x]
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
def sample_row(count, pixels, stride, starts, w00, w01, w10, w11, sampled):
    """The second frame's coefficients at the taps of a row, into `sampled` (PLANES, count)."""
    for x in range(0, count, SPARE):
        sample_eight(pixels, stride, starts, w00, w01, w10, w11, x, sampled, count)


@row
def matrix_row(count, u, v, first, starts, second, edge, matrices):
    """G11, G12, G22, h1 and h2 of a row, whose blurred equations G (v, u) = h give the field.

    Where the position lies outside the frame, the second frame counts as the first one's curvature
    with no slope. `edge` is the weight of each pixel.
    """
    for x in range(count):
        inside = starts[x] >= 0
        y0, x0, yy0, xx0, xy0 = first[0, x], first[1, x], first[2, x], first[3, x], first[4, x]
        y1, x1, yy1, xx1, xy1 = second[0, x], second[1, x], second[2, x], second[3, x], second[4, x]
        y1 = y1 if inside else ZERO
        x1 = x1 if inside else ZERO
        yy1 = yy1 if inside else yy0
        xx1 = xx1 if inside else xx0
        xy1 = xy1 if inside else xy0
        yy = (yy0 + yy1) * HALF
        xx = (xx0 + xx1) * HALF
        xy = (xy0 + xy1) * QUARTER
        down = (y0 - y1) * HALF + (yy * v[x] + xy * u[x])
        along = (x0 - x1) * HALF + (xy * v[x] + xx * u[x])
        weight = edge[x]
        down *= weight
        along *= weight
        yy *= weight
        xx *= weight
        xy *= weight
        matrices[0, x] = yy * yy + xy * xy
        matrices[1, x] = (yy + xx) * xy
        matrices[2, x] = xx * xx + xy * xy
        matrices[3, x] = yy * down + xy * along
        matrices[4, x] = xy * down + xx * along


@row
def interleave_row(width, planes, start, pixels):
    for x in range(width):
        at = np.uintp(start) + np.uintp(x) * np.uintp(PLANES)
        pixels[at] = planes[0, x]
        pixels[at + np.uintp(1)] = planes[1, x]
        pixels[at + np.uintp(2)] = planes[2, x]
        pixels[at + np.uintp(3)] = planes[3, x]
        pixels[at + np.uintp(4)] = planes[4, x]


@whole
def interleave(planes, width):
    """An expansion (H, PLANES, columns) as one row of pixels with their channels together."""
    height = planes.shape[0]
    pixels = np.empty(height * width * PLANES + SPARE, np.float32)
    pixels[height * width * PLANES :] = ZERO
    for y in range(height):
        interleave_row(width, planes[y], y * width * PLANES, pixels)
    return pixels


# --- the blur and the field of a row ---


@row
def add_change(count, new, old, sums):
    for x in range(count):
        sums[x] += np.float64(new[x] - old[x])


@whole
def start_sums(height, width, half, matrices, first, sums):
    """The column sums before row 0 is reached: its window less its last row, plus row 0 once."""
    for c in range(PLANES):
        for x in range(width):
            sums[c, first + x] = np.float64(matrices[0, c, x] * np.float32(half + 2))
        for y in range(1, half):
            for x in range(width):
                sums[c, first + x] += np.float64(matrices[min(y, height - 1), c, x])


@row
def box_along(width, half, sums, first, box):
    """Running sums of 2 half + 1 columns, five at once: a row's sums wait for each other."""
    times = np.float64(half + 2)
    g11, g12, g22 = sums[0, first] * times, sums[1, first] * times, sums[2, first] * times
    h1, h2 = sums[3, first] * times, sums[4, first] * times
    for x in range(first + 1, first + half):
        g11 += sums[0, x]
        g12 += sums[1, x]
        g22 += sums[2, x]
        h1 += sums[3, x]
        h2 += sums[4, x]
    for x in range(width):
        new, old = first + x + half, first + x - half - 1
        g11 += sums[0, new] - sums[0, old]
        g12 += sums[1, new] - sums[1, old]
        g22 += sums[2, new] - sums[2, old]
        h1 += sums[3, new] - sums[3, old]
        h2 += sums[4, new] - sums[4, old]
        box[0, x] = g11
        box[1, x] = g12
        box[2, x] = g22
        box[3, x] = h1
        box[4, x] = h2


@row
def first_tap(count, center, weight, sums):
    for x in range(count):
        sums[x] = center[x] * weight


@row
def next_tap(count, before, after, weight, sums):
    for x in range(count):
        sums[x] += (after[x] + before[x]) * weight


def all_taps(n):
    """The row kernels of a window of 2n + 1: n is constant, so that sums stay in registers."""

    @row
    def down(count, ring, c, y, above, below, weights, sums, first):
        for x in range(count):
            total = ring[y, c, x] * weights[0]
            for k in range(n):
                total += (ring[below[k], c, x] + ring[above[k], c, x]) * weights[k + 1]
            sums[c, np.uintp(first) + np.uintp(x)] = total

    @row
    def along(count, sums, c, first, weights, blurred):
        for x in range(count):
            at = np.uintp(first) + np.uintp(x)
            total = sums[c, at] * weights[0]
            for k in range(1, n + 1):
                total += (sums[c, at + np.uintp(k)] + sums[c, at - np.uintp(k)]) * weights[k]
            blurred[c, x] = total

    return down, along


down_window5, along_window5 = all_taps(5)
down_window6, along_window6 = all_taps(6)


@row
def solve_row(count, blurred, scale, u, v):
    """The field of a row: the solution of its 2 x 2 equations."""
    for x in range(count):
        g11, g12, g22 = blurred[0, x] * scale, blurred[1, x] * scale, blurred[2, x] * scale
        h1, h2 = blurred[3, x] * scale, blurred[4, x] * scale
        inverse = 1.0 / (g11 * g22 - g12 * g12 + REGULARIZATION)
        u[x] = np.float32((g11 * h2 - g12 * h1) * inverse)
        v[x] = np.float32((g22 * h1 - g12 * h2) * inverse)


# --- a level ---


@whole
def solve_level(flow, first, second, width, edges, win_size, gaussian, iterations):
    """The field of one level, in place: `flow` holds its start, then its result.

    flow: float32 (2, H, columns(width)), u and v. first, second: expansions, float32 (H, PLANES,
    columns). edges: float32 (min(H, 11), columns), the weights of the five upper rows, of those
    between and of the five lower rows. gaussian: float32, the window from its center outward, or
    empty for a box of `win_size`. Does not hold the GIL.

    One pass an iteration: the matrices of a row are made just before the window reaches it, and a
    ring keeps those of the window; the field of a row is solved once its own matrices are made.
    """
    height, count = flow.shape[1:]
    half = win_size // 2
    box = len(gaussian) == 0
    scale = 1.0 / (win_size * win_size)
    u, v = flow[0], flow[1]
    pixels = interleave(second, width)
    stride = np.intp(width * PLANES)
    starts = np.zeros(count, np.int32)
    weights = np.zeros((4, count), np.float32)
    w00, w01, w10, w11 = weights[0], weights[1], weights[2], weights[3]
    sampled = np.zeros((PLANES, count), np.float32)
    slots = 2 * half + 2
    ring = np.zeros((slots, PLANES, count), np.float32)
    left = half + 1
    box_sums = np.zeros((PLANES, count + 2 * left))
    box_blurred = np.zeros((PLANES, count))
    gaussian_sums = np.zeros((PLANES, count + 2 * left), np.float32)
    gaussian_blurred = np.zeros((PLANES, count), np.float32)

    for _ in range(iterations):
        made = 0
        for y in range(height):
            while made < min(y + half + 1, height):
                tap_row(made, height, width, count, u[made], v[made], starts, w00, w01, w10, w11)
                sample_row(count, pixels, stride, starts, w00, w01, w10, w11, sampled)
                edge = edges[made if made < 6 else max(5, len(edges) - (height - made))]
                matrix_row(
                    count, u[made], v[made], first[made], starts, sampled, edge, ring[made % slots]
                )
                made += 1
            if box:
                if y == 0:
                    start_sums(height, width, half, ring, left, box_sums)
                new = ring[min(y + half, height - 1) % slots]
                old = ring[max(y - half - 1, 0) % slots]
                for c in range(PLANES):
                    add_change(count, new[c], old[c], box_sums[c, left:])
                repeat_edges(box_sums, left, width, left)
                box_along(width, half, box_sums, left, box_blurred)
                solve_row(count, box_blurred, scale, u[y], v[y])
            else:
                gaussian_row(
                    y, height, width, ring, gaussian, left, gaussian_sums, gaussian_blurred
                )
                solve_row(count, gaussian_blurred, 1.0, u[y], v[y])


@whole
def gaussian_row(y, height, width, ring, gaussian, left, sums, blurred):
    """The matrices of a row blurred by a Gaussian, edges repeated: down, then along."""
    slots, _, count = ring.shape
    n = len(gaussian) - 1
    above, below = np.empty(n, np.uintp), np.empty(n, np.uintp)
    for k in range(n):
        above[k], below[k] = max(y - k - 1, 0) % slots, min(y + k + 1, height - 1) % slots
    center = np.uintp(y % slots)
    for c in range(PLANES):
        if n == 5:
            down_window5(count, ring, c, center, above, below, gaussian, sums, left)
        elif n == 6:
            down_window6(count, ring, c, center, above, below, gaussian, sums, left)
        else:
            first_tap(count, ring[center, c], gaussian[0], sums[c, left:])
            for k in range(n):
                before, after = ring[above[k], c], ring[below[k], c]
                next_tap(count, before, after, gaussian[k + 1], sums[c, left:])
    repeat_edges(sums, left, width, left)
    for c in range(PLANES):
        if n == 5:
            along_window5(count, sums, c, left, gaussian, blurred)
        elif n == 6:
            along_window6(count, sums, c, left, gaussian, blurred)
        else:
            first_tap(count, sums[c, left:], gaussian[0], blurred[c])
            for k in range(1, n + 1):
                before, after = sums[c, left - k :], sums[c, left + k :]
                next_tap(count, before, after, gaussian[k], blurred[c])


_rows = types.float32[:, ::1]
_cube = types.float32[:, :, ::1]
EXPAND = (_rows, types.int64, _rows, types.float64[::1], types.boolean, _cube)
SOLVE_LEVEL = (
    _cube, _cube, _cube, types.int64, _rows, types.int64, types.float32[::1], types.int64,
)  # fmt: skip
