# mypy: ignore-errors
"""Points followed through a sequence of fields, as `flowkit.data.trajectories` says, compiled.

Importing this module imports Numba and compiles nothing. Numba, not mypy, types this function.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int32, int64, njit, types, uint32


@njit(nogil=True)
def follow_into(fields, means, top, left, found):
    """Write what the points of a crop meet into `found`, as `flowkit.data.trajectories.follow`."""
    length, rows, columns, _ = fields.shape
    _, _, height, width = found.shape
    row_step, last = int32(2 * columns), int32(columns - 1)
    row = np.empty((6, width), np.float32)
    qx, qy, x, y = row[0], row[1], row[2], row[3]  # offset from the start; displacement
    rest_x, rest_y = row[4], row[5]
    place = np.empty((3, width), np.int32)  # index of a float32 in a field
    at, to_x, to_y = place[0], place[1], place[2]
    zero, one = float32(0), uint32(1)
    for v in range(top, top + height):
        first = int32((v * columns + left) * 2)
        up, down = float32(-v), float32(rows - 1 - v)
        qx[:], qy[:], x[:], y[:] = 0, 0, 0, 0
        for k in range(length):
            # A loop of its own, so that it is vectorized, as the next is
            for j in range(width):
                u = int32(left + j)
                to_right = min(max(qx[j] + x[j], float32(-u)), float32(last - u))
                to_below = min(max(qy[j] + y[j], up), down)
                whole_x, whole_y = int32(to_right), int32(to_below)
                part_x, part_y = to_right - float32(whole_x), to_below - float32(whole_y)
                qx[j], qy[j] = to_right, to_below
                rest_x[j], rest_y[j] = abs(part_x), abs(part_y)
                to_x[j] = int32(2) * (int32(part_x > zero) - int32(part_x < zero))
                to_y[j] = row_step * (int32(part_y > zero) - int32(part_y < zero))
                at[j] = first + int32(2) * (int32(j) + whole_x) + row_step * whole_y
            flat, mean_x, mean_y = fields[k].reshape(-1), means[k, 0], means[k, 1]
            found_x, found_y = found[k, 0, v - top], found[k, 1, v - top]
            for j in range(width):
                near, near_x = uint32(at[j]), uint32(at[j] + to_x[j])
                near_y, far = uint32(at[j] + to_y[j]), uint32(at[j] + to_y[j] + to_x[j])
                upper = flat[near] + rest_x[j] * (flat[near_x] - flat[near])
                lower = flat[near_y] + rest_x[j] * (flat[far] - flat[near_y])
                x[j] = upper + rest_y[j] * (lower - upper)
                near, near_x = near + one, near_x + one
                near_y, far = near_y + one, far + one
                upper = flat[near] + rest_x[j] * (flat[near_x] - flat[near])
                lower = flat[near_y] + rest_x[j] * (flat[far] - flat[near_y])
                y[j] = upper + rest_y[j] * (lower - upper)
                found_x[j], found_y[j] = x[j] - mean_x, y[j] - mean_y


_fields = types.Array(float32, 4, "C", readonly=True)
SIGNATURE = (_fields, float32[:, ::1], int64, int64, float32[:, :, :, ::1])
