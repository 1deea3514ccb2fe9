# mypy: ignore-errors
"""Dense trajectories in compiled loops: integral histograms, moving, describing, ending, sampling.

Importing this module imports Numba and compiles nothing: `flowkit.idt.tracking` compiles and keeps
the result on disk. Numba, not mypy, types these functions. All arithmetic is float32, in the order
of the authors' program where the order matters to the result.

Tracks of one level live in slots. `order` is a permutation of the slots: the living ones first,
oldest first, then the free ones. Of slot s, `ages[s]` steps are done, `points[s, k]` is the k-th
position in px of the level, `moves[s, k]` the k-th displacement less the camera's, and `sums[s, c]`
the sum of the descriptors of the c-th cell of time: of each descriptor, x outer, y inner, bins.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

ZERO, ONE, QUARTER_TURN, TURN = np.float32(0), np.float32(1), np.float32(90), np.float32(360)
# OpenCV's fastAtan2: an odd polynomial of the smaller component against the larger, in degrees.
TURN_1 = np.float32(0.9997878412794807 * 180 / np.pi)
TURN_3 = np.float32(-0.3258083974640975 * 180 / np.pi)
TURN_5 = np.float32(0.1555786518463281 * 180 / np.pi)
TURN_7 = np.float32(-0.04432655554792128 * 180 / np.pi)
TINY = np.float32(2.220446049250313e-16)
LONG_PART = np.float32(0.7)  # share of a track's length in one step that makes it no track

pixel = njit(error_model="numpy", forceinline=True)
row = njit(error_model="numpy")
whole = njit(error_model="numpy", nogil=True)


@pixel
def degrees(x, y):
    """The direction of (x, y), 0 to 360."""
    width, height = abs(x), abs(y)
    flat = width >= height
    part = (height if flat else width) / ((width if flat else height) + TINY)
    square = part * part
    angle = (((TURN_7 * square + TURN_5) * square + TURN_3) * square + TURN_1) * part
    angle = angle if flat else QUARTER_TURN - angle
    angle = angle if x >= ZERO else np.float32(180) - angle
    return angle if y >= ZERO else TURN - angle


@row
def turn_row(count, along, down, bins_per_degree, places, lengths):
    """Direction in bins and length of a row of vectors."""
    for x in range(count):
        angle = degrees(along[x], down[x])
        angle = angle if angle < TURN else angle - TURN
        places[x] = angle * bins_per_degree
        lengths[x] = np.sqrt(along[x] * along[x] + down[x] * down[x])


@row
def differences_row(image, y, left, count, along, down):
    """Derivatives [-1 0 1] of a row from column `left`, zero on the image's border."""
    height, width = image.shape
    above = image[y - 1 if 0 < y < height - 1 else y]
    below = image[y + 1 if 0 < y < height - 1 else y]
    here = image[y]
    for x in range(count):
        down[x] = np.float32(below[left + x]) - np.float32(above[left + x])
    first, last = max(left, 1), min(left + count, width - 1)
    along[:count] = ZERO
    for x in range(first, last):
        along[x - left] = np.float32(here[x + 1]) - np.float32(here[x - 1])


@whole
def integrate(gray, u, v, top, left, height, width, bins, zero_flow, integral):
    """The integral histograms of HOG, HOF, MBHx and MBHy over a part of a level.

    gray: uint8 (H, W). u, v: float32 (H, W), px. integral, the result: float32 (at least height +
    1, at least width + 1, 4 bins + 1); its element (y, x) is the sum over the pixels of the part
    above y and left of x.
    """
    planes = 4 * bins + 1
    still = 2 * bins  # HOF's last bin
    per_degree = np.float32(bins) / TURN
    along, down = np.zeros(width, np.float32), np.zeros(width, np.float32)
    places, lengths = np.zeros((4, width), np.float32), np.zeros((4, width), np.float32)
    total = np.zeros(planes, np.float32)
    integral[0, : width + 1] = ZERO
    for y in range(height):
        at = top + y
        differences_row(gray, at, left, width, along, down)
        turn_row(width, along, down, per_degree, places[0], lengths[0])
        turn_row(width, u[at][left:], v[at][left:], per_degree, places[1], lengths[1])
        differences_row(u, at, left, width, along, down)
        turn_row(width, along, down, per_degree, places[2], lengths[2])
        differences_row(v, at, left, width, along, down)
        turn_row(width, along, down, per_degree, places[3], lengths[3])
        total[:] = ZERO
        above, here = integral[y], integral[y + 1]
        here[0] = ZERO
        for x in range(width):
            for kind in range(4):
                first = kind * bins + (1 if kind > 1 else 0)
                length = lengths[kind, x]
                if kind == 1 and length <= zero_flow:
                    total[still] += ONE
                    continue
                place = places[kind, x]
                low = int(place)
                later = (place - np.float32(low)) * length
                total[first + low] += length - later
                total[first + (low + 1 if low + 1 < bins else 0)] += later
            for plane in range(planes):
                here[x + 1, plane] = above[x + 1, plane] + total[plane]


