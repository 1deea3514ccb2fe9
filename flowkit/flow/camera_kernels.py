# mypy: ignore-errors
"""The border of a frame that was warped by the camera's motion, in a compiled loop.

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


_frame = types.uint8[:, ::1]
KEEP_PREVIOUS = (_frame, _frame, types.int64, types.float64[:, ::1], types.float64)
