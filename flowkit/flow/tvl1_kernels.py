# mypy: ignore-errors
"""TV-L1 in compiled float32 loops: one scale of the pyramid, from its images to its field.

Importing this module imports Numba and compiles nothing: `flowkit.flow.tvl1` compiles `solve_scale`
and keeps the result on disk. Per-pixel formulas come first and know nothing of memory, row kernels
apply them to a row of pixels, and `solve_scale` runs the rows.

Layout: a plane is a C-contiguous float32 array of `plane_shape`. Pixel (y, x) of the frame lies at
[y, LEFT + x], but for p12 and p22 (the vertical parts of the dual field) at [y + 1, LEFT + x], so
that row 0 is the missing neighbor of the first row. Rows are worked off in whole chunks of LANES
pixels: a loop of known length becomes straight vector code with no remainder. Cells right of the
frame compute nothing that a pixel of the frame reads; the image gradient and theta are 0 there.

Numba, not mypy, types these functions. They are in one file because Numba knows compiled code to
be stale by the file of `solve_scale` alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from flowkit.flow.lanes import NoAlias, wide

LANES = 16  # float32 in the widest vector register (AVX-512); two registers of AVX2
LEFT = 16  # columns left of the frame: keeps its first pixel on a cache line
BORDER = 8  # zeros around the sampled image: the taps of a clamped position reach 5 pixels outside
PLANES = 12
MOST_STEPS = 4  # iterations in one pass
ROWS = 32 + MOST_STEPS  # row buffers: 8 weights, 3 samples, 20 of the median, theta, errors

# What an iteration leaves of the error: the second of a round, the next one, those after it
FALL_FIRST, FALL_NEXT, FALL_LATER = np.float32(0.17), np.float32(0.6), np.float32(0.8)

CUBIC_A = np.float32(-0.75)  # OpenCV's bicubic kernel
SMALLEST_GRADIENT = np.float32(1.1920929e-07)  # FLT_EPSILON: below it the data term is ignored
LARGEST = np.float32(3.4e38)
ONE = np.float32(1)

# Reassociation lets a row's error be summed in lanes; NaN and infinity cannot arise from uint8.
FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "reassoc"}


def plane_shape(height, width):
    """Rows and columns of a plane that holds a frame, its margins and the chunks of the median."""
    rows = height + 2
    columns = LEFT + 2 * LANES * -(-(width // 2 + 9) // LANES)  # a chunk and its right neighbor
    if rows * columns % 1024 < 64:  # planes 4 KiB apart would share the sets of the first cache
        rows += 1
    return rows, columns


pixel = njit(fastmath=FAST, error_model="numpy", forceinline=True)
row = njit(fastmath=FAST, error_model="numpy", pipeline_class=NoAlias)
whole = njit(fastmath=FAST, error_model="numpy", nogil=True)


# --- per-pixel formulas ---


@pixel
def threshold(rho, minus_inverse, limit):
    """The step along the gradient that lowers |rho| best: -rho / |grad|^2 within +-limit."""
    return max(-limit, min(limit, rho * minus_inverse))


@pixel
def dual_factors(ax, ay, bx, by, taut):
    """1 / (1 + taut |g|) for the gradients g of u and of v, by one division for the two."""
    na = ONE + taut * np.sqrt(ax * ax + ay * ay)
    nb = ONE + taut * np.sqrt(bx * bx + by * by)
    both = ONE / (na * nb)
    return both * nb, both * na


@pixel
def cubic_weights(t):
    """The four bicubic weights at fraction t in [0, 1) between the second and the third tap."""
    a = CUBIC_A
    s, r = ONE + t, ONE - t
    w0 = ((a * s - np.float32(5) * a) * s + np.float32(8) * a) * s - np.float32(4) * a
    w1 = ((a + np.float32(2)) * t - (a + np.float32(3))) * t * t + ONE
    w2 = ((a + np.float32(2)) * r - (a + np.float32(3))) * r * r + ONE
    return w0, w1, w2, ONE - w0 - w1 - w2


@pixel
def order(a, b):
    return min(a, b), max(a, b)


@pixel
def sort5(a, b, c, d, e):
    a, b = order(a, b)
    d, e = order(d, e)
    c, e = order(c, e)
    c, d = order(c, d)
    a, d = order(a, d)
    a, c = order(a, c)
    b, e = order(b, e)
    b, d = order(b, d)
    b, c = order(b, c)
    return a, b, c, d, e


@pixel
def merge2(a0, a1, b0, b1):
    """Two sorted pairs to one sorted four (Batcher's odd-even merge, as the two below)."""
    a0, b0 = order(a0, b0)
    a1, b1 = order(a1, b1)
    a1, b0 = order(a1, b0)
    return a0, a1, b0, b1


@pixel
def merge3(a0, a1, a2, b0, b1, b2):
    o0, o1, o2, o3 = merge2(a0, a2, b0, b2)
    e0, e1 = order(a1, b1)
    o1, e0 = order(o1, e0)
    e1, o2 = order(e1, o2)
    return o0, o1, e0, e1, o2, o3


@pixel
def merge5(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    o0, o1, o2, o3, o4, o5 = merge3(a0, a2, a4, b0, b2, b4)
    e0, e1, e2, e3 = merge2(a1, a3, b1, b3)
    s1, s2 = order(e0, o1)
    s3, s4 = order(e1, o2)
    s5, s6 = order(e2, o3)
    s7, s8 = order(e3, o4)
    return o0, s1, s2, s3, s4, s5, s6, s7, s8, o5


@pixel
def top3(a, b, c, d, e):
    """The three largest of five, sorted."""
    a, b = order(a, b)
    c, d = order(c, d)
    low = max(a, c)
    middle, high = order(b, d)
    low, middle = order(low, middle)
    low, middle = order(max(low, e), middle)
    middle, high = order(middle, high)
    return low, middle, high


@pixel
def bottom3(a, b, c, d, e):
    """The three smallest of five, sorted."""
    a, b = order(a, b)
    c, d = order(c, d)
    high = min(b, d)
    low, middle = order(a, c)
    middle, high = order(middle, high)
    middle, high = order(middle, min(high, e))
    low, middle = order(low, middle)
    return low, middle, high


# --- the warp: I1 and its gradient at x + u ---


@intrinsic
def sample_cubic(typingctx, image, start, stride, x0, x1, x2, x3, y0, y1, y2, y3):
    """Three interleaved channels (of four) under 4 x 4 bicubic taps, as a tuple of float32.

    `image` is flat; `start` is the index of the first tap's first channel, `stride` that of a row.
    Written in vectors, because Numba leaves LLVM's vectorizer of straight code off: a row of taps
    is one load of sixteen, three times as fast as scalars.
    """
    signature = types.UniTuple(types.float32, 3)(image, start, stride, *[types.float32] * 8)

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        start, stride = args[1:3]
        i32 = ir.IntType(32)
        contract = ("contract",)

        def shuffle(vector, lanes):
            mask = ir.Constant(ir.VectorType(i32, len(lanes)), lanes)
            return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)

        def spread(scalar, lanes):
            one = ir.Constant(ir.VectorType(ir.FloatType(), 1), ir.Undefined)
            return shuffle(builder.insert_element(one, scalar, i32(0)), [0] * lanes)

        def weighted_sum(vectors, weights):
            total = None
            for vector, weight in zip(vectors, weights, strict=True):
                term = builder.fmul(vector, spread(weight, vector.type.count), flags=contract)
                total = term if total is None else builder.fadd(total, term, flags=contract)
            return total

        taps = ir.VectorType(ir.FloatType(), 16)  # four pixels of four channels
        rows = []
        for _ in range(4):
            place = builder.bitcast(builder.gep(array.data, [start]), taps.as_pointer())
            rows.append(builder.load(place, align=4))
            start = builder.add(start, stride)
        column_sums = weighted_sum(rows, args[7:11])
        pixels = [shuffle(column_sums, list(range(4 * i, 4 * i + 4))) for i in range(4)]
        channels = weighted_sum(pixels, args[3:7])
        values = [builder.extract_element(channels, i32(c)) for c in range(3)]
        return context.make_tuple(builder, signature.return_type, values)

    return signature, codegen


@row
def gradient_row(y, above, below, width, image, samples):
    """I1, I1x and I1y of one row into `samples` (H + 2 BORDER, W + 2 BORDER, 4), zero around."""
    wide()
    half = np.float32(0.5)
    line = BORDER + y
    for x in range(width):
        samples[line, BORDER + x, 0] = image[y, x]
        samples[line, BORDER + x, 2] = half * (image[below, x] - image[above, x])
    for x in range(1, width - 1):
        samples[line, BORDER + x, 1] = half * (image[y, x + 1] - image[y, x - 1])
    last = width - 1
    samples[line, BORDER, 1] = half * (image[y, min(1, last)] - image[y, 0])
    samples[line, BORDER + last, 1] = half * (image[y, last] - image[y, max(last - 1, 0)])


@row
def tap_row(y, height, width, chunks, u, v, stride, starts, weights):
    """Where the taps of each pixel of a row begin, and their eight weights.

    Positions further than three pixels outside meet zeros only and are clamped to there.
    """
    wide()
    low = np.float32(-3)
    right, bottom = np.float32(width + 2), np.float32(height + 2)
    for chunk in range(chunks):
        for lane in range(LANES):
            x = chunk * LANES + lane
            at_x = min(max(np.float32(np.int32(x)) + u[y, LEFT + x], low), right)
            at_y = min(max(np.float32(np.int32(y)) + v[y, LEFT + x], low), bottom)
            left, top = np.floor(at_x), np.floor(at_y)
            # clamped once more: a NaN, from parameters that overflow, must not become an address
            column = np.int32(BORDER - 1) + min(max(np.int32(left), -3), width + 2)
            line = np.int32(BORDER - 1) + min(max(np.int32(top), -3), height + 2)
            starts[x] = line * stride + column * 4
            wx = cubic_weights(at_x - left)
            wy = cubic_weights(at_y - top)
            weights[0, x], weights[1, x], weights[2, x], weights[3, x] = wx
            weights[4, x], weights[5, x], weights[6, x], weights[7, x] = wy


@row
def sample_row(width, samples, stride, starts, w, sampled):
    """I1, I1x and I1y at the taps of a row, into `sampled` (3, ...)."""
    wide()
    for x in range(width):
        value, along_x, along_y = sample_cubic(
            samples, np.intp(starts[x]), np.intp(stride),
            w[0, x], w[1, x], w[2, x], w[3, x], w[4, x], w[5, x], w[6, x], w[7, x],
        )  # fmt: skip
        sampled[0, x] = value
        sampled[1, x] = along_x
        sampled[2, x] = along_y


@row
def linearize_row(y, chunks, image, u, v, sampled, ix, iy, minus_inverse, rho_c):
    """The data term of a row around the present field: what the iterations of a warp read."""
    wide()
    for chunk in range(chunks):
        for lane in range(LANES):
            i = chunk * LANES + lane
            x = LEFT + i
            along_x, along_y = sampled[1, i], sampled[2, i]
            square = along_x * along_x + along_y * along_y
            ix[y, x] = along_x
            iy[y, x] = along_y
            minus_inverse[y, x] = -ONE / max(square, SMALLEST_GRADIENT)
            rho_c[y, x] = sampled[0, i] - along_x * u[y, x] - along_y * v[y, x] - image[y, x]


# --- the 5 x 5 median ---


@row
def median_columns(y0, y1, y2, y3, y4, chunks, plane, even, odd, pairs):
    """Sort the five values of each column; merge columns 2k - 2 and 2k - 1 into pairs[:, k].

    even[:, k] is column 2k - 2 and odd[:, k + 1] column 2k - 1.
    """
    wide()
    for chunk in range(chunks):
        for lane in range(LANES):
            k = chunk * LANES + lane
            x = LEFT - 2 + 2 * k
            a = sort5(plane[y0, x], plane[y1, x], plane[y2, x], plane[y3, x], plane[y4, x])
            x = LEFT - 1 + 2 * k
            b = sort5(plane[y0, x], plane[y1, x], plane[y2, x], plane[y3, x], plane[y4, x])
            even[0, k], even[1, k], even[2, k], even[3, k], even[4, k] = a
            odd[0, k + 1], odd[1, k + 1], odd[2, k + 1], odd[3, k + 1], odd[4, k + 1] = b
            s = merge5(a[0], a[1], a[2], a[3], a[4], b[0], b[1], b[2], b[3], b[4])
            pairs[0, k], pairs[1, k], pairs[2, k], pairs[3, k], pairs[4, k] = s[:5]
            pairs[5, k], pairs[6, k], pairs[7, k], pairs[8, k], pairs[9, k] = s[5:]


@row
def median_windows(y, chunks, even, odd, pairs, out):
    """The medians at columns 2k - 1 and 2k: both windows hold the four columns of two pairs.

    Of those twenty values only the eighth to the thirteenth (r8 ... r13) can be the thirteenth of
    the twenty-five: it is the smallest, over j, of max(j-th of the fifth column, r(13 - j)).
    """
    wide()
    for chunk in range(chunks):
        for lane in range(LANES):
            k = chunk * LANES + lane
            l0, h0 = order(pairs[0, k], pairs[9, k + 1])
            l1, h1 = order(pairs[1, k], pairs[8, k + 1])
            l2, h2 = order(pairs[2, k], pairs[7, k + 1])
            l3, h3 = order(pairs[3, k], pairs[6, k + 1])
            l4, h4 = order(pairs[4, k], pairs[5, k + 1])
            l5, h5 = order(pairs[5, k], pairs[4, k + 1])
            l6, h6 = order(pairs[6, k], pairs[3, k + 1])
            l7, h7 = order(pairs[7, k], pairs[2, k + 1])
            l8, h8 = order(pairs[8, k], pairs[1, k + 1])
            l9, h9 = order(pairs[9, k], pairs[0, k + 1])
            r8, r9, r10 = top3(max(l0, l5), max(l1, l6), max(l2, l7), max(l3, l8), max(l4, l9))
            r11, r12, r13 = bottom3(min(h0, h5), min(h1, h6), min(h2, h7), min(h3, h8), min(h4, h9))
            m = min(r13, max(odd[0, k], r12))
            m = min(m, max(odd[1, k], r11))
            m = min(m, max(odd[2, k], r10))
            m = min(m, max(odd[3, k], r9))
            out[y, LEFT - 1 + 2 * k] = min(m, max(odd[4, k], r8))
            m = min(r13, max(even[0, k + 2], r12))
            m = min(m, max(even[1, k + 2], r11))
            m = min(m, max(even[2, k + 2], r10))
            m = min(m, max(even[3, k + 2], r9))
            out[y, LEFT + 2 * k] = min(m, max(even[4, k + 2], r8))


@whole
def median5(height, width, plane, out, even, odd, pairs):
    """The 5 x 5 median of a plane, edges repeated, into `out`: equal to cv2.medianBlur(_, 5)."""
    for y in range(height):
        first, last = plane[y, LEFT], plane[y, LEFT + width - 1]
        plane[y, LEFT - 2] = plane[y, LEFT - 1] = first
        plane[y, LEFT + width] = plane[y, LEFT + width + 1] = last
    chunks_in = -(-(width // 2 + 3) // LANES)
    chunks_out = -(-(width // 2 + 1) // LANES)
    bottom = height - 1
    for y in range(height):
        median_columns(
            max(y - 2, 0), max(y - 1, 0), y, min(y + 1, bottom), min(y + 2, bottom),
            chunks_in, plane, even, odd, pairs,
        )  # fmt: skip
        median_windows(y, chunks_out, even, odd, pairs, out)


# --- the iterations ---


@row
def primal_row(
    y, chunks, u, v, p11, p12, p21, p22, ix, iy, minus_inverse, rho_c, theta, limit, sums
):
    """One primal step of a row, in place; its squared changes are added to `sums` by lane."""
    wide()
    for chunk in range(chunks):
        for lane in range(LANES):
            x = LEFT + chunk * LANES + lane
            along_x, along_y = ix[y, x], iy[y, x]
            rho = rho_c[y, x] + along_x * u[y, x] + along_y * v[y, x]
            step = threshold(rho, minus_inverse[y, x], limit)
            du = step * along_x + theta[x] * (
                (p11[y, x] - p11[y, x - 1]) + (p12[y + 1, x] - p12[y, x])
            )
            dv = step * along_y + theta[x] * (
                (p21[y, x] - p21[y, x - 1]) + (p22[y + 1, x] - p22[y, x])
            )
            u[y, x] += du
            v[y, x] += dv
            sums[lane] += du * du + dv * dv


@row
def dual_row(y, below, chunks, u, v, p11, p12, p21, p22, taut):
    """One dual step of a row, in place; `below` is the next row, or `y` itself in the last one."""
    wide()
    for chunk in range(chunks):
        for lane in range(LANES):
            x = LEFT + chunk * LANES + lane
            ux, uy = u[y, x + 1] - u[y, x], u[below, x] - u[y, x]
            vx, vy = v[y, x + 1] - v[y, x], v[below, x] - v[y, x]
            shrink_u, shrink_v = dual_factors(ux, uy, vx, vy, taut)
            p11[y, x] = (p11[y, x] + taut * ux) * shrink_u
            p12[y + 1, x] = (p12[y + 1, x] + taut * uy) * shrink_u
            p21[y, x] = (p21[y, x] + taut * vx) * shrink_v
            p22[y + 1, x] = (p22[y + 1, x] + taut * vy) * shrink_v


@whole
def iterate(
    steps, height, width, chunks, u, v, p11, p12, p21, p22,
    ix, iy, minus_inverse, rho_c, theta, limit, taut, sums,
):  # fmt: skip
    """`steps` iterations in one pass, and the squared changes of each in sums[step], by lane.

    The dual step of a row reads the next row of u and v, and the primal step of a row the present
    and the former row of p: so the dual step follows the primal one by a row, in place, and the
    next iteration follows both by a row, while what it reads is still in the nearest cache.
    """
    sums[:steps] = 0
    for front in range(height + steps):
        for step in range(steps):
            y = front - step
            if 0 <= y < height:
                primal_row(
                    y, chunks, u, v, p11, p12, p21, p22,
                    ix, iy, minus_inverse, rho_c, theta, limit, sums[step],
                )  # fmt: skip
                u[y, LEFT + width] = u[y, LEFT + width - 1]  # forward difference 0 at the edge
                v[y, LEFT + width] = v[y, LEFT + width - 1]
            if 0 < y <= height:
                dual_row(y - 1, min(y, height - 1), chunks, u, v, p11, p12, p21, p22, taut)


@pixel
def steps_ahead(error, fall, stop):
    """How many iterations one pass may do: as many as are sure to be needed, and one more.

    An iteration is taken to leave of the error what the latest left, `fall`, or less: FALL_NEXT at
    most, and FALL_LATER of each that follows. Where it falls faster than that, a warp does up to
    MOST_STEPS - 1 iterations more than if each had been looked at.
    """
    steps, error = 1, error * min(fall, FALL_NEXT)
    while steps < MOST_STEPS and error > stop:
        steps, error = steps + 1, error * min(fall, FALL_LATER)
    return steps


class Room(NamedTuple):
    """What `solve_scale` works in at a scale of (H, W), of any content."""

    planes: np.ndarray  # float32 (PLANES, *plane_shape)
    samples: np.ndarray  # float32 (H + 2 BORDER, W + 2 BORDER, 4)
    rows: np.ndarray  # float32 (ROWS, columns of a plane)
    starts: np.ndarray  # int32 (columns of a plane)


class Numbers(NamedTuple):
    """What `solve_scale` is told of the method."""

    theta: np.float32
    limit: np.float32  # lambda theta
    taut: np.float32  # tau / theta
    stop: np.float32  # epsilon^2 W H
    warps: int
    outer_iterations: int
    inner_iterations: int
    median: int  # 5 or, for none, 1


@whole
def solve_scale(image0, image1, flow_u, flow_v, room, numbers):
    """The field of one scale, in place: flow_u and flow_v hold its start, then its result.

    image0, image1, flow_u, flow_v: float32 (H, W); room: a Room; numbers: a Numbers.
    Returns the number of iterations. Allocates nothing and does not hold the GIL.
    """
    planes, samples, rows, starts = room
    theta, limit, taut, stop = numbers[:4]
    warps, outer_iterations, inner_iterations, median = numbers[4:]
    height, width = image0.shape
    chunks = -(-width // LANES)
    stride = samples.shape[1] * 4
    flat = samples.reshape(samples.size)
    u, v, spare = planes[0], planes[1], planes[2]
    p11, p12, p21, p22 = planes[3], planes[4], planes[5], planes[6]
    ix, iy, minus_inverse, rho_c = planes[7], planes[8], planes[9], planes[10]
    image = planes[11]
    weights, sampled = rows[:8], rows[8:11]
    even, odd, pairs = rows[11:16], rows[16:21], rows[21:31]
    theta_row, sums = rows[31], rows[32:]

    planes[:] = 0
    samples[:] = 0
    rows[:] = 0
    theta_row[LEFT : LEFT + width] = theta
    for y in range(height):
        gradient_row(y, max(y - 1, 0), min(y + 1, height - 1), width, image1, samples)
        for x in range(width):
            image[y, LEFT + x] = image0[y, x]
            u[y, LEFT + x] = flow_u[y, x]
            v[y, LEFT + x] = flow_v[y, x]

    total = 0
    for _ in range(warps):
        for y in range(height):
            tap_row(y, height, width, chunks, u, v, stride, starts, weights)
            sample_row(width, flat, stride, starts, weights, sampled)
            linearize_row(y, chunks, image, u, v, sampled, ix, iy, minus_inverse, rho_c)
        error = LARGEST
        for _ in range(outer_iterations):
            if not error > stop:
                break
            if median == 5:
                median5(height, width, u, spare, even, odd, pairs)
                u, spare = spare, u
                median5(height, width, v, spare, even, odd, pairs)
                v, spare = spare, v
            done, steps, fall = 0, 1, FALL_FIRST
            while done < inner_iterations:
                steps = min(steps, inner_iterations - done)
                iterate(
                    steps, height, width, chunks, u, v, p11, p12, p21, p22,
                    ix, iy, minus_inverse, rho_c, theta_row, limit, taut, sums,
                )  # fmt: skip
                for step in range(steps):
                    former, error = error, sums[step, :LANES].sum()
                    if done + step > 0:
                        fall = error / former
                done += steps
                if not error > stop:
                    break
                steps = steps_ahead(error, fall, stop)
            total += done

    for y in range(height):
        for x in range(width):
            flow_u[y, x] = u[y, LEFT + x]
            flow_v[y, x] = v[y, LEFT + x]
    return total


_image = types.float32[:, ::1]
_cube = types.float32[:, :, ::1]
SIGNATURE = (
    *[_image] * 4,
    types.NamedTuple((_cube, _cube, _image, types.int32[::1]), Room),
    types.NamedTuple((types.float32,) * 4 + (types.int64,) * 4, Numbers),
)
