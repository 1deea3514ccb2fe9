"""Points followed through a sequence of fields: d_k at p_k, with p_k = p_(k-1) + d_(k-1)(p_(k-1)).

Equation 2 of Simonyan & Zisserman 2014. The paper states neither interpolation nor border rule:
here p_1 is a pixel, later positions are real, fields are sampled bilinearly between pixels, and a
point that would leave the frame stays on its border.

The position is kept as an offset q from the pixel the path starts at, split into whole pixels
towards zero and a rest, and the sample is interpolated from the pixel at the whole offset towards
the neighbor on the side of the rest. Mirrored fields then take the same roundings with the other
sign, so that their paths are mirrored bit for bit, and constant fields are sampled exactly. The
two forms below do the same float32 operations in the same order.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def follow(fields: np.ndarray, means: np.ndarray, top: int, left: int, found: np.ndarray) -> None:
    """Write what the points of a crop meet on their way, less `means`, into `found`.

    `fields` are float32 (L, H, W, 2) in px, finite, `means` (L, 2), `found` (L, 2, h, w). Paths
    follow the fields as they are; they start in the crop of the size of `found` at row `top`,
    column `left`, and may leave it.
    """
    compile_kernel()(np.ascontiguousarray(fields), means, top, left, found)


def follow_tensors(
    fields: torch.Tensor, tops: torch.Tensor, lefts: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """`follow` of a batch on any device: float32 (B, L, H, W, 2) -> (B, L, 2, height, width).

    `tops` and `lefts` are integers (B,) on the same device, the crop of each sample.
    """
    import torch

    batch, length, rows, columns, _ = fields.shape
    flat = fields.reshape(-1)
    u = lefts[:, None, None] + torch.arange(width, device=fields.device)  # (B, 1, w)
    v = tops[:, None, None] + torch.arange(height, device=fields.device)[:, None]  # (B, h, 1)
    sample = torch.arange(batch, device=fields.device)[:, None, None] * length
    right, down = (columns - 1 - u).float(), (rows - 1 - v).float()
    qx = qy = fields.new_zeros((batch, height, width))
    found = fields.new_empty((batch, length, 2, height, width))
    for k in range(length):
        whole_x, whole_y = torch.trunc(qx), torch.trunc(qy)
        rest_x, rest_y = qx - whole_x, qy - whole_y
        to_x, to_y = torch.sign(rest_x).long(), torch.sign(rest_y).long() * columns
        at = ((sample + k) * rows + v + whole_y.long()) * columns + u + whole_x.long()
        taps = [2 * place for place in (at, at + to_x, at + to_y, at + to_x + to_y)]
        rest_x, rest_y = rest_x.abs(), rest_y.abs()
        x = _between([flat[tap] for tap in taps], rest_x, rest_y)
        y = _between([flat[tap + 1] for tap in taps], rest_x, rest_y)
        found[:, k, 0], found[:, k, 1] = x, y
        qx = torch.clamp(qx + x, -u.float(), right)
        qy = torch.clamp(qy + y, -v.float(), down)
    return found


def _between(taps: list[torch.Tensor], rest_x: torch.Tensor, rest_y: torch.Tensor) -> torch.Tensor:
    near, near_x, near_y, far = taps
    upper = near + rest_x * (near_x - near)
    lower = near_y + rest_x * (far - near_y)
    return upper + rest_y * (lower - upper)


@cache
def compile_kernel() -> Any:
    """The compiled loop of `follow`, made on first use: importing Numba takes half a second."""
    from numba import float32, int32, njit, uint32

    @njit(nogil=True)
    def follow_into(fields: Any, means: Any, top: int, left: int, found: Any) -> None:
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

    return follow_into
