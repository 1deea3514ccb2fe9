# mypy: ignore-errors
"""Trajectories' flow in compiled loops: polynomial expansion, and the field of one level.

Importing this module imports Numba and compiles nothing: `flowkit.idt.tracking` compiles and keeps
the result on disk. Numba, not mypy, types these functions.

The method is that of `flowkit.flow.farneback_kernels`, for one window and one expansion, and for
speed where that one repeats OpenCV's last digits: float32 throughout, multiplications and additions
fused, four rows of the window at once, and expansions stored once, pixel by pixel. Loops run over
whole rows of `columns(width)` cells; those right of the frame hold what no pixel reads.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from flowkit.flow.farneback_kernels import PLANES
from flowkit.flow.lanes import LANES, LINE, NoAlias, Vectors, aligned, pointers, wide

POLY_N = 7  # px from the center of the expansion to its edge
HALF = 5  # px from the center of the window to its edge
BLOCK = 4  # rows of the field that are solved together
SLOTS = 16  # rows of matrices that are kept: at least BLOCK + 2 HALF
BESIDE = 16  # cells left and right of a row whose window is summed
SPARE = 80  # floats behind an expansion: the cells of the last row, and what is read past a pixel
STRIDE = PLANES  # floats of a pixel: y, x, y^2, x^2, xy
REGULARIZATION = np.float32(1e-3)  # added to the determinant

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
FUSED = {"contract"}  # a product and a sum in one step, rounded once

row = njit(error_model="numpy", pipeline_class=NoAlias, fastmath=FUSED)
pixel = njit(error_model="numpy", forceinline=True, fastmath=FUSED)
whole = njit(error_model="numpy", nogil=True, fastmath=FUSED)


# --- eight and sixteen pixels at once ---


def _places(builder, count, start, x, columns):
    """Where the pixels from `x` on are in each of so many rows from `start` on."""
    first = builder.add(start, x)
    return [builder.add(first, builder.mul(x.type(k), columns)) for k in range(count)]


@intrinsic
def interleave_sixteen(typingctx, planes, columns, x, pixels, start):
    """Put PLANES rows of LINE pixels, from `x` on, as pixels with their planes together.

    planes: (PLANES, columns). pixels is flat; the first goes to `start`.
    """
    signature = types.void(planes, types.intp, types.intp, pixels, types.intp)

    def codegen(context, builder, signature, args):
        source, target = pointers(context, builder, signature, args, (0, 3))
        columns, x, start = args[1], args[2], args[4]
        vectors, number = Vectors(builder, LINE), x.type
        rows = [
            vectors.load(source, place) for place in _places(builder, PLANES, number(0), x, columns)
        ]
        for first in range(0, PLANES * LINE, LINE):
            pixel, plane = np.divmod(np.arange(first, first + LINE), PLANES)
            one = vectors.shuffle(rows[0], rows[1], pixel + LINE * (plane == 1))
            other = vectors.shuffle(rows[2], rows[3], pixel + LINE * (plane == 3))
            four = vectors.shuffle(one, other, np.arange(LINE) + LINE * (plane > 1))
            every = np.where(plane == 4, LINE + pixel, np.arange(LINE))
            five = vectors.shuffle(four, rows[4], every)
            vectors.store(five, target, builder.add(start, number(first)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def equations_eight(
    typingctx, first, start, second, line, u, v, here, taps, w00, w01, w10, w11, slopes, curvatures,
    x, ring, place, columns,
):  # fmt: skip
    """The equations of eight pixels, from `x` on, whose blurred sums G (v, u) = h give the field.

    They are made of half the difference of both expansions' slopes y and x, and of the mean of
    their curvatures y^2, x^2 and, halved, xy: `first` at the pixels, whose row begins at `start`,
    and `second` at the four pixels around each position, of which `taps` is the first, `line` a row
    and w00 to w11 the weights; `slopes` and `curvatures` are weights, too. u, v, taps and all
    weights are the row's, u and v from `here` on. The result, (PLANES, columns), begins at `place`
    in `ring`: G11, G12, G22, h1, h2.
    """
    signature = types.void(
        first, types.intp, second, types.intp, u, v, types.intp, taps, w00, w01, w10, w11, slopes,
        curvatures, types.intp, ring, types.intp, types.intp,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        mine, other, along, down, index, *around, steep, curved, target = pointers(
            context, builder, signature, args, (0, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 15)
        )
        start, line, row, x, place, columns = (args[k] for k in (1, 3, 6, 14, 16, 17))
        vectors, number = Vectors(builder), x.type
        multiply, add = vectors.multiply, vectors.add
        own = ir.Constant(vectors.floats, [0.5, 0.5, 0.5, 0.5, 0.25, 0.0, 0.0, 0.0])
        theirs = ir.Constant(vectors.floats, [-0.5, -0.5, 0.5, 0.5, 0.25, 0.0, 0.0, 0.0])
        rows = []
        for lane in range(LANES):
            at = builder.add(x, number(lane))
            corner = builder.sext(builder.load(builder.gep(index, [at])), number)
            below = builder.add(corner, line)
            corners = (corner, builder.add(corner, number(STRIDE)),
                       below, builder.add(below, number(STRIDE)))  # fmt: skip
            total = None
            for one, weight in zip(corners, around, strict=True):
                term = multiply(vectors.load(other, one), vectors.spread(weight, at))
                total = term if total is None else add(total, term)
            here = vectors.load(mine, builder.add(start, builder.mul(at, number(STRIDE))))
            rows.append(add(multiply(total, theirs), multiply(here, own)))
        slope_y, slope_x, yy, xx, xy = vectors.turn(rows)[:PLANES]
        u, v = (vectors.load(base, builder.add(row, x)) for base in (along, down))
        slopes, curvatures = vectors.load(steep, x), vectors.load(curved, x)
        yy, xx, xy = (multiply(one, curvatures) for one in (yy, xx, xy))
        high = add(multiply(slope_y, slopes), add(multiply(yy, v), multiply(xy, u)))
        wide = add(multiply(slope_x, slopes), add(multiply(xy, v), multiply(xx, u)))
        results = (
            add(multiply(yy, yy), multiply(xy, xy)),
            multiply(add(yy, xx), xy),
            add(multiply(xx, xx), multiply(xy, xy)),
            add(multiply(yy, high), multiply(xy, wide)),
            add(multiply(xy, high), multiply(xx, wide)),
        )
        place = builder.add(place, x)
        for plane, values in enumerate(results):
            vectors.store(values, target, builder.add(place, builder.mul(number(plane), columns)))
        return context.get_dummy_value()

    return signature, codegen


# --- smaller versions ---


@pixel
def between(place, count, ratio):
    """The pixel before a place of the larger grid, the one after, and the weight of the latter."""
    at = np.float32((place + 0.5) * ratio - 0.5)
    first = int(np.floor(at))
    part = at - np.float32(first)
    if first < 0:
        first, part = 0, ZERO
    if first >= count - 1:
        first, part = count - 1, ZERO
    return first, min(first + 1, count - 1), part


@pixel
def betweens(columns, width):
    """Of each column of the smaller grid what `between` says."""
    firsts, seconds = np.empty(columns, np.uintp), np.empty(columns, np.uintp)
    parts = np.empty(columns, np.float32)
    for x in range(columns):
        firsts[x], seconds[x], parts[x] = between(x, width, width / columns)
    return firsts, seconds, parts


@row
def mix_along(count, image, y, firsts, seconds, parts, mixed, into):
    wide()
    for x in range(count):
        part = parts[x]
        mixed[into, x] = image[y, firsts[x]] * (ONE - part) + image[y, seconds[x]] * part


@row
def mix_down(count, mixed, above, below, part, factor, small, y):
    wide()
    for x in range(count):
        small[y, x] = (mixed[above, x] * (ONE - part) + mixed[below, x] * part) * factor


@whole
def resize(image, width, factor, small, columns):
    """Fill `columns` of `small` with `width` of `image`, bilinear, times a factor, float32 both.

    In the arithmetic of OpenCV's portable code, which the authors' program ran: the faster code of
    newer versions gives other last digits, and a track's rounding now and then depends on them.
    """
    height, rows = len(image), len(small)
    if rows == height and columns == width:
        small[:, :width] = image[:, :width] * factor
        return
    firsts, seconds, parts = betweens(columns, width)
    mixed = np.empty((2, columns), np.float32)  # row y of the image, at its new width, in y % 2
    held = np.full(2, -1)
    for y in range(rows):
        y0, y1, down = between(y, height, height / rows)
        for at in (y0, y1):
            if held[at % 2] != at:
                held[at % 2] = at
                into = np.uintp(at % 2)
                mix_along(columns, image, np.uintp(at), firsts, seconds, parts, mixed, into)
        above, below = np.uintp(y0 % 2), np.uintp(y1 % 2)
        mix_down(columns, mixed, above, below, down, factor, small, np.uintp(y))


@pixel
def mirror(place, count):
    """The place within a side whose pixels beyond the edge mirror those before it."""
    return np.uintp(abs(place) if place < count else 2 * count - 2 - place)


@row
def smooth_down(gray, y, gaussian, beside, wider):
    """A row of the gray under a Gaussian down, from cell `beside` of `wider` on, mirrored there."""
    wide()
    height, width = gray.shape
    n, here, start = len(gaussian) - 1, mirror(y, height), np.uintp(beside)
    for x in range(width):
        wider[np.uintp(x) + start] = np.float32(gray[here, x]) * gaussian[0]
    for k in range(1, n + 1):
        above, below, weight = mirror(y - k, height), mirror(y + k, height), gaussian[k]
        for x in range(width):
            both = np.float32(gray[above, x]) + np.float32(gray[below, x])
            wider[np.uintp(x) + start] += both * weight
    for k in range(1, n + 1):
        wider[beside - k] = wider[beside + k]
        wider[beside + width - 1 + k] = wider[beside + width - 1 - k]


@row
def smooth_along(width, gaussian, beside, wider, smooth, y):
    wide()
    y = np.uintp(y)
    for x in range(width):
        smooth[y, x] = wider[np.uintp(x) + np.uintp(beside)] * gaussian[0]
    for k in range(1, len(gaussian)):
        left, right, weight = np.uintp(beside - k), np.uintp(beside + k), gaussian[k]
        for x in range(width):
            smooth[y, x] += (wider[np.uintp(x) + left] + wider[np.uintp(x) + right]) * weight


@whole
def shrink(gray, gaussian, small, columns):
    """Fill `columns` of `small` with the gray under a Gaussian, bilinear.

    gray: uint8 (H, W), mirrored at its edge. gaussian: float32, from its center outward. Only those
    rows are smoothed that a row of `small` lies between.
    """
    height, width = gray.shape
    rows = len(small)
    beside = -(-len(gaussian) // LINE) * LINE
    wider = aligned(width + 2 * beside)
    if rows == height and columns == width:
        for y in range(rows):
            smooth_down(gray, y, gaussian, beside, wider)
            smooth_along(width, gaussian, beside, wider, small, y)
        return
    smooth = aligned(width).reshape(1, width)
    firsts, seconds, parts = betweens(columns, width)
    mixed = np.empty((2, columns), np.float32)  # row y of the gray, at its new width, in y % 2
    held = np.full(2, -1)
    for y in range(rows):
        y0, y1, down = between(y, height, height / rows)
        for at in (y0, y1):
            if held[at % 2] != at:
                held[at % 2] = at
                smooth_down(gray, at, gaussian, beside, wider)
                smooth_along(width, gaussian, beside, wider, smooth, 0)
                into = np.uintp(at % 2)
                mix_along(columns, smooth, np.uintp(0), firsts, seconds, parts, mixed, into)
        above, below = np.uintp(y0 % 2), np.uintp(y1 % 2)
        mix_down(columns, mixed, above, below, down, ONE, small, np.uintp(y))


@row
def extend(rows, width):
    """Repeat the first and the last pixel of rows that begin after BESIDE cells, to either side."""
    for k in range(rows.shape[0]):
        left, right = rows[k, BESIDE], rows[k, BESIDE + width - 1]
        for x in range(BESIDE):
            rows[k, x] = left
        for x in range(BESIDE):
            rows[k, BESIDE + width + x] = right


# --- polynomial expansion ---


@row
def expand_down(y, bottom, count, image, g, xg, xxg, sums):
    """Sum 15 pixels of each column of the frame under the weights 1, y and y^2."""
    wide()
    for x in range(count):
        s0, s1, s2 = image[y, x] * g[0], ZERO, ZERO
        for k in range(1, POLY_N + 1):
            above, below = image[max(y - k, 0), x], image[min(y + k, bottom), x]
            both = above + below
            s0 += g[k] * both
            s1 += xg[k] * (below - above)
            s2 += xxg[k] * both
        at = np.uintp(x) + np.uintp(BESIDE)
        sums[0, at], sums[1, at], sums[2, at] = s0, s1, s2


@row
def expand_along(count, sums, g, xg, xxg, i11, i03, i33, i55, planes):
    """Sum 15 columns and solve for the polynomial's coefficients."""
    wide()
    for x in range(count):
        at = np.uintp(x) + np.uintp(BESIDE)
        b1, b3, b5 = sums[0, at] * g[0], sums[1, at] * g[0], sums[2, at] * g[0]
        b2 = b4 = b6 = ZERO
        for k in range(1, POLY_N + 1):
            left, right = at - np.uintp(k), at + np.uintp(k)
            both = sums[0, right] + sums[0, left]
            b1 += both * g[k]
            b4 += both * xxg[k]
            b2 += (sums[0, right] - sums[0, left]) * xg[k]
            b3 += (sums[1, right] + sums[1, left]) * g[k]
            b6 += (sums[1, right] - sums[1, left]) * xg[k]
            b5 += (sums[2, right] + sums[2, left]) * g[k]
        planes[0, x] = b3 * i11
        planes[1, x] = b2 * i11
        planes[2, x] = b1 * i03 + b5 * i33
        planes[3, x] = b1 * i03 + b4 * i33
        planes[4, x] = b6 * i55


