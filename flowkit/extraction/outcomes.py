"""A task over many videos, on an engine: what becomes of each, where a failure costs one video."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from flowkit.errors import UsageError
from flowkit.records.copies import work_folder
from flowkit.records.unfinished import remove_dead, remove_of
from flowkit.stores.urls import Place, Url
from flowkit.video.sources import Source
from flowkit.workers.engine import Done, Engine, Event, Failed, Progress, Task

log = logging.getLogger("flowkit")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """One event of a run over videos: one is "done" or "failed", or "running" with `frames` so far.

    `result` tells of a record that is done, `reason` in one line why there is none.
    """

    source: Source
    status: str
    result: Result | None = None
    reason: str = ""
    frames: int = 0
    retries: int = 0  # how often a store was asked again


def run_videos(
    task: Task,
    sources: Sequence[Source],
    out: Place,
    *,
    owner: str,
    engine: Engine,
    workers: int,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
) -> Generator[Outcome]:
    """Call ``task(source, report)``, which makes a record below `out`, for every source.

    Yields what becomes of each as it comes. The task reports frames so far, and its result has
    `frames`. A video that fails, takes longer than `timeout_s` or more than `memory_bytes`, or
    kills its worker, costs itself only. After a full disk no further video is begun: those have no
    outcome. What dead runs left unfinished below `out`, or below the folder of scratch where a
    store is read or written, is removed first, and at the end what this run's `owner` did.
    UsageError, before any work, where these cannot be made or written to.
    """
    stored = [one.path for one in sources if isinstance(one.path, Url)][:1]
    folders = list(dict.fromkeys(map(work_folder, (out, *stored))))
    for folder in folders:
        _make_writable(folder)
        remove_dead(folder)
    if stored or isinstance(out, Url):
        from flowkit.stores.objects import close_stores

        close_stores()  # workers that are forked begin at once
    full = False
    begun = itertools.takewhile(lambda _: not full, sources)
    try:
        run = engine(task, begun, workers=workers, timeout_s=timeout_s, memory_bytes=memory_bytes)
        with closing(run) as events:
            for event in events:
                full = full or (isinstance(event, Failed) and event.errno in DISK_FULL)
                yield _outcome(sources[event.index], event)
    finally:
        for folder in folders:
            remove_of(folder, owner)  # what killed workers could not


def _make_writable(out: Path) -> None:
    """Make the folder `out`; UsageError where that, or writing to it, is not allowed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UsageError(
            f"{out}: cannot be made: {error.strerror}: choose another --out"
        ) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"{out}: cannot be written to: choose another --out")


def _outcome(source: Source, event: Event) -> Outcome:
    """What an event of the engine means for its video."""
    match event:
        case Progress():
            return Outcome(source, "running", frames=event.value)
        case Done():
            result = event.result
            retries = getattr(result, "retries", 0)
            return Outcome(source, "done", result, frames=result.frames, retries=retries)
        case Failed():
            log.debug("%s: %s", source.path, event.traceback)
            reason = event.reason.removeprefix(f"{source.path}: ")
            return Outcome(source, "failed", reason=reason, retries=event.retries)
