"""What stands before a first layer: flowkit's frames and flow as the weights behind it expect."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from flowkit.data.augment import RGB_MEAN, RGB_STD
from flowkit.networks.table import FLOW_BOUND

# Mean and deviation of RGB in 0..255, as the weights were trained on it
PIXEL_MEAN, PIXEL_STD = 127, 128
# Displacement that stands for a pixel of 1, in parts of the input's side: 0.7 px of 112. Tried on
# held-out groups of ten classes, a last layer on frozen features was worse with 0.35 px and 2 px.
FLOW_UNIT = 1 / 160
FLOW_LIMIT = 6  # units; larger displacements, mostly errors, are cut


class FramePixels(nn.Module):
    """Frames standardized by ImageNet's mean and deviation -> by those that weights expect.

    float32 (B, 3N, h, w) of both, N frames; `mean` and `std` are of values in 0..255, one or three
    of R, G, B.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self, frames: int = 1, mean: ArrayLike = PIXEL_MEAN, std: ArrayLike = PIXEL_STD
    ) -> None:
        super().__init__()
        scale = 255 * RGB_STD / np.asarray(std, np.float32)
        shift = (255 * RGB_MEAN - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        for name, values in (("scale", scale), ("shift", shift)):
            buffer = torch.tensor(np.tile(values, frames), dtype=torch.float32)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames * self.scale + self.shift


class FlowPixels(nn.Module):
    """Displacements in px -> in units that stand for the range of pixels, large ones cut.

    float32 (B, 2L, h, w) of both.
    """

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        return (stacks / (FLOW_UNIT * stacks.shape[-1])).clamp(-FLOW_LIMIT, FLOW_LIMIT)


class BoundedFlow(nn.Module):
    """Displacements in px -> `scale` times them plus `shift`, those beyond the bound cut.

    float32 (B, 2L, h, w) of both.
    """

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        return stacks.clamp(-FLOW_BOUND, FLOW_BOUND) * self.scale + self.shift