@row
def interleave_row(count, planes, pixels, start):
    for x in range(0, count, LINE):
        interleave_sixteen(planes, count, x, pixels, start + x * STRIDE)


@whole
def expand(image, width, weights, inverse, pixels):
    """The coefficients of y, x, y^2, x^2 and xy around every pixel.

    image: float32 (H, columns(width)). weights: float32 (3, POLY_N + 1), the Gaussian g(k), k g(k)
    and k^2 g(k) from its center outward. inverse: float32 (4,), the elements (1, 1), (0, 3), (3, 3)
    and (5, 5) of the inverted metric. pixels, the result: float32 (H * width * PLANES + SPARE), row
    by row. Pixels outside the frame equal the nearest one inside.
    """
    height, count = image.shape
    g, xg, xxg = weights[0], weights[1], weights[2]
    sums = aligned(3 * (count + 2 * BESIDE)).reshape(3, count + 2 * BESIDE)
    planes = aligned(PLANES * count).reshape(PLANES, count)
    for y in range(height):
        expand_down(y, height - 1, count, image, g, xg, xxg, sums)
        extend(sums, width)
        expand_along(
            count, sums, g, xg, xxg, inverse[0], inverse[1], inverse[2], inverse[3], planes
        )
        interleave_row(count, planes, pixels, y * width * STRIDE)