@pixel
def nearest(value, last):
    """The pixel that a coordinate is nearest to, halves to even, within 0 and `last`."""
    return min(max(int(np.rint(value)), 0), last)


@whole
def move(order, count, ages, points, moves, flow, warped):
    """Move every living track by a step; returns how many are left, those off the frame freed.

    flow, warped: float32 (H, W, 2), the field as it is and the one less the camera's motion.
    """
    height, width = flow.shape[:2]
    spare = np.empty(count, order.dtype)
    kept = lost = 0
    for k in range(count):
        slot = order[k]
        age = ages[slot]
        px, py = points[slot, age, 0], points[slot, age, 1]
        x, y = nearest(px, width - 1), nearest(py, height - 1)
        px += flow[y, x, 0]
        py += flow[y, x, 1]
        if not (ZERO < px < width and ZERO < py < height):
            spare[lost] = slot
            lost += 1
            continue
        moves[slot, age, 0], moves[slot, age, 1] = warped[y, x, 0], warped[y, x, 1]
        points[slot, age + 1, 0], points[slot, age + 1, 1] = px, py
        order[kept] = slot
        kept += 1
    order[kept:count] = spare[:lost]
    return kept


@whole
def windows(order, count, ages, points, height, width, patch, corners):
    """The top left corner (y, x) of the window of each living track at the point it comes from.

    Returns the part of the level that all windows lie in: top, left, height, width.
    """
    top, left, bottom, right = height, width, 0, 0
    half = patch // 2
    for k in range(count):
        slot = order[k]
        age = ages[slot]
        x = min(max(int(np.rint(points[slot, age, 0])) - half, 0), width - patch)
        y = min(max(int(np.rint(points[slot, age, 1])) - half, 0), height - patch)
        corners[k, 0], corners[k, 1] = y, x
        top, left = min(top, y), min(left, x)
        bottom, right = max(bottom, y + patch), max(right, x + patch)
    return top, left, bottom - top, right - left


