"""I3D, Inception v1 with filters over time, its layers named as in pytorch-i3d's published weights.

Carreira & Zisserman 2017 (arXiv:1705.07750). Convolutions and poolings are padded as TensorFlow's
"SAME" is, for the weights are DeepMind's. docs/weights.md has the files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from flowkit.data.clips import Stream
from flowkit.data.frames import RGB_CHANNELS, FrameForm
from flowkit.data.inputs import Inputs
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError
from flowkit.networks.efficientnet import same_pads
from flowkit.networks.fresh import fresh_sequence
from flowkit.networks.pixels import BoundedFlow, FramePixels
from flowkit.networks.slow_fusion import ImagesInTime
from flowkit.networks.table import FLOW_BOUND

HALF_RANGE = 127.5  # of pixels: the network sees them in -1..1
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01
LEAST = 9  # frames or fields of an input: of fewer only one moment reaches the last pooling
LENGTH = 64  # frames or fields of an input, as it was trained
FEATURES = 1024
# Channels of the layers of the blocks: b0; b1a, b1b; b2a, b2b; b3b
BLOCKS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
# Other names of layers in kinetics_i3d_pytorch's files, which has no capitals elsewhere, either
BRANCHES = {
    "branch_0": "b0",
    "branch_1.0": "b1a",
    "branch_1.1": "b1b",
    "branch_2.0": "b2a",
    "branch_2.1": "b2b",
    "branch_3.1": "b3b",
}
HEADS = ("logits.conv3d", "conv3d_0c_1x1.conv3d")  # of both repositories
# Input channels of published first layers -> what they see
PUBLISHED_INPUTS: Mapping[int, Inputs] = {
    RGB_CHANNELS: {"spatial": FrameForm(LENGTH)},
    2: {"temporal": StackForm(LENGTH, mean_subtract=False)},
}


class SameConv3d(nn.Conv3d):
    """A convolution padded as TensorFlow's "SAME" is: ceil(size / stride) along each axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = same_pads(x.shape[2:], self.kernel_size, self.stride)
        return super().forward(functional.pad(x, pads))


class SameMaxPool3d(nn.MaxPool3d):
    """A maximum padded likewise, by zeros: behind a ReLU nothing is less."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = same_pads(x.shape[2:], self.kernel_size, self.stride)  # type: ignore[arg-type]
        return super().forward(functional.pad(x, pads))


class Block(nn.Module):
    """Four branches side by side: (B, inputs, T, h, w) -> (B, channels, T, h, w)."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, reduced, three, narrow, other, behind_pool = widths
        self.b0 = _unit(inputs, one)
        self.b1a, self.b1b = _unit(inputs, reduced), _unit(reduced, three, 3)
        self.b2a, self.b2b = _unit(inputs, narrow), _unit(narrow, other, 3)
        self.b3a = SameMaxPool3d((3, 3, 3), (1, 1, 1))
        self.b3b = _unit(inputs, behind_pool)
        self.out_channels = one + three + other + behind_pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, 1)


class MeanOfPairs(nn.Module):
    """Maps over time -> the mean over places and over all pairs of neighboring moments.

    (B, C, T, h, w) -> (B, C). The published last pooling takes 2 moments and 7x7 places, all that
    an input of 224 px has, and the logits are averaged over time.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool1d(maps.mean((3, 4)), 2, 1).mean(2)


def i3d(name: str, stream: Stream, channels: int, dropout: float) -> tuple[nn.Sequential, int]:
    """The trunk with fresh weights, and how many features it gives.

    Stacks of standardized frames, or of flow in px, float32 (B, channels, h, w) -> features
    (B, 1024). UsageError for stacks of fewer than 9.
    """
    each = RGB_CHANNELS if stream == "spatial" else 2
    count = channels // each
    if count < LEAST:
        asked = "spatial --stack" if stream == "spatial" else "temporal --L"
        raise UsageError(
            f"{name} takes a stack of {LEAST} frames or fields or more (flowkit train {asked} "
            f"{LENGTH}), got {count}"
        )
    frames = FramePixels(count, HALF_RANGE, HALF_RANGE)
    layers: dict[str, nn.Module] = {
        "pixels": frames if stream == "spatial" else BoundedFlow(1 / FLOW_BOUND),
        "volume": ImagesInTime(each),
        "Conv3d_1a_7x7": _unit(each, 64, 7, 2),
        "MaxPool3d_2a_3x3": SameMaxPool3d((1, 3, 3), (1, 2, 2)),
        "Conv3d_2b_1x1": _unit(64, 64),
        "Conv3d_2c_3x3": _unit(64, 192, 3),
        "MaxPool3d_3a_3x3": SameMaxPool3d((1, 3, 3), (1, 2, 2)),
    }
    poolings = {
        "4b": ("MaxPool3d_4a_3x3", SameMaxPool3d((3, 3, 3), (2, 2, 2))),
        "5b": ("MaxPool3d_5a_2x2", SameMaxPool3d((2, 2, 2), (2, 2, 2))),
    }
    inputs = 192
    for number, widths in BLOCKS.items():
        if number in poolings:
            key, pooling = poolings[number]
            layers[key] = pooling
        layers[f"Mixed_{number}"] = block = Block(inputs, widths)
        inputs = block.out_channels
    layers |= {"avg_pool": MeanOfPairs(), "drop": nn.Dropout(dropout)}
    return fresh_sequence(layers), FEATURES


def our_tensors(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names of published files -> by ours, the last layer as ``classifier``.

    Ours are pytorch-i3d's. What has another name keeps it.
    """
    found = {}
    for theirs, tensor in published.items():
        layer, _, kind = theirs.rpartition(".")
        if layer in HEADS:
            found[f"classifier.{kind}"] = tensor.flatten(1) if kind == "weight" else tensor
            continue
        if layer.startswith(("conv3d_", "mixed_")):
            layer = layer.capitalize().replace(".batch3d", ".bn")
            for branch, ours in BRANCHES.items():
                layer = layer.replace(f".{branch}.", f".{ours}.")
        found[f"{layer}.{kind}" if layer else theirs] = tensor
    return found


def _unit(inputs: int, outputs: int, side: int = 1, stride: int = 1) -> nn.Sequential:
    unit = nn.Sequential()
    unit.add_module("conv3d", SameConv3d(inputs, outputs, side, stride, bias=False))
    unit.add_module("bn", nn.BatchNorm3d(outputs, NORM_EPS, NORM_MOMENTUM))
    unit.add_module("relu", nn.ReLU(inplace=True))
    return unit
