# mypy: ignore-errors
"""Dense trajectories in compiled loops: integral histograms, moving, describing, ending, sampling.

Importing this module imports Numba and compiles nothing: `flowkit.idt.tracking` compiles and keeps
the result on disk. Numba, not mypy, types these functions. All arithmetic is float32, in the order
of the authors' program where the order matters to the result.

Tracks of one level live in slots. `order` is a permutation of the slots: the living ones first,
oldest first, then the free ones. Of slot s, `ages[s]` steps are done, `points[s, k]` is the k-th
position in px of the level, `moves[s, k]` the k-th displacement less the camera's, and `sums[s, c]`
the sum of the descriptors of the c-th cell of time: one of the four behind the other, in each x
outer, y inner, then the bins, filled up to whole vectors of LANES.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from flowkit.flow.lanes import LANES, LINE, NoAlias, Vectors, aligned, pointers, wide

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
QUARTER_TURN, TURN = np.float32(90), np.float32(360)
# OpenCV's fastAtan2: an odd polynomial of the smaller component against the larger, in degrees.
TURN_1 = np.float32(0.9997878412794807 * 180 / np.pi)
TURN_3 = np.float32(-0.3258083974640975 * 180 / np.pi)
TURN_5 = np.float32(0.1555786518463281 * 180 / np.pi)
TURN_7 = np.float32(-0.04432655554792128 * 180 / np.pi)
TINY = np.float32(2.220446049250313e-16)
LONG_PART = np.float32(0.7)  # share of a track's length in one step that makes it no track

# OpenCV's Sobel weighs 8-bit pixels and 9 products by 1 / (4 * 3 * 255), squared in a product.
SOBEL_SCALE = np.float32(1 / 3060**2)

HOG, HOF, MBHX, MBHY = range(4)
ROWS = 2  # of an integral histogram that are made together
FUSED = {"contract"}  # a product and a sum in one step, rounded once

pixel = njit(error_model="numpy", forceinline=True, fastmath=FUSED)
row = njit(error_model="numpy", pipeline_class=NoAlias, fastmath=FUSED)
reordered = njit(
    error_model="numpy", pipeline_class=NoAlias, fastmath={*FUSED, "reassoc", "nnan", "nsz"}
)
whole = njit(error_model="numpy", nogil=True, fastmath=FUSED)


def whole_lanes(bins):
    """Floats of the vectors that hold so many bins."""
    return -(-bins // LANES) * LANES


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
def vote_row(count, along, down, bins, zero, k, low, early, later):
    """What each of a row of vectors gives to two neighboring bins, and which is the first of them.

    low[k] says where that bin's marks are, early[k] and later[k] are the parts of the vector's
    length. One of a length up to `zero` gives 1 to the bin behind all others.
    """
    wide()
    k, per_degree = np.uintp(k), np.float32(bins) / TURN
    for x in range(count):
        angle = degrees(along[x], down[x])
        angle = angle if angle < TURN else angle - TURN
        place = angle * per_degree
        first = np.int32(place)
        length = np.sqrt(along[x] * along[x] + down[x] * down[x])
        part = (place - np.float32(first)) * length
        still = length <= zero
        low[k, x] = np.int32(2 * LANES) * (np.int32(bins) if still else first)
        early[k, x] = ONE if still else length - part
        later[k, x] = ZERO if still else part


@row
def difference_row(image, width, y, left, count, along, down):
    """Derivatives [-1 0 1] of a row from column `left`, zero on the image's border."""
    inner = 0 < y < image.shape[0] - 1
    above, below = np.uintp(y - 1 if inner else y), np.uintp(y + 1 if inner else y)
    y, first = np.uintp(y), max(left, 1)
    before, after = np.uintp(first - 1), np.uintp(first + 1)
    along[0], along[count - 1] = ZERO, ZERO
    for k in range(min(left + count, width - 1) - first):
        x, at = np.uintp(k), np.uintp(first - left + k)
        along[at] = np.float32(image[y, after + x]) - np.float32(image[y, before + x])
    for k in range(count):
        x = np.uintp(left) + np.uintp(k)
        down[k] = np.float32(image[below, x]) - np.float32(image[above, x])


