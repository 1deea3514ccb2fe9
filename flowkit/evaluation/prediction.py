"""What trained streams see in a raw video: its flow computed as that of their training, fused.

A video is decoded twice: once to count its frames, which says what moments are looked at, then for
those frames and fields alone. They go through the bytes of a flow record, so the networks see what
`flowkit extract` and `flowkit eval` would have shown them, JPEG's losses included.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from flowkit.data.clips import Clip
from flowkit.data.stacks import StackForm
from flowkit.documents import differences
from flowkit.errors import UsageError, VideoError
from flowkit.evaluation.scoring import Scorer
from flowkit.extraction.request import Request, resized_frames, target_size
from flowkit.flow.method import takes_color
from flowkit.flow.methods import make_method, method_of
from flowkit.flow.pairs import series_fields
from flowkit.networks.checkpoints import Checkpoint
from flowkit.records import formats
from flowkit.records.layout import FORMATS, Storage, field_templates
from flowkit.records.reading import Record, StoredSeries
from flowkit.scores.files import Scores, softmax
from flowkit.scores.fusion import FUSIONS, Fusion, fuse
from flowkit.series import Series
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.reading import open_video

IMAGES = "img_%05d.jpg"


@dataclass(frozen=True)
class Prediction:
    """What a video shows: all classes, most likely first, with their probabilities, float64 (K,).

    `streams` has each stream's own most likely class and its probability; `frames` is the length.
    The probabilities of a fusion by SVM are the softmax of its margins: good for ordering.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    streams: dict[str, tuple[str, float]]
    frames: int

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most likely classes with their probabilities."""
        return list(zip(self.classes, self.probabilities.tolist(), strict=True))[:count]


class Predictor:
    """Trained streams by name, and the fusion of them (one stream needs none), ready for videos.

    A video with frames of more than `max_frame_mpx` megapixels is refused. UsageError where the
    streams do not know the same classes, or were trained on different flow or flow that flowkit
    cannot compute.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        fusion: Fusion | None = None,
        *,
        max_frame_mpx: float = MAX_FRAME_MPX,
    ) -> None:
        if not scorers or (fusion is None) == (len(scorers) > 1):
            raise UsageError(
                "expected one stream, or several and their fusion, "
                f"got {len(scorers)} and {'none' if fusion is None else 'a fusion'}"
            )
        self.scorers, self.fusion = dict(scorers), fusion
        known = [scorer.known for scorer in self.scorers.values()]
        if fusion is not None and FUSIONS[fusion.method].is_linear:
            self.classes = fusion.classes  # of more, such as were added in training, no others
        elif all(set(classes) == set(known[0]) for classes in known):
            self.classes = known[0]
        else:
            counts = (f"{one.path} has {len(one.known)}" for one in self.scorers.values())
            raise UsageError(f"expected streams of the same classes: {', '.join(counts)}")
        for scorer in self.scorers.values():
            scorer.columns(self.classes)
        request = video_request(one.checkpoint for one in self.scorers.values())
        self.request = replace(request, max_frame_mpx=max_frame_mpx)

    def predict(self, path: str | os.PathLike[str]) -> Prediction:
        """What the video at `path` shows; VideoError where it is damaged or too short."""
        return self.predict_record(self.hold(path))

    def predict_record(self, record: Record) -> Prediction:
        """The same of a record that holds what the streams look at."""
        found = {
            name: Scores(
                ("video",),
                self.classes,
                np.stack(list(scorer.score([record], self.classes))),
                meta={"kind": scorer.views.average},
            )
            for name, scorer in self.scorers.items()
        }
        fused = next(iter(found.values())) if self.fusion is None else fuse(found, self.fusion)
        classes, probabilities = _ranked(fused)
        streams = {}
        for name, scores in found.items():
            names, values = _ranked(scores)
            streams[name] = (names[0], float(values[0]))
        return Prediction(classes, probabilities, streams, record.frame_count)

    def hold(self, path: str | os.PathLike[str], *, whole: bool = False) -> HeldRecord:
        """What the streams look at in a video, as a record in memory.

        With `whole` all frames, and the field from each of them to the next, are in it, too.
        """
        path = Path(path)
        count = _count_frames(path, self.request.max_frame_mpx)
        forms = [f for one in self.scorers.values() for f in one.checkpoint.inputs.values()]
        least = 1 + max((f.step for f in forms if f is not None), default=int(whole))
        if count < least:
            raise VideoError(f"{path}: expected at least {least} frames, got {count}")
        wanted = Wanted(count, set(), {one: set() for one in self.request.series})
        for scorer in self.scorers.values():
            wanted.add(scorer)
        if whole:
            first = self.request.series[0]
            wanted.frames.update(range(count))
            wanted.fields[first].update(range(wanted.count(first)))
        return hold_video(path, self.request, wanted)


