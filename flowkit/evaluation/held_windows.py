"""The windows of a long video or a live stream as records in memory, in one pass; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError, VideoError
from flowkit.evaluation.held_records import IMAGES, HeldRecord, Looks, empty_series
from flowkit.extraction.request import Request, resized_frames, target_size
from flowkit.flow.method import takes_color
from flowkit.flow.pairs import series_fields
from flowkit.records import formats
from flowkit.series import Series
from flowkit.video.live import open_live
from flowkit.video.reading import Video, open_video

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
    held = _Held(path, request, size, rate, series, looks.least_frames(whole=whole))
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
