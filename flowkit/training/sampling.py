"""Which clips a step trains on: the data sets of all tasks, dealt into batches by number.

Draw `d` of a training is one sample, of task `d mod T`; step `s` takes draws `s B` to
`(s + 1) B - 1`. So a batch has the same clips on any number of processes and workers, and after any
interruption, and every task has its own share of each. With K segments a draw is K samples, numbers
`d K` to `(d + 1) K - 1`: a clip out of each of K equal parts of one video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from flowkit.data.augment import Augmentation
from flowkit.data.datasets import TrainingClips
from flowkit.data.inputs import Inputs, flow_form
from flowkit.data.moments import Moments
from flowkit.data.record_folders import Missing, RecordFolder
from flowkit.data.splits import Split, Video, train_on_all
from flowkit.documents import listed
from flowkit.errors import SplitError
from flowkit.records.reading import common_flow
from flowkit.training.recipes import Draw


@dataclass(frozen=True)
class Task:
    """A data set with a head of its own, and maybe classes of another one beside its own.

    The videos of `added`, all of its parts, train further classes of the same head: those whose
    names the task does not have yet (`added_classes`).
    """

    name: str
    split: Split
    records: RecordFolder
    added: tuple[Split, RecordFolder] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the head: the data set's own first."""
        return self.split.classes + (added_classes(self.split, self.added[0]) if self.added else ())

    @property
    def videos(self) -> tuple[Video, ...]:
        """The videos that train, those of added classes last."""
        return self.split.train + (_added_videos(self)[0].train if self.added else ())


def added_classes(split: Split, other: Split) -> tuple[str, ...]:
    """The classes of `other` that `split` has none of the same name for, spelled either way."""
    there = {_plain(name) for name in split.classes}
    return tuple(name for name in other.classes if _plain(name) not in there)


class StepClips(Dataset[dict[str, Any]]):
    """The samples of a training by number.

    A sample is a dict of the `inputs` as `TrainingClips` gives them, ``"label"``,
    the place in the classes of its task, and ``"task"``, the place of that among `tasks`.
    SplitError where a class has no video to train on.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        inputs: Inputs,
        *,
        augmentation: Augmentation,
        seed: int,
        segments: int = 1,
        draw: Draw = "class",
        several: Moments | None = None,
        missing: Missing = "error",
    ) -> None:
        self.inputs, self.seed, self.segments, self.several = inputs, seed, segments, several
        self.short_side, self.as_planes = augmentation.short_side, False
        # A list of (classes, clips) for each task
        self.sources: list[list[tuple[int, TrainingClips]]] = []
        for place, task in enumerate(tasks):
            sets = [(task.split, task.records, task.split.classes)]
            if task.added:
                sets.append((*_added_videos(task), task.classes[len(task.split.classes) :]))
            sources = []
            for number, (split, records, classes) in enumerate(sets):
                clips = TrainingClips(
                    split,
                    records,
                    inputs=inputs,
                    augmentation=augmentation,
                    segments=segments,
                    draw=draw,
                    several=several,
                    seed=int(np.random.SeedSequence((seed, place, number)).generate_state(1)[0]),
                    missing=missing,
                )
                _check_classes(split, clips, classes)
                sources.append((len(classes), clips))
            self.sources.append(sources)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Sample number `sample`, from 0."""
        draw, segment = divmod(sample, self.segments)
        number, place = divmod(draw, len(self.sources))
        sources = self.sources[place]
        which = 0
        if len(sources) > 1:  # uniformly across the classes of both
            own, added = (classes for classes, _ in sources)
            random = np.random.default_rng((self.seed, place, number))
            which = int(random.integers(own + added) >= own)
        clips = sources[which][1]
        return clips[number * self.segments + segment] | {"task": place}

    def send_planes(self) -> bool:
        """Give planes instead of flow stacks (`TrainingClips`), if all records hold them."""
        sets = [clips for sources in self.sources for _, clips in sources]
        if "temporal" not in self.inputs or any(
            one.ranges is None
            for clips in sets
            for record in clips.records
            for one in record.series
        ):
            return False
        for clips in sets:
            clips.as_planes = True
        self.as_planes = True
        return True

    def clip_bytes(self) -> int:
        """The most bytes that the planes of a sample take (`flowkit.data.plane_batches`)."""
        form = flow_form(self.inputs)
        assert form is not None
        sizes = {
            record.size for sources in self.sources for _, c in sources for record in c.records
        }
        if form.mode == "flow":  # planes are cut where they are not rescaled
            side = self.short_side
            sizes = {(side, side) if min(size) == side else size for size in sizes}
        moments = 1 if self.several is None else self.several.frames
        return moments * form.channels * max(height * width for height, width in sizes)

    @property
    def counts(self) -> list[int]:
        """The number of training videos of each task."""
        return [sum(len(clips.videos) for _, clips in sources) for sources in self.sources]

    @property
    def skipped(self) -> int:
        """Listed videos passed over for want of a record."""
        return sum(clips.skipped for sources in self.sources for _, clips in sources)

    def find_flow(self) -> dict[str, Any]:
        """What all records were made with; RecordError if they differ."""
        records = [r for sources in self.sources for _, clips in sources for r in clips.records]
        return common_flow(records)


