"""Room one: videos to flow records, one video at a time or many in worker processes."""

from __future__ import annotations

import errno
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import flowkit
from flowkit._cv2 import cv2
from flowkit.errors import FlowkitError, VideoError
from flowkit.extraction.flow_client import RemoteFlow
from flowkit.extraction.flow_processes import FlowProcesses
from flowkit.extraction.request import Request, resized_frames
from flowkit.flow.method import FlowMethod, takes_color
from flowkit.flow.methods import device_of, prepare_method
from flowkit.flow.pairs import consecutive, series_fields
from flowkit.records.unfinished import remove_dead, remove_of
from flowkit.records.writing import RecordWriter
from flowkit.video.changes import source_stamp, source_state
from flowkit.video.reading import Video, open_video
from flowkit.video.sources import Source
from flowkit.workers.pool import Done, Failed, Progress, run_pool

log = logging.getLogger("flowkit")


@dataclass(frozen=True)
class Extracted:
    """What became of one video: `seconds` by "decode", "flow", "encode" and "write"."""

    frames: int
    fields: int
    damage: str | None
    seconds: dict[str, float]
    written: bool  # False where another run had finished the record meanwhile


@dataclass(frozen=True)
class Outcome:
    """One event of `extract`: a video "done" or "failed", or frames of it so far ("running")."""

    source: Source
    status: str
    extracted: Extracted | None = None
    reason: str = ""
    frames: int = 0


def video_fields(
    path: str | Path, method: FlowMethod, *, resize: str | None = None
) -> Iterator[np.ndarray]:
    """The fields of a video from frame to frame, lazily: float32 (H, W, 2) px, n - 1 of n frames.

    `resize` is "256" (short side, px), "340x256" (width x height) or "50%", else UsageError.
    VideoError where it cannot be opened and, at the end, if it did not give every frame that its
    file promises.
    """
    with open_video(Path(path)) as video:
        frames = resized_frames(video, resize)
        yield from method.fields(consecutive(frames, color=takes_color(method)))


def extract_video(
    source: Source,
    out: Path,
    request: Request,
    *,
    overwrite: bool = False,
    report: Callable[[int], None] = lambda frames: None,
    remote: RemoteFlow | None = None,
    owner: str = "",
) -> Extracted:
    """Make the record of one video below `out`; decodes once, whatever series are asked for.

    `report` is told the frames so far. The flow is computed here, or by a `remote` process that
    has the method of the request. VideoError where the video is refused, damaged, changes meanwhile
    or has too few frames: nothing is left of it then.
    """
    if source.refusal:
        raise VideoError(f"{source.path}: {source.refusal}")
    start = perf_counter()
    seconds = {"decode": 0.0}
    stamp = source_stamp(source.path)
    compute = request.method.fields if remote is None else remote.compute
    with (
        open_video(
            source.path,
            keep_damaged=request.keep_damaged,
            max_frame_mpx=request.max_frame_mpx,
        ) as video,
        RecordWriter(out, source.id, request.storage, request.series, owner=owner) as writer,
    ):

        def frames() -> Iterator[np.ndarray]:
            for frame in _timed(resized_frames(video, request.resize), seconds):
                writer.add_frame(frame)
                report(writer.frame_count)
                yield frame

        color = takes_color(request.method)
        for series, _, computed in series_fields(frames(), request.series, compute, color=color):
            if isinstance(computed, tuple):
                writer.add_planes(series, *computed)
            else:
                writer.add_field(series, computed)
        _check_counts(writer, request)
        state = source_state(source.path)
        if stamp != source_stamp(source.path):
            raise VideoError(f"{source.path}: changed while it was read")
        description = _describe(source, video, request, state)
        written = writer.commit(description, overwrite=overwrite or source.redo)
        seconds |= writer.seconds
        seconds["flow"] = perf_counter() - start - sum(seconds.values())
        fields = sum(len(ranges) for ranges in writer.ranges.values())
        return Extracted(writer.frame_count, fields, video.damage, seconds, written)