# --- the equations of a row: both expansions at the present field ---


@row
def tap_row(y, width, u, v, edges, taps, w00, w01, w10, w11, slopes, curvatures):
    """Where the four pixels around each position x + u begin, their weights, and the equations'.

    Where not all four are in the frame, their weights are 0, and the curvatures of the first
    expansion count twice.
    """
    wide()
    height, count = u.shape
    right, bottom, here = np.float32(width - 1), np.float32(height - 1), np.float32(y)
    edge = y if y < 6 else max(5, len(edges) - (height - y))
    y, edge = np.uintp(y), np.uintp(edge)
    for x in range(count):
        at_x, at_y = np.float32(np.int32(x)) + u[y, x], here + v[y, x]
        left, top = np.floor(at_x), np.floor(at_y)
        inside = (left >= ZERO) & (left < right) & (top >= ZERO) & (top < bottom)
        column, line = np.int32(left if inside else ZERO), np.int32(top if inside else ZERO)
        taps[x] = np.int32(np.int32(line * np.int32(width)) + column) * np.int32(STRIDE)
        share = ONE if inside else ZERO
        along = at_x - left if inside else ZERO
        down = at_y - top if inside else ZERO
        w11[x] = along * down
        w01[x] = along * (share - down)
        w10[x] = down - along * down
        w00[x] = (share - down) - along * (share - down)
        slopes[x] = edges[edge, x]
        curvatures[x] = edges[edge, x] * (TWO - share)


