"""Two towers, a spatial and a temporal stream's network, joined inside as in the paper of 2016.

Feichtenhofer, Pinz & Zisserman 2016 (arXiv:1604.06573): both towers are cut after a layer, their
maps become one, and what is above the cut of the spatial tower goes on. `networks.joining` has the
choices, docs/towers.md where they are from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowkit.data.inputs import Inputs, check_inputs, input_channels
from flowkit.errors import UsageError
from flowkit.networks.bninception import Block
from flowkit.networks.joining import Towers, net_names, tower_seams
from flowkit.networks.streams import DROPOUT, StreamNet, build_net, build_stream, count_parameters
from flowkit.networks.table import net_facts
from flowkit.own_code import is_own

SPATIAL_SHARE, TEMPORAL_SHARE = 0.25, 0.75  # weights of the towers' maps in a fresh conv3d


class TowersNet(nn.Module):
    """Two networks of one stream each, joined; they are taken apart and belong to it from then on.

    It takes frames, float32 (B, T, 3, h, w), and stacks of the same moments, (B, T, 2L, h, w).
    While it trains it gives the logits of every loss side by side, float32 (B, O K): those of the
    joined maps, and where the temporal tower is kept, its own. Otherwise it gives their mean,
    (B, K). A bilinear join has no classifier: it gives the products, (B, D D).

    UsageError where the towers have other seams, channels or classes than can be joined.
    """

    def __init__(self, spatial: StreamNet, temporal: StreamNet, towers: Towers) -> None:
        super().__init__()
        self.name = f"{spatial.name}+{temporal.name}"
        self.towers = towers
        self.frozen_statistics = self.checkpointing = False
        [(self.task, head)] = spatial.heads.items()
        [own_head] = temporal.heads.values()
        seams = tower_seams(self.name, towers.seam)
        below, above = zip(
            *(
                _cut(net, getattr(seam, towers.seam))
                for net, seam in zip((spatial, temporal), seams, strict=True)
            ),
            strict=True,
        )
        channels = _channels(below[0])
        if channels != _channels(below[1]):
            raise UsageError(
                f"{self.name}: at {towers.seam} the towers have {channels} and "
                f"{_channels(below[1])} channels, and only as many of each can be joined"
            )
        assert isinstance(head, nn.Linear)
        self.classes = head.out_features
        self.below = nn.ModuleDict(
            {name: _sequence(part) for name, part in zip(_STREAMS, below, strict=True)}
        )
        is_signed = towers.seam in seams[0].signed
        self.join = make_join(towers, channels, is_signed=is_signed)
        self.above, self.heads = nn.ModuleDict(), nn.ModuleDict()
        if towers.join == "bilinear":
            return
        if towers.join == "cat":
            _widen(next(layer for layer in [*above[0].values(), head] if _learns(layer)), channels)
        self.above["joined"] = _sequence(_over_time(above[0], seams[0].pool5, towers))
        self.heads["joined"] = head
        if towers.keep == "temporal":
            self.above["temporal"] = _sequence(_over_time(above[1], seams[1].pool5, towers))
            self.heads["temporal"] = own_head
        if towers.joins_logits:
            self.heads["both"] = LogitJoin(towers.join, head.out_features)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The name of the one task."""
        return (self.task,)

    def forward(self, frames: torch.Tensor, stacks: torch.Tensor) -> torch.Tensor:
        """Logits of frames (B, T, 3, h, w) and stacks (B, T, 2L, h, w); see the class."""
        return self.answer(self.maps("spatial", frames), self.maps("temporal", stacks))

    def answer(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """What the network gives for the towers' maps at the seam, (B T, D, h, w) each."""
        joined = self.join(*pad_alike(a, b))
        if self.towers.join == "bilinear":
            return joined.unflatten(0, (-1, self.towers.frames)).sum(1)
        logits = [self._classify("joined", joined)]
        if "temporal" in self.above:
            logits.append(self._classify("temporal", b))
        if "both" in self.heads:
            logits = [self.heads["both"](*logits)]
        return torch.cat(logits, 1) if self.training else torch.stack(logits).mean(0)

    def maps(self, stream: str, images: torch.Tensor) -> torch.Tensor:
        """A tower's maps at the seam: (B, T, C, h, w) -> (B T, D, h', w')."""
        flat = images.flatten(0, 1)
        if self.checkpointing and self.training and _learns(self.below[stream]):
            return checkpoint(self.below[stream], flat, use_reentrant=False)
        return self.below[stream](flat)

    def _classify(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        """The logits of one of the networks above the seam: (B T, D, h, w) -> (B, K)."""
        logits = self.heads[name](self.above[name](maps))
        if self.towers.over_time == "mean":
            logits = logits.unflatten(0, (-1, self.towers.frames)).mean(1)
        return logits

    def split_outputs(self, logits: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """The logits of each loss of the task, (B, O K) -> task: O times (B, K)."""
        return {self.task: list(logits.split(self.classes, 1))}

    def split_logits(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is predicted for the task: the mean of what its losses see, (B, K)."""
        return {self.task: torch.stack(self.split_outputs(logits)[self.task]).mean(0)}

    def train_top(self, top_blocks: int | None) -> None:
        """Let all learn from the join up; below it too where `top_blocks` is None."""
        self.requires_grad_()
        self.below.requires_grad_(top_blocks is None)
        self.train(self.training)

    def train(self, mode: bool = True) -> TowersNet:
        """As nn.Module's, but below the join all batch statistics stay as they are.

        With `frozen_statistics` those above stay, too.
        """
        super().train(mode)
        for module in (self if self.frozen_statistics else self.below).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


_STREAMS = ("spatial", "temporal")
Net = StreamNet | TowersNet


class MapJoin(nn.Module):
    """A join without weights: maps (N, D, h, w) of both towers -> (N, D or 2D, h, w)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        match self.how:
            case "sum":
                return a + b
            case "max":
                return torch.maximum(a, b)
        return torch.cat([a, b], 1)


class ConvJoin(nn.Module):
    """A 1x1 filter on both towers' maps, (N, D, h, w) each -> (N, D, h, w); at first their sum."""

    def __init__(self, channels: int, *, is_signed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 1)
        self.relu = nn.Identity() if is_signed else nn.ReLU(inplace=True)
        identity = torch.eye(channels).repeat(1, 2)
        _set(self.conv, identity[:, :, None, None])

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(torch.cat([a, b], 1)))


class ConvOverTime(nn.Module):
    """A 3x3x3 filter on both towers' maps of T moments, (B T, D, h, w) each -> (B T, D, h, w).

    It starts as the sum of a quarter of the spatial and three quarters of the temporal maps, spread
    by a Gaussian of one cell: activations of the temporal tower are about a third of the other's.
    """

    def __init__(self, channels: int, frames: int, *, is_signed: bool) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv3d(2 * channels, channels, 3, padding=1)
        self.relu = nn.Identity() if is_signed else nn.ReLU(inplace=True)
        identity = torch.eye(channels)
        both = torch.cat([SPATIAL_SHARE * identity, TEMPORAL_SHARE * identity], 1)
        _set(self.conv, both[:, :, None, None, None] * gaussian())

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        both = _by_time(torch.cat([a, b], 1), self.frames)
        return self.relu(self.conv(both)).transpose(1, 2).flatten(0, 1)


class BilinearJoin(nn.Module):
    """The outer products of both towers' maps, (N, D, h, w) each, summed over places: (N, D D)."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nchw,ndhw->ncd", a, b).flatten(1)


class LogitJoin(nn.Module):
    """Both towers' logits, (B, K) each -> (B, K)."""

    def __init__(self, how: str, classes: int) -> None:
        super().__init__()
        self.join = MapJoin("cat" if how == "conv" else how)
        self.linear = nn.Linear(2 * classes, classes) if how == "conv" else nn.Identity()
        if isinstance(self.linear, nn.Linear):
            _set(self.linear, torch.eye(classes).repeat(1, 2))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.linear(self.join(a, b))


class PoolOverTime(nn.Module):
    """A pooling that takes T moments at once: (B T, D, h, w) -> (B, D, h', w').

    A maximum has the window and stride of `pool` in space; before an average, the maximum over time
    alone is taken.
    """

    def __init__(self, pool: nn.Module, frames: int) -> None:
        super().__init__()
        self.frames = frames
        window, stride, padding, ceil_mode = 1, 1, 0, False
        if isinstance(pool, nn.MaxPool2d):
            window, stride, padding = pool.kernel_size, pool.stride, pool.padding  # type: ignore[assignment]
            ceil_mode, pool = pool.ceil_mode, nn.Identity()
        self.maximum = nn.MaxPool3d(
            (frames, window, window), (2, stride, stride), (0, padding, padding),
            ceil_mode=ceil_mode,
        )  # fmt: skip
        self.pool = pool

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.pool(self.maximum(_by_time(maps, self.frames)).squeeze(2))


def build_towers(
    net: str,
    inputs: Inputs,
    heads: Mapping[str, int],
    towers: Towers,
    *,
    dropout: float = DROPOUT,
    seed: int = 0,
) -> TowersNet:
    """The towers of "NET+NET" with fresh weights, joined; both have the one head of `heads`."""
    channels = input_channels(check_inputs(inputs))
    if set(channels) != set(_STREAMS) or len(heads) != 1:
        raise UsageError(
            "expected towers of both streams and one task, "
            f"got {' and '.join(channels)} and {len(heads)} tasks"
        )
    tower_seams(net, towers.seam)
    spatial, temporal = (
        build_stream(
            name, stream, heads, channels=channels[stream], dropout=dropout, seed=seed + number
        )
        for number, (name, stream) in enumerate(zip(net_names(net), channels, strict=True))
    )
    return TowersNet(spatial, temporal, towers)


def make_net(
    net: str,
    inputs: Inputs,
    heads: Mapping[str, int],
    towers: Towers | None = None,
    *,
    dropout: float = DROPOUT,
    seed: int = 0,
    **options: Any,
) -> Net:
    """A stream's network, or joined `towers`, with fresh weights.

    `options` are what else `build_net` takes.
    """
    if towers is None:
        return build_net(net, inputs, heads, dropout=dropout, seed=seed, **options)
    return build_towers(net, inputs, heads, towers, dropout=dropout, seed=seed)


def make_join(towers: Towers, channels: int, *, is_signed: bool) -> nn.Module:
    """The module that joins maps of D `channels`; without a ReLU where they are signed."""
    if towers.over_time == "conv3d":
        return ConvOverTime(channels, towers.frames, is_signed=is_signed)
    match towers.join:
        case "conv":
            return ConvJoin(channels, is_signed=is_signed)
        case "bilinear":
            return BilinearJoin()
    return MapJoin(towers.join)


def gaussian() -> torch.Tensor:
    """A Gaussian of one cell over -1..1 of three axes, float32 (3, 3, 3), of sum 1."""
    line = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0]) ** 2) / 2)
    cube = line[:, None, None] * line[:, None] * line
    return cube / cube.sum()


