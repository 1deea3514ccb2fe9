# mypy: ignore-errors
"""Dense trajectories in compiled loops: integral histograms, moving, describing, ending, sampling.

Importing this module imports Numba and compiles nothing: `flowkit.idt.tracking` compiles and keeps
the result on disk. Numba, not mypy, types these functions. All arithmetic is float32, in the order
of the authors' program where the order matters to the result.

Tracks of one level live in slots. `order` is a permutation of the slots: the living ones first,
oldest first, then the free ones. Of slot s, `ages[s]` steps are done, `points[s, k]` is the k-th
position in px of the level, `moves[s, k]` the k-th displacement less the camera's, and `sums[s, c]`
the sum of the descriptors of the c-th cell of time: x outer, y inner, then the bins of each of the
four.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from flowkit.flow.farneback_kernels import NoAlias

ZERO, ONE, QUARTER_TURN, TURN = np.float32(0), np.float32(1), np.float32(90), np.float32(360)
# OpenCV's fastAtan2: an odd polynomial of the smaller component against the larger, in degrees.
TURN_1 = np.float32(0.9997878412794807 * 180 / np.pi)
TURN_3 = np.float32(-0.3258083974640975 * 180 / np.pi)
TURN_5 = np.float32(0.1555786518463281 * 180 / np.pi)
TURN_7 = np.float32(-0.04432655554792128 * 180 / np.pi)
TINY = np.float32(2.220446049250313e-16)
LONG_PART = np.float32(0.7)  # share of a track's length in one step that makes it no track

SPAN = 64  # pixels whose votes are made together: what the nearest cache holds

pixel = njit(error_model="numpy", forceinline=True)
row = njit(error_model="numpy", pipeline_class=NoAlias)
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
def vote_row(count, along, down, bins, zero, low, early, later):
    """What each of a row of vectors gives to two neighboring bins, and which is the first of them.

    `low` is that bin, `early` and `later` are the parts of the vector's length. One of a length up
    to `zero` gives 1 to the bin behind all others.
    """
    per_degree = np.float32(bins) / TURN
    for x in range(count):
        angle = degrees(along[x], down[x])
        angle = angle if angle < TURN else angle - TURN
        place = angle * per_degree
        first = np.int32(place)
        length = np.sqrt(along[x] * along[x] + down[x] * down[x])
        part = (place - np.float32(first)) * length
        still = length <= zero
        low[x] = np.int32(bins) if still else first
        early[x] = ONE if still else length - part
        later[x] = ZERO if still else part


@row
def differences_row(image, width, y, left, count, along, down):
    """Derivatives [-1 0 1] of a row from column `left`, zero on the image's border."""
    height = image.shape[0]
    above = image[y - 1 if 0 < y < height - 1 else y]
    below = image[y + 1 if 0 < y < height - 1 else y]
    here = image[y]
    for x in range(count):
        down[x] = np.float32(below[left + x]) - np.float32(above[left + x])
    first, last = max(left, 1), min(left + count, width - 1)
    along[:count] = ZERO
    for x in range(first, last):
        along[x - left] = np.float32(here[x + 1]) - np.float32(here[x - 1])


@row
def spread_votes(start, count, bins, low, early, later, votes):
    """Put the votes of `count` pixels in their bins: votes, the result, float32 (SPAN * planes)."""
    planes = np.uintp(4 * bins + 1)
    last = np.int32(bins - 1)
    for at in range(np.uintp(count) * planes):
        votes[at] = ZERO
    for kind in range(4):
        first = np.uintp(kind * bins + (1 if kind > 1 else 0))
        for x in range(count):
            here = np.uintp(start) + np.uintp(x)
            bin = low[kind, here]
            after = bin + np.int32(1) if bin < last else np.int32(0)
            at = np.uintp(x) * planes + first
            # no vote of the bin behind all others goes on to another
            votes[at + np.uintp(after)] = later[kind, here]
            votes[at + np.uintp(bin)] = early[kind, here]