@row
def equations_row(
    y, width, first, second, u, v, taps, w00, w01, w10, w11, slopes, curvatures, ring, place
):  # fmt: skip
    count, line = len(taps), width * STRIDE
    for x in range(0, count, LANES):
        equations_eight(
            first, y * line, second, line, u, v, y * count, taps, w00, w01, w10, w11, slopes,
            curvatures, x, ring, place, count,
        )  # fmt: skip


# --- the window and the field of a row ---


@pixel
def mix(w, center, one, two, three, four, five):
    """A pixel under the window: its center, and the sums of the pairs around it."""
    return center * w[0] + one * w[1] + two * w[2] + three * w[3] + four * w[4] + five * w[5]


@pixel
def near(ring, y, plane, x, height):
    """A cell of a row that the ring keeps; of one beyond the level, its nearest."""
    return ring[np.uintp(min(max(y, 0), height - 1) % SLOTS), plane, x]


@row
def blur_down(y, height, ring, plane, weights, sums):
    """Four rows of a plane under the window, from `y` on: sums[0] to sums[3]."""
    wide()
    w = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5]
    plane, k0, k1, k2, k3 = np.uintp(plane), np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(3)
    for x in range(ring.shape[2]):
        at = np.uintp(x) + np.uintp(BESIDE)
        a0, a1 = near(ring, y - 5, plane, x, height), near(ring, y - 4, plane, x, height)
        a2, a3 = near(ring, y - 3, plane, x, height), near(ring, y - 2, plane, x, height)
        a4, a5 = near(ring, y - 1, plane, x, height), near(ring, y, plane, x, height)
        a6, a7 = near(ring, y + 1, plane, x, height), near(ring, y + 2, plane, x, height)
        a8, a9 = near(ring, y + 3, plane, x, height), near(ring, y + 4, plane, x, height)
        a10, a11 = near(ring, y + 5, plane, x, height), near(ring, y + 6, plane, x, height)
        a12, a13 = near(ring, y + 7, plane, x, height), near(ring, y + 8, plane, x, height)
        sums[k0, plane, at] = mix(w, a5, a4 + a6, a3 + a7, a2 + a8, a1 + a9, a0 + a10)
        sums[k1, plane, at] = mix(w, a6, a5 + a7, a4 + a8, a3 + a9, a2 + a10, a1 + a11)
        sums[k2, plane, at] = mix(w, a7, a6 + a8, a5 + a9, a4 + a10, a3 + a11, a2 + a12)
        sums[k3, plane, at] = mix(w, a8, a7 + a9, a6 + a10, a5 + a11, a4 + a12, a3 + a13)


