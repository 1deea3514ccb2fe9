"""Checkpoints: the weights of a stream beside a JSON that says all that is needed to use them.

A checkpoint is a JSON file, ``best.json`` or ``last.json``, that names its files of tensors in the
same folder. The JSON is replaced last and in one step, so whoever reads it finds them complete.
Tensors are in safetensors: reading a checkpoint executes nothing. docs/training.md specifies both.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

import flowkit
from flowkit.data.clips import Stream
from flowkit.data.inputs import (
    Inputs,
    flow_form,
    inputs_from_json,
    inputs_to_json,
    stream_name,
)
from flowkit.data.moments import Moments
from flowkit.data.origins import Origin, origin_from_json
from flowkit.documents import (
    differences,
    file_crc32,
    listed,
    open_plain_file,
    read_document,
    replacing,
    seal,
    short,
)
from flowkit.errors import CheckpointError, FlowkitError, RecordError
from flowkit.networks.joining import Towers, net_names, towers_from_json
from flowkit.networks.table import OwnNet, check_own, net_facts
from flowkit.records.reading import Record, flow_of

if TYPE_CHECKING:  # the JSON of a checkpoint is read without torch
    import numpy as np
    import torch

    from flowkit.networks.towers import Net

FORMAT = "flowkit checkpoint"
VERSION = 2  # version 1 had one stream: `stream`, `channels` and `form` where 2 has `inputs`
BEST, LAST = "best.json", "last.json"
TENSORS = re.compile(  # files of a checkpoint's tensors, finished or half written
    r"step-\d{8}(\.state)?\.safetensors|\.step-\d{8}(\.state)?\.safetensors\.[0-9a-f]{8}\.part"
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's JSON says.

    `inputs` are what the network takes, in order. `tasks` are the class names of every head, in the
    order of their logits. Frames are rescaled to `short_side` px and cropped to `crop` px. `flow`
    is what records must have been made with, None where they need not say. `training` is how the
    weights were made, `progress` how far they are, both for the training itself and for people.
    `trained_on` are the videos that the weights have seen, None in what 0.1.0 wrote. `towers` says
    how two networks are joined, which `net` then names as NET+NET. `hidden` are the units of a
    layer before the classes, 0 where there is none. Whatever a later version adds has a default
    here, so that older checkpoints still load.
    """

    step: int
    net: str
    inputs: Inputs
    dropout: float
    tasks: dict[str, tuple[str, ...]]
    short_side: int
    crop: int
    flow: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    trained_on: Origin | None = None
    towers: Towers | None = None
    hidden: int = 0

    def __repr__(self) -> str:
        classes = ", ".join(f"{task}: {len(names)} classes" for task, names in self.tasks.items())
        return f"Checkpoint({self.net}, {'+'.join(self.inputs)}, step {self.step}, {classes})"

    @property
    def stream(self) -> str:
        """What its scores are called: "spatial", "frames", "rgb-diff", "temporal" or "towers"."""
        return "towers" if self.towers else stream_name(self.inputs)

    @property
    def several(self) -> Moments | None:
        """The moments of a sample of joined towers."""
        return None if self.towers is None else self.towers.moments

    def build(self, own: OwnNet | None = None) -> Net:
        """The network with fresh weights; of own code `own` names it again, or is the function."""
        from flowkit.networks.towers import make_net

        heads = {task: len(classes) for task, classes in self.tasks.items()}
        return make_net(
            self.net,
            self.inputs,
            heads,
            self.towers,
            dropout=self.dropout,
            hidden=self.hidden,
            own=own,
            side=self.crop,
        )

    def check_record(self, record: Record) -> None:
        """RecordError, which names the difference, where a record is not what the net learned on.

        The frames of a record always fit.
        """
        form = flow_form(self.inputs)
        if form is None:
            return
        record.find_series("forward", form.step)
        if form.bidirectional:
            record.find_series("backward", form.step)
        found = [] if self.flow is None else differences(flow_of(record), self.flow)
        if found:
            raise RecordError(
                f"{record.path}: its flow is not what the network was trained on: "
                + "; ".join(text.replace("asked for", "in training") for text in found)
            )


