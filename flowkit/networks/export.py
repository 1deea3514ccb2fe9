"""A trained network as a file for other programs, ONNX or TorchScript, its outputs compared."""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from flowkit.data.augment import RGB_MEAN, RGB_STD
from flowkit.data.clips import MOMENTS
from flowkit.data.frames import FrameForm
from flowkit.data.inputs import input_channels, inputs_to_json
from flowkit.data.moments import TEST_GAP, TOWER_MOMENTS
from flowkit.documents import replacing
from flowkit.errors import ExportError, InstallError, UsageError
from flowkit.networks.checkpoints import Checkpoint, load_net
from flowkit.networks.table import OVER_TIME_MOMENTS, OwnNet, net_facts
from flowkit.networks.towers import Net
from flowkit.own_code import is_own, told

FORMATS = ("onnx", "torchscript")
ENDINGS = {"onnx": ".onnx", "torchscript": ".pt"}
ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "input", "logits"
DESCRIPTION = "flowkit.json"  # key of the file under which it says what the checkpoint says
CHECKED_BATCHES = (1, 3)  # sizes of batches; neither is that of the tracing
# Largest difference, as a share of the largest logit: sums of float32 in another order give it.
TOLERANCE = 1e-4


def export_net(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: Literal["onnx", "torchscript"],
    own: OwnNet | None = None,
) -> float:
    """Write the network of a checkpoint or run to `out`; the largest difference of a logit.

    The file takes ``input``, float32 (B, C, crop, crop) for any B, and gives ``logits``, float32
    (B, K), those of several tasks side by side. A network of several streams takes an input for
    each, called as the stream is: joined towers take float32 (B, T, C, crop, crop). What the
    checkpoint says of both, and how `flowkit eval` scores a video with them, is in the file as JSON
    under the key ``flowkit.json``. It is read back, by onnxruntime or TorchScript, and its outputs
    are compared on random inputs before it is put in place: ExportError where they differ by more
    than 1e-4 of the largest, or where the format cannot hold the network. `own` is as `load_net`
    takes it. InstallError where a library is missing.
    """
    if format not in FORMATS:
        raise UsageError(f"expected a format of {' or '.join(FORMATS)}, got {format!r}")
    checkpoint, net = load_net(path, own=own)
    said = {
        name: value
        for name, value in asdict(checkpoint).items()
        if name not in ("training", "progress", "trained_on")
    }
    said["inputs"] = inputs_to_json(checkpoint.inputs)
    said |= {"format": "flowkit export", "version": 2, "scoring": _describe_scoring(checkpoint)}
    description = json.dumps(said)
    channels = input_channels(checkpoint.inputs)
    names = [INPUT] if len(channels) == 1 else list(channels)
    moments = () if checkpoint.towers is None else (checkpoint.towers.frames,)
    examples = {
        name: torch.zeros(2, *moments, count, checkpoint.crop, checkpoint.crop)
        for name, count in zip(names, channels.values(), strict=True)
    }
    with replacing(out) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn of their own deprecated parts
        write = _write_onnx if format == "onnx" else _write_torchscript
        try:
            run = write(net, examples, description, part)
        except (InstallError, OSError):
            raise
        except Exception as error:  # each exporter has errors of its own
            if not is_own(checkpoint.net):
                raise
            raise ExportError(
                f"{path}: {checkpoint.net} cannot be written as {format}: {told(error)}"
            ) from error
        return _compare(net, run, examples)