@pixel
def pairs(sums, k, plane, at, away):
    return sums[k, plane, at - np.uintp(away)] + sums[k, plane, at + np.uintp(away)]


@pixel
def blur_along(w, s, k, plane, x):
    at, plane = np.uintp(x) + np.uintp(BESIDE), np.uintp(plane)
    return mix(
        w, s[k, plane, at], pairs(s, k, plane, at, 1), pairs(s, k, plane, at, 2),
        pairs(s, k, plane, at, 3), pairs(s, k, plane, at, 4), pairs(s, k, plane, at, 5),
    )  # fmt: skip


@row
def solve_row(k, sums, weights, u, v, y):
    """The field of a row: the solution of its 2 x 2 equations, their sums blurred along the row."""
    wide()
    w = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5]
    k, y = np.uintp(k), np.uintp(y)
    for x in range(u.shape[1]):
        g11, g12 = blur_along(w, sums, k, 0, x), blur_along(w, sums, k, 1, x)
        g22 = blur_along(w, sums, k, 2, x)
        h1, h2 = blur_along(w, sums, k, 3, x), blur_along(w, sums, k, 4, x)
        inverse = ONE / (g11 * g22 - g12 * g12 + REGULARIZATION)
        u[y, x] = (g11 * h2 - g12 * h1) * inverse
        v[y, x] = (g22 * h1 - g12 * h2) * inverse


# --- a level ---


