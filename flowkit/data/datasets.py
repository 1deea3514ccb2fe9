"""Torch data sets of both streams: training clips drawn at random, and test clips in all views.

A training sample is a function of the seed and of its draw number alone: it does not depend on the
number of workers, of processes, or on where a training was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from flowkit.data import trajectories
from flowkit.data.augment import Augmentation
from flowkit.data.clips import (
    CROP,
    MOMENTS,
    SHORT_SIDE,
    Clip,
    View,
    moment_views,
    random_clips,
    random_frames,
    view_set,
)
from flowkit.data.inputs import (
    TEMPORAL,
    Inputs,
    Look,
    check_inputs,
    flow_form,
    look_at,
    sample_looks,
    spaced_places,
)
from flowkit.data.kept_memory import KeptMemory
from flowkit.data.moments import Moments
from flowkit.data.plane_batches import PlaneClip, PlaneSample, read_batch
from flowkit.data.record_folders import Missing, RecordFolder, match_records
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.errors import RecordError, SplitError
from flowkit.records.reading import Record


class TrainingClips(Dataset[dict[str, Any]]):
    """Training samples by draw number: ``DataLoader(clips, sampler=range(first, last))``.

    Each draw takes a class, of those that have videos, a video of it, a clip of that and its
    random changes; with `draw` "video" it takes any video, each as likely. A sample is a dict of
    ``"spatial"``, float32 (3, crop, crop), and ``"temporal"``, float32 (2L, crop, crop) in px, as
    far as `inputs` names them, and ``"label"``.
    Both are of one clip: the frame is its middle one, and without a stack any frame of the video.
    A stack of N frames, or of their differences, is float32 (3N, crop, crop), from any start.
    `skipped` counts videos passed over for want of a record.

    With `several` moments, a sample has T of each: ``"spatial"`` is (T, 3, crop, crop) and
    ``"temporal"`` (T, 2L, crop, crop), all changed alike.

    With several `segments`, draw `d` is the samples ``d * segments`` to ``(d + 1) * segments - 1``:
    a clip out of each equal part of one video, in order, all changed alike.

    With `as_planes`, ``"temporal"`` is a `PlaneSample`: `collate` reads those of a batch as 8-bit
    planes, a `PlaneBatch`, of which `stack_planes` makes the stacks on a device.

    SplitError where the part has no video with a record or (``missing="error"``) one lacks its
    record; RecordError where a record lacks the frames or fields that `inputs` are made of.
    """

    def __init__(
        self,
        split: Split,
        records: RecordFolder,
        *,
        inputs: Inputs = TEMPORAL,
        augmentation: Augmentation | None = None,
        segments: int = 1,
        draw: Literal["class", "video"] = "class",
        several: Moments | None = None,
        part: str = "train",
        seed: int = 0,
        missing: Missing = "error",
        as_planes: bool = False,
    ) -> None:
        self.inputs, self.several = check_inputs(inputs), several
        self.augmentation = augmentation or Augmentation()
        self.segments, self.draw, self.seed, self.as_planes = segments, draw, seed, as_planes
        self.videos, self.records, self.skipped = _open_all(split, part, records, missing)
        _check_records(self.records, self.inputs)
        self.labels = split.labels(self.videos)
        self.by_label = [
            [place for place, label in enumerate(self.labels) if label == wanted]
            for wanted in sorted(set(self.labels))
        ]

    def __repr__(self) -> str:
        return f"TrainingClips({len(self.videos)} videos, inputs={self.inputs})"

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample number `number`, from 0; RecordError where a file of the record is damaged."""
        draw, segment = divmod(number, self.segments)
        random = np.random.default_rng((self.seed, draw))
        alike: Sequence[int] = range(len(self.videos))
        if self.draw == "class":
            alike = self.by_label[int(random.integers(len(self.by_label)))]
        place = alike[int(random.integers(len(alike)))]
        record = self.records[place]
        looks = self._draw_looks(self.videos[place].id, record.frame_count, segment, random)
        view, color = self.augmentation.draw(record.size, random)
        size = (self.augmentation.crop, self.augmentation.crop)
        sample: dict[str, Any] = {"label": self.labels[place]}
        for (stream, form), look in zip(self.inputs.items(), looks, strict=True):
            if isinstance(form, StackForm) and self.as_planes:
                planes = [PlaneClip(record, clip, view, form) for clip in look]
                sample[stream] = PlaneSample(planes)
                continue
            seen = [look_at(record, clip, [view], form, size=size, color=color)[0] for clip in look]
            sample[stream] = self._of_moments(seen)
        return sample

    def _draw_looks(
        self, video: str, frame_count: int, segment: int, random: np.random.Generator
    ) -> tuple[Look, ...]:
        """What each input looks at, at random, of a video of so many frames."""
        flow = flow_form(self.inputs)
        if flow is None:
            [form] = self.inputs.values()
            starts = max(frame_count - form.length * form.step, 1)
            start = random_frames(starts, random, self.segments)[segment]
            return ((Clip(video, start, form.length, form.step),),)
        count = frame_count - flow.step
        if self.several is not None:
            clips = self.several.draw(video, count, flow, random)
        else:
            drawn = random_clips(
                video, count, flow.length, random, segments=self.segments, step=flow.step
            )
            clips = drawn[segment : segment + 1]
        return sample_looks(self.inputs, tuple(clips), count)

    def _of_moments(self, seen: list[np.ndarray]) -> torch.Tensor:
        """What is seen at each moment: (T, C, h, w), or of the one of a stream alone (C, h, w)."""
        return torch.from_numpy(seen[0] if self.several is None else np.stack(seen))


