"""Hours, gigabytes and files that an extraction will take, by a measurement of some seconds."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from flowkit._cv2 import cv2
from flowkit.errors import FlowkitError, UsageError, VideoError
from flowkit.extraction.request import Request, resized_frames
from flowkit.flow.method import takes_color
from flowkit.flow.methods import device_of, make_method, prepare_method
from flowkit.flow.pairs import consecutive
from flowkit.flow.stabilized import Stabilization
from flowkit.records.layout import FORMATS, Storage
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.stores.urls import local_path
from flowkit.synthetic import CLASSES, write_videos
from flowkit.video.decoding import Findings, open_stream
from flowkit.video.image_folders import frame_files
from flowkit.video.reading import open_video
from flowkit.video.sources import Source

SAMPLE = 3  # videos that are measured, evenly out of all
FRAMES = 13  # that are taken of each
COUNTED = 200  # videos whose frames are counted; the others have as many on average
SECONDS = 0.6  # least time of a method's measurement
FORWARD = Series("forward", 1)


@dataclass(frozen=True)
class Amount:
    """What is to be done: `frames` in all.

    They were counted in so many videos, of which some had none, since they cannot be read.
    """

    videos: int
    frames: int
    size: tuple[int, int]  # (H, W) px at which flow is computed, of the first that was measured
    counted: int
    unreadable: int


@dataclass(frozen=True)
class MethodCost:
    """Seconds of one thread for one frame with a method: of its flow, and of all else.

    Those of the CPU are processor time, so that other work beside the measurement does not count.
    `error` says why a method cannot compute here: its seconds are 0 then.
    """

    method: str
    device: str
    flow_s: float
    rest_s: float  # decode, encode the planes and the frame as JPEG, write
    error: str = ""

    def hours(self, frames: int, workers: int) -> float:
        """With so many workers like the one measured, on idle cores; a GPU is one for all."""
        if self.device == "cpu":
            return frames * (self.flow_s + self.rest_s) / workers / 3600
        return frames * max(self.flow_s, self.rest_s / workers) / 3600


@dataclass(frozen=True)
class FormatCost:
    """What one video's record takes in a format, without its frames, which are `frame_bytes`."""

    format: str
    field_bytes: float  # of one field, its share of the sidecar with it
    field_files: int


@dataclass(frozen=True)
class Forecast:
    """What was measured, in `seconds` on `sample` videos, and what it says of the whole."""

    amount: Amount
    methods: tuple[MethodCost, ...]
    formats: tuple[FormatCost, ...]
    frame_bytes: float
    sample: int
    made: bool  # the sample is not the user's: bytes are those of a simple texture
    seconds: float

    def bytes_of(self, one: FormatCost, *, rgb: bool) -> float:
        """Of all records in a format, with the frames or without."""
        fields = self.amount.frames - self.amount.videos
        return fields * one.field_bytes + rgb * self.amount.frames * self.frame_bytes

    def files_of(self, one: FormatCost, *, rgb: bool) -> int:
        """The files of all records in folders: a pack is one a video."""
        fields = self.amount.frames - self.amount.videos
        return self.amount.videos + fields * one.field_files + rgb * self.amount.frames


def forecast(
    sources: Sequence[Source],
    methods: Sequence[str],
    *,
    resize: str | None = None,
    videos: int | None = None,
    frames_per_video: float | None = None,
    stabilize: Stabilization | None = None,
) -> Forecast:
    """Measure `methods` and all formats for some seconds on a few of `sources`, at `resize`.

    Their frames are counted, unless `videos` and `frames_per_video` tell the amount; then there
    need be no sources, and a made video is measured. With `stabilize` each method's flow is less
    the camera's motion. UsageError where there is neither, or where a source lies in a store, and
    VideoError where no source can be read.
    """
    if not sources and (videos is None or frames_per_video is None):
        raise UsageError("expected videos, or their number and their frames")
    for source in sources:
        local_path(source.path)
    start = perf_counter()
    with tempfile.TemporaryDirectory(prefix="flowkit-plan-") as folder:
        work = Path(folder)
        measured = _openable(sources) if sources else _made_sample(work / "made")
        taken, decode_s = _decode_some(measured, resize)
        store_s, frame_bytes, formats = _time_records(work, taken)
        costs = tuple(_time_methods(methods, stabilize, taken, decode_s + store_s))
        if videos is None or frames_per_video is None:
            counted = _count(sources)
            average = sum(counted) / len(counted)
        else:
            counted, average = [], frames_per_video
        number = len(sources) if videos is None else videos
        size = taken[0][0].shape
        return Forecast(
            Amount(
                number, round(number * average), (size[0], size[1]), len(counted), counted.count(0)
            ),
            costs,
            formats,
            frame_bytes,
            len(taken),
            not sources,
            perf_counter() - start,
        )


def _spread(sources: Sequence[Source], count: int) -> Iterator[Source]:
    """At most `count` of them, evenly from the first to the last."""
    step = max(len(sources) / count, 1.0)
    return (sources[int(number * step)] for number in range(min(count, len(sources))))


