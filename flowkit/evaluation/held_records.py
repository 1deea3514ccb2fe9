"""What trained streams look at in a raw video, as a record in memory: nothing else is computed.

A video is decoded twice: once to count its frames, which says what moments are looked at, then for
those frames and fields alone. They go through the bytes of a flow record, so the networks see what
`flowkit extract` and `flowkit eval` would have shown them, JPEG's losses included.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowkit.data.clips import Clip
from flowkit.data.frames import FrameForm
from flowkit.data.inputs import Inputs, spaced_places
from flowkit.data.moments import Moments
from flowkit.data.stacks import StackForm
from flowkit.documents import differences
from flowkit.errors import UsageError, VideoError
from flowkit.extraction.request import Request, resized_frames, target_size
from flowkit.flow.method import FlowMethod, takes_color
from flowkit.flow.methods import make_method, method_of
from flowkit.flow.pairs import series_fields
from flowkit.flow.stabilized import Stabilization
from flowkit.networks.table import FLOW_BOUND
from flowkit.records import formats
from flowkit.records.copies import local_copy
from flowkit.records.layout import FORMATS, Storage, field_templates
from flowkit.records.reading import Record, StoredSeries
from flowkit.series import Series
from flowkit.stores.urls import Url
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.reading import open_video
from flowkit.video.sampling import Sampling
from flowkit.workers.pool import Done, Failed, run_pool

if TYPE_CHECKING:
    from flowkit.networks.checkpoints import Checkpoint

log = logging.getLogger("flowkit")

IMAGES = "img_%05d.jpg"
# As a checkpoint's `flow`: what published two-stream networks were trained on (docs/weights.md).
PUBLISHED_FLOW: dict[str, Any] = {
    "method": {"name": "tvl1"},
    "resize": "256",
    "bound": FLOW_BOUND,
    "format": "jpg",
    "quality": 90,
}


@dataclass(frozen=True)
class Looks:
    """What streams look at in a video of any length, and how their flow is made; picklable.

    `streams` are the inputs of each, at how many moments they look, and of joined towers the
    moments of a sample. With `whole` all frames,
    and the field from each of them to the next, are looked at, too.
    """

    request: Request
    streams: tuple[tuple[Inputs, int, Moments | None], ...]
    whole: bool = False

    def least_frames(self, *, whole: bool = False) -> int:
        """The fewest frames that a video may have; those with a field, if all are looked at."""
        forms = [form for inputs, _, _ in self.streams for form in inputs.values()]
        return max([1 + (whole or self.whole), *(form.least_frames for form in forms)])

    def hold(self, path: Path) -> HeldRecord:
        """The record of the video at `path`; VideoError where it is damaged or too short."""
        count = _count_frames(path, self.request)
        least = self.least_frames()
        if count < least:
            raise VideoError(f"{path}: expected at least {least} frames, got {count}")
        wanted = Wanted(count, set(), {one: set() for one in self.request.series})
        for stream in self.streams:
            wanted.add(*stream)
        if self.whole:
            first = self.request.series[0]
            wanted.frames.update(range(count))
            wanted.fields[first].update(range(wanted.count(first)))
        return hold_video(path, self.request, wanted)

    def __call__(self, item: tuple[str | Url, str], report: Callable[[Any], None]) -> HeldRecord:
        """What a worker does with a path or an address, or with what is wrong with it."""
        path, problem = item
        report(None)
        if problem:
            raise VideoError(problem)
        if not isinstance(path, Url):
            return self.hold(Path(path))
        with local_copy(path) as copy:
            return replace(self.hold(copy.path), path=path)


@dataclass(frozen=True)
class Held:
    """An event of `hold_videos`: a video's record, why it has none, or neither while it is made."""

    path: str
    record: HeldRecord | None = None
    reason: str = ""


def hold_videos(
    looks: Looks, videos: Iterable[tuple[str | Url, str]], *, workers: int
) -> Generator[Held]:
    """The records of videos, made in worker processes: a crash costs one video, as does an error.

    `videos` are paths or addresses, each with what is already known to be wrong with it, or "".
    They are taken as workers become free. The first event comes as soon as they are at work. A
    caller that has not imported torch before has workers that start at once
    (`flowkit.workers.children`).
    """
    looks.request.prepare()
    paths: list[str] = []

    def supply() -> Iterator[tuple[str | Url, str]]:
        for path, problem in videos:
            paths.append(str(path))
            yield path, problem

    with closing(run_pool(looks, supply(), workers=workers)) as events:
        for event in events:
            path = paths[event.index]
            if isinstance(event, Failed):
                log.debug("%s: %s", path, event.traceback)
                reason = event.reason.removeprefix(f"{os.path.abspath(path)}: ")
                yield Held(path, reason=reason.removeprefix(f"{path}: "))
            else:
                yield Held(path, event.result if isinstance(event, Done) else None)


class Wanted(NamedTuple):
    """The frames and the fields of each series that are looked at in a video, by number."""

    frame_count: int
    frames: set[int]
    fields: dict[Series, set[int]]

    def count(self, one: Series) -> int:
        """How many fields a series of this video has, wanted or not."""
        return self.frame_count - one.step

    def add(self, inputs: Inputs, moments: int, several: Moments | None = None) -> None:
        """Want what the inputs of a stream look at."""
        for places in spaced_places(inputs, "video", self.frame_count, moments, several):
            for looks, form in zip(places, inputs.values(), strict=True):
                for look in looks:
                    self._add_place(look, form)

    def _add_place(self, look: Clip, form: FrameForm | StackForm) -> None:
        if isinstance(form, FrameForm):
            for frames in form.places(look, self.frame_count):
                self.frames.update(frames)
            return
        count = self.frame_count - form.step
        if form.bidirectional:
            ahead, back = look.halves(count)
            self.fields[Series("forward", form.step)].update(ahead)
            self.fields[Series("backward", form.step)].update(back)
        else:
            self.fields[Series("forward", form.step)].update(look.fields(count))