def pad_alike(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (N, D, h, w) of one size: the smaller gets a row or column of zeros, below and right.

    UsageError where they differ by more than one.
    """
    height, width = (max(a.shape[axis], b.shape[axis]) for axis in (2, 3))
    padded = []
    for maps in (a, b):
        down, right = height - maps.shape[2], width - maps.shape[3]
        if max(down, right) > 1:
            raise UsageError(
                "expected maps of both towers that differ by one row or column at most, got "
                f"{tuple(a.shape[2:])} and {tuple(b.shape[2:])}"
            )
        padded.append(nn.functional.pad(maps, (0, right, 0, down)) if down or right else maps)
    return padded[0], padded[1]


class MeanOverPlaces(nn.Module):
    """Features at all places, (B, F, h, w) -> their mean, (B, F)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean((2, 3))


def make_convolutional(net: Net) -> None:
    """Let a network take images of any size: fully connected layers become convolutions, in place.

    What it gives is the mean of the logits over all places (the last layer, which is linear, is
    given the mean of its features). Networks that end in an average over places are as they were,
    and so is own code.
    """
    if isinstance(net, StreamNet):
        if is_own(net.name):
            return
        if net_facts(net.name).seams is not None or hasattr(net.trunk, "flatten"):
            net.trunk = _convolutional(net.layers(), _channels(net.layers()))
        return
    channels = _channels(dict(net.below["spatial"].named_children()))
    for name, above in net.above.items():
        layers = dict(above.named_children())
        own = [module for module in above.modules() if isinstance(module, nn.Conv2d)]
        wide = channels * (2 if net.towers.join == "cat" and name == "joined" else 1)
        net.above[name] = _convolutional(layers, own[-1].out_channels if own else wide)


def _convolutional(layers: Mapping[str, nn.Module], channels: int) -> nn.Sequential:
    """The layers, with convolutions after the flattening of maps of so many channels."""
    names = list(layers)
    behind = names[names.index("flatten") :]
    if not any(isinstance(layers[name], nn.Linear) for name in behind):
        return _sequence(layers)
    made: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            side = math.isqrt(layer.in_features // channels)
            made[name] = convolution = nn.Conv2d(channels, layer.out_features, side)
            convolution.weight.data = layer.weight.data.view(-1, channels, side, side)
            convolution.bias = layer.bias
            channels = layer.out_features
        elif not isinstance(layer, nn.Flatten | nn.AdaptiveAvgPool2d):
            made[name] = layer
    return _sequence(made | {"places": MeanOverPlaces()})


class PublishedCount(NamedTuple):
    """A row of the paper's tables: how the towers are joined, None for not, and its millions."""

    towers: Towers | None
    row: str
    printed: float | None


_KEPT = {"frames": 5, "keep": "temporal"}
PUBLISHED_COUNTS = (
    PublishedCount(None, "late: sum at the softmax", 181.42),
    PublishedCount(Towers("sum"), "sum at relu5", 97.31),
    PublishedCount(Towers("max"), "max at relu5", 97.31),
    PublishedCount(Towers("cat"), "cat at relu5", 172.81),
    PublishedCount(Towers("conv"), "conv at relu5", 97.58),
    PublishedCount(Towers("bilinear"), "bilinear at relu5, trunks", 6.61),
    PublishedCount(Towers("conv", ("relu2",)), "conv at relu2", 91.90),
    PublishedCount(Towers("conv", ("relu3",)), "conv at relu3", 93.08),
    PublishedCount(Towers("conv", ("relu4",)), "conv at relu4", 95.48),
    PublishedCount(
        Towers("conv", ("relu5", "full8"), keep="temporal"), "conv at relu5 and full8", 181.68
    ),
    PublishedCount(Towers("conv", keep="temporal"), "conv at relu5, temporal kept", None),
    PublishedCount(
        Towers("conv", over_time="conv3d", frames=5, keep="temporal"),
        "conv3d at relu5, temporal kept",
        None,
    ),
    PublishedCount(Towers("conv", over_time="conv3d", frames=5), "conv3d at relu5", None),
)


def count_towers(net: str, inputs: Inputs, classes: int, towers: Towers | None) -> int:
    """The parameters of the towers of "NET+NET", joined or (None) apart; nothing is computed."""
    heads = {"main": classes}
    with torch.device("meta"):
        if towers is not None:
            return count_parameters(build_towers(net, inputs, heads, towers))
        channels = input_channels(check_inputs(inputs))
        return sum(
            count_parameters(build_stream(name, stream, heads, channels=channels[stream]))
            for name, stream in zip(net_names(net), channels, strict=True)
        )


def _cut(net: StreamNet, seam: str) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The layers of a trunk up to one of them, and those after it, by name."""
    layers = net.layers()
    below = list(layers).index(seam) + 1
    items = list(layers.items())
    return dict(items[:below]), dict(items[below:])


def _sequence(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name.replace(".", "_"), layer)
    return sequence


def _channels(layers: Mapping[str, nn.Module]) -> int:
    """How many channels the last convolution or block of branches of some layers gives."""
    for layer in reversed(list(layers.values())):
        if isinstance(layer, Block):
            return layer.out_channels
        if found := [module for module in layer.modules() if isinstance(module, nn.Conv2d)]:
            return found[-1].out_channels
    raise AssertionError("layers without a convolution")


def _over_time(
    layers: Mapping[str, nn.Module], pool5: str, towers: Towers
) -> Mapping[str, nn.Module]:
    """The layers with a pooling over time in the place of `pool5`, where that is asked for."""
    if towers.over_time == "mean":
        return layers
    pooling = PoolOverTime(layers[pool5], towers.frames)
    return {name: pooling if name == pool5 else layer for name, layer in layers.items()}


def _widen(layer: nn.Module, channels: int) -> None:
    """Make a layer for 2D `channels`, its weights on both halves."""
    for module in layer.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            module.weight = nn.Parameter(module.weight.detach().repeat(1, 2, 1, 1))
            module.in_channels *= 2
        elif isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().repeat(1, 2))
            module.in_features *= 2


def _learns(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _by_time(maps: torch.Tensor, frames: int) -> torch.Tensor:
    """Maps of all moments, (B T, D, h, w) -> (B, D, T, h, w)."""
    return maps.unflatten(0, (-1, frames)).transpose(1, 2)


def _set(layer: nn.Conv2d | nn.Conv3d | nn.Linear, weight: torch.Tensor) -> None:
    """Give a layer this weight and no bias."""
    with torch.no_grad():
        layer.weight.copy_(weight)
        assert layer.bias is not None
        layer.bias.zero_()