@row
def copy_row(u, v, y, left, count, along, down):
    y, left = np.uintp(y), np.uintp(left)
    for k in range(count):
        along[k], down[k] = u[y, left + np.uintp(k)], v[y, left + np.uintp(k)]


@pixel
def vectors_row(kind, gray, u, v, y, left, count, along, down):
    """The vectors of a row whose directions the descriptor of this kind counts."""
    width = gray.shape[1]
    if kind == HOG:
        difference_row(gray, width, y, left, count, along, down)
    elif kind == HOF:
        copy_row(u, v, y, left, count, along, down)
    elif kind == MBHX:
        difference_row(u, width, y, left, count, along, down)
    else:
        difference_row(v, width, y, left, count, along, down)


@intrinsic
def add_eight(typingctx, marks, mark, low, early, later, x, columns, totals, ring, above, heres):
    """Add the votes of eight pixels of ROWS rows, from `x` on, to those before and above them.

    marks: from `mark` on, where `low` says, two vectors with 1 in a bin's lane and in that of the
    bin after it. low, early, later: (ROWS, columns). totals: the sum in each lane over the pixels
    before, of each row, updated. ring: LANES floats a pixel; `above` is where the row above begins,
    `heres` where these do.
    """
    signature = types.void(
        marks, types.intp, low, early, later, types.intp, types.intp, totals, ring, types.intp,
        heres,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        table, index, first, second, sums, flat, starts = pointers(
            context, builder, signature, args, (0, 2, 3, 4, 7, 8, 10)
        )
        mark, x, columns, above = args[1], args[5], args[6], args[9]
        vectors, number = Vectors(builder), x.type
        add, multiply = vectors.add, vectors.multiply
        totals = [vectors.load(sums, number(k * LANES)) for k in range(ROWS)]
        heres = [builder.load(builder.gep(starts, [number(k)])) for k in range(ROWS)]
        for lane in range(LANES):
            place = builder.add(x, number(lane))
            at = builder.mul(builder.add(place, number(1)), number(LANES))
            value = vectors.load(flat, builder.add(above, at))
            for k in range(ROWS):
                cell = builder.add(builder.mul(columns, number(k)), place)
                bin = builder.sext(builder.load(builder.gep(index, [cell])), number)
                bin = builder.add(mark, bin)
                one = multiply(vectors.load(table, bin), vectors.spread(first, cell))
                bin = builder.add(bin, number(LANES))
                other = multiply(vectors.load(table, bin), vectors.spread(second, cell))
                totals[k] = add(totals[k], add(one, other))
                value = add(value, totals[k])
                vectors.store(value, flat, builder.add(heres[k], at))
        for k, total in enumerate(totals):
            vectors.store(total, sums, number(k * LANES))
        return context.get_dummy_value()

    return signature, codegen


@row
def add_votes(marks, mark, low, early, later, totals, ring, above, heres):
    """Add the votes of ROWS rows to those of the rows before."""
    for b in range(ROWS * LANES):
        totals[b] = ZERO
    for k in range(ROWS):
        for b in range(LANES):
            ring[heres[k] + b] = ZERO
    count = low.shape[1]
    for x in range(0, count, LANES):
        add_eight(marks, mark, low, early, later, x, count, totals, ring, above, heres)


@pixel
def bin_marks(bins, votes):
    """Which lanes votes go to, as `add_eight` reads it, and which lanes are bins.

    The bins are `votes` in number, from which the first `bins` form a circle; as many vectors as
    hold them. Float32 (vectors, (bins + 1) * 2 LANES) and (vectors * LANES).
    """
    vectors = -(-votes // LANES)
    marks = np.zeros((vectors, (bins + 1) * 2 * LANES), np.float32)
    real = np.zeros(vectors * LANES, np.float32)
    for bin in range(votes):
        after = (bin + 1) % bins
        marks[bin // LANES, bin * 2 * LANES + bin % LANES] = ONE
        marks[after // LANES, (bin * 2 + 1) * LANES + after % LANES] = ONE
        real[bin] = ONE
    return marks, real


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
    is taken.
    """
    corners = np.empty((count, 2), np.int64)
    part = windows(order, count, ages, points, gray.shape[0], gray.shape[1], patch, corners)
    top, height = part[0], part[2]
    latest = np.full(height + 1, -1, np.int64)  # by lower end, the latest track; then those before
    before = np.empty(count, np.int64)
    for k in range(count):
        end = corners[k, 0] - top + patch
        before[k] = latest[end]
        latest[end] = k
    first = 0
    for kind in (HOG, HOF, MBHX, MBHY):
        zero = zero_flow if kind == HOF else np.float32(-1)
        marks, real = bin_marks(bins, bins + 1 if kind == HOF else bins)
        describe_kind(
            kind, gray, u, v, part, patch, cells, bins, marks, real, zero, epsilon,
            order, ages, corners, latest, before, steps, first, sums,
        )  # fmt: skip
        first += cells * cells * len(real)
    for k in range(count):
        ages[order[k]] += 1


@whole
def describe_kind(
    kind, gray, u, v, part, patch, cells, bins, marks, real, zero, epsilon,
    order, ages, corners, latest, before, steps, first, sums,
):  # fmt: skip
    """Add the descriptors of one kind, which lie from `first` on in the sums.

    The integral histograms run down the part of the level that windows lie in, and a ring keeps
    the rows of a window: a track is described when they reach the lower end of its own.
    """
    top, left, height, width = part
    count = -(-width // LINE) * LINE
    along, down = aligned(count), aligned(count)
    low = np.zeros((ROWS, count), np.int32)
    early, later = aligned(ROWS * count), aligned(ROWS * count)
    early, later = early.reshape(ROWS, count), later.reshape(ROWS, count)
    totals = aligned(ROWS * LANES)
    slots, side = patch + ROWS, patch // cells
    vectors, line = len(marks), (count + 1) * LANES
    ring = np.empty(slots * vectors * line, np.float32)
    ring[: vectors * line] = ZERO
    flat_marks = marks.reshape(-1)
    heres = np.empty(ROWS, np.int64)  # where in the ring the rows begin
    edges = np.empty(cells + 1, np.int64)  # where those between cells do
    values = aligned(cells * cells * len(real))
    for block in range(0, height, ROWS):
        for k in range(min(ROWS, height - block)):
            vectors_row(kind, gray, u, v, top + block + k, left, width, along, down)
            vote_row(width, along, down, bins, zero, k, low, early, later)
        for vector in range(vectors):
            for k in range(ROWS):
                heres[k] = ((block + k + 1) % slots * vectors + vector) * line
            above = (block % slots * vectors + vector) * line
            mark = vector * marks.shape[1]
            add_votes(flat_marks, mark, low, early, later, totals, ring, above, heres)
        for end in range(block + 1, min(block + ROWS, height) + 1):
            for edge in range(cells + 1):
                edges[edge] = (end - patch + edge * side) % slots * vectors * line
            k = latest[end]
            while k >= 0:
                x = (corners[k, 1] - left) * LANES
                gather_cells(ring, edges, x, side * LANES, line, real, epsilon, values)
                slot = order[k]
                add_roots(values, sums, slot, ages[slot] // steps, first)
                k = before[k]


@intrinsic
def cell_eight(typingctx, ring, above, below, width, real, first, epsilon, values, at):
    """Put the sums of a cell in a vector of bins to `at`, no less than 0, epsilon added.

    The cell spans the places from `above` to `below` in the ring, and `width` of them to the right.
    real: from `first` on, 1 for lanes that are bins and 0 for others, whose value is 0.
    """
    signature = types.void(
        ring, types.intp, types.intp, types.intp, real, types.intp, types.float32, values,
        types.intp,
    )  # fmt: skip

    def codegen(context, builder, signature, args):
        flat, mask, target = pointers(context, builder, signature, args, (0, 4, 7))
        above, below, width, first, epsilon, at = (args[k] for k in (1, 2, 3, 5, 6, 8))
        vectors = Vectors(builder)
        zero = ir.Constant(vectors.floats, None)
        both = builder.fadd(
            vectors.load(flat, builder.add(below, width)), vectors.load(flat, above)
        )
        both = builder.fsub(both, vectors.load(flat, below))
        total = builder.fsub(both, vectors.load(flat, builder.add(above, width)))
        total = builder.select(builder.fcmp_ordered(">", total, zero), total, zero)
        total = builder.fadd(total, vectors.fill(epsilon))
        vectors.store(builder.fmul(total, vectors.load(mask, first)), target, at)
        return context.get_dummy_value()

    return signature, codegen


@row
def gather_cells(ring, edges, x, width, line, real, epsilon, values):
    """The bins of every cell of a window, x outer, y inner: values, the result."""
    at = 0
    for _ in range(len(edges) - 1):
        for edge in range(len(edges) - 1):
            above, below = edges[edge] + x, edges[edge + 1] + x
            for first in range(0, len(real), LANES):
                cell_eight(ring, above, below, width, real, first, epsilon, values, at)
                above, below, at = above + line, below + line, at + LANES
        x += width


@reordered
def add_roots(values, sums, slot, cell, first):
    """Add the roots of the values' shares in their sum, from `first` on."""
    norm = ZERO
    for at in range(len(values)):
        norm += values[at]
    norm = ONE / norm
    slot, cell, first = np.uintp(slot), np.uintp(cell), np.uintp(first)
    for at in range(len(values)):
        sums[slot, cell, first + np.uintp(at)] += np.sqrt(values[at] * norm)


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


@row
def products_row(mirrored, y, smooth, steep, products):
    """The products xx, xy and yy of Sobel's derivatives of row y: products[y % 3], (3, width + 2).

    smooth and steep, of width + 2, are overwritten.
    """
    wide()
    width = mirrored.shape[1] - 2
    above, here, below, into = np.uintp(y), np.uintp(y + 1), np.uintp(y + 2), np.uintp(y % 3)
    xx, xy, yy, one, two = np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(1), np.uintp(2)
    for x in range(width + 2):
        top, bottom = np.float32(mirrored[above, x]), np.float32(mirrored[below, x])
        smooth[x] = top + TWO * np.float32(mirrored[here, x]) + bottom
        steep[x] = bottom - top
    for k in range(width):
        x = np.uintp(k)
        along = smooth[x + two] - smooth[x]
        down = steep[x] + TWO * steep[x + one] + steep[x + two]
        products[into, xx, x + one] = along * along
        products[into, xy, x + one] = along * down
        products[into, yy, x + one] = down * down
    for plane in range(3):
        products[into, plane, 0] = products[into, plane, 2]
        products[into, plane, width + 1] = products[into, plane, width - 1]


@row
def eigenvalues_row(y, height, products, sums, eigenvalues, largest):
    """The lesser eigenvalue of the 3 x 3 sums of products of each pixel of row y.

    largest: the largest of each column, updated.
    """
    wide()
    above, below = np.uintp(abs(y - 1) % 3), np.uintp(min(y + 1, 2 * height - 3 - y) % 3)
    here, one, two = np.uintp(y % 3), np.uintp(1), np.uintp(2)
    for plane in range(3):
        for x in range(sums.shape[1]):
            both = products[above, plane, x] + products[here, plane, x]
            sums[plane, x] = both + products[below, plane, x]
    for k in range(len(eigenvalues)):
        x = np.uintp(k)
        xx = sums[0, x] + sums[0, x + one] + sums[0, x + two]
        xy = sums[1, x] + sums[1, x + one] + sums[1, x + two]
        yy = sums[2, x] + sums[2, x + one] + sums[2, x + two]
        half = (xx - yy) * HALF
        least = (xx + yy) * HALF - np.sqrt(half * half + xy * xy)
        least *= SOBEL_SCALE
        eigenvalues[x] = least
        largest[x] = least if least > largest[x] else largest[x]


@whole
def grid_eigenvalues(mirrored, distance):
    """The lesser eigenvalues at the middle of each cell of a grid, and the largest of all pixels.

    mirrored: uint8 (H + 2, W + 2), a level of the gray with the pixels beside its edge mirrored at
    it. As `cv2.cornerMinEigenVal` gives them, with Sobel's derivatives, summed over 3 x 3 px.
    """
    height, width = mirrored.shape[0] - 2, mirrored.shape[1] - 2
    found = np.zeros((height // distance, width // distance), np.float32)
    smooth, steep = aligned(width + 2), aligned(width + 2)
    across = -(-(width + 2) // LINE) * LINE
    products = aligned(9 * across).reshape(3, 3, across)  # of row y in y % 3
    sums = aligned(3 * across).reshape(3, across)
    eigenvalues, largest = aligned(width), aligned(width)
    made = 0
    for y in range(height):
        while made < min(y + 2, height):
            products_row(mirrored, made, smooth, steep, products)
            made += 1
        eigenvalues_row(y, height, products, sums, eigenvalues, largest)
        if y % distance == distance // 2 and y // distance < len(found):
            for x in range(found.shape[1]):
                found[y // distance, x] = eigenvalues[x * distance + distance // 2]
    return found, largest.max()


@whole
def sample(order, count, ages, points, sums, mirrored, quality, distance):
    """Begin a track in every cell of the grid without one, where the gray has enough structure.

    mirrored: uint8 (H + 2, W + 2), as `grid_eigenvalues` takes it. Slots must be free for all
    cells. Returns how many tracks live then.
    """
    eigenvalues, largest = grid_eigenvalues(mirrored, distance)
    rows, columns = eigenvalues.shape
    taken = np.zeros((rows, columns), np.bool_)
    for k in range(count):
        slot = order[k]
        x = int(points[slot, ages[slot], 0]) // distance
        y = int(points[slot, ages[slot], 1]) // distance
        if x < columns and y < rows:
            taken[y, x] = True
    limit = np.float64(largest) * quality
    for y in range(rows):
        for x in range(columns):
            if taken[y, x] or not eigenvalues[y, x] > limit:
                continue
            slot = order[count]
            count += 1
            ages[slot] = 0
            points[slot, 0, 0] = x * distance + distance // 2
            points[slot, 0, 1] = y * distance + distance // 2
            sums[slot] = ZERO
    return count


_gray = types.uint8[:, ::1]
_slots = types.int32[::1]
_line = types.float32[::1]
_plane = types.float32[:, ::1]
_cube = types.float32[:, :, ::1]
_n, _f = types.int64, types.float32
MOVE = (_slots, _n, _slots, _cube, _cube, _cube, _cube)
DESCRIBE = (
    _gray, _plane, _plane, _slots, _n, _slots, _cube, _n, _n, _n, _f, _f, _n, _cube,
)  # fmt: skip
FINISH = (_slots, _n, _slots, _cube, _cube, _cube, _f, types.float32[::1], _plane, _plane, _cube)
SAMPLE = (_slots, _n, _slots, _cube, _cube, _gray, types.float64, _n)
GRID_EIGENVALUES = (_gray, _n)
# The functions that are called from outside, and the types they are compiled for.
ENTRIES = {
    "move": MOVE,
    "describe": DESCRIBE,
    "finish": FINISH,
    "grid_eigenvalues": GRID_EIGENVALUES,
    "sample": SAMPLE,
}