def write_checkpoint(
    folder: Path,
    names: Iterable[str],
    checkpoint: Checkpoint,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
) -> None:
    """Write one checkpoint into `folder` under `names`, ``best.json``, ``last.json`` or both.

    `weights` are the net's, `state` what else its training needs to go on. What no JSON in the
    folder names any more is removed. Killed at any moment, what was there before is still there.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stem = f"step-{checkpoint.step:08d}"
    files = {"weights": f"{stem}.safetensors", "state": f"{stem}.state.safetensors"}
    sums: dict[str, str] = {}
    for kind, tensors in (("weights", weights), ("state", state)):
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        try:
            with replacing(folder / files[kind]) as part:
                part.touch()
                mode = part.stat().st_mode  # the umask's; safetensors lets only the owner read
                save_file(contiguous, part)
                part.chmod(mode)
                sums[kind] = f"{file_crc32(part):08x}"
        except SafetensorError as error:  # a full disk is one, too
            raise CheckpointError(
                f"{folder / files[kind]}: could not be written, and what was there stays: {error}"
            ) from error
    head = {"format": FORMAT, "version": VERSION, "flowkit": flowkit.__version__}
    for name in names:
        named = files if name == LAST else {"weights": files["weights"]}
        said = asdict(checkpoint) | {"inputs": inputs_to_json(checkpoint.inputs), "files": named}
        said["checksums"] = {kind: sums[kind] for kind in named}
        text = json.dumps(head | said, indent=1, allow_nan=False)
        with replacing(folder / name) as part:
            part.write_bytes(seal(text))
    _remove_unnamed(folder)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at `path`: its JSON, or a run's folder for its best one.

    CheckpointError if it is missing, of another version, or no checkpoint.
    """
    path = checkpoint_path(path)
    data = _read_json(path)
    try:
        if not isinstance(data["net"], str) or type(data.get("hidden", 0)) is not int:
            raise TypeError("net and hidden are a name and a number")
        if data["version"] == 1:
            data["inputs"] = {data["stream"]: data["form"]}
        given = {key: data[key] for key in Checkpoint.__dataclass_fields__ if key in data}
        given["tasks"] = {task: tuple(classes) for task, classes in data["tasks"].items()}
        given["inputs"] = inputs_from_json(data["inputs"])
        if (towers := data.get("towers")) is not None:
            given["towers"] = towers_from_json(towers)
        if (seen := data.get("trained_on")) is not None:
            given["trained_on"] = origin_from_json(seen)
        return Checkpoint(**given)
    except (KeyError, TypeError, AttributeError, FlowkitError) as error:
        raise CheckpointError(f"{path}: not of this format ({error!r})") from error


def load_net(path: str | os.PathLike[str], *, own: OwnNet | None = None) -> tuple[Checkpoint, Net]:
    """The checkpoint at `path` and its network with its weights, on the CPU, in evaluation mode.

    `path` is a JSON of a checkpoint or a run's folder, for its best one. The network takes what
    `Checkpoint.inputs` names, float32 (B, C, h, w), or of joined towers (B, T, C, h, w), and gives
    logits, float32 (B, K), of the classes of `Checkpoint.tasks`. A network of own code is built by
    the function that `own` is, or names, "module:function"; no checkpoint runs such code by itself.
    CheckpointError where it is missing or not of this format, UsageError where own code is not
    given, or is another.
    """
    checkpoint = read_checkpoint(path)
    check_own(checkpoint.net, own, where=checkpoint_path(path))
    net = checkpoint.build(own)
    put_weights(net, path)
    return checkpoint, net.eval()


