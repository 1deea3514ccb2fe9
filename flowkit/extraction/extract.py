"""Room one: videos to flow records, one video at a time or many in worker processes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import flowkit
from flowkit._cv2 import cv2
from flowkit.errors import FlowkitError, UsageError, VideoError
from flowkit.extraction.flow_client import RemoteFlow
from flowkit.extraction.flow_processes import FlowProcesses
from flowkit.extraction.outcomes import Outcome, run_videos
from flowkit.extraction.request import Request, resized_frames
from flowkit.flow.method import FlowMethod, takes_color
from flowkit.flow.methods import device_of
from flowkit.flow.pairs import consecutive, series_fields
from flowkit.flow.stabilized import Stabilization, StabilizedFlow
from flowkit.records.copies import Copy, local_copy
from flowkit.records.writing import RecordWriter
from flowkit.stores.retries import retry_count
from flowkit.stores.urls import Place, Url
from flowkit.video.changes import object_state, source_stamp, source_state
from flowkit.video.reading import Video, open_video
from flowkit.video.sources import Source
from flowkit.workers.engine import Engine, Event, Failed, Progress, Task
from flowkit.workers.pool import run_pool


@dataclass(frozen=True)
class Extracted:
    """What became of one video: `seconds` by "decode", "flow", "encode" and "write".

    `creating_s` of those that it took to write went into the names of new files. `plain_fields`: of
    flow that is stabilized, the fields that are not, since their camera was not found; else None.
    """

    frames: int
    fields: int
    damage: str | None
    seconds: dict[str, float]
    written: bool  # False where another run had finished the record meanwhile
    creating_s: float = 0.0
    retries: int = 0  # how often a store was asked again
    plain_fields: int | None = None


def video_fields(
    path: str | Path,
    method: FlowMethod,
    *,
    resize: str | None = None,
    stabilize: Stabilization | None = None,
) -> Iterator[np.ndarray]:
    """The fields of a video from frame to frame, lazily: float32 (H, W, 2) px, n - 1 of n frames.

    `resize` is "256" (short side, px), "340x256" (width x height) or "50%", else UsageError.
    `stabilize`: the camera's motion is taken off; a pair whose camera is not found has plain flow.
    VideoError where it cannot be opened and, at the end, if it did not give every frame that its
    file promises.
    """
    with open_video(Path(path)) as video:
        frames = resized_frames(video, resize)
        request = Request(method, resize=resize, stabilize=stabilize)
        yield from request.fields(consecutive(frames, color=takes_color(method)))


def extract_video(
    source: Source,
    out: Place,
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
    or has too few frames: nothing is left of it then. A video in a store is read through a local
    copy, whose time counts as "decode", as putting a record there counts as "write"; StoreError
    where that cannot be had.
    """
    if source.refusal:
        raise VideoError(f"{source.path}: {source.refusal}")
    start, asked = perf_counter(), retry_count()

    def make(path: Path, copy: Copy | None) -> Extracted:
        told = report if copy is None else _both(report, copy.beat)
        extracted = _extract_file(
            path, copy, source, out, request, overwrite, told, remote, owner, start
        )
        return replace(extracted, retries=retry_count() - asked)

    try:
        if not isinstance(source.path, Url):
            return make(source.path, None)
        with local_copy(source.path, owner=owner) as copy:
            return make(copy.path, copy)
    except Exception as error:
        error.retries = retry_count() - asked  # type: ignore[attr-defined]
        raise


def _both(report: Callable[[int], None], beat: Callable[[], None]) -> Callable[[int], None]:
    def tell(frames: int) -> None:
        beat()
        report(frames)

    return tell


