"""Trained weights that others published as a run of flowkit's, which nothing is trained for.

docs/weights.md says which files there are, what their networks see, and how that is made here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from flowkit.data.inputs import Inputs
from flowkit.data.origins import Origin
from flowkit.documents import listed
from flowkit.errors import CheckpointError, UsageError
from flowkit.networks.checkpoints import BEST, Checkpoint, write_checkpoint
from flowkit.networks.streams import build_net
from flowkit.networks.table import NETS, net_facts
from flowkit.networks.weights import Weights, load_weights, read_weights

TASK = "main"


def adopt(
    file: str | os.PathLike[str],
    net: str,
    classes: Sequence[str],
    *,
    length: int | None = None,
) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """A checkpoint of published weights, and its network's tensors: what `write_adopted` writes.

    `file` holds tensors by their published names, those of the last layer too. `classes` are the
    names of its outputs in order. `length` is how many frames or fields I3D sees, by default the 64
    of its training; other networks see as many as their first layer has filters for.
    CheckpointError where a tensor is missing, unfit or unknown, UsageError for a network without
    published weights, another number of classes than outputs, or one named twice.
    """
    facts = net_facts(net)
    if facts.published is None:
        names = " and ".join(name for name, one in NETS.items() if one.published)
        raise UsageError(f"expected a network with published weights, {names}, got {net}")
    weights = read_weights(os.fspath(file), net)
    inputs = _inputs(weights, net, length)
    _check_classes(weights, net, classes)
    _check_numbers(weights)
    dropout = facts.dropout or 0.0
    made = build_net(net, inputs, {TASK: len(classes)}, dropout=dropout)
    load_weights(made, weights, {})
    _load_last(made.heads[TASK], weights)
    short_side, crop = facts.size
    checkpoint = Checkpoint(
        0,
        net,
        inputs,
        dropout,
        {TASK: tuple(classes)},
        short_side,
        crop,
        training={"weights": weights.where},
        trained_on=Origin(unknown=(weights.where,)),
    )
    return checkpoint, made.state_dict()


def write_adopted(out: Path, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write what `adopt` gives as the run `out`; UsageError where a folder of files is there."""
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out}: holds files already: name a new folder (--out)")
    write_checkpoint(out, [BEST], checkpoint, tensors, {})


def _inputs(weights: Weights, net: str, length: int | None) -> Inputs:
    """What the published network sees, by the channels of its first layer."""
    facts = net_facts(net)
    assert facts.published is not None
    known: Mapping[int, Inputs] = importlib.import_module(facts.published).PUBLISHED_INPUTS
    name = f"{facts.first_layer}.weight"
    first = weights.trunk.get(name)
    if first is None or first.ndim < 2:
        raise CheckpointError(f"{weights.where}: has no {name}, the first layer of {net}")
    channels = first.shape[1]
    if channels not in known:
        raise CheckpointError(
            f"{weights.where}: expected {name}, the first layer of {net}, with "
            f"{' or '.join(map(str, known))} channels, got {channels}"
        )
    inputs = known[channels]
    if length is None:
        return inputs
    if not facts.over_time:
        raise UsageError(f"{net}: the first layer says how long its stacks are, leave --stack out")
    counts = {"spatial": "count", "temporal": "length"}
    return {
        stream: replace(form, **{counts[stream]: length})  # type: ignore[arg-type]
        for stream, form in inputs.items()
    }


def _check_classes(weights: Weights, net: str, classes: Sequence[str]) -> None:
    """CheckpointError without a last layer, UsageError where the classes are not its outputs."""
    if weights.heads:
        raise UsageError(f"{weights.where}: is a run of flowkit's already")
    if set(weights.last) != {"weight", "bias"}:
        raise CheckpointError(
            f"{weights.where}: has no last layer, weight and bias, as {net} is published with: "
            "flowkit train learns one on the layers below (--weights)"
        )
    weight = weights.last["weight"]
    count = len(weight) if weight.ndim else 0
    if count != len(classes):
        raise UsageError(
            f"{weights.where}: expected the names of its {count} classes, got {len(classes)}"
        )
    if twice := [name for name in dict.fromkeys(classes) if classes.count(name) > 1]:
        raise UsageError(f"expected every class once, got several times: {listed(twice)}")


def _check_numbers(weights: Weights) -> None:
    tensors = weights.trunk | weights.last
    if odd := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{weights.where}: expected numbers, got NaN or infinity in {listed(odd)}"
        )


def _load_last(head: nn.Module, weights: Weights) -> None:
    """Copy the published last layer; CheckpointError where it has another shape."""
    for name, own in head.state_dict().items():  # the tensors of the head, not copies
        tensor = weights.last[name]
        if tensor.shape != own.shape:
            raise CheckpointError(
                f"{weights.where}: expected a last layer's {name} {tuple(own.shape)}, got "
                f"{tuple(tensor.shape)}"
            )
        own.copy_(tensor)