def _openable(sources: Sequence[Source]) -> list[Source]:
    """Those that can be opened, of some; VideoError with the reason of the last where none can."""
    reason = ""
    found = []
    for source in _spread(sources, COUNTED):
        try:
            with open_video(local_path(source.path)):
                found.append(source)
        except FlowkitError as error:
            reason = str(error)
    if not found:
        raise VideoError(reason)
    return found


def _decode_some(
    sources: Sequence[Source], resize: str | None
) -> tuple[list[list[np.ndarray]], float]:
    """The first frames of a few videos, and the processor's seconds that one frame took.

    A video of fewer than two frames is passed over for another one; VideoError where all are such.
    """
    reason = ""
    taken: list[list[np.ndarray]] = []
    seconds = 0.0
    for source in dict.fromkeys([*_spread(sources, SAMPLE), *sources]):
        begun = process_time()
        try:
            taken.append(_first_frames(source, resize))
        except VideoError as error:
            reason = str(error)
            continue
        seconds += process_time() - begun
        if len(taken) == SAMPLE:
            break
    if not taken:
        raise VideoError(reason)
    return taken, seconds / sum(map(len, taken))


def _made_sample(folder: Path) -> list[Source]:
    made = write_videos(folder, videos_per_class=1, classes=CLASSES[:SAMPLE])
    return [Source(video.path.resolve(), video.path.stem) for video in made]


def _first_frames(source: Source, resize: str | None) -> list[np.ndarray]:
    """A few, as an extraction has them; VideoError where there are fewer than two."""
    with open_video(local_path(source.path), keep_damaged=True) as video:
        frames = list(itertools.islice(resized_frames(video, resize), FRAMES))
    if len(frames) < 2:
        raise VideoError(f"{source.path}: expected at least 2 frames, got {len(frames)}")
    return frames


def _count(sources: Sequence[Source]) -> list[int]:
    """The frames that files promise, of some videos; what cannot be opened has none."""
    counted = []
    for source in _spread(sources, COUNTED):
        try:
            counted.append(_frames_of(local_path(source.path)))
        except VideoError:
            counted.append(0)
    return counted


def _frames_of(path: Path) -> int:
    """How many frames a video has by its packets, or its images, none of which is decoded."""
    if path.is_dir():
        return len(frame_files(os.listdir(path)))
    container, stream = open_stream(path, Findings())
    with container:
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


def _time_methods(
    methods: Sequence[str],
    stabilize: Stabilization | None,
    samples: Sequence[list[np.ndarray]],
    rest_s: float,
) -> Iterator[MethodCost]:
    """Each method in one thread, after a first pair, which compiles and opens."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for name in methods:
            method = make_method(name)
            try:
                prepare_method(method)
                flow_s = _seconds_per_pair(Request(method, stabilize=stabilize), samples)
                yield MethodCost(name, device_of(method), flow_s, rest_s)
            except FlowkitError as error:
                yield MethodCost(name, device_of(method), 0.0, 0.0, str(error))
    finally:
        cv2.setNumThreads(threads)


def _seconds_per_pair(request: Request, samples: Sequence[list[np.ndarray]]) -> float:
    color = takes_color(request.method)
    clock = process_time if device_of(request.method) == "cpu" else perf_counter
    for _ in request.fields(consecutive(samples[0][:2], color=color)):
        pass
    pairs, start = 0, clock()
    for frames in itertools.cycle(samples):
        for _ in request.fields(consecutive(frames, color=color)):
            pairs += 1
            if (passed := clock() - start) > SECONDS:
                return passed / pairs
    raise AssertionError("a cycle has no end")


def _time_records(
    work: Path, samples: Sequence[list[np.ndarray]]
) -> tuple[float, float, tuple[FormatCost, ...]]:
    """Records of the samples, by DIS: seconds and bytes of a frame, and bytes of its fields.

    The seconds, of processor time, are those of planes and frames as JPEG, encoded and written.
    """
    seconds, frame_bytes = 0.0, 0
    sizes = dict.fromkeys(FORMATS, 0)
    for number, frames in enumerate(samples):
        fields = list(make_method("dis").fields(consecutive(frames)))
        for name in FORMATS:
            storage = Storage(format=name, rgb=name == "jpg")
            begun = process_time()
            with RecordWriter(work / name, f"{number}", storage, (FORWARD,)) as writer:
                for frame in frames:
                    writer.add_frame(frame)
                for field in fields:
                    writer.add_field(FORWARD, field)
                writer.commit({"fps": None, "request": storage.identity()})
            seconds += storage.rgb * (process_time() - begun)
            for file in (work / name / f"{number}").iterdir():
                if file.name.startswith("img_"):
                    frame_bytes += file.stat().st_size
                else:
                    sizes[name] += file.stat().st_size
    count = sum(map(len, samples))
    formats = tuple(
        FormatCost(name, sizes[name] / (count - len(samples)), len(FORMATS[name].components))
        for name in FORMATS
    )
    return seconds / count, frame_bytes / count, formats