def _extract_file(
    path: Path,
    copy: Copy | None,
    source: Source,
    out: Place,
    request: Request,
    overwrite: bool,
    report: Callable[[int], None],
    remote: RemoteFlow | None,
    owner: str,
    start: float,
) -> Extracted:
    """`extract_video` of a file, maybe the local `copy` of an object; `start` is when it began."""
    seconds = {"decode": perf_counter() - start}
    stamp = source_stamp(path)
    compute = request.method.fields if remote is None else remote.compute
    stabilized = None
    if request.stabilize is not None:
        stabilized = StabilizedFlow(compute, request.stabilize)
        compute = stabilized.fields
    with (
        open_video(
            path,
            keep_damaged=request.keep_damaged,
            max_frame_mpx=request.max_frame_mpx,
        ) as video,
        RecordWriter(out, source.id, request.storage, request.series, owner=owner) as writer,
    ):

        def frames() -> Iterator[np.ndarray]:
            taken = resized_frames(video, request.resize, request.sampling)
            for frame in _timed(taken, seconds):
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
        state = source_state(path) if copy is None else object_state(copy.state, path)
        if stamp != source_stamp(path):
            raise VideoError(f"{source.path}: changed while it was read")
        description = _describe(source, video, request, state)
        plain_fields = None if stabilized is None else stabilized.plain
        if plain_fields is not None:
            description["plain_fields"] = plain_fields
        written = writer.commit(description, overwrite=overwrite or source.redo)
        seconds |= writer.seconds
        seconds["flow"] = perf_counter() - start - sum(seconds.values())
        fields = sum(len(ranges) for ranges in writer.ranges.values())
        return Extracted(
            writer.frame_count,
            fields,
            video.damage,
            seconds,
            written,
            writer.creating_s,
            plain_fields=plain_fields,
        )


def extract(
    sources: Sequence[Source],
    out: Place,
    request: Request,
    *,
    workers: int,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    overwrite: bool = False,
    processes: FlowProcesses | None = None,
    engine: Engine = run_pool,
) -> Generator[Outcome[Extracted]]:
    """Make the records of `sources` in worker processes; yields what became of each, as it comes.

    Workers are those of `engine`. They compute the flow themselves, or have it from `processes` of
    the same method and storage. A video that fails, takes longer than `timeout_s` or more than
    `memory_bytes`, or kills its worker costs itself only: its outcome has the reason. After a full
    disk, or where flow processes die again and again, no further video is begun: those have no
    outcome. UsageError where a worker cannot import the method, and where flow that the processes
    quantize is to be stabilized.
    """
    if processes is not None:
        if request.stabilize is not None and processes.quantized:
            raise UsageError(
                "flow that is stabilized is computed from fields: expected FlowProcesses with "
                "quantized=False"
            )
        engine = _with_flow(processes, engine)
    if sources:
        request.prepare(method=processes is None)
    owner = secrets.token_hex(8)
    there = out if isinstance(out, Url) else out.absolute()  # workers may be in another folder
    task = _Task(there, request, overwrite, owner)
    yield from run_videos(
        task,
        sources,
        out,
        owner=owner,
        engine=engine,
        workers=workers,
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
    )


def _with_flow(processes: FlowProcesses, engine: Engine) -> Engine:
    """The engine, each of whose videos has its flow from one of the flow processes.

    These hear of every event. Why one of them died becomes the reason of its videos; where they die
    again and again, no further video is begun.
    """

    def run(
        task: Task, items: Iterable[Source], *, workers: int, **limits: Any
    ) -> Generator[Event]:
        def supply() -> Iterator[tuple[Source, RemoteFlow]]:
            for index, source in enumerate(items):
                remote = processes.assign(index)
                if processes.problem:
                    return
                yield source, remote

        with closing(engine(task, supply(), workers=workers, **limits)) as events:
            for event in events:
                if isinstance(event, Failed) and event.exception == "FlowProcessDied":
                    event = replace(event, reason=processes.mourn(event.index))
                processes.listen()
                if not isinstance(event, Progress):
                    processes.release(event.index)
                yield event

    return run


@dataclass(frozen=True)
class _Task:
    """What a worker does with a source, alone or with the process that computes its flow."""

    out: Place
    request: Request
    overwrite: bool
    owner: str

    def __call__(
        self, item: Source | tuple[Source, RemoteFlow], report: Callable[[int], None]
    ) -> Extracted:
        source, remote = (item, None) if isinstance(item, Source) else item
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
            "fps": video.fps,
            "frames_expected": video.account.expected if video.account else None,
            "damage": video.damage,
        },
        "fps": request.sampling.rate(video.fps),
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