class TestClips(Dataset[dict[str, Any]]):
    """Equally spaced moments of every video of a part, each in all its views.

    Item `i` is moment ``i % moments`` of video ``i // moments``: a dict of ``"spatial"``, float32
    (V, 3N, crop, crop) with N = 1 for a single frame, and ``"temporal"``, float32 (V, 2L, crop,
    crop) in px, as far as `inputs` names them, and ``"video"``, the place in `videos`. `views` is a
    name of `clips.VIEWS`: "ten" (corners and center, and their flips) or "center" (V = 1). With
    `several` moments of a sample both are (V, T, ..., crop, crop). Errors as of `TrainingClips`,
    UsageError for other views.
    """

    __test__ = False  # no test of pytest's

    def __init__(
        self,
        split: Split,
        records: RecordFolder,
        *,
        inputs: Inputs = TEMPORAL,
        part: str = "test",
        moments: int = MOMENTS,
        views: str = "ten",
        crop: int = CROP,
        short_side: int = SHORT_SIDE,
        several: Moments | None = None,
        missing: Missing = "error",
    ) -> None:
        view_set(views)
        self.inputs, self.several = check_inputs(inputs), several
        self.moments, self.views, self.crop, self.short_side = moments, views, crop, short_side
        self.videos, self.records, self.skipped = _open_all(split, part, records, missing)
        _check_records(self.records, self.inputs)
        self.labels = split.labels(self.videos)

    def __repr__(self) -> str:
        counts = f"{len(self.videos)} videos, {self.moments} moments"
        return f"TestClips({counts}, views={self.views!r}, inputs={self.inputs})"

    def __len__(self) -> int:
        """Videos times moments."""
        return len(self.videos) * self.moments

    def __getitem__(self, index: int) -> dict[str, Any]:
        """All views of one moment of one video; IndexError behind the last."""
        place, moment = divmod(index, self.moments)
        if not 0 <= place < len(self.videos):
            raise IndexError(f"expected an index within 0..{len(self) - 1}, got {index}")
        record, video = self.records[place], self.videos[place].id
        looks = spaced_places(self.inputs, video, record.frame_count, self.moments, self.several)[
            moment
        ]
        views = self._views(record)
        sample: dict[str, Any] = {"video": place}
        for (stream, form), look in zip(self.inputs.items(), looks, strict=True):
            seen = [look_at(record, clip, views, form) for clip in look]  # views of each moment
            sample[stream] = torch.from_numpy(
                seen[0] if self.several is None else np.stack(seen, 1)
            )
        return sample

    def _views(self, record: Record) -> list[View]:
        return moment_views(self.views, record.size, crop=self.crop, short_side=self.short_side)


def start_worker(worker: int) -> None:
    """For ``DataLoader(worker_init_fn=...)``: one thread of everything a worker."""
    from flowkit._cv2 import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class Collate:
    """For ``DataLoader(collate_fn=...)``: a batch of samples, as torch's own collation makes it.

    But planes are grouped by size, and read into kept `memory` where there is some.
    """

    def __init__(self, memory: KeptMemory | None = None) -> None:
        self.memory = memory

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        if not isinstance(samples[0].get("temporal"), PlaneSample):
            return default_collate(samples)
        clips = [clip for sample in samples for clip in sample["temporal"].clips]
        others = [{k: v for k, v in sample.items() if k != "temporal"} for sample in samples]
        return default_collate(others) | {"temporal": read_batch(clips, self.memory)}


collate = Collate()


def _open_all(
    split: Split, part: str, folder: RecordFolder, missing: Missing
) -> tuple[list[Video], list[Record], int]:
    """The videos of a part that have a record, these opened, and the number of the others."""
    listed = split.part(part)
    found = match_records(listed, folder.find(), missing=missing)
    videos = [video for video in listed if video.id in found]
    if not videos:
        raise SplitError(f"{split.name}: expected videos in its part {part}, got none")
    return videos, [folder.open(found[video.id]) for video in videos], len(listed) - len(videos)


def _check_records(records: Sequence[Record], inputs: Inputs) -> None:
    """RecordError where a record lacks what the samples are made of."""
    form, least = flow_form(inputs), max(form.least_frames for form in inputs.values())
    for record in records:
        if "spatial" in inputs and not record.has_frames:
            raise RecordError(
                f"{record.path}: the spatial stream reads frames, and this record holds none: "
                "flowkit extract --rgb stores them"
            )
        if form is not None:
            record.find_series("forward", form.step)
            if form.bidirectional:
                record.find_series("backward", form.step)
        if record.frame_count < least:
            raise RecordError(
                f"{record.path}: expected at least {least} frames, got {record.frame_count}"
            )
    if form is not None and form.mode == "trajectory":
        trajectories.compiled()  # once, before workers are forked