@row
def add_votes(start, count, planes, votes, total, above, here):
    """Add the votes of `count` pixels to those of the row before them, and to the rows above."""
    for x in range(count):
        at = np.uintp(x) * np.uintp(planes)
        to = (np.uintp(start) + np.uintp(x) + np.uintp(1)) * np.uintp(planes)
        for plane in range(np.uintp(planes)):
            sum = total[plane] + votes[at + plane]
            total[plane] = sum
            here[to + plane] = above[to + plane] + sum


@whole
def integral_row(gray, u, v, y, left, width, bins, zero_flow, above, here):
    """A row of the integral histograms of HOG, HOF, MBHx and MBHy over a part of a level.

    gray: uint8 (H, W). u, v: float32 (H, at least W), px. The part begins at column `left`. above,
    and here, the result: float32 ((width + 1) * planes), 4 bins + 1 planes to a pixel; pixel x of
    `here` is the sum over the pixels left of x in rows up to y, where `above` is that of the rows
    before.
    """
    planes = 4 * bins + 1
    along, down = np.empty(width, np.float32), np.empty(width, np.float32)
    low = np.empty((4, width), np.int32)
    early, later = np.empty((4, width), np.float32), np.empty((4, width), np.float32)
    never = np.float32(-1)
    end = left + width
    differences_row(gray, gray.shape[1], y, left, width, along, down)
    vote_row(width, along, down, bins, never, low[0], early[0], later[0])
    vote_row(width, u[y][left:end], v[y][left:end], bins, zero_flow, low[1], early[1], later[1])
    differences_row(u, gray.shape[1], y, left, width, along, down)
    vote_row(width, along, down, bins, never, low[2], early[2], later[2])
    differences_row(v, gray.shape[1], y, left, width, along, down)
    vote_row(width, along, down, bins, never, low[3], early[3], later[3])
    votes = np.empty(SPAN * planes, np.float32)
    total = np.zeros(planes, np.float32)
    here[:planes] = ZERO
    for start in range(0, width, SPAN):
        count = min(SPAN, width - start)
        spread_votes(start, count, bins, low, early, later, votes)
        add_votes(start, count, planes, votes, total, above, here)


@pixel
def nearest(value, last):
    """The pixel that a coordinate is nearest to, halves to even, within 0 and `last`."""
    return min(max(int(np.rint(value)), 0), last)


