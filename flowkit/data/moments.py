"""Several moments of a video as one sample: where each lies, and the same view of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowkit.data.clips import Clip, clip_starts, spaced_clips
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError

TOWER_MOMENTS = 10  # samples of a video that joined towers are asked about, each with its flip
TEST_GAP = 15  # frames; the largest of the 2016 authors' program


@dataclass(frozen=True)
class Moments:
    """`frames` moments of a video, from `least_gap` to `largest_gap` frames apart.

    Moment c is the frame c and the clip whose middle frame it is. In training the gap is drawn from
    the range, else it is `test_gap`. UsageError for numbers below 1 or a range that falls.
    """

    frames: int = 1
    least_gap: int = 1
    largest_gap: int = 10
    test_gap: int = TEST_GAP

    def __post_init__(self) -> None:
        if self.frames < 1 or self.test_gap < 1:
            raise UsageError(
                "expected at least one frame (moment) of a sample and a gap of at least 1, "
                f"got {self.frames} and {self.test_gap}"
            )
        if not 1 <= self.least_gap <= self.largest_gap:
            raise UsageError(
                "expected a gap of A-B frames with 1 <= A <= B, "
                f"got {self.least_gap}-{self.largest_gap}"
            )

    def draw(
        self, video: str, field_count: int, form: StackForm, random: np.random.Generator
    ) -> list[Clip]:
        """The clips of a sample: any gap of the range, from any start that leaves room for it.

        Where the drawn gap finds no room it is the largest below it that does; a video too short
        for neighboring moments is looped.
        """
        gap = int(random.integers(self.least_gap, self.largest_gap + 1))
        starts = clip_starts(video, field_count, form.length, form.step)
        gap = _fitting_gap(starts, self.frames, gap)
        first = int(random.integers(max(starts - (self.frames - 1) * gap, 1)))
        return self._run(video, first, gap, form)

    def spaced(
        self, video: str, field_count: int, form: StackForm, count: int
    ) -> list[tuple[Clip, ...]]:
        """`count` samples at equal spacing, of moments `test_gap` frames apart, or less if need be.

        Each is the one that fits whose middle moment is nearest to that of `spaced_clips`; of one
        moment it is the same clip.
        """
        starts = clip_starts(video, field_count, form.length, form.step)
        gap = _fitting_gap(starts, self.frames, self.test_gap)
        last = max(starts - 1 - (self.frames - 1) * gap, 0)
        before = (self.frames - 1) // 2 * gap
        middles = spaced_clips(video, field_count, form.length, moments=count, step=form.step)
        firsts = [min(max(middle.start - before, 0), last) for middle in middles]
        return [tuple(self._run(video, first, gap, form)) for first in firsts]

    def _run(self, video: str, first: int, gap: int, form: StackForm) -> list[Clip]:
        return [
            Clip(video, first + number * gap, form.length, form.step)
            for number in range(self.frames)
        ]


def _fitting_gap(starts: int, frames: int, gap: int) -> int:
    """The largest gap, at most `gap`, that leaves room for all moments; 1 where none does."""
    return gap if frames == 1 else max(1, min(gap, (starts - 1) // (frames - 1)))
