"""Slow fusion of frames: the network of Karpathy et al. 2014 whose first layers filter over time.

Large-scale Video Classification with Convolutional Neural Networks, CVPR 2014, section 3.1; the
2014 paper compares its temporal network with one of these (section 6). docs/training.md has what
the paper leaves open.
"""

from __future__ import annotations

import torch
from torch import nn

from flowkit.data.clips import Stream
from flowkit.data.frames import RGB_CHANNELS
from flowkit.errors import UsageError
from flowkit.networks.fresh import fresh_sequence, undrawn

FRAMES = (10, 11)  # frames of an input; two-stream networks were compared with one of 11
# The normalization of Krizhevsky et al. 2012 with the numbers of this paper: k 2, size 5, alpha
# 1e-4 for each of the 5 elements that are summed, beta 0.5. PyTorch divides the sum by the size.
LRN = {"size": 5, "alpha": 5e-4, "beta": 0.5, "k": 2.0}
FILTERS = (96, 256, 384, 384, 256)  # of conv1 to conv5
GRID = 6  # places along each side of the last maps, of an input of 170 px
WIDTH = 4096  # of the two fully connected layers


class ImagesInTime(nn.Module):
    """A stack of N images of C channels as a volume: float32 (B, N C, h, w) -> (B, C, N, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        return stacks.unflatten(1, (-1, self.channels)).transpose(1, 2)


class OneMoment(nn.Module):
    """Maps of a single moment without their axis of time: (B, C, 1, h, w) -> (B, C, h, w)."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.squeeze(2)


def slow_fusion(
    name: str, stream: Stream, channels: int, dropout: float
) -> tuple[nn.Sequential, int]:
    """The trunk for stacks of 10 or 11 frames: (B, channels, 170, 170) -> features (B, 4096).

    The filters of conv1 to conv3 are the same at all moments: those of conv1 extend over 4 frames,
    of 11 frames over 5, and begin at every second one, so there are 4 moments behind it, 2 behind
    conv2, and one behind conv3, which sees all frames. UsageError for other channels.
    """
    frames = channels // RGB_CHANNELS
    if stream != "spatial" or channels not in [RGB_CHANNELS * count for count in FRAMES]:
        raise UsageError(
            f"{name} takes a stack of {' or '.join(map(str, FRAMES))} frames (flowkit train "
            f"spatial --stack {FRAMES[0]}), got {channels} channels of the {stream} stream"
        )
    c1, c2, c3, c4, c5 = FILTERS
    layers: dict[str, nn.Module] = {
        "volume": ImagesInTime(RGB_CHANNELS),
        "conv1": nn.Conv3d(RGB_CHANNELS, c1, (frames - 6, 11, 11), (2, 3, 3)),
        "relu1": nn.ReLU(inplace=True),
        "norm1": nn.LocalResponseNorm(**LRN),  # type: ignore[arg-type]
        "pool1": nn.MaxPool3d((1, 2, 2)),  # 4 x 54 x 54 -> 4 x 27 x 27
        "conv2": nn.Conv3d(c1, c2, (2, 5, 5), (2, 1, 1), (0, 2, 2)),
        "relu2": nn.ReLU(inplace=True),
        "norm2": nn.LocalResponseNorm(**LRN),  # type: ignore[arg-type]
        "pool2": nn.MaxPool3d((1, 2, 2)),  # 2 x 27 x 27 -> 2 x 13 x 13
        "conv3": nn.Conv3d(c2, c3, (2, 3, 3), (2, 1, 1), (0, 1, 1)),
        "relu3": nn.ReLU(inplace=True),
        "moment": OneMoment(),
        "conv4": nn.Conv2d(c3, c4, 3, padding=1),
        "relu4": nn.ReLU(inplace=True),
        "conv5": nn.Conv2d(c4, c5, 3, padding=1),
        "relu5": nn.ReLU(inplace=True),
        "pool5": nn.MaxPool2d(2),  # 13 -> 6
        "flatten": nn.Flatten(),
        "full6": undrawn(nn.Linear, c5 * GRID * GRID, WIDTH),
        "relu6": nn.ReLU(inplace=True),
        "drop6": nn.Dropout(dropout),
        "full7": undrawn(nn.Linear, WIDTH, WIDTH),
        "relu7": nn.ReLU(inplace=True),
        "drop7": nn.Dropout(dropout),
    }
    return fresh_sequence(layers), WIDTH