@whole
def move(order, count, ages, points, moves, flow, warped):
    """Move every living track by a step; returns how many are left, those off the frame freed.

    flow, warped: float32 (2, H, W), the field as it is and the one less the camera's motion.
    """
    height, width = flow.shape[1:]
    spare = np.empty(count, order.dtype)
    kept = lost = 0
    for k in range(count):
        slot = order[k]
        age = ages[slot]
        px, py = points[slot, age, 0], points[slot, age, 1]
        x, y = nearest(px, width - 1), nearest(py, height - 1)
        px += flow[0, y, x]
        py += flow[1, y, x]
        if not (ZERO < px < width and ZERO < py < height):
            spare[lost] = slot
            lost += 1
            continue
        moves[slot, age, 0], moves[slot, age, 1] = warped[0, y, x], warped[1, y, x]
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
def describe(
    gray, u, v, order, count, ages, points, patch, cells, bins, zero_flow, epsilon, steps, sums
):
    """Add the descriptors around the living tracks to their sums; the step is done then.

    gray: uint8 (H, W). u, v: float32 (H, at least W), px. `steps` are those of a cell of time.
    Every bin of a descriptor has epsilon added; the descriptor is divided by its sum, and its root
    is taken. The integral histograms run down the level, and a ring keeps the rows of a window: a
    track is described when they reach the lower end of its own.
    """
    planes = 4 * bins + 1
    corners = np.empty((count, 2), np.int64)
    top, left, height, width = windows(
        order, count, ages, points, gray.shape[0], gray.shape[1], patch, corners
    )
    latest = np.full(height + 1, -1, np.int64)  # by lower end, the latest track; then those before
    before = np.empty(count, np.int64)
    for k in range(count):
        end = corners[k, 0] - top + patch
        before[k] = latest[end]
        latest[end] = k
    slots = patch + 1
    ring = np.empty((slots, (width + 1) * planes), np.float32)
    ring[0] = ZERO
    side = patch // cells
    edges = np.empty(cells + 1, np.int64)  # the rows of the ring at which cells begin and end
    values = np.empty(cells * cells * planes, np.float32)
    norms = np.empty(planes, np.float32)
    for y in range(height):
        here = (y + 1) % slots
        integral_row(gray, u, v, top + y, left, width, bins, zero_flow, ring[y % slots], ring[here])
        for edge in range(cells + 1):
            edges[edge] = (y + 1 - patch + edge * side) % slots
        k = latest[y + 1]
        while k >= 0:
            slot = order[k]
            gather_cells(ring, edges, corners[k, 1] - left, side, planes, epsilon, values)
            find_norms(bins, values, norms)
            add_roots(planes, values, norms, sums[slot, ages[slot] // steps])
            ages[slot] += 1
            k = before[k]


@row
def gather_cells(ring, edges, x, side, planes, epsilon, values):
    """The sums of every cell of a window, x outer, y inner: values, the result, (cells^2, P)."""
    cells = len(edges) - 1
    at = np.uintp(0)
    for cx in range(cells):
        left = np.uintp(x + cx * side) * np.uintp(planes)
        right = left + np.uintp(side) * np.uintp(planes)
        for cy in range(cells):
            above, below = np.uintp(edges[cy]), np.uintp(edges[cy + 1])
            for b in range(np.uintp(planes)):
                total = ring[below, right + b] + ring[above, left + b]
                total = total - ring[below, left + b] - ring[above, right + b]
                values[at + b] = max(total, ZERO) + epsilon
            at += np.uintp(planes)


@row
def find_norms(bins, values, norms):
    """Of each plane what the descriptor that it belongs to is divided by, inverted."""
    planes = np.uintp(4 * bins + 1)
    for kind in range(4):
        first = np.uintp(kind * bins + (1 if kind > 1 else 0))
        end = first + np.uintp(bins + 1 if kind == 1 else bins)
        norm = ZERO
        for cell in range(np.uintp(0), np.uintp(len(values)), planes):
            for b in range(first, end):
                norm += values[cell + b]
        norm = ONE / norm
        for b in range(first, end):
            norms[b] = norm


@row
def add_roots(planes, values, norms, into):
    for cell in range(np.uintp(0), np.uintp(len(values)), np.uintp(planes)):
        for b in range(np.uintp(planes)):
            into[cell + b] += np.sqrt(values[cell + b] * norms[b])


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
def mix_along(count, image, y, firsts, seconds, parts, mixed, into):
    for x in range(count):
        part = parts[x]
        mixed[into, x] = image[y, firsts[x]] * (ONE - part) + image[y, seconds[x]] * part


@row
def mix_down(count, mixed, above, below, part, factor, small, y):
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
    firsts, seconds = np.empty(columns, np.uintp), np.empty(columns, np.uintp)
    parts = np.empty(columns, np.float32)
    for x in range(columns):
        firsts[x], seconds[x], parts[x] = between(x, width, width / columns)
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


_gray = types.uint8[:, ::1]
_slots = types.int32[::1]
_line = types.float32[::1]
_plane = types.float32[:, ::1]
_cube = types.float32[:, :, ::1]
_n, _f = types.int64, types.float32
MOVE = (_slots, _n, _slots, _cube, _cube, _cube, _cube)
INTEGRAL_ROW = (_gray, _plane, _plane, _n, _n, _n, _n, _f, _line, _line)
DESCRIBE = (
    _gray, _plane, _plane, _slots, _n, _slots, _cube, _n, _n, _n, _f, _f, _n, _cube,
)  # fmt: skip
FINISH = (_slots, _n, _slots, _cube, _cube, _cube, _f, types.float32[::1], _plane, _plane, _cube)
SAMPLE = (_slots, _n, _slots, _cube, _cube, _plane, types.float64, _n)
RESIZE = (_plane, _n, _f, _plane, _n)
# The functions that are called from outside, and the types they are compiled for.
ENTRIES = {
    "integral_row": INTEGRAL_ROW,
    "move": MOVE,
    "describe": DESCRIBE,
    "finish": FINISH,
    "sample": SAMPLE,
    "resize": RESIZE,
}