@whole
def describe(order, count, ages, corners, top, left, integral, patch, cells, epsilon, steps, sums):
    """Add the descriptors of the windows to the living tracks' sums; the step is done then.

    `steps` are those of a cell of time. Every bin of a descriptor has epsilon added; the descriptor
    is divided by its sum, and its root is taken.
    """
    planes = integral.shape[2]
    bins = planes // 4
    side = patch // cells
    values = np.empty((4, cells * cells * (bins + 1)), np.float32)
    for k in range(count):
        slot = order[k]
        y0, x0 = corners[k, 0] - top, corners[k, 1] - left
        into = sums[slot, ages[slot] // steps]
        begin = 0
        for kind in range(4):
            first = kind * bins + (1 if kind > 1 else 0)
            own = bins + 1 if kind == 1 else bins
            norm = ZERO
            at = 0
            for cx in range(cells):
                x = x0 + cx * side
                for cy in range(cells):
                    y = y0 + cy * side
                    for b in range(first, first + own):
                        value = integral[y + side, x + side, b] + integral[y, x, b]
                        value = value - integral[y + side, x, b] - integral[y, x + side, b]
                        value = max(value, ZERO) + epsilon
                        values[kind, at] = value
                        norm += value
                        at += 1
            norm = ONE / norm
            for b in range(at):
                into[begin + b] += np.sqrt(values[kind, b] * norm)
            begin += at
        ages[slot] += 1


@whole
def finish(order, count, ages, points, moves, sums, scale, limits, numbers, paths, found):
    """End the tracks of full length; returns how many live on, and how many ended as valid ones.

    limits: float32 (4,): least and largest standard deviation, longest step, least of the camera's.
    Of a valid track numbers[n] are mean x, mean y, deviation x, deviation y, length, and the length
    less the camera's motion, in px of the frame; paths[n] its displacements divided by the latter;
    found[n] the sums of its descriptors.
    """
    length = moves.shape[1]
    spare = np.empty(count, order.dtype)
    kept = ended = valid = 0
    for k in range(count):
        slot = order[k]
        if ages[slot] < length:
            order[kept] = slot
            kept += 1
            continue
        spare[ended] = slot
        ended += 1
        if measure(points[slot], moves[slot], scale, limits, numbers[valid], paths[valid]):
            found[valid] = sums[slot]
            valid += 1
    order[kept:count] = spare[:ended]
    return kept, valid


@whole
def measure(points, moves, scale, limits, numbers, path):
    """Fill `numbers` and `path` of a track; False where it stands still or jumps."""
    count = len(points)
    for axis in range(2):
        mean = deviation = ZERO
        for k in range(count):
            mean += points[k, axis] * scale
        mean /= np.float32(count)
        for k in range(count):
            away = points[k, axis] * scale - mean
            deviation += away * away
        numbers[axis] = mean
        numbers[2 + axis] = np.sqrt(deviation / np.float32(count))
    if numbers[2] < limits[0] and numbers[3] < limits[0]:
        return False
    if numbers[2] > limits[1] or numbers[3] > limits[1]:
        return False
    length = longest = travel = farthest = ZERO
    for k in range(count - 1):
        x = points[k + 1, 0] * scale - points[k, 0] * scale
        y = points[k + 1, 1] * scale - points[k, 1] * scale
        step = np.sqrt(x * x + y * y)
        length += step
        longest = max(longest, step)
        x, y = moves[k, 0] * scale, moves[k, 1] * scale
        step = np.sqrt(x * x + y * y)
        travel += step
        farthest = max(farthest, step)
    if longest > limits[2] and longest > length * LONG_PART:
        return False
    if farthest <= limits[3]:
        return False
    numbers[4], numbers[5] = length, travel
    for k in range(count - 1):
        path[2 * k] = moves[k, 0] * scale / travel
        path[2 * k + 1] = moves[k, 1] * scale / travel
    return True


@whole
def sample(order, count, ages, points, sums, eigenvalues, quality, distance):
    """Begin a track in every cell of the grid without one, where the gray has enough structure.

    eigenvalues: float32 (H, W), the lesser one of each pixel. Slots must be free for all cells.
    Returns how many tracks live then.
    """
    rows, columns = eigenvalues.shape[0] // distance, eigenvalues.shape[1] // distance
    taken = np.zeros((rows, columns), np.bool_)
    for k in range(count):
        slot = order[k]
        x = int(points[slot, ages[slot], 0]) // distance
        y = int(points[slot, ages[slot], 1]) // distance
        if x < columns and y < rows:
            taken[y, x] = True
    limit = np.float64(eigenvalues.max()) * quality
    for y in range(rows):
        for x in range(columns):
            px, py = x * distance + distance // 2, y * distance + distance // 2
            if taken[y, x] or not eigenvalues[py, px] > limit:
                continue
            slot = order[count]
            count += 1
            ages[slot] = 0
            points[slot, 0, 0], points[slot, 0, 1] = px, py
            sums[slot] = ZERO
    return count


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


@row
def mix(count, one, other, weight, mixed):
    for x in range(count):
        mixed[x] = one[x] * (ONE - weight) + other[x] * weight


@whole
def resize(image, small):
    """Fill `small` with `image` at its size, bilinear, float32 both.

    In the arithmetic of OpenCV's portable code, which the authors' program ran: the faster code of
    newer versions gives other last digits, and a track's rounding now and then depends on them.
    """
    height, width = image.shape
    rows, columns = small.shape
    firsts, seconds = np.empty(columns, np.int32), np.empty(columns, np.int32)
    parts = np.empty(columns, np.float32)
    for x in range(columns):
        firsts[x], seconds[x], parts[x] = between(x, width, width / columns)
    above, below = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for y in range(rows):
        y0, y1, down = between(y, height, height / rows)
        for x in range(columns):
            rest = ONE - parts[x]
            above[x] = image[y0, firsts[x]] * rest + image[y0, seconds[x]] * parts[x]
            below[x] = image[y1, firsts[x]] * rest + image[y1, seconds[x]] * parts[x]
        mix(columns, above, below, down, small[y])


@whole
def keep_previous(warped, previous, homography, margin):
    """Put the previous frame where the homography does not lead well inside the current one."""
    height, width = warped.shape
    h = homography
    for y in range(height):
        for x in range(width):
            w = h[2, 0] * x + h[2, 1] * y + h[2, 2]
            inverse = 1.0 / w if w != 0.0 else 0.0
            to_x = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) * inverse
            to_y = (h[1, 0] * x + h[1, 1] * y + h[1, 2]) * inverse
            inside_x = margin < to_x < width - 1 - margin
            inside_y = margin < to_y < height - 1 - margin
            if not (inside_x and inside_y):
                warped[y, x] = previous[y, x]


_gray = types.uint8[:, ::1]
_slots = types.int32[::1]
_plane = types.float32[:, ::1]
_cube = types.float32[:, :, ::1]
_corners = types.int32[:, ::1]
_n, _f = types.int64, types.float32
INTEGRATE = (_gray, _plane, _plane, _n, _n, _n, _n, _n, _f, _cube)
MOVE = (_slots, _n, _slots, _cube, _cube, _cube, _cube)
WINDOWS = (_slots, _n, _slots, _cube, _n, _n, _n, _corners)
DESCRIBE = (_slots, _n, _slots, _corners, _n, _n, _cube, _n, _n, _f, _n, _cube)
FINISH = (_slots, _n, _slots, _cube, _cube, _cube, _f, types.float32[::1], _plane, _plane, _cube)
SAMPLE = (_slots, _n, _slots, _cube, _cube, _plane, types.float64, _n)
RESIZE = (_plane, _plane)
KEEP_PREVIOUS = (_gray, _gray, types.float64[:, ::1], types.float64)
# The functions that are called from outside, and the types they are compiled for.
ENTRIES = {
    "integrate": INTEGRATE,
    "move": MOVE,
    "windows": WINDOWS,
    "describe": DESCRIBE,
    "finish": FINISH,
    "sample": SAMPLE,
    "resize": RESIZE,
    "keep_previous": KEEP_PREVIOUS,
}
