"""Frames as a network takes them: a single one, several in a row, or the differences of neighbors.

TSN's third stream are such differences (Wang et al. 2016, arXiv:1608.00859, section 3.2);
docs/stacks.md states what papers leave open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flowkit.data.augment import frame_input
from flowkit.data.clips import Clip, View
from flowkit.errors import UsageError

if TYPE_CHECKING:
    from flowkit.records.reading import Record

RGB_CHANNELS = 3


@dataclass(frozen=True)
class FrameInput:
    """A way to put frames together: in words, and what `flowkit train` takes unless told otherwise.

    With `differences` N differences of N + 1 frames are taken, else N frames. `count` is N of a
    training, and `first_layer` is what it makes of filters for RGB (`table.FIRST_LAYERS`).
    """

    text: str
    differences: bool
    count: int
    first_layer: str


# What the spatial stream may look at; the names are what `FrameForm.kind` may be.
FRAME_INPUTS = {
    "frames": FrameInput("N frames as they are, a single one unless told", False, 1, "shared"),
    "rgb-diff": FrameInput(
        "N differences of N + 1 frames, each frame less the one before it", True, 5, "averaged"
    ),
}


@dataclass(frozen=True)
class FrameForm:
    """What the spatial stream's input is made of: options that belong to a trained network.

    `count` is N, the frames or differences of a stack, `every` how many frames lie between one
    frame of it and the next, and `kind` one of FRAME_INPUTS. By default it is a single frame.
    UsageError for what cannot be.
    """

    count: int = 1
    every: int = 1
    kind: str = "frames"

    def __post_init__(self) -> None:
        if self.kind not in FRAME_INPUTS:
            raise UsageError(f"expected an input of {', '.join(FRAME_INPUTS)}, got {self.kind!r}")
        if self.count < 1 or self.every < 1:
            raise UsageError(
                "expected a stack of at least 1 frame, at least 1 frame apart, "
                f"got {self.count} and {self.every}"
            )
        if self.is_single and self.every != 1:
            raise UsageError(
                f"a single frame has no other {self.every} frames from it: give a stack of several"
            )

    @property
    def differences(self) -> bool:
        """Whether it is made of differences of frames."""
        return FRAME_INPUTS[self.kind].differences

    @property
    def is_single(self) -> bool:
        """Whether it is a single frame."""
        return self.count == 1 and not self.differences

    @property
    def name(self) -> str:
        """What the stream is called in scores and where its run goes: "spatial", or its kind."""
        return "spatial" if self.is_single else self.kind

    @property
    def channels(self) -> int:
        """3N, those of a frame or of a difference together: R, G, B."""
        return RGB_CHANNELS * self.count

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What each channel is: "R1", "G1", "B1", "R2", ..."""
        return tuple(f"{color}{number + 1}" for number in range(self.count) for color in "RGB")

    @property
    def length(self) -> int:
        """The length of its clips, which lead from frame to frame: N - 1, of differences N."""
        return self.count if self.differences else self.count - 1

    @property
    def step(self) -> int:
        """The step of its clips: `every`."""
        return self.every

    @property
    def least_frames(self) -> int:
        """Frames that a video must have: frames repeat, but a difference is of two."""
        return self.every + 1 if self.differences else 1

    @property
    def about(self) -> str:
        """It in words: "a single frame", "10 frames", "5 differences of frames, 2 apart"."""
        if self.is_single:
            return "a single frame"
        what = f"difference{'s' * (self.count > 1)} of frames" if self.differences else "frames"
        return f"{self.count} {what}" + (f", {self.every} apart" if self.every > 1 else "")

    def places(self, clip: Clip, frame_count: int) -> tuple[list[int], list[int]]:
        """The frames of a clip in a video of so many, and those that are taken off them, if any.

        A video that is too short is looped: its frames are taken again from the first one on, and
        of differences the differences, of which none leads from the last frame to the first.
        """
        if not self.differences:
            numbers = range(self.count)
            return [(clip.start + k * self.every) % frame_count for k in numbers], []
        earlier = clip.fields(frame_count - self.every)
        return [frame + self.every for frame in earlier], earlier


def frame_stacks(
    record: Record,
    clip: Clip,
    views: Sequence[View],
    *,
    form: FrameForm,
    size: tuple[int, int] | None = None,
    color: np.ndarray | None = None,
) -> np.ndarray:
    """The stack of one clip in several views of one size: float32 (V, 3N, h, w), R1 G1 B1 R2 ...

    Every frame is what `augment.frame_input` makes of it, all with the same view, the same `size`
    (H, W) and the same `color`, so what does not move in the video does not move in the stack.
    Differences are of these, without the color, which they would cancel: a value of 1 is a
    deviation of ImageNet's pixels. RecordError where the record lacks the frames.
    """
    later, earlier = form.places(clip, record.frame_count)
    numbers = sorted({*later, *earlier})
    images = dict(zip(numbers, record.frames(numbers), strict=True))
    color = None if form.differences else color
    stacks = []
    for view in views:
        shape = size or (view.height, view.width)
        seen = {number: frame_input(one, view, shape, color) for number, one in images.items()}
        stacked = np.concatenate([seen[number] for number in later])
        if earlier:
            stacked -= np.concatenate([seen[number] for number in earlier])
        stacks.append(stacked)
    return np.stack(stacks)
