# mypy: ignore-errors
"""Corners of a frame, and the border of one that was warped by the camera's motion, compiled.

Importing this module imports Numba and compiles nothing. Numba, not mypy, types these functions.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types


@njit(error_model="numpy", nogil=True)
def keep_previous(warped, previous, channels, homography, margin):
    """Put the previous frame where the homography does not lead well inside the current one.

    warped, the result, and previous: uint8 (H, W * channels). margin: px inside the frame.
    """
    height, width = warped.shape[0], warped.shape[1] // channels
    h = homography
    inside = np.empty(width, np.uint8)
    for y in range(height):
        for x in range(width):  # apart from the copying, so that LLVM makes it vectors
            w = h[2, 0] * x + h[2, 1] * y + h[2, 2]
            inverse = 1.0 / w if w != 0.0 else 0.0
            to_x = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) * inverse
            to_y = (h[1, 0] * x + h[1, 1] * y + h[1, 2]) * inverse
            inside_x = (margin < to_x) & (to_x < width - 1 - margin)
            inside_y = (margin < to_y) & (to_y < height - 1 - margin)
            inside[x] = inside_x & inside_y
        for x in range(width):
            if not inside[x]:
                for at in range(x * channels, (x + 1) * channels):
                    warped[y, at] = previous[y, at]


@njit(error_model="numpy", nogil=True)
def peaks(eigenvalues, mask, limit, keys):
    """The pixels off the frame's edge over `limit` and not under a neighbor; returns their number.

    eigenvalues: float32 (H, W). mask: uint8 (H, W), 0 where no peak may be, or (0, 0) for none.
    keys, the result: the bits of the eigenvalue above the pixel's number, so that their order is
    that of strength.
    """
    height, width = eigenvalues.shape
    bits = eigenvalues.view(np.uint32)
    upper = np.empty(width, np.float32)  # the largest of three rows
    words = np.zeros(-(-width // 8), np.uint64)
    marks = words.view(np.uint8)
    found = 0
    for y in range(1, height - 1):
        above, here, below = eigenvalues[y - 1], eigenvalues[y], eigenvalues[y + 1]
        for x in range(width):  # apart from the next, so that LLVM makes both vectors
            largest = above[x] if above[x] > here[x] else here[x]
            upper[x] = below[x] if below[x] > largest else largest
        for x in range(1, width - 1):
            side = upper[x - 1] if upper[x - 1] > upper[x + 1] else upper[x + 1]
            marks[x] = (here[x] > limit) & (here[x] >= upper[x]) & (here[x] >= side)
        for word in range(len(words)):
            if words[word]:
                for x in range(8 * word, min(8 * word + 8, width)):
                    if marks[x] and (not mask.shape[0] or mask[y, x]):
                        place = np.uint64(y * width + x)
                        keys[found] = np.uint64(bits[y, x]) << np.uint64(32) | place
                        found += 1
    return found


@njit(error_model="numpy", nogil=True)
def keep_apart(keys, width, near, distance, corners):
    """Of peaks in order of strength, weakest first, those that no stronger one is too near to.

    near: bool (H, W), all False, overwritten. distance: px. corners, the result: float32 (N, 2), x
    and y. Returns how many there are, at most N.
    """
    height, side, found = near.shape[0], int(np.ceil(distance)), 0
    for key in keys[::-1]:
        place = np.int64(key & np.uint64(0xFFFFFFFF))
        y, x = place // width, place % width
        if found == len(corners):
            break
        if near[y, x]:
            continue
        corners[found, 0], corners[found, 1] = x, y
        found += 1
        for down in range(max(y - side, 0), min(y + side + 1, height)):
            for along in range(max(x - side, 0), min(x + side + 1, width)):
                if (down - y) ** 2 + (along - x) ** 2 < distance * distance:
                    near[down, along] = True
    return found


_frame = types.uint8[:, ::1]
KEEP_PREVIOUS = (_frame, _frame, types.int64, types.float64[:, ::1], types.float64)
PEAKS = (types.float32[:, ::1], _frame, types.float32, types.uint64[::1])
KEEP_APART = (
    types.uint64[::1], types.int64, types.boolean[:, ::1], types.float64, types.float32[:, ::1],
)  # fmt: skip
# The functions that are called from outside, and the types they are compiled for.
ENTRIES = {"keep_previous": KEEP_PREVIOUS, "peaks": PEAKS, "keep_apart": KEEP_APART}
