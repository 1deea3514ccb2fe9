"""BN-Inception as in TSN's published two-stream weights, which its layers are named after.

Ioffe & Szegedy 2015 (arXiv:1502.03167) in the form that Wang et al. 2016 (arXiv:1608.00859) train:
convolutions with a bias, each before a normalization and a ReLU. docs/weights.md has their files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from flowkit.data.clips import Stream
from flowkit.data.frames import RGB_CHANNELS, FrameForm
from flowkit.data.inputs import Inputs
from flowkit.data.stacks import StackForm
from flowkit.networks.fresh import fresh_sequence
from flowkit.networks.pixels import BoundedFlow, FramePixels

PIXEL_MEAN = (128, 117, 104)  # of R, G, B in 0..255, as tsn-pytorch and mmaction take it off
# A code of 8 bits, 127.5 + 6.375 v for v px within 20, less the 128 that TSN takes off
CODES_PER_PX, CODE_OF_ZERO = 255 / 40, 127.5 - 128
FEATURES = 1024
# Channels of the blocks' layers: 1x1; 3x3_reduce, 3x3; double_3x3_reduce, double_3x3_1 and _2;
# pool_proj. Blocks without the first and the last have a stride of 2 and hand on what they pool.
BLOCKS = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
# How published files name the last layer: tsn-pytorch, its networks of UCF-101 and HMDB-51 with and
# without Kinetics, mmaction, ImageNet's.
HEADS = (
    "new_fc",
    "base_model.fc-action.1",
    "base_model.fc_action.1",
    "cls_head.fc_cls",
    "fc",
    "last_linear",
)
TRUNKS = ("base_model.", "backbone.")  # how they name what all other layers are in
# Input channels of published first layers -> what they see
PUBLISHED_INPUTS: Mapping[int, Inputs] = {
    RGB_CHANNELS: {"spatial": FrameForm()},
    10: {"temporal": StackForm(5, mean_subtract=False)},
    5 * RGB_CHANNELS: {"spatial": FrameForm(5, kind="rgb-diff")},
}


class Block(nn.ModuleDict):
    """Four branches side by side: (B, inputs, h, w) -> (B, channels, h', w'), h' half of h or h."""

    BRANCHES = (
        ("1x1",),
        ("3x3_reduce", "3x3"),
        ("double_3x3_reduce", "double_3x3_1", "double_3x3_2"),
        ("pool", "pool_proj"),
    )

    def __init__(self, inputs: int, widths: tuple[int, ...], *, largest: bool) -> None:
        super().__init__()
        one, reduced, three, narrow, double, behind_pool = widths
        stride = 1 if one else 2
        if one:
            self._add("1x1", inputs, one, 1)
        self._add("3x3_reduce", inputs, reduced, 1)
        self._add("3x3", reduced, three, 3, stride)
        self._add("double_3x3_reduce", inputs, narrow, 1)
        self._add("double_3x3_1", narrow, double, 3)
        self._add("double_3x3_2", double, double, 3, stride)
        if stride == 2:
            # A margin of zeros, the least that a ReLU gives, changes maps of odd sides alone
            self["pool"] = nn.Sequential(
                nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2, ceil_mode=True)
            )
        else:
            self["pool"] = nn.MaxPool2d(3, 1, 1) if largest else nn.AvgPool2d(3, 1, 1)
            self._add("pool_proj", inputs, behind_pool, 1)
        self.out_channels = one + three + double + (behind_pool or inputs)

    def _add(self, name: str, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        self[name] = nn.Conv2d(inputs, outputs, side, stride, side // 2)
        self[f"{name}_bn"] = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._branch(names, x) for names in self.BRANCHES if names[0] in self], 1)

    def _branch(self, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        for name in names:
            if name == "pool":
                x = self[name](x)
            elif name in self:
                x = self[f"{name}_bn"](self[name](x)).relu_()
        return x


def bninception(
    name: str, stream: Stream, channels: int, dropout: float
) -> tuple[nn.Sequential, int]:
    """The trunk with fresh weights, and how many features it gives.

    Standardized frames of the spatial stream, or flow stacks in px of the temporal one, float32
    (B, channels, h, w) -> features (B, 1024).
    """
    frames = FramePixels(channels // RGB_CHANNELS, PIXEL_MEAN, 1)
    layers: dict[str, nn.Module] = {
        "pixels": frames if stream == "spatial" else BoundedFlow(CODES_PER_PX, CODE_OF_ZERO),
        "conv1_7x7_s2": nn.Conv2d(channels, 64, 7, 2, 3),
        "conv1_7x7_s2_bn": nn.BatchNorm2d(64),
        "conv1_relu_7x7": nn.ReLU(inplace=True),
        "pool1_3x3_s2": nn.MaxPool2d(3, 2, ceil_mode=True),
        "conv2_3x3_reduce": nn.Conv2d(64, 64, 1),
        "conv2_3x3_reduce_bn": nn.BatchNorm2d(64),
        "conv2_relu_3x3_reduce": nn.ReLU(inplace=True),
        "conv2_3x3": nn.Conv2d(64, 192, 3, 1, 1),
        "conv2_3x3_bn": nn.BatchNorm2d(192),
        "conv2_relu_3x3": nn.ReLU(inplace=True),
        "pool2_3x3_s2": nn.MaxPool2d(3, 2, ceil_mode=True),
    }
    inputs = 192
    for number, widths in BLOCKS.items():
        layers[f"inception_{number}"] = block = Block(inputs, widths, largest=number == "5b")
        inputs = block.out_channels
    layers["global_pool"] = nn.AdaptiveAvgPool2d(1)  # 7x7 places of an input of 224 px
    layers["flatten"] = nn.Flatten()
    layers["drop"] = nn.Dropout(dropout)
    return fresh_sequence(layers), FEATURES


def our_tensors(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names of published files -> by ours, the last layer as ``classifier``.

    A block's layers are in the block. Filters of B, G, R, of a frame or of differences, become ones
    of R, G, B. What has another name keeps it.
    """
    found = {}
    for theirs, tensor in published.items():
        layer, _, kind = theirs.rpartition(".")
        if layer in HEADS:
            found[f"classifier.{kind}"] = tensor
            continue
        for prefix in TRUNKS:
            layer = layer.removeprefix(prefix)
        if layer.endswith("_bn") and tensor.ndim == 2 and len(tensor) == 1:
            tensor = tensor[0]  # (1, C) in files of before PyTorch 0.4
        if layer == "conv1_7x7_s2" and kind == "weight" and tensor.shape[1:2].numel() in (3, 15):
            tensor = tensor.unflatten(1, (-1, RGB_CHANNELS)).flip(2).flatten(1, 2)
        ours = re.sub(r"^(inception_[0-9][a-e])_", r"\1.", layer)
        found[f"{ours}.{kind}" if layer else theirs] = tensor
    return found
