"""Checks finished records file by file: everything there, everything decodes, all counts agree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np

from flowkit.errors import FlowkitError, RecordError
from flowkit.records.reading import SIDECAR, Record, open_record
from flowkit.records.writing import INCOMPLETE

OWN_PREFIXES = ("img_", "flow_", "backward_")


@dataclass(frozen=True)
class Verdict:
    """What is wrong with what lies at `path`; nothing, for an empty tuple."""

    path: Path
    problems: tuple[str, ...]


def find_unfinished(folder: Path) -> Iterator[Verdict]:
    """What looks like a record below `folder` and is none: no sidecar, or left behind half way."""
    for parent, folders, files in os.walk(folder):
        if INCOMPLETE in folders:
            yield from (
                Verdict(left, ("left by a run that was stopped",))
                for left in sorted(Path(parent, INCOMPLETE).iterdir())
            )
        if SIDECAR in files:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if any(name.startswith(OWN_PREFIXES) for name in files):
            yield Verdict(Path(parent), (f"no {SIDECAR}: never finished",))


def verify_record(path: Path) -> Verdict:
    """Read every file of the record at `path` and compare it with what the sidecar says."""
    try:
        record = open_record(path)
        return Verdict(path, tuple(_problems(record)))
    except (FlowkitError, OSError) as error:
        return Verdict(path, (str(error),))


def verify_records(paths: Iterable[Path], *, workers: int = 1) -> Iterator[Verdict]:
    """A verdict on each record, in their order; `workers` threads (decoders let others run)."""
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator", prefer="threads")
    yield from parallel(joblib.delayed(verify_record)(path) for path in paths)


def _problems(record: Record) -> Iterator[str]:
    for one in record.series:
        if one.count != record.frame_count - one.step:
            yield (
                f"{one.count} {one.direction} fields of step {one.step} "
                f"for {record.frame_count} frames"
            )
        if one.ranges is not None and one.ranges.shape != (one.count, 2, 2):
            yield f"{len(one.ranges)} ranges for {one.count} {one.direction} fields"
        for index in range(one.count):
            try:
                fields = record.fields(index, 1, direction=one.direction, step=one.step)
                if not np.isfinite(fields).all():
                    yield f"{one.direction} field {index + 1} holds NaN or infinity"
            except (RecordError, OSError, ValueError) as error:
                yield str(error)
    for index in range(record.frame_count if record.has_frames else 0):
        try:
            record.frame(index)
        except (RecordError, OSError) as error:
            yield str(error)