def put_weights(net: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights of the checkpoint at `path`; CheckpointError names what does not fit."""
    weights = read_tensors(path, "weights")
    if problems := misfits(net, weights):
        raise CheckpointError(
            f"{checkpoint_path(path)}: its weights do not fit its network: {'; '.join(problems)}"
        )
    net.load_state_dict(weights)


def misfits(net: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """What weights lack or have that a network does not take, in words."""
    own = net.state_dict()
    lacks = [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = (("lacks", lacks), ("has, unknown to it,", unknown), ("has", shapes))
    return [f"{what} {listed(names)}" for what, names in found if names]


def read_tensors(path: str | os.PathLike[str], kind: str) -> dict[str, torch.Tensor]:
    """The "weights" of the checkpoint at `path`, or of ``last.json`` the training "state" too."""
    path = checkpoint_path(path)
    files = tensor_files(path)
    if kind not in files:
        raise CheckpointError(f"{path}: names no file of {kind}; it has: {', '.join(files)}")
    file, checksum = files[kind]
    tensors = read_safetensors(file)
    if checksum is not None:
        check_tensors(file, checksum)
    return tensors


def read_filters(path: str | os.PathLike[str]) -> dict[Stream, np.ndarray]:
    """The filters of the first layer by stream, float32 (F, C, h, w); of towers, those of both.

    CheckpointError where there is no checkpoint, or where it lacks them.
    """
    checkpoint, tensors = read_checkpoint(path), read_tensors(path, "weights")
    homes: dict[Stream, str] = dict.fromkeys(checkpoint.inputs, "trunk")
    nets = [checkpoint.net]
    if checkpoint.towers is not None:
        homes = {stream: f"below.{stream}" for stream in checkpoint.inputs}
        nets = list(net_names(checkpoint.net))
    found = {}
    for (stream, home), net in zip(homes.items(), nets, strict=True):
        if not (first := net_facts(net).first_layer):
            raise CheckpointError(
                f"{path}: which layer of {net}, own code, is the first is not known"
            )
        name = f"{home}.{first}.weight"
        if name not in tensors:
            raise CheckpointError(f"{path}: has no {name}, the first layer's filters")
        weight = tensors[name].float()
        if weight.ndim == 5:  # over time: (F, 3, T, h, w) -> (F, 3T, h, w), R1 G1 B1 R2 ...
            weight = weight.transpose(1, 2).flatten(1, 2)
        found[stream] = weight.numpy()
    return found


def tensor_files(path: Path) -> dict[str, tuple[Path, str | None]]:
    """By kind, the files of tensors that a checkpoint's JSON names, and their checksums.

    Earlier checkpoints have no checksums. CheckpointError where it is no checkpoint.
    """
    data = _read_json(path)
    files, sums = data.get("files"), data.get("checksums", {})
    if not isinstance(files, dict) or not isinstance(sums, dict):
        raise CheckpointError(f"{path}: not of this format: expected its files by name")
    if odd := [name for name in files.values() if not isinstance(name, str)]:
        raise CheckpointError(f"{path}: not of this format: {short(odd[0])} is no file's name")
    return {kind: (path.parent / Path(files[kind]).name, sums.get(kind)) for kind in files}


def check_tensors(file: Path, checksum: str) -> None:
    """CheckpointError where a file of tensors is not the one whose checksum this is."""
    if f"{file_crc32(file):08x}" != checksum:
        raise CheckpointError(f"{file}: damaged: its checksum does not agree")


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU; CheckpointError if it is missing or broken."""
    from safetensors.torch import load_file

    try:
        with open_plain_file(file, error=CheckpointError):
            pass
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: file is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: expected a file of safetensors ({error})") from error


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """The JSON that `path` means: itself, or in a run's folder ``best.json``."""
    path = Path(path)
    return path / BEST if path.is_dir() else path


def _read_json(path: Path) -> dict[str, Any]:
    return read_document(path, FORMAT, VERSION, error=CheckpointError, maker="flowkit train")


def _remove_unnamed(folder: Path) -> None:
    """Remove the files of tensors that neither JSON names, a stopped run's among them."""
    named = set()
    for name in (BEST, LAST):
        with contextlib.suppress(CheckpointError):
            named.update(_read_json(folder / name)["files"].values())
    for file in folder.iterdir():
        if TENSORS.fullmatch(file.name) and file.name not in named:
            file.unlink()