@whole
def solve_level(flow, first, second, width, edges, window, iterations):
    """The field of one level, in place: `flow` holds its start, then its result.

    flow: float32 (2, H, columns(width)), u and v. first, second: expansions, as `expand` gives
    them. edges: float32 (min(H, 11), columns), the weights of the five upper rows, of those between
    and of the five lower rows. window: float32 (HALF + 1,), a Gaussian from its center outward.
    Does not hold the GIL.

    One pass an iteration: the matrices of a row are made just before the window reaches it, a ring
    keeps those of the window, and a row is solved once its own matrices are made.
    """
    height, count = flow.shape[1:]
    u, v = flow[0], flow[1]
    taps = np.zeros(count, np.int32)
    w00, w01, w10, w11 = aligned(count), aligned(count), aligned(count), aligned(count)
    slopes, curvatures = aligned(count), aligned(count)
    flat = aligned(SLOTS * PLANES * count)
    ring = flat.reshape(SLOTS, PLANES, count)
    beside = count + 2 * BESIDE
    flat_sums = aligned(BLOCK * PLANES * beside).reshape(BLOCK * PLANES, beside)
    sums = flat_sums.reshape(BLOCK, PLANES, beside)
    for _ in range(iterations):
        made = 0
        for top in range(0, height, BLOCK):
            while made < min(top + BLOCK + HALF, height):
                tap_row(
                    made, width, u, v, edges, taps, w00, w01, w10, w11, slopes, curvatures
                )  # fmt: skip
                equations_row(
                    made, width, first, second, u, v, taps, w00, w01, w10, w11, slopes, curvatures,
                    flat, made % SLOTS * PLANES * count,
                )  # fmt: skip
                made += 1
            for plane in range(PLANES):
                blur_down(top, height, ring, plane, window, sums)
            extend(flat_sums, width)
            for k in range(min(BLOCK, height - top)):
                solve_row(k, sums, window, u, v, top + k)


# --- the median of 5 x 5 pixels ---


