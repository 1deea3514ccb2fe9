"""Where to look in a video: moments and clips, and views (which crop, flipped or not).

Addresses only, in integers: no pixels are touched. Both streams take their moments from here. A
video of N frames has F = N - step fields; a clip of L fields covers the frames from `start` to
`start + L step`. A video too short for that is looped: field i of it is field i mod F.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from flowkit.errors import RecordError, UsageError

Stream = Literal["spatial", "temporal"]
STREAMS: tuple[Stream, ...] = ("spatial", "temporal")

SHORT_SIDE = 256  # px of the rescaled frame that crops are cut from (Simonyan & Zisserman 2014)
CROP = 224  # px, the networks' input
MOMENTS = 25  # test clips of a video, equally spaced
JITTER = 0.25  # largest relative change of a jittered crop's sides
BORDER = 0.25  # largest share of the free room between a jittered crop and the border
SCALES = (256, 224, 192, 168)  # px, sides of multi-scale crops (Wang et al. 2015, arXiv:1507.02159)


@dataclass(frozen=True)
class Clip:
    """The address of `length` fields of a video, each over `step` frames, from frame `start`.

    A bi-directional stack of the same clip covers the same frames, from its middle outwards. A
    clip of frames leads from one to the next in the same way; of length 0 it is a single frame.
    """

    video: str
    start: int
    length: int
    step: int = 1

    @property
    def middle(self) -> int:
        """The frame in the middle, of two the first; t of a bi-directional stack."""
        return self.start + self.length * self.step // 2

    def frame(self, field_count: int) -> int:
        """`middle` in a video of `field_count` fields, looped where that is too short."""
        return self.middle % _at_least_one(field_count, self.video)

    def fields(self, field_count: int) -> list[int]:
        """The forward fields of the clip, in order of time, looped."""
        count = _at_least_one(field_count, self.video)
        return [(self.start + k * self.step) % count for k in range(self.length)]

    def halves(self, field_count: int) -> tuple[list[int], list[int]]:
        """The L/2 forward fields from the middle on, and the L/2 backward fields from it back.

        Backward field i moves frame i + step to frame i, so the first one is middle - step.
        """
        count = _at_least_one(field_count, self.video)
        steps = range(self.length // 2)
        forward = [(self.middle + k * self.step) % count for k in steps]
        return forward, [(self.middle - (k + 1) * self.step) % count for k in steps]


@dataclass(frozen=True)
class View:
    """A crop of a rescaled frame, then a horizontal flip: one forward pass of a clip.

    `frame` is the size (H, W) that the whole frame is rescaled to, px. The crop, `height` x `width`
    px from row `top` and column `left`, lies in it; UsageError where it does not.
    """

    frame: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def __post_init__(self) -> None:
        inside = (
            0 <= self.top <= self.frame[0] - self.height
            and 0 <= self.left <= self.frame[1] - self.width
        )
        if not inside or self.height < 1 or self.width < 1:
            raise UsageError(
                f"expected a crop within a frame of {self.frame}, got {self.height}x{self.width} "
                f"(HxW) at row {self.top}, column {self.left}"
            )


def chosen_clip(video: str, field_count: int, length: int, start: int, *, step: int = 1) -> Clip:
    """The clip that starts at frame `start`; UsageError where it would not fit."""
    starts = clip_starts(video, field_count, length, step)
    if not 0 <= start < starts:
        raise UsageError(
            f"{video}: expected a clip of {length} fields to start within frames 0..{starts - 1}, "
            f"got {start}"
        )
    return Clip(video, start, length, step)


def random_clips(
    video: str,
    field_count: int,
    length: int,
    random: np.random.Generator,
    *,
    segments: int = 1,
    step: int = 1,
) -> list[Clip]:
    """A clip out of each of `segments` equal parts of a video, in order, at any start alike.

    The parts divide the frames where a clip fits (Wang et al. 2016, arXiv:1608.00859, section 3.1);
    of fewer frames than parts some are taken again. A clip of a short video starts at frame 0.
    """
    starts = clip_starts(video, field_count, length, step)
    return [Clip(video, start, length, step) for start in random_frames(starts, random, segments)]


def random_frames(frame_count: int, random: np.random.Generator, segments: int = 1) -> list[int]:
    """A frame out of each of `segments` equal parts of `frame_count` frames, in order, all alike.

    Of fewer frames than parts some are taken again.
    """
    if segments < 1:
        raise UsageError(f"expected at least one segment, got {segments}")
    edges = [part * frame_count // segments for part in range(segments + 1)]
    return [int(random.integers(first, max(last, first + 1))) for first, last in pairwise(edges)]


def spaced_clips(
    video: str, field_count: int, length: int, *, moments: int = MOMENTS, step: int = 1
) -> list[Clip]:
    """For each of `spaced_frames` the clip that fits whose middle is nearest to that frame.

    Where two are equally near, the later one. So the first and the last ones repeat where a clip
    reaches further than the moments lie apart.
    """
    clip_starts(video, field_count, length, step)  # checks them
    starts = spaced_starts(field_count + step, length * step, moments)
    return [Clip(video, start, length, step) for start in starts]


def spaced_starts(frame_count: int, reach: int, moments: int = MOMENTS) -> list[int]:
    """For each of `spaced_frames` the first frame of the clip whose middle is nearest to it.

    A clip ends `reach` frames behind its first one. It is one that fits, in a video too short for
    any the one from frame 0.
    """
    last = max(frame_count - 1 - reach, 0)
    middles = spaced_frames(frame_count, moments)
    return [min(max(middle - reach // 2, 0), last) for middle in middles]


def spaced_frames(frame_count: int, moments: int = MOMENTS) -> list[int]:
    """`moments` frames of equal spacing: number k lies at k / (moments - 1) of all frames.

    Rounded, halves up; the first is the first frame of the video, the last its last, and of one
    moment it is the middle one. A video with fewer frames than moments repeats some. Both streams
    are asked about these moments, whatever L is (Simonyan & Zisserman 2014, section 5).
    """
    if moments < 1:
        raise UsageError(f"expected at least one moment, got {moments}")
    last, gaps = frame_count - 1, moments - 1
    if not gaps:
        return [last // 2]
    return [(2 * k * last + gaps) // (2 * gaps) for k in range(moments)]


def rescaled_size(size: tuple[int, int], short_side: int = SHORT_SIDE) -> tuple[int, int]:
    """The size (H, W) with the shorter side at `short_side`, the other rounded, half up."""
    shorter = min(size)
    height, width = ((2 * side * short_side + shorter) // (2 * shorter) for side in size)
    return height, width


def center_view(size: tuple[int, int], *, crop: int = CROP, short_side: int = SHORT_SIDE) -> View:
    """The crop in the middle of a video of `size` (H, W)."""
    return ten_views(size, crop=crop, short_side=short_side)[4]


def ten_views(
    size: tuple[int, int], *, crop: int = CROP, short_side: int = SHORT_SIDE
) -> list[View]:
    """The four corners and the center of a video of `size` (H, W), then the same five flipped."""
    frame = rescaled_size(size, short_side)
    places = _corners(frame, crop, crop)
    return [View(frame, *place, crop, crop, flip) for flip in (False, True) for place in places]


def _center_views(size: tuple[int, int], *, crop: int, short_side: int) -> list[View]:
    return [center_view(size, crop=crop, short_side=short_side)]


def _center_and_flip(size: tuple[int, int], *, crop: int, short_side: int) -> list[View]:
    center = center_view(size, crop=crop, short_side=short_side)
    return [center, replace(center, flip=True)]


def whole_views(
    size: tuple[int, int], *, crop: int = CROP, short_side: int = SHORT_SIDE
) -> list[View]:
    """The whole rescaled frame of a video of `size` (H, W), and its flip.

    Each side is held between that of a crop and twice that (the 2016 authors' program: 224 and 448
    px), where the shape of the frame changes.
    """
    frame = rescaled_size(size, short_side)
    height, width = (min(max(side, crop), 2 * crop) for side in frame)
    return [View((height, width), 0, 0, height, width, flip) for flip in (False, True)]


@dataclass(frozen=True)
class ViewSet:
    """The views of a moment: how many, their crops in words, and what makes them."""

    count: int
    about: str
    make: Callable[..., list[View]]


# Of each moment of a test video; the names are what `TestViews.crops` may be.
VIEWS = {
    "ten": ViewSet(10, "corners and center and their flips", ten_views),
    "center": ViewSet(1, "the center alone", _center_views),
    "flip": ViewSet(2, "the center and its flip", _center_and_flip),
    "whole": ViewSet(2, "the whole frame, fully convolutionally, and its flip", whole_views),
}


def moment_views(
    name: str, size: tuple[int, int], *, crop: int = CROP, short_side: int = SHORT_SIDE
) -> list[View]:
    """The views of VIEWS by name, of a video of `size` (H, W)."""
    return view_set(name).make(size, crop=crop, short_side=short_side)


def view_set(name: str) -> ViewSet:
    """What VIEWS has of a name; UsageError names those there are."""
    if name not in VIEWS:
        raise UsageError(f"expected views {' or '.join(VIEWS)}, got {name!r}")
    return VIEWS[name]


def random_view(
    size: tuple[int, int],
    random: np.random.Generator,
    *,
    crop: int = CROP,
    short_side: int = SHORT_SIDE,
) -> View:
    """A crop from anywhere in the whole frame, flipped in one of two cases."""
    frame = rescaled_size(size, short_side)
    _corners(frame, crop, crop)
    top, left = (int(random.integers(side - crop + 1)) for side in frame)
    return View(frame, top, left, crop, crop, bool(random.integers(2)))


def corner_view(
    size: tuple[int, int],
    random: np.random.Generator,
    *,
    sides: Sequence[int] = (CROP,),
    short_side: int = SHORT_SIDE,
) -> View:
    """A crop at one of the four corners or the center, flipped in one of two cases.

    Its height and width are two of `sides` (descending, px), the same or neighbors among them:
    `SCALES` makes the multi-scale crops of Wang et al. 2015.
    """
    frame = rescaled_size(size, short_side)
    pairs = [(a, b) for i, a in enumerate(sides) for b in sides[max(i - 1, 0) : i + 2]]
    height, width = pairs[int(random.integers(len(pairs)))]
    places = _corners(frame, height, width)
    top, left = places[int(random.integers(len(places)))]
    return View(frame, top, left, height, width, bool(random.integers(2)))


def jittered_view(
    size: tuple[int, int],
    random: np.random.Generator,
    *,
    crop: int = CROP,
    short_side: int = SHORT_SIDE,
) -> View:
    """A crop near the border whose sides are `crop` px +-25%, each by itself; flipped in half.

    A quarter at most of the free room of an axis lies between the crop and the nearer border
    (Feichtenhofer et al. 2016, section 4). What is cut is to be rescaled, so shapes change.
    """
    frame = rescaled_size(size, short_side)
    _corners(frame, crop, crop)
    places, sides = [], []
    for whole in frame:
        side = min(round(crop * random.uniform(1 - JITTER, 1 + JITTER)), whole)
        offset = int(random.integers(int((whole - side) * BORDER) + 1))
        places.append(whole - side - offset if random.integers(2) else offset)
        sides.append(side)
    (top, left), (height, width) = places, sides
    return View(frame, top, left, height, width, bool(random.integers(2)))


def clip_starts(video: str, field_count: int, length: int, step: int) -> int:
    """How many frames of a video a clip may start at: at least 1, since short ones are looped."""
    if length < 1 or step < 1:
        raise UsageError(f"expected a length and a step of at least 1, got {length} and {step}")
    return max(_at_least_one(field_count, video) - (length - 1) * step, 1)


def _at_least_one(field_count: int, video: str) -> int:
    if field_count < 1:
        raise RecordError(f"{video}: expected at least one field to make a clip of, got none")
    return field_count


def _corners(frame: tuple[int, int], height: int, width: int) -> list[tuple[int, int]]:
    """(top, left) of the crop at the four corners, by rows, and at the center."""
    down, right = frame[0] - height, frame[1] - width
    if down < 0 or right < 0:
        raise UsageError(
            f"expected a crop within the rescaled frame of {frame[0]}x{frame[1]} (HxW), "
            f"got {height}x{width}: take a smaller crop or a longer short side"
        )
    return [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
