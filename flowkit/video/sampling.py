"""Which frames of a video are taken: every so many, at a rate, from one time to another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowkit.errors import UsageError, VideoError

if TYPE_CHECKING:
    import numpy as np

    from flowkit.video.reading import Video

ROUNDING = 1e-6  # frames; far below one, far above what float64 loses in a day of video


@dataclass(frozen=True)
class Sampling:
    """The frames that are taken of a video; by default all.

    Frame i of a video of F frames/s lies at i / F seconds. Taken are those from `start_s` on and
    before `stop_s`; of these the first and each `every`-th after it, or with `fps` the first frame
    at or after each k / `fps` seconds, counted from the first. UsageError where both are asked
    for, or for numbers that cannot be.
    """

    every: int = 1
    fps: float | None = None
    start_s: float | None = None
    stop_s: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"expected every 1st frame or fewer, got every {self.every}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError(f"expected a rate above 0 frames/s, got {self.fps:g}")
        if self.fps is not None and self.every != 1:
            raise UsageError("--every and --fps both say which frames are taken: give one")
        start = self.start_s or 0.0
        stop = math.inf if self.stop_s is None else self.stop_s
        if not (0 <= start < stop and start < math.inf):
            raise UsageError(
                f"expected frames from a time of at least 0 s to a later one, got from {start:g} "
                f"to {stop:g} s"
            )

    def frames(self, video: Video, *, any_size: bool = False) -> Iterator[np.ndarray]:
        """The frames that are taken of a video, as `Video.frames` has them.

        Those before `start_s` are decoded, those from `stop_s` on are not, so that damage there is
        not seen. VideoError where the video states no rate that is needed, has fewer frames/s than
        `fps`, or ends before `start_s`.
        """
        rate = self._source_rate(video)
        first, end = 0, math.inf
        if self.start_s is not None:
            first = math.ceil(self.start_s * rate - ROUNDING)
        if self.stop_s is not None:
            end = math.ceil(self.stop_s * rate - ROUNDING)
        stride = float(self.every) if self.fps is None else rate / self.fps
        taken = index = 0
        for index, frame in enumerate(video.frames(any_size=any_size)):
            if index >= end:
                return
            if index == first + math.ceil(taken * stride - ROUNDING):
                taken += 1
                yield frame
        if not taken:
            raise VideoError(
                f"{video.path}: expected frames from {self.start_s:g} s on, but the video ends at "
                f"{(index + 1) / rate:.3g} s"
            )

    def rate(self, fps: float | None) -> float | None:
        """The frames/s that are taken of a video of `fps`; None where that is not known."""
        if self.fps is not None:
            return self.fps
        return None if fps is None else fps / self.every

    def identity(self) -> dict[str, Any]:
        """What the sidecar keeps under "sampling": what differs from taking all; JSON values."""
        every = None if self.every == 1 else self.every
        named = {"every": every, "fps": self.fps, "from": self.start_s, "to": self.stop_s}
        return {name: value for name, value in named.items() if value is not None}

    def _source_rate(self, video: Video) -> float:
        """Frames/s of a video; NaN where none is stated and none is needed."""
        if self.fps is self.start_s is self.stop_s is None:
            return math.nan
        if video.fps is None:
            raise VideoError(
                f"{video.path}: states no frame rate, so times are not known: --every counts frames"
            )
        if self.fps is not None and self.fps > video.fps * (1 + ROUNDING):
            raise VideoError(
                f"{video.path}: expected at least {self.fps:g} frames/s, it has {video.fps:.4g}"
            )
        return video.fps