@intrinsic
def sort_sixteen(typingctx, pixels, x, columns, sorted, target):
    """Sort the five pixels from each of LINE on, from `x`: at `target` of sorted (5, columns)."""
    signature = types.void(pixels, types.intp, types.intp, sorted, types.intp)

    def codegen(context, builder, signature, args):
        source, result = pointers(context, builder, signature, args, (0, 3))
        x, columns, target = args[1], args[2], args[4]
        vectors = Vectors(builder, LINE)
        five = [[vectors.load(source, builder.add(x, x.type(k)))] for k in range(5)]
        first = vectors.merge(five[0], five[1])
        second = vectors.merge(five[2], vectors.merge(five[3], five[4]))
        places = _places(builder, 5, target, x, columns)
        for place, values in zip(places, vectors.merge(first, second), strict=True):
            vectors.store(values, result, place)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def merge_sixteen(typingctx, sorted, one, other, x, columns, merged, target):
    """Merge two rows of five sorted pixels, for LINE pixels from `x` on.

    They begin at `one` and `other` of sorted (5, columns), the result at `target` of
    merged (10, columns).
    """
    signature = types.void(
        sorted, types.intp, types.intp, types.intp, types.intp, merged, types.intp
    )

    def codegen(context, builder, signature, args):
        source, result = pointers(context, builder, signature, args, (0, 5))
        one, other, x, columns, target = (args[k] for k in (1, 2, 3, 4, 6))
        vectors = Vectors(builder, LINE)
        rows = [
            [vectors.load(source, place) for place in _places(builder, 5, start, x, columns)]
            for start in (one, other)
        ]
        places = _places(builder, 10, target, x, columns)
        for place, values in zip(places, vectors.merge(*rows), strict=True):
            vectors.store(values, result, place)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def median_sixteen(typingctx, merged, upper, lower, sorted, above, below, x, columns, rows):
    """The medians of two rows for LINE pixels, from `x` on: rows (2, columns).

    At `upper` and `lower` of `merged` are the pixels of two and two rows merged, which both windows
    hold; at `above` and `below` of `sorted` those of the row that only the higher or the lower
    window holds.
    """
    signature = types.void(
        merged, types.intp, types.intp, sorted, types.intp, types.intp, types.intp, types.intp,
        rows,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        tens, fives, result = pointers(context, builder, signature, args, (0, 3, 8))
        upper, lower, above, below, x, columns = (args[k] for k in (1, 2, 4, 5, 6, 7))
        vectors = Vectors(builder, LINE)
        both = [
            [vectors.load(tens, place) for place in _places(builder, 10, start, x, columns)]
            for start in (upper, lower)
        ]
        # of 20 pixels and five, the 13th in order is one of the five or of the 8th to the 13th
        middle = vectors.merge(*both)[7:13]
        targets = _places(builder, 2, x.type(0), x, columns)
        for start, target in zip((above, below), targets, strict=True):
            places = _places(builder, 5, start, x, columns)
            five = [vectors.load(fives, place) for place in places]
            vectors.store(vectors.merge(middle, five)[5], result, target)
        return context.get_dummy_value()

    return signature, codegen


@row
def sort_row(plane, y, width, wider, sorted, target):
    """Sort the five pixels around each of a row; wider: the row, two pixels more at each side."""
    wide()
    y, two = np.uintp(y), np.uintp(2)
    for x in range(width):
        wider[np.uintp(x) + two] = plane[y, x]
    wider[0] = wider[1] = wider[2]
    wider[width + 2] = wider[width + 3] = wider[width + 1]
    count = plane.shape[1]
    for x in range(0, count, LINE):
        sort_sixteen(wider, x, count, sorted, target)


@row
def merge_rows(count, sorted, one, other, merged, target):
    for x in range(0, count, LINE):
        merge_sixteen(sorted, one, other, x, count, merged, target)


@row
def median_rows(count, merged, upper, lower, sorted, above, below, rows):
    for x in range(0, count, LINE):
        median_sixteen(merged, upper, lower, sorted, above, below, x, count, rows)


@row
def copy_row(rows, k, width, field, y):
    k, y = np.uintp(k), np.uintp(y)
    for x in range(width):
        field[y, x] = rows[k, x]


@whole
def median(plane, width, field):
    """The median of 5 x 5 pixels around each pixel of a plane, its edge repeated.

    plane: float32 (H, columns(width)). field, the result: float32 (H, width). Two rows at once: the
    sorted pixels of each row are made once, and those of two rows merged once.
    """
    height, count = plane.shape
    five, ten = 5 * count, 10 * count
    wider = aligned(count + LINE)
    sorted = aligned(8 * five)  # of row y in y % 8
    merged = aligned(2 * ten)
    rows = aligned(2 * count).reshape(2, count)
    made, last = 0, height - 1
    for y in range(0, height, 2):
        while made < min(y + 4, height):
            sort_row(plane, made, width, wider, sorted, made % 8 * five)
            made += 1
        upper, lower = y // 2 % 2 * ten, (y // 2 + 1) % 2 * ten
        if y == 0:
            merge_rows(count, sorted, 0, 0, merged, upper)
        one, other = min(y + 1, last) % 8 * five, min(y + 2, last) % 8 * five
        merge_rows(count, sorted, one, other, merged, lower)
        above, below = max(y - 2, 0) % 8 * five, min(y + 3, last) % 8 * five
        median_rows(count, merged, upper, lower, sorted, above, below, rows)
        for k in range(min(2, height - y)):
            copy_row(rows, k, width, field, y + k)


# --- a level, from the field of the coarser one to its own ---


@whole
def find_field(coarse, ratio, first, second, edges, window, iterations, field):
    """The median-filtered field of one level: float32 (2, H, W), u and v in px.

    coarse: the field of the next smaller level, so many times smaller, or one without rows, for a
    start from no motion; float32 (2, h, w). The others are as `solve_level` takes them.
    """
    height, width = field.shape[1:]
    count = edges.shape[1]
    flow = aligned(2 * height * count).reshape(2, height, count)
    for plane in range(2):
        if coarse.shape[1]:
            resize(coarse[plane], coarse.shape[2], ratio, flow[plane], width)
    solve_level(flow, first, second, width, edges, window, iterations)
    for plane in range(2):
        median(flow[plane], width, field[plane])


_line = types.float32[::1]
_rows = types.float32[:, ::1]
_cube = types.float32[:, :, ::1]
_n, _f = types.int64, types.float32
SHRINK = (types.uint8[:, ::1], _line, _rows, _n)
EXPAND = (_rows, _n, _rows, _line, _line)
FIND_FIELD = (_cube, _f, _line, _line, _rows, _line, _n, _cube)
# The functions that are called from outside, and the types they are compiled for.
ENTRIES = {
    "shrink": SHRINK,
    "expand": EXPAND,
    "find_field": FIND_FIELD,
}