def extract(
    sources: Sequence[Source],
    out: Path,
    request: Request,
    *,
    workers: int,
    timeout_s: float | None = None,
    overwrite: bool = False,
    processes: FlowProcesses | None = None,
) -> Iterator[Outcome]:
    """Make the records of `sources` in worker processes; yields what became of each, as it comes.

    Workers compute the flow themselves, or have it from `processes` of the same method and
    storage. A video that fails, takes longer than `timeout_s`, or kills its worker costs itself
    only: its outcome has the reason. After a full disk, or where flow processes die again and
    again, no further video is begun: those have no outcome. UsageError where a worker cannot import
    the method.
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_dead(out)
    if processes is None and sources:
        prepare_method(request.method)
    full: list[Failed] = []  # videos that found the disk full: no further one is begun

    def supply() -> Iterator[tuple[Source, RemoteFlow | None]]:
        for index, source in enumerate(sources):
            if full:
                return
            remote = processes.assign(index) if processes else None
            if processes and processes.problem:
                return
            yield source, remote

    task = _Task(out, request, overwrite, owner=secrets.token_hex(8))
    try:
        with closing(run_pool(task, supply(), workers=workers, timeout_s=timeout_s)) as events:
            for event in events:
                if processes:
                    event = _hear(processes, event)
                if isinstance(event, Failed) and event.errno in (errno.ENOSPC, errno.EDQUOT):
                    full.append(event)
                yield _outcome(sources[event.index], event)
    finally:
        remove_of(out, task.owner)  # what killed workers could not


def _hear(processes: FlowProcesses, event: Progress | Done | Failed) -> Progress | Done | Failed:
    """The event of a worker, told to the flow processes; why theirs died, where one did."""
    if isinstance(event, Failed) and event.exception == "FlowProcessDied":
        event = replace(event, reason=processes.mourn(event.index))
    processes.listen()
    if not isinstance(event, Progress):
        processes.release(event.index)
    return event


def _outcome(source: Source, event: Progress | Done | Failed) -> Outcome:
    """What an event of the pool means for its video."""
    match event:
        case Progress():
            return Outcome(source, "running", frames=event.value)
        case Done():
            return Outcome(source, "done", event.result, frames=event.result.frames)
        case Failed():
            log.debug("%s: %s", source.path, event.traceback)
            reason = event.reason.removeprefix(f"{source.path}: ")
            return Outcome(source, "failed", reason=reason)


@dataclass(frozen=True)
class _Task:
    """What a worker does with one source, and the process that computes its flow: picklable."""

    out: Path
    request: Request
    overwrite: bool
    owner: str

    def __call__(
        self, item: tuple[Source, RemoteFlow | None], report: Callable[[int], None]
    ) -> Extracted:
        source, remote = item
        return extract_video(
            source,
            self.out,
            self.request,
            overwrite=self.overwrite,
            report=report,
            remote=remote,
            owner=self.owner,
        )


def _timed(items: Iterator[np.ndarray], seconds: dict[str, float]) -> Iterator[np.ndarray]:
    """The same items; the time that each takes to come is added to ``seconds["decode"]``."""
    while True:
        begin = perf_counter()
        item = next(items, None)
        seconds["decode"] += perf_counter() - begin
        if item is None:
            return
        yield item


def _describe(
    source: Source, video: Video, request: Request, state: dict[str, Any]
) -> dict[str, Any]:
    """What the sidecar says of a video whose frames have all been read, and of the request."""
    return {
        "flowkit": flowkit.__version__,
        "libraries": _libraries(),
        "device": device_of(request.method),
        "source": {
            "name": source.path.name,
            **state,
            "size": list(video.size),
            "frames_expected": video.account.expected if video.account else None,
            "damage": video.damage,
        },
        "fps": video.fps,
        "request": request.identity(),
    }


def _check_counts(writer: RecordWriter, request: Request) -> None:
    """No frame and no field may be lost: every series has the frames less its step."""
    least = max(request.steps) + 1
    if writer.frame_count < least:
        frames = "1 frame" if writer.frame_count == 1 else f"{writer.frame_count} frames"
        raise VideoError(f"{frames}, expected at least {least} for step {least - 1}")
    for series, ranges in writer.ranges.items():
        if len(ranges) != writer.frame_count - series.step:
            raise FlowkitError(
                f"method {request.method.name} gave {len(ranges)} {series.direction} fields of "
                f"step {series.step} for {writer.frame_count} frames"
            )


def _libraries() -> dict[str, str]:
    import av

    return {"opencv": cv2.__version__, "pyav": av.__version__, "numpy": np.__version__}
