"""The two runs that towers are joined from: what they agree on, and that they saw no test video."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from flowkit.data.inputs import Inputs
from flowkit.data.splits import Split
from flowkit.documents import listed
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import Checkpoint, checkpoint_path, read_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TowerRuns:
    """What joined towers take from a spatial and a temporal run.

    `net` names both networks, NET+NET; `task` and `classes` are of the first task of both.
    """

    sources: tuple[str, str]
    checkpoints: tuple[Checkpoint, Checkpoint]
    inputs: Inputs
    net: str
    task: str
    classes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """That of the spatial run, which holds its split."""
        return checkpoint_path(self.sources[0]).parent

    def check_split(self, split: Split) -> None:
        """UsageError where a run's classes are not the split's, or it saw what is to be judged."""
        if split.classes != self.classes:
            raise UsageError(
                f"{self.sources[0]}: its classes are not those of {split.name}: give the split "
                "that both runs were trained on (--split)"
            )
        for source, checkpoint in zip(self.sources, self.checkpoints, strict=True):
            origin = checkpoint.trained_on
            if origin is None or origin.unknown:
                log.warning("%s: does not say what it was trained on", source)
            for part in ("test", "heldout"):
                if origin is not None and (seen := origin.seen(split.part(part))):
                    raise UsageError(
                        f"{source}: was trained on {len(seen)} of the {part} videos of "
                        f"{split.name}: {listed(seen)} (or on others of their source)"
                    )


def read_towers(spatial: Path, temporal: Path) -> TowerRuns:
    """The runs at two folders or checkpoints; UsageError names what differs between them."""
    paths = {"spatial": spatial, "temporal": temporal}
    found = []
    for stream, path in paths.items():
        if not checkpoint_path(path).exists():
            raise UsageError(
                f"{path}: no run there: flowkit train {stream} makes one, --{stream} names another"
            )
        checkpoint = read_checkpoint(path)
        if checkpoint.stream != stream:
            raise UsageError(f"--{stream} {path}: holds a {checkpoint.stream} stream")
        if checkpoint.hidden:
            raise UsageError(
                f"--{stream} {path}: has a hidden layer of {checkpoint.hidden:,}, and networks "
                "are joined without one: train it again without --hidden"
            )
        found.append(checkpoint)
    one, other = found
    (task, classes), (_, others) = (next(iter(c.tasks.items())) for c in found)
    pairs: dict[str, tuple[object, object]] = {
        "short side (px)": (one.short_side, other.short_side),
        "crop (px)": (one.crop, other.crop),
        "classes": (len(classes), len(others)),
    }
    if len(classes) == len(others) and classes != others:
        names = ((a, b) for a, b in zip(classes, others, strict=True) if a != b)
        pairs["first class that differs"] = next(names)
    if told := [f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b]:
        raise UsageError(
            f"{spatial} and {temporal} cannot be joined, as they differ: {'; '.join(told)}: train "
            "one of them again as the other (flowkit train)"
        )
    return TowerRuns(
        (str(spatial), str(temporal)),
        (one, other),
        {**one.inputs, **other.inputs},
        f"{one.net}+{other.net}",
        task,
        classes,
    )