def _describe_scoring(checkpoint: Checkpoint) -> dict[str, Any]:
    """How a video is scored with the network: which frames, as what numbers; JSON values."""
    looks: dict[str, Any] = {}
    for stream, form in checkpoint.inputs.items():
        if isinstance(form, FrameForm):
            looks[stream] = _describe_frames(form) | {
                "mean": RGB_MEAN.astype(float).round(6).tolist(),
                "deviation": RGB_STD.astype(float).round(6).tolist(),
            }
        else:
            looks[stream] = {
                "first_frame": f"moment - {form.length * form.step // 2}, moved into "
                f"0..max(0, N - 1 - {form.length * form.step})",
                "channels": "x1 y1 x2 y2 ... in px; of a video too short, field i mod their count",
            }
    told = {
        "moments": MOMENTS,
        "moment": "k of M: frame floor((2 k (N - 1) + M - 1) / (2 (M - 1))) of N; all from 0",
        "resize": "short side to short_side, long side rounded half up; then crops",
        "views": "crops at (0, 0), right, bottom left, bottom right, center (rounded down); "
        "then these five flipped, where every x of flow is negated",
        "average": "softmax, over views and moments",
    }
    if checkpoint.towers is not None:
        told |= {
            "moments": TOWER_MOMENTS,
            "sample": f"{checkpoint.towers.frames} moments, {TEST_GAP} frames apart or as many as "
            "fit, the middle one nearest to the moment; of each its clip and that clip's middle "
            "frame, first_frame + (L step) // 2",
            "views": "the crop in the center (rounded down), then that flipped, where every x of "
            "flow is negated",
            "average": "logits, over views and moments",
        }
    elif net_facts(checkpoint.net).over_time:
        told |= {
            "moments": OVER_TIME_MOMENTS,
            "views": "the crop in the center (rounded down)",
            "average": "logits, over moments",
        }
    return told | looks


def _describe_frames(form: FrameForm) -> dict[str, Any]:
    """Which frames of a moment are seen, and as what."""
    pixels = "RGB in 0..1, less mean, over deviation"
    if form.is_single:
        return {"frame": "moment", "channels": pixels}
    reach = form.length * form.step
    of_stack = f"R1 G1 B1 R2 ..., {form.about}"
    looped = "; of a video too short, frame i mod N"
    if form.differences:
        of_stack += ", each less the one before it"
        looped = f"; of a video too short, difference i mod N - {form.step}"
    return {
        "first_frame": f"moment - {reach // 2}, moved into 0..max(0, N - 1 - {reach})",
        "channels": f"{of_stack}, of {pixels}{looped}",
    }


def _write_onnx(
    net: Net, examples: Mapping[str, torch.Tensor], description: str, file: Path
) -> Callable[..., torch.Tensor]:
    """Write the file; the call that runs it by onnxruntime."""
    runtime = _onnx_libraries()[-1]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        net,
        tuple(examples.values()),
        input_names=list(examples),
        output_names=[OUTPUT],
        dynamic_shapes=tuple({0: batch} for _ in examples),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = DESCRIPTION, description
    file.write_bytes(model.SerializeToString())
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(examples, inputs, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])

    return run


def _write_torchscript(
    net: Net, examples: Mapping[str, torch.Tensor], description: str, file: Path
) -> Callable[..., torch.Tensor]:
    """Write the file; the network that was read back from it."""
    with torch.no_grad():
        traced = torch.jit.trace(net, tuple(examples.values()))
    torch.jit.save(traced, str(file), _extra_files={DESCRIPTION: description})
    return torch.jit.load(str(file))


def _compare(
    net: Net, run: Callable[..., torch.Tensor], examples: Mapping[str, torch.Tensor]
) -> float:
    """The largest difference of a logit on random inputs; ExportError if it is no rounding."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in CHECKED_BATCHES:
        inputs = [
            torch.randn((batch, *example.shape[1:]), generator=generator)
            for example in examples.values()
        ]
        with torch.no_grad():
            expected, got = net(*inputs), run(*inputs)
        difference = (expected - got).abs().max().item() if got.shape == expected.shape else None
        if difference is None or not difference <= TOLERANCE * expected.abs().max().item():
            raise ExportError(
                f"the exported network differs from its checkpoint: expected logits "
                f"{tuple(expected.shape)} within {TOLERANCE:g} of the largest, got "
                f"{tuple(got.shape)} off by {difference}; nothing was written"
            )
        largest = max(largest, difference)
    return largest


def _onnx_libraries() -> list[Any]:
    """The modules of ONNX_LIBRARIES; InstallError names those to install."""
    found, missing = [], []
    for name in ONNX_LIBRARIES:
        try:
            found.append(importlib.import_module(name))
        except ImportError:
            missing.append(name)
    if missing:
        raise InstallError(
            f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)} "
            "(--format torchscript does without)"
        )
    return found
