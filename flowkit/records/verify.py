"""Checks finished records file by file: everything there, everything decodes, all counts agree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import joblib
import numpy as np

from flowkit.errors import FlowkitError, RecordError
from flowkit.records.ownership import UNFINISHED, one_at_a_time, remove_record
from flowkit.records.reading import SIDECAR, Record, open_record
from flowkit.records.unfinished import INCOMPLETE, find_work, remove_if_dead

Kind = Literal["sound", "broken", "unfinished", "in progress", "unreadable", "foreign"]
STATES = {  # of unfinished work, in words
    "in progress": "in progress: a run is at work on it",
    "young": "unfinished: its run stopped less than 10 minutes ago, or is at work elsewhere",
    "dead": "left by a run that was stopped",
    "foreign": "not flowkit's, in the folder of its unfinished work",
}
KINDS: dict[str, Kind] = {
    "in progress": "in progress", "young": "unfinished", "dead": "unfinished", "foreign": "foreign"
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What is wrong with what lies at `path`; nothing, for an empty tuple.

    "unfinished": left behind half way; "unreadable": the disk or the system did not give it, and
    it may be sound; "foreign": not flowkit's, where its unfinished work lies.
    """

    path: Path
    problems: tuple[str, ...]
    kind: Kind = "sound"


def find_unfinished(folder: Path) -> Iterator[Verdict]:
    """What flowkit has begun below `folder` and not finished, or not yet."""
    for parent, folders, files in os.walk(folder):
        for path, state in find_work(Path(parent)) if INCOMPLETE in folders else ():
            yield Verdict(path, (STATES[state],), KINDS[state])
        if SIDECAR in files:
            folders.clear()
        elif UNFINISHED in files:
            yield _verdict_on_moved(Path(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def delete_broken(verdict: Verdict) -> str:
    """Delete what a verdict calls broken or unfinished; "" if it is gone, else why it was left.

    Looks at it once more, while no run can finish it, and leaves what is not all flowkit's.
    """
    path = verdict.path
    if path.parent.name == INCOMPLETE:
        return "" if remove_if_dead(path) else "left alone"
    try:
        with one_at_a_time(path.parent):
            again = verify_record(path)
            if again.kind == "broken":
                remove_record(path)
            elif again.kind != "sound":
                return again.problems[0]
        return ""
    except RecordError as error:
        return str(error).removeprefix(f"{path}: ")


def verify_record(path: Path) -> Verdict:
    """Read every file of the record at `path` and compare it with what the sidecar says."""
    try:
        problems = tuple(_problems(open_record(path)))
        return Verdict(path, problems, "broken" if problems else "sound")
    except OSError as error:
        return Verdict(path, (f"could not be read ({error})",), "unreadable")
    except FlowkitError as error:
        return Verdict(path, (str(error),), "broken")


def verify_records(paths: Iterable[Path], *, workers: int = 1) -> Iterator[Verdict]:
    """A verdict on each record, in their order; `workers` threads (decoders let others run)."""
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator", prefer="threads")
    yield from parallel(joblib.delayed(verify_record)(path) for path in paths)


def _verdict_on_moved(place: Path) -> Verdict:
    """Of a record in several folders without its sidecar: a run is just moving them, or was."""
    with one_at_a_time(place.parent):
        moved = not (place / SIDECAR).exists()
    text = "unfinished: a run was stopped while it replaced its folders"
    return Verdict(place, (text,), "unfinished") if moved else Verdict(place, ())


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
            except ValueError as error:
                yield str(error)
    for index in range(record.frame_count if record.has_frames else 0):
        try:
            record.frame(index)
        except RecordError as error:
            yield str(error)
