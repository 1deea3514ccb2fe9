"""Checkpoints: the weights of a stream beside a JSON that says all that is needed to use them.

A checkpoint is a JSON file, ``best.json`` or ``last.json``, that names its files of tensors in the
same folder. The JSON is replaced last and in one step, so whoever reads it finds them complete.
Tensors are in safetensors: reading a checkpoint executes nothing. docs/training.md specifies both.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import flowkit
from flowkit.data.stacks import StackForm
from flowkit.documents import differences, read_document, replacing
from flowkit.errors import CheckpointError, FlowkitError, RecordError
from flowkit.networks.streams import Stream, StreamNet, build_stream
from flowkit.records.reading import Record, flow_of

FORMAT = "flowkit checkpoint"
VERSION = 1
BEST, LAST = "best.json", "last.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's JSON says.

    `tasks` are the class names of every head, in the order of their logits. Frames are rescaled to
    `short_side` px and cropped to `crop` px. `form` is None for the spatial stream. `flow` is what
    records must have been made with, None where they need not say. `training` is how the weights
    were made, `progress` how far they are, both for the training itself and for people.
    """

    step: int
    stream: Stream
    net: str
    channels: int
    dropout: float
    tasks: dict[str, tuple[str, ...]]
    short_side: int
    crop: int
    form: StackForm | None
    flow: dict[str, Any] | None
    training: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)

    def build(self) -> StreamNet:
        """The network with fresh weights."""
        return build_stream(
            self.net,
            self.stream,
            {task: len(classes) for task, classes in self.tasks.items()},
            channels=self.channels,
            dropout=self.dropout,
        )

    def check_record(self, record: Record) -> None:
        """RecordError, which names the difference, where a record is not what the net learned on.

        The frames of a record always fit.
        """
        if self.form is None:
            return
        record.find_series("forward", self.form.step)
        if self.form.bidirectional:
            record.find_series("backward", self.form.step)
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
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"step-{checkpoint.step:08d}"
    files = {"weights": f"{stem}.safetensors", "state": f"{stem}.state.safetensors"}
    for kind, tensors in (("weights", weights), ("state", state)):
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with replacing(folder / files[kind]) as part:
            save_file(contiguous, part)
    head = {"format": FORMAT, "version": VERSION, "flowkit": flowkit.__version__}
    for name in names:
        named = files if name == LAST else {"weights": files["weights"]}
        text = json.dumps(head | asdict(checkpoint) | {"files": named}, indent=1, allow_nan=False)
        with replacing(folder / name) as part:
            part.write_text(text + "\n", encoding="ascii")
    _remove_unnamed(folder)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at `path`: its JSON, or a run's folder for its best one.

    CheckpointError if it is missing, of another version, or no checkpoint.
    """
    path = checkpoint_path(path)
    data = _read_json(path)
    try:
        given = {key: data[key] for key in Checkpoint.__dataclass_fields__}
        given["tasks"] = {task: tuple(classes) for task, classes in data["tasks"].items()}
        given["form"] = None if data["form"] is None else StackForm(**data["form"])
        return Checkpoint(**given)
    except (KeyError, TypeError, AttributeError, FlowkitError) as error:
        raise CheckpointError(f"{path}: not of this format ({error!r})") from error


def load_net(path: str | os.PathLike[str]) -> tuple[Checkpoint, StreamNet]:
    """The checkpoint at `path` and its network with its weights, on the CPU, in evaluation mode."""
    checkpoint = read_checkpoint(path)
    net = checkpoint.build()
    weights = read_tensors(path, "weights")
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint_path(path)}: its weights do not fit its network ({error})"
        ) from error
    return checkpoint, net.eval()


def read_tensors(path: str | os.PathLike[str], kind: str) -> dict[str, torch.Tensor]:
    """The "weights" of the checkpoint at `path`, or of ``last.json`` the training "state" too."""
    path = checkpoint_path(path)
    files = _read_json(path).get("files", {})
    if kind not in files:
        raise CheckpointError(f"{path}: names no file of {kind}; it has: {', '.join(files)}")
    return read_safetensors(path.parent / Path(files[kind]).name)


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU; CheckpointError if it is missing or broken."""
    try:
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
    for file in [*folder.glob("step-*.safetensors"), *folder.glob(".step-*.safetensors.*.part")]:
        if file.name not in named:
            file.unlink()
