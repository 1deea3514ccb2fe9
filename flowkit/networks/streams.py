"""The networks of a stream: a trunk from an image or a flow stack to features, and heads on it.

The 2014 network is CNN-M-2048 of Chatfield et al. 2014 (arXiv:1405.3531) as Simonyan & Zisserman
2014 (arXiv:1406.2199, figure 1 and section 5) use it. torchvision is imported here alone, and only
for its networks. `networks.table` has the facts of each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from flowkit.data.clips import CROP, STREAMS, Stream
from flowkit.data.frames import RGB_CHANNELS, FrameForm
from flowkit.data.inputs import Inputs, check_inputs, input_channels
from flowkit.errors import InstallError, UsageError
from flowkit.networks.fresh import draw_normal, fresh_sequence, init_normal, undrawn
from flowkit.networks.pixels import FramePixels
from flowkit.networks.table import OwnNet, check_hidden, check_own, net_facts

# The normalization of Krizhevsky et al. 2012: k 2, size 5, beta 0.75, and alpha 1e-4 for each of
# the 5 elements that are summed. PyTorch divides the sum by the size, so its alpha is 5 times that.
LRN = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}
DROPOUT = 0.9  # share dropped, temporal network; the paper evaluates 0.5 and 0.9 (section 4)
# The same for the 2014 network at its rate of 1e-2: He's gain ends in NaN within 5 steps where
# dropout is 0.9 (tried with batches of 8), and 1/3, PyTorch's own, stays at chance for 40 steps.
CNN_M_GAIN = 0.8
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # the layers with running statistics
HEAD_STD = 0.01  # deviation of a head's fresh weights (Krizhevsky et al. 2012)
SMALL_WIDTHS = (32, 64, 128, 256)  # channels of the blocks of "small"
GROUPS = 8  # groups of channels that "small" normalizes: the same for a batch of any size


class StreamNet(nn.Module):
    """A trunk and one linear head (a softmax layer, without its softmax) for each task.

    `tasks` are the names of the heads in order; usually there is one. `stream` says what the trunk
    is made for. Between the trunk and all heads may be a layer of `hidden` units, with ReLU and
    `dropout`; it learns as the heads do. Where `features` is None, the trunk gives the logits, and
    there are no heads. Parameters of `frozen` never learn.
    """

    def __init__(
        self,
        name: str,
        stream: Stream,
        trunk: nn.Module,
        features: int | None,
        heads: Mapping[str, int],
        *,
        hidden: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.name, self.stream = name, stream
        self.features, self.classes = features, dict(heads)
        self.frozen_statistics = False
        self.frozen: list[nn.Parameter] = []
        self.trunk = trunk
        self.hidden: nn.Sequential | None = None
        if hidden and features is not None:
            self.hidden = nn.Sequential()
            self.hidden.add_module("full", nn.Linear(features, hidden))
            self.hidden.add_module("relu", nn.ReLU(inplace=True))
            self.hidden.add_module("drop", nn.Dropout(dropout))
            init_normal(self.hidden[0])
            features = hidden
        layers = {}
        if features is not None:
            layers = {task: nn.Linear(features, classes) for task, classes in heads.items()}
        for head in layers.values():
            draw_normal(head.weight, HEAD_STD)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict(layers)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the heads."""
        return tuple(self.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B, K) of images (B, C, h, w); of several heads, side by side in order."""
        features = self.trunk(images)  # (B, C, h, w) -> (B, F)
        if self.hidden is not None:
            features = self.hidden(features)
        if not self.heads:
            return features
        return torch.cat([head(features) for head in self.heads.values()], 1)

    def split_logits(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of each task, (B, K of all) -> task: (B, K of it)."""
        parts = logits.split(list(self.classes.values()), 1)
        return dict(zip(self.classes, parts, strict=True))

    def split_outputs(self, logits: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """The logits of each loss of a task: of these networks, the task's own alone."""
        return {task: [part] for task, part in self.split_logits(logits).items()}

    def blocks(self) -> list[nn.Module]:
        """The parts of the trunk that have weights, the first layer first."""
        parts = [self.trunk]
        if self.name == "vgg16":
            parts = [self.trunk.features, self.trunk.classifier]  # type: ignore[list-item]
        children = [child for part in parts for child in part.children()]
        return [child for child in children if next(child.parameters(), None) is not None]

    def layers(self) -> dict[str, nn.Module]:
        """The layers of a trunk that has seams, by name, in the order in which they are applied."""
        layers: dict[str, nn.Module] = {}
        for name, child in self.trunk.named_children():
            if name in ("classifier", "fc"):  # torchvision's forward does this itself
                layers["flatten"] = nn.Flatten()
            if name in ("features", "classifier"):
                layers |= {f"{name}.{number}": layer for number, layer in child.named_children()}
            else:
                layers[name] = child
        return layers

    def train_top(self, top_blocks: int | None) -> None:
        """Let the heads and the last `top_blocks` blocks learn, the rest not; None: everything."""
        blocks = self.blocks()
        if top_blocks is not None and not 0 <= top_blocks <= len(blocks):
            raise UsageError(
                f"{self.name}: expected 0 to {len(blocks)} blocks to train, got {top_blocks}"
            )
        self.trunk.requires_grad_(top_blocks is None)
        for block in blocks[len(blocks) - (top_blocks or 0) :]:
            block.requires_grad_()
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> StreamNet:
        """As nn.Module's, but what does not learn keeps its batch statistics, too.

        With `frozen_statistics` all normalizations but the first keep them.
        """
        super().train(mode)
        norms = [module for module in self.modules() if isinstance(module, BATCH_NORMS)]
        for place, norm in enumerate(norms):
            with_weights = norm if norm.affine else self.trunk
            learns = any(one.requires_grad for one in with_weights.parameters())
            if not learns or (self.frozen_statistics and place):
                norm.eval()
        return self


def build_net(
    name: str,
    inputs: Inputs,
    heads: Mapping[str, int],
    *,
    dropout: float = DROPOUT,
    hidden: int = 0,
    seed: int = 0,
    own: OwnNet | None = None,
    side: int = CROP,
) -> StreamNet:
    """The network `name` for `inputs`, whose forward takes a tensor of each in their order.

    Fresh weights, heads, dropout and errors as `build_stream` has them; UsageError for inputs that
    no network takes together.
    """
    channels = input_channels(check_inputs(inputs))
    if len(channels) > 1:
        raise UsageError(f"{name}: expected the input of one stream, got {' and '.join(channels)}")
    [(stream, count)] = channels.items()
    net = build_stream(
        name,
        stream,
        heads,
        channels=count,
        dropout=dropout,
        hidden=hidden,
        seed=seed,
        own=own,
        side=side,
    )
    form = inputs[stream]
    if isinstance(form, FrameForm) and form.differences:
        for module in net.modules():
            if isinstance(module, FramePixels):
                module.shift.zero_()  # no difference stays none
    return net


def build_stream(
    name: str,
    stream: Stream,
    heads: Mapping[str, int],
    *,
    channels: int = RGB_CHANNELS,
    dropout: float = DROPOUT,
    hidden: int = 0,
    seed: int = 0,
    own: OwnNet | None = None,
    side: int = CROP,
) -> StreamNet:
    """A network with fresh weights, drawn from `seed`.

    `heads` gives the number of classes of each task; `channels` is 3 for a frame, 3N for a stack of
    frames and 2L for one of flow. `dropout` is the part of a layer's outputs set to zero in
    training: after full6 and full7 of the 2014 network and of VGG-16, after the trunk of the
    others and after the layer of `hidden` units (0 for none) that may follow it. Code of the user's
    own, "module:function", is named once more as `own`, or given itself, and is tried on clips of
    `side` px. UsageError for an unknown network, one that takes no hidden layer, own code that is
    not named or cannot be used, a task's name that is no word, or fewer than two classes.
    """
    check_own(name, own, where=f"network {name}")
    module, _, function = net_facts(name).home.partition(":")
    if stream not in STREAMS:
        raise UsageError(f"expected a stream of {' or '.join(STREAMS)}, got {stream!r}")
    if not 0 <= dropout < 1:
        raise UsageError(f"expected a dropout of at least 0 and below 1, got {dropout}")
    check_hidden(name, hidden)
    for task, classes in heads.items():
        if not task.replace("-", "_").isidentifier() or hasattr(nn.ModuleDict, task):
            raise UsageError(f"expected a word as a task's name, got {task!r}")
        if classes < 2:
            raise UsageError(f"task {task}: expected at least two classes, got {classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make_trunk: Callable[..., Any] = getattr(importlib.import_module(module), function)
        if own is not None:  # which has heads of its own
            sizes = {"channels": channels, "side": side, "dropout": dropout, "hidden": hidden}
            return make_trunk(name, stream, heads, own, **sizes)
        trunk, features = make_trunk(name, stream, channels, dropout)
        return StreamNet(name, stream, trunk, features, heads, hidden=hidden, dropout=dropout)


def count_parameters(net: nn.Module) -> int:
    """The number of parameters, whether they learn or not."""
    return sum(parameter.numel() for parameter in net.parameters())


def widen_first_layer(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """The RGB filters (O, 3, ...) averaged over color and repeated: (O, channels, ...).

    Cross-modality initialization of Wang et al. 2015 (arXiv:1507.02159, section 2.2).
    """
    return weight.mean(1, keepdim=True).repeat_interleave(channels, 1)


def share_first_layer(weight: torch.Tensor, channels: int, stream: Stream) -> torch.Tensor:
    """The RGB filters (O, 3, ...) for every frame or field of a stack: (O, channels, ...).

    Of flow the red ones are for x and the green ones for y. Each is divided by the number of frames
    or fields. So the layer answers a stack of frames as it would their mean, and one of flow as an
    image of its mean x in red and its mean y in green, and what follows sees what it knows.
    """
    own = weight if stream == "spatial" else weight[:, :2]
    count = channels // own.shape[1]
    return torch.cat([own] * count, 1) / count


def torchvision_weights(net: str, name: str) -> tuple[dict[str, torch.Tensor], str]:
    """torchvision's weights of a network by name ("IMAGENET1K_V1"), and the file they came from.

    They are fetched on first use and kept in torch's cache. UsageError where torchvision has none
    of that name or they can neither be found nor fetched.
    """
    if net_facts(net).weights != "torchvision":
        raise UsageError(f"torchvision has no weights of {net}: name a file of them")
    choices = _torchvision_models().get_model_weights(net.replace("-", "_"))
    if name not in choices.__members__:
        raise UsageError(
            f"expected a file of weights, or for {net} {', '.join(choices.__members__)}, got {name}"
        )
    url = choices[name].url
    cache = f"{torch.hub.get_dir()}/checkpoints/{url.rpartition('/')[2]}"
    try:
        state = choices[name].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"{name} of {net} is not at {cache} and cannot be fetched from {url} ({error}): "
            "put the file there, or name it"
        ) from error
    return state, cache


def cnn_m_2048(
    name: str, stream: Stream, channels: int, dropout: float
) -> tuple[nn.Sequential, int]:
    """The trunk of the 2014 network: images (B, channels, 224, 224) -> features (B, 2048)."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, 96, 7, stride=2),
        "relu1": nn.ReLU(inplace=True),
        "norm1": nn.LocalResponseNorm(**LRN),  # type: ignore[arg-type]
        "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),  # 109 -> 54
        "conv2": nn.Conv2d(96, 256, 5, stride=2, padding=1),
        "relu2": nn.ReLU(inplace=True),
        "norm2": nn.LocalResponseNorm(**LRN),  # type: ignore[arg-type]
        "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),  # 26 -> 13
        "conv3": nn.Conv2d(256, 512, 3, padding=1),
        "relu3": nn.ReLU(inplace=True),
        "conv4": nn.Conv2d(512, 512, 3, padding=1),
        "relu4": nn.ReLU(inplace=True),
        "conv5": nn.Conv2d(512, 512, 3, padding=1),
        "relu5": nn.ReLU(inplace=True),
        "pool5": nn.MaxPool2d(3, 2, ceil_mode=True),  # 13 -> 6
        "flatten": nn.Flatten(),
        "full6": undrawn(nn.Linear, 512 * 6 * 6, 4096),
        "relu6": nn.ReLU(inplace=True),
        "drop6": nn.Dropout(dropout),
        "full7": undrawn(nn.Linear, 4096, 2048),
        "relu7": nn.ReLU(inplace=True),
        "drop7": nn.Dropout(dropout),
    }
    if stream == "temporal":  # the paper leaves it out there to save memory (section 5)
        del layers["norm2"]
    return fresh_sequence(layers, CNN_M_GAIN), 2048


def small(name: str, stream: Stream, channels: int, dropout: float) -> tuple[nn.Sequential, int]:
    """A network for small data and CPUs: four blocks of a strided convolution, any input size.

    Images (B, channels, h, w) -> features (B, 256).
    """
    trunk = nn.Sequential()
    for number, width in enumerate(SMALL_WIDTHS, start=1):
        block = nn.Sequential()
        block.add_module("conv", nn.Conv2d(channels, width, 5 if number == 1 else 3, 2, 1))
        block.add_module("norm", nn.GroupNorm(GROUPS, width))
        block.add_module("relu", nn.ReLU(inplace=True))
        init_normal(block.conv)  # type: ignore[arg-type]
        trunk.add_module(f"block{number}", block)
        channels = width
    trunk.add_module("pool", nn.AdaptiveAvgPool2d(1))
    trunk.add_module("flatten", nn.Flatten())
    trunk.add_module("drop", nn.Dropout(dropout))
    return trunk, SMALL_WIDTHS[-1]


def torchvision_trunk(
    name: str, stream: Stream, channels: int, dropout: float
) -> tuple[nn.Module, int]:
    """The trunk of a network of torchvision's, without its classifier, and its features."""
    models = _torchvision_models()
    match name:
        case "vgg16":
            trunk = models.vgg16(dropout=dropout)
            features = trunk.classifier[-1].in_features
            trunk.classifier[-1] = nn.Identity()
        case "resnet18" | "resnet50":
            trunk = getattr(models, name)()
            features = trunk.fc.in_features
            trunk.fc = nn.Dropout(dropout)
        case "inception-v3":
            trunk = models.inception_v3(aux_logits=False, init_weights=True, dropout=dropout)
            features = trunk.fc.in_features
            trunk.fc = nn.Identity()
    if channels != RGB_CHANNELS:
        parent, _, child = net_facts(name).first_layer.rpartition(".")
        owner = trunk.get_submodule(parent)
        old = owner.get_submodule(child)
        new = nn.Conv2d(
            channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            bias=old.bias is not None,
        )
        init_normal(new)
        setattr(owner, child, new)
    return trunk, features


def _torchvision_models() -> Any:
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch raises them
        raise InstallError(
            f"torchvision cannot be imported ({error}): install the one that fits torch "
            f"{torch.__version__}, or take --net cnn-m-2048 or small, which do without it"
        ) from error