class Wanted(NamedTuple):
    """The frames and the fields of each series that are looked at in a video, by number."""

    frame_count: int
    frames: set[int]
    fields: dict[Series, set[int]]

    def count(self, one: Series) -> int:
        """How many fields a series of this video has, wanted or not."""
        return self.frame_count - one.step

    def add(self, scorer: Scorer) -> None:
        """Want what a stream looks at."""
        for places in scorer.places("video", self.frame_count):
            for look, form in zip(places, scorer.checkpoint.inputs.values(), strict=True):
                self._add_place(look, form)

    def _add_place(self, look: int | Clip, form: StackForm | None) -> None:
        if isinstance(look, int) or form is None:
            assert isinstance(look, int)
            self.frames.add(look)
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


def video_request(checkpoints: Iterable[Checkpoint]) -> Request:
    """How the flow that networks were trained on is computed and stored.

    For networks that see frames alone it is as `flowkit extract` does it unless told otherwise.
    UsageError where they were trained on different flow, or on that of another tool.
    """
    trained = [
        (one.flow or {}, form)
        for one in checkpoints
        for form in one.inputs.values()
        if form is not None
    ]
    if not trained:
        return Request(make_method("tvl1"))
    flow = trained[0][0]
    for other, _ in trained[1:]:
        if found := differences(flow, other):
            raise UsageError(f"expected streams trained on the same flow: {'; '.join(found)}")
    if not isinstance(flow.get("method"), dict):
        raise UsageError(
            "the temporal stream was trained on flow of another tool, which flowkit cannot "
            "compute: make records of the videos with that tool, and use flowkit eval"
        )
    stored = {one.values: name for name, one in FORMATS.items()}[flow["format"]]
    quality = {} if flow["quality"] is None else {"quality": flow["quality"]}
    return Request(
        method_of(flow["method"]),
        steps=tuple(dict.fromkeys(form.step for _, form in trained)),
        backward=any(form.bidirectional for _, form in trained),
        resize=flow["resize"],
        storage=Storage(stored, bound=flow["bound"], **quality),
    )


def hold_video(path: Path, request: Request, wanted: Wanted) -> HeldRecord:
    """The wanted frames and fields of a video as a record in memory; nothing else is computed."""
    storage, method = request.storage, request.method
    stored = {one: _empty_series(path, request, one, wanted.count(one)) for one in wanted.fields}
    files: dict[tuple[str, int], bytes] = {}
    with open_video(path, max_frame_mpx=request.max_frame_mpx) as video:

        def frames() -> Iterator[np.ndarray]:
            for index, frame in enumerate(resized_frames(video, request.resize)):
                if index in wanted.frames:
                    data = formats.encode_image(frame, "jpg", storage.rgb_quality)
                    files[IMAGES, index] = data
                yield frame

        for one, index, field in series_fields(
            frames(), stored, method.fields, color=takes_color(method), wanted=wanted.fields
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
            video.fps,
            wanted.frame_count,
            storage.format,
            tuple(stored.values()),
            IMAGES,
            description={"request": request.identity()},
            files=files,
        )


def _empty_series(path: Path, request: Request, one: Series, count: int) -> StoredSeries:
    """A series of `count` fields with room for their ranges, where the format has some."""
    folder = PurePosixPath(path.name)
    files = field_templates(folder, request.storage, one, first_step=request.steps[0])
    ranges = np.full((count, 2, 2), np.nan) if request.storage.is_planes else None
    return StoredSeries(one.direction, one.step, count, files, ranges)


def _count_frames(path: Path, max_frame_mpx: float) -> int:
    with open_video(path, max_frame_mpx=max_frame_mpx) as video:
        return sum(1 for _ in video.frames())


def _ranked(scores: Scores) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes of the one video of `scores`, most likely first, and their probabilities.

    Between equals the class whose name comes first is more likely.
    """
    [values] = softmax(scores)
    order = sorted(range(len(values)), key=lambda k: (-values[k], scores.classes[k]))
    return tuple(scores.classes[k] for k in order), values[order]
