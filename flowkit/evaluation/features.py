"""What a layer of a trained network says of records: features of clips or videos, as files.

A layer's outputs are caught as a forward hook sees them, for the moments and views that
`flowkit.evaluation.scoring` asks about, and written for the tools that learn from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flowkit.data.inputs import Look
from flowkit.documents import differences, listed, read_document, replacing, seal
from flowkit.errors import RecordError, UsageError
from flowkit.evaluation.feature_files import FEATURE_FORMATS, Features
from flowkit.evaluation.scoring import Places, Scorer
from flowkit.networks.own import UNKNOWN
from flowkit.networks.streams import StreamNet
from flowkit.networks.towers import Net
from flowkit.records.reading import Record

FORMAT, VERSION = "flowkit features", 1
DESCRIPTION = "features.json"  # the file that says how all features of a folder were made
Per = Literal["clip", "video"]


def find_layer(net: Net, name: str) -> torch.nn.Module:
    """The layer of a network by its name in it, or by the end of it where only one ends so.

    UsageError, which names the layers, where there is none or several.
    """
    if name == "trunk" and isinstance(net, StreamNet) and not net.heads:
        raise UsageError(f"{net.name}: trunk is what the layer of the classes sees, {UNKNOWN}")
    modules = {key: module for key, module in net.named_modules() if key}
    ends = [key for key in modules if key == name or key.endswith(f".{name}")]
    found = [name] if name in modules else ends
    if len(found) == 1:
        return modules[found[0]]
    if found:
        raise UsageError(f"{net.name}: several layers are called {name!r}: {listed(found)}")
    tops = [key for key in modules if key.count(".") == 1 and not key.startswith("heads.")]
    raise UsageError(
        f"{net.name}: has no layer {name!r}; it has {', '.join(tops)}, and the layers in these"
    )


def record_features(
    scorer: Scorer, record: Record, layer: str, *, per: Per = "clip", readers: int = 1
) -> Features:
    """What a layer gives for the moments of a record, each the mean over its views.

    Maps (B, C, h, w) become their mean over places, (B, C), and the moments of one sample of joined
    towers their mean. With `per` "video" it is the mean over the moments, too. UsageError for a
    layer that is not there, is not reached, or gives neither vectors nor maps; RecordError for a
    record that the network cannot take.
    """
    if per not in ("clip", "video"):
        raise UsageError(f"expected features per clip or video, got {per!r}")
    module = find_layer(scorer.net, layer)
    caught: list[torch.Tensor] = []
    rows: dict[Places, np.ndarray] = {}
    # A copy: what comes next may be a ReLU in place
    handle = module.register_forward_hook(
        lambda module, inputs, output: caught.append(_vectors(output, layer).clone())
    )
    try:
        for places, _ in scorer.logits(record, readers=readers):
            if not caught:
                raise UsageError(f"{scorer.path}: the network is answered without layer {layer!r}")
            seen = torch.cat(caught).double().unflatten(0, (len(places), -1)).mean(1)
            rows |= dict(zip(places, seen.float().cpu().numpy(), strict=True))
            caught.clear()
    finally:
        handle.remove()
    moments = scorer.places(record.name, record.frame_count)
    values = np.stack([rows[one] for one in moments])  # (M, F)
    if per == "video":
        values = values.mean(0, dtype=np.float64).astype(np.float32)
    frames = np.array([_middle(one[0]) for one in moments], np.int64)
    return Features(values, frames, frames / (record.fps or np.nan))


def write_features(
    scorer: Scorer,
    records: Iterable[tuple[str, Callable[[], Record]]],
    out: Path,
    *,
    layer: str,
    per: Per = "clip",
    format: str = "npz",
    readers: int = 1,
) -> Iterator[tuple[str, Exception | None]]:
    """Write the features of `records`, ids with what opens each; yields each id, done or failed.

    The folder `out` gets ``features.json``, which says how they were made, and the files of
    FEATURE_FORMATS. A record that fails costs itself only: its error is yielded. Files of a video
    that are there already, made the same way, are kept; a file of all videos is made again.
    UsageError, before any work, where `out` holds features that were made in another way, or a
    file of that name that is not said to hold features.
    """
    if format not in FEATURE_FORMATS:
        raise UsageError(f"expected a format of {', '.join(FEATURE_FORMATS)}, got {format!r}")
    find_layer(scorer.net, layer)
    kind = FEATURE_FORMATS[format]
    told = {name: value for name, value in scorer.describe().items() if name != "kind"}
    made = json.loads(json.dumps({"layer": layer, "per": per, "written_as": format} | told))
    is_there = _find_description(out, made)
    with kind.open(out) as add:
        if not is_there:
            _write_description(out, made)
        for id, open_record in records:
            if kind.by_video is not None and Path(out, id + kind.by_video).exists():
                yield id, None
                continue
            try:
                record = open_record()
                scorer.checkpoint.check_record(record)
                add(id, record_features(scorer, record, layer, per=per, readers=readers))
            except (RecordError, OSError) as error:
                yield id, error
            else:
                yield id, None


def _vectors(output: Any, layer: str) -> torch.Tensor:
    """A layer's output as a vector of each input: (B, F), or maps (B, C, h, w) -> (B, C)."""
    if isinstance(output, torch.Tensor) and output.ndim in (2, 4, 5):
        return output if output.ndim == 2 else output.flatten(2).mean(2)
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    raise UsageError(f"layer {layer!r}: expected vectors (B, F) or maps (B, C, h, w), got {got}")


def _middle(look: Look) -> int:
    """The frame in the middle of what an input looks at."""
    return look[(len(look) - 1) // 2].middle


def _find_description(out: Path, made: dict[str, Any]) -> bool:
    """Whether a folder holds features that were made in this way; UsageError for anything else."""
    file = out / DESCRIPTION
    if not file.exists():
        if any(out.glob("*")):
            raise UsageError(
                f"{out}: holds files, but no {DESCRIPTION}, so they are not replaced: "
                "name a new folder"
            )
        return False
    there = read_document(file, FORMAT, VERSION, error=UsageError, maker="flowkit features")
    if found := differences({name: there.get(name) for name in made}, made):
        raise UsageError(f"{file}: features made in another way are there: {'; '.join(found)}")
    return True


def _write_description(out: Path, made: dict[str, Any]) -> None:
    with replacing(out / DESCRIPTION) as part:
        head = {"format": FORMAT, "version": VERSION}
        part.write_bytes(seal(json.dumps(head | made, indent=1)))