def draws_of_step(step: int, batch_size: int, rank: int, ranks: int) -> range:
    """The draws of a step that process `rank` of `ranks` takes: shares alike to one draw."""
    first = step * batch_size
    return range(
        first + rank * batch_size // ranks,
        first + (rank + 1) * batch_size // ranks,
    )


def task_counts(step: int, batch_size: int, tasks: int) -> list[int]:
    """How many draws of a step belong to each task."""
    counts = Counter(draw % tasks for draw in range(step * batch_size, (step + 1) * batch_size))
    return [counts[task] for task in range(tasks)]


class MicroBatches:
    """The samples of every pass of steps `first` to `last` - 1 of one process, in order.

    For ``DataLoader(batch_sampler=...)``; `micro_batch` is the most draws of a pass, of `segments`
    samples each.
    """

    def __init__(
        self,
        first: int,
        last: int,
        batch_size: int,
        micro_batch: int,
        rank: int,
        ranks: int,
        *,
        segments: int = 1,
    ) -> None:
        self.steps, self.segments = range(first, last), segments
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            draws = draws_of_step(step, self.batch_size, self.rank, self.ranks)
            for start in range(0, len(draws), self.micro_batch):
                part = draws[start : start + self.micro_batch]
                yield list(range(part[0] * self.segments, (part[-1] + 1) * self.segments))

    @property
    def samples(self) -> int:
        """The most samples of a pass."""
        return min(self.micro_batch, -(-self.batch_size // self.ranks)) * self.segments

    def passes(self, step: int) -> int:
        """How many passes a step takes."""
        return -(
            -len(draws_of_step(step, self.batch_size, self.rank, self.ranks)) // self.micro_batch
        )


def _added_videos(task: Task) -> tuple[Split, RecordFolder]:
    """All videos of the added classes as a training part, labeled by the classes of the task."""
    assert task.added is not None
    other, records = task.added
    kept = set(added_classes(task.split, other))
    videos = [video for video in train_on_all(other).train if video.class_name in kept]
    return Split(other.name, task.classes, tuple(videos), (), ()), records


def _check_classes(split: Split, clips: TrainingClips, classes: Sequence[str]) -> None:
    """SplitError where one of `classes` has no training video."""
    there = {video.class_name for video in clips.videos}
    empty = [name for name in classes if name not in there]
    if empty:
        raise SplitError(
            f"{split.name}: {len(empty)} of {len(classes)} classes have no video to train on: "
            f"{listed(empty)}"
        )


def _plain(name: str) -> str:
    """A class name without case, blanks, "_" and "-": "Brush_hair" and "brush hair" are one."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