@dataclass(frozen=True)
class HeldRecord(Record):
    """A record in memory that may hold some of a video's frames and fields only."""

    description: dict[str, Any] = field(default_factory=dict)
    files: dict[tuple[str, int], bytes] = field(default_factory=dict, repr=False)

    @property
    def sidecar(self) -> dict[str, Any]:
        """What a sidecar would say of how it was made."""
        return self.description

    def read(self, wanted: Sequence[tuple[str, int]]) -> list[bytes]:
        """The bytes of files, each named by its template and its index from 0."""
        return [self.files[name, index] for name, index in wanted]


def looks_of(
    streams: Iterable[tuple[Checkpoint, int]],
    *,
    max_frame_mpx: float = MAX_FRAME_MPX,
    whole: bool = False,
    own: FlowMethod | None = None,
) -> Looks:
    """What checkpoints, each at so many moments, look at; `own` and errors as `video_request`.

    A video with frames of more than `max_frame_mpx` megapixels is refused.
    """
    streams = list(streams)
    request = video_request((checkpoint for checkpoint, _ in streams), own)
    inputs = tuple((one.inputs, moments, one.several) for one, moments in streams)
    return Looks(replace(request, max_frame_mpx=max_frame_mpx), inputs, whole)


def video_request(checkpoints: Iterable[Checkpoint], own: FlowMethod | None = None) -> Request:
    """How the flow that networks were trained on is computed and stored.

    For networks that see frames alone it is as `flowkit extract` does it unless told otherwise. For
    published ones whose checkpoint does not say, it is TV-L1 of frames of a short side of 256 px
    within 20 px, as TSN's and I3D's was, or what another stream beside them was trained on.
    Flow of one's own code is computed by `own`, as `flowkit.flow.methods.method_of` takes it.
    UsageError where they were trained on different flow, or on that of another tool.
    """
    trained = [
        (one.flow, form)
        for one in checkpoints
        for form in one.inputs.values()
        if isinstance(form, StackForm)
    ]
    if not trained:
        return Request(make_method("tvl1"))
    forms = [form for _, form in trained]
    told = [flow for flow, _ in trained if flow is not None]
    flow = told[0] if told else PUBLISHED_FLOW
    for other in told[1:]:
        if found := differences(flow, other):
            raise UsageError(f"expected streams trained on the same flow: {'; '.join(found)}")
    if not isinstance(flow.get("method"), dict):
        raise UsageError(
            "the temporal stream was trained on flow of another tool, which flowkit cannot "
            "compute: make records of the videos with that tool, and use flowkit eval"
        )
    if "converted" in flow:
        raise UsageError(
            "the temporal stream was trained on records that were converted with a loss, which "
            "flowkit computes of no video: convert records of the videos alike, and use flowkit "
            "eval"
        )
    stored = {one.values: name for name, one in FORMATS.items()}[flow["format"]]
    quality = {} if flow["quality"] is None else {"quality": flow["quality"]}
    return Request(
        method_of(flow["method"], own),
        steps=tuple(dict.fromkeys(form.step for form in forms)),
        backward=any(form.bidirectional for form in forms),
        resize=flow["resize"],
        storage=Storage(stored, bound=flow["bound"], **quality),
        sampling=Sampling(**flow.get("sampling", {})),
        stabilize=Stabilization(**flow["stabilize"]) if "stabilize" in flow else None,
    )


def hold_video(path: Path, request: Request, wanted: Wanted) -> HeldRecord:
    """The wanted frames and fields of a video as a record in memory; nothing else is computed."""
    storage, method = request.storage, request.method
    stored = {one: empty_series(path, request, one, wanted.count(one)) for one in wanted.fields}
    files: dict[tuple[str, int], bytes] = {}
    with open_video(path, max_frame_mpx=request.max_frame_mpx) as video:

        def frames() -> Iterator[np.ndarray]:
            for index, frame in enumerate(resized_frames(video, request.resize, request.sampling)):
                if index in wanted.frames:
                    data = formats.encode_image(frame, "jpg", storage.rgb_quality)
                    files[IMAGES, index] = data
                yield frame

        for one, index, field in series_fields(
            frames(), stored, request.fields, color=takes_color(method), wanted=wanted.fields
        ):
            encoded, own = formats.encode_field(
                field, storage.format, bound=storage.bound, quality=storage.quality
            )
            if own is not None:
                stored[one].ranges[index] = own  # type: ignore[index]
            for template, data in zip(stored[one].files.values(), encoded, strict=True):
                files[template, index] = data
        return HeldRecord(
            path,
            target_size(request.resize, video.size),
            request.sampling.rate(video.fps),
            wanted.frame_count,
            storage.format,
            tuple(stored.values()),
            IMAGES,
            description={"request": request.identity()},
            files=files,
        )


def empty_series(path: Path, request: Request, one: Series, count: int) -> StoredSeries:
    """A series of `count` fields with room for their ranges, where the format has some."""
    folder = PurePosixPath(path.name)
    files = field_templates(folder, request.storage, one, first_step=request.steps[0])
    ranges = np.full((count, 2, 2), np.nan) if request.storage.is_planes else None
    return StoredSeries(one.direction, one.step, count, files, ranges)


def _count_frames(path: Path, request: Request) -> int:
    with open_video(path, max_frame_mpx=request.max_frame_mpx) as video:
        any_size = request.resize is not None
        return sum(1 for _ in request.sampling.frames(video, any_size=any_size))
