"""Points followed through a sequence of fields: d_k at p_k, with p_k = p_(k-1) + d_(k-1)(p_(k-1)).

Equation 2 of Simonyan & Zisserman 2014. The paper states neither interpolation nor border rule:
here p_1 is a pixel, later positions are real, fields are sampled bilinearly between pixels, and a
point that would leave the frame stays on its border.

The position is kept as an offset q from the pixel the path starts at, split into whole pixels
towards zero and a rest, and the sample is interpolated from the pixel at the whole offset towards
the neighbor on the side of the rest. Mirrored fields then take the same roundings with the other
sign, so that their paths are mirrored bit for bit, and constant fields are sampled exactly. The
two forms, `follow_tensors` and the compiled loop, do the same float32 operations in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def follow(fields: np.ndarray, means: np.ndarray, top: int, left: int, found: np.ndarray) -> None:
    """Write what the points of a crop meet on their way, less `means`, into `found`.

    `fields` are float32 (L, H, W, 2) in px, finite, `means` (L, 2), `found` (L, 2, h, w). Paths
    follow the fields as they are; they start in the crop of the size of `found` at row `top`,
    column `left`, and may leave it.
    """
    fields = np.ascontiguousarray(fields).view()
    fields.flags.writeable = False  # as the compiled loop takes them
    compiled()(fields, means, top, left, found)


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


def compiled() -> Callable[..., None]:
    """The loop of `follow`, compiled or loaded from disk: once in a parent, before its workers."""
    from flowkit.data import trajectory_kernels as kernels
    from flowkit.flow.compiled import ensure_compiled

    ensure_compiled(kernels.follow_into, kernels.SIGNATURE, title="trajectories", seconds=4)
    return kernels.follow_into
