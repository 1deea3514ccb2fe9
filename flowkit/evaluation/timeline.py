"""A long video in one pass and bounded memory: what trained streams see in each window."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from flowkit.data.stacks import StackForm
from flowkit.errors import FlowkitError, UsageError, VideoError
from flowkit.evaluation.held_records import IMAGES, HeldRecord, Looks, empty_series
from flowkit.evaluation.prediction import Prediction, Predictor
from flowkit.extraction.request import Request, resized_frames, target_size
from flowkit.flow.method import takes_color
from flowkit.flow.pairs import series_fields
from flowkit.records import formats
from flowkit.series import Series
from flowkit.video.live import STALL_S, open_live, shown_address
from flowkit.video.reading import Video, open_video
from flowkit.workers.machine import usable_cores
from flowkit.workers.streamed import stream_from_child

Stored = tuple[list[bytes], formats.Ranges | None]  # a field's files and its ranges


@dataclass(frozen=True)
class Spans:
    """How long a window is and how far the next one begins behind it, in s.

    UsageError for what is not above 0, and for windows that leave gaps.
    """

    length_s: float = 4.0
    stride_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.stride_s <= self.length_s < float("inf"):
            raise UsageError(
                "expected windows that begin at most their own length apart, got "
                f"{self.length_s:g} s every {self.stride_s:g} s"
            )


@dataclass(frozen=True)
class Window:
    """What a part of a video shows: from `start_s` to before `end_s`, in s; `record` holds it."""

    start_s: float
    end_s: float
    found: Prediction
    record: HeldRecord


@dataclass(frozen=True)
class Segment:
    """Windows in a row with one most likely class; `probability` is the mean of theirs, 0 to 1."""

    start_s: float
    end_s: float
    class_name: str
    probability: float


def predict_windows(
    predictor: Predictor, path: str | os.PathLike[str], spans: Spans, *, whole: bool = False
) -> Iterator[Window]:
    """What a video shows in each window, in one pass; VideoError where its frames do not all come.

    The last window ends with the video, and a video shorter than a window is one. A child process
    decodes the video and computes its flow, and is a window ahead; memory holds the frames and
    fields of a window and a stride, there and here. With `whole` fields are there also where all
    streams look at frames alone. VideoError too where the video states no frame rate, is too short,
    or makes the child crash.
    """
    place = Path(path)
    return _predict(predictor, str(place), hold_windows, predictor.looks, place, spans, whole)


def predict_live(
    predictor: Predictor, address: str, spans: Spans, *, stall_s: float = STALL_S
) -> Iterator[Window]:
    """What the live stream at `address` shows in each window, as `predict_windows`, from now on.

    Times are by the rate that the stream states. The windows end with the stream; VideoError, after
    the window that ends there, where it breaks off or nothing came for `stall_s` seconds, and as of
    `video.live.open_live`.
    """
    name = shown_address(address)
    return _predict(predictor, name, hold_live_windows, predictor.looks, address, spans, stall_s)


def _predict(
    predictor: Predictor, name: str, hold: Callable[..., Iterator[HeldWindow]], *arguments: Any
) -> Iterator[Window]:
    with closing(stream_from_child(hold, *arguments, threads=usable_cores())) as held:
        while True:
            try:
                one = next(held, None)
            except FlowkitError as error:
                if isinstance(error, (VideoError, UsageError)):
                    raise
                raise VideoError(f"{name}: {error}") from error
            if one is None:
                return
            found = predictor.predict_record(one.record)
            end_s = one.start_s + one.record.frame_count / one.rate
            yield Window(one.start_s, end_s, found, one.record)


class HeldWindow(NamedTuple):
    """A window of a video as a record in memory, before it is predicted; `rate` in frames per s."""

    start_s: float
    rate: float
    record: HeldRecord


def hold_windows(looks: Looks, path: Path, spans: Spans, whole: bool) -> Iterator[HeldWindow]:
    """The windows of a video; errors as of `predict_windows`."""
    with open_video(path, max_frame_mpx=looks.request.max_frame_mpx) as video:
        yield from _windows_of(video, path, looks, spans, whole)


def hold_live_windows(
    looks: Looks, address: str, spans: Spans, stall_s: float
) -> Iterator[HeldWindow]:
    """The windows of a live stream; errors as of `predict_live`."""
    most = looks.request.max_frame_mpx
    video, ending = open_live(address, stall_s=stall_s, max_frame_mpx=most)
    with video:
        try:
            yield from _windows_of(video, Path("live"), looks, spans, False)
        except VideoError:
            if not ending.problem:
                raise
        if ending.problem:
            raise VideoError(f"{video.path}: the stream ended: {ending.problem}")


def _windows_of(
    video: Video, path: Path, looks: Looks, spans: Spans, whole: bool
) -> Iterator[HeldWindow]:
    request = looks.request
    forms = [form for inputs, _, _ in looks.streams for form in inputs.values()]
    has_flow = any(isinstance(form, StackForm) for form in forms)
    series = request.series if whole or has_flow else ()
    rate = request.sampling.rate(video.fps)
    if rate is None:
        raise VideoError(f"{video.path}: states no frame rate, so times are not known")
    frames = resized_frames(video, request.resize, request.sampling)
    size = target_size(request.resize, video.size)
    least = max(1 + whole, *(form.least_frames for form in forms))
    held = _Held(path, request, size, rate, series, least)
    length = max(round(spans.length_s * rate), held.least)
    stride = min(max(round(spans.stride_s * rate), 1), length)
    for start, record in held.windows(frames, length, stride):
        yield HeldWindow(start / rate, rate, record)


class _Held:
    """The encoded frames and fields of the end of a video, as far as it has been read."""

    def __init__(
        self,
        path: Path,
        request: Request,
        size: tuple[int, int],
        rate: float,
        series: Sequence[Series],
        least: int,
    ) -> None:
        self.path, self.request, self.size, self.rate = path, request, size, rate
        self.count = 0  # frames so far
        self.images: dict[int, bytes] = {}
        self.fields: dict[Series, dict[int, Stored]] = {one: {} for one in series}
        self.least = least  # frames of a window

    def windows(
        self, frames: Iterator[np.ndarray], length: int, stride: int
    ) -> Iterator[tuple[int, HeldRecord]]:
        """Each window as a record, with the number of its first frame."""
        start = end = 0
        for _ in self._read(frames):
            while self._is_whole(start + length):
                yield start, self._record(start, length)
                end = start + length
                self._forget(start)  # the last window may begin just behind this one
                start += stride
        if self.count < self.least:
            raise VideoError(
                f"{self.path}: expected at least {self.least} frames, got {self.count}"
            )
        if self.count > end:
            start = max(self.count - length, 0)
            yield start, self._record(start, self.count - start)

    def _read(self, frames: Iterator[np.ndarray]) -> Iterator[None]:
        """Take frame after frame and field after field, with a pause after each."""
        storage, method = self.request.storage, self.request.method
        if not self.fields:
            yield from (None for _ in self._keep(frames))
            return
        for one, index, field in series_fields(
            self._keep(frames), self.fields, self.request.fields, color=takes_color(method)
        ):
            self.fields[one][index] = formats.encode_field(
                field, storage.format, bound=storage.bound, quality=storage.quality
            )
            yield

    def _keep(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            quality = self.request.storage.rgb_quality
            self.images[self.count] = formats.encode_image(frame, "jpg", quality)
            self.count += 1
            yield frame

    def _is_whole(self, end: int) -> bool:
        """Whether all that ends with frame ``end - 1`` is there; fields come in their order."""
        return self.count >= end and all(
            end - 1 - one.step in fields for one, fields in self.fields.items()
        )

    def _forget(self, start: int) -> None:
        """Let go of what begins before frame `start`."""
        kept: list[dict[int, Any]] = [self.images, *self.fields.values()]
        for one in kept:
            for index in [index for index in one if index < start]:
                del one[index]

    def _record(self, start: int, count: int) -> HeldRecord:
        files = {(IMAGES, k): self.images[start + k] for k in range(count)}
        stored = []
        for one, fields in self.fields.items():
            series = empty_series(self.path, self.request, one, count - one.step)
            for k in range(series.count):
                encoded, own = fields[start + k]
                if series.ranges is not None:
                    series.ranges[k] = own
                files |= {
                    (name, k): data
                    for name, data in zip(series.files.values(), encoded, strict=True)
                }
            stored.append(series)
        return HeldRecord(
            self.path,
            self.size,
            self.rate,
            count,
            self.request.storage.format,
            tuple(stored),
            IMAGES,
            description={"request": self.request.identity()},
            files=files,
        )


class Segments:
    """Merges windows in a row with one most likely class, each segment to where the next begins.

    `add` takes the windows in order; `finish` gives the last segment, if there was a window.
    """

    def __init__(self) -> None:
        self._name, self._start_s, self._end_s = "", 0.0, 0.0
        self._total, self._count = 0.0, 0  # of the windows of the segment that has not ended

    def add(self, one: Window) -> Segment | None:
        """Take the next window; the segment that ends where it begins, if one does."""
        [(name, chance)] = one.found.top(1)
        ended = None
        if not self._count or name != self._name:
            self._end_s = one.start_s
            ended = self.finish()
            self._name, self._start_s, self._total, self._count = name, one.start_s, 0.0, 0
        self._total, self._count, self._end_s = self._total + chance, self._count + 1, one.end_s
        return ended

    def finish(self) -> Segment | None:
        """The segment to the end of the last window."""
        if not self._count:
            return None
        return Segment(self._start_s, self._end_s, self._name, self._total / self._count)


def row_writer(file: TextIO, ending: str, classes: Sequence[str]) -> Callable[[Window], None]:
    """What writes the probabilities of a window as a row of a ".csv" or a line of a ".jsonl"."""
    order = sorted(classes)
    if ending == ".csv":
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["start_s", "end_s", *order])

    def write(one: Window) -> None:
        told = scores_of(one)
        if ending == ".csv":
            chances = [f"{told['scores'][name]:.6f}" for name in order]
            table.writerow([told["start_s"], told["end_s"], *chances])
        else:
            file.write(json.dumps(told) + "\n")

    return write


def scores_of(one: Window) -> dict[str, Any]:
    """A window as a line of JSON has it: times in s, and the probability of each class by name."""
    chances = dict(one.found.top(len(one.found.classes)))
    scores = {name: round(chances[name], 6) for name in sorted(chances)}
    return {"start_s": round(one.start_s, 3), "end_s": round(one.end_s, 3), "scores": scores}
