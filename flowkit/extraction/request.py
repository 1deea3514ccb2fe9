"""What is asked of every video of an extraction: the flow, between which frames, stored how."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flowkit._cv2 import cv2
from flowkit.errors import UsageError
from flowkit.flow.method import FlowMethod
from flowkit.flow.methods import describe_method, prepare_method
from flowkit.flow.pairs import Pair
from flowkit.flow.stabilized import Stabilization, StabilizedFlow
from flowkit.records.layout import Storage
from flowkit.series import Series
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.sampling import Sampling

if TYPE_CHECKING:
    from flowkit.video.reading import Video


@dataclass(frozen=True)
class Request:
    """What is asked of every video: the flow, between which frames, at which size, stored how.

    `sampling` says which frames are taken, and all else counts those. `steps`: fields from every
    frame t to t + step, a series each; `backward`: also those from t + step to t, computed.
    `resize` as `target_size` takes it. `keep_damaged` makes a record of the frames that a damaged
    video still gives, and says so in the sidecar. `stabilize`: the camera's motion is taken off, as
    that says. A video with frames of more than `max_frame_mpx`
    megapixels fails; the limit is no part of the identity. UsageError for steps that are not
    distinct and at least 1, and for a size that is none.
    """

    method: FlowMethod
    steps: tuple[int, ...] = (1,)
    backward: bool = False
    resize: str | None = None
    storage: Storage = field(default_factory=Storage)
    keep_damaged: bool = False
    max_frame_mpx: float = MAX_FRAME_MPX
    sampling: Sampling = field(default_factory=Sampling)
    stabilize: Stabilization | None = None

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or len(set(self.steps)) < len(self.steps):
            raise UsageError(f"expected distinct steps of at least 1 frame, got {self.steps}")
        target_size(self.resize, (1, 1))

    @property
    def series(self) -> tuple[Series, ...]:
        """The series of fields that the record will hold."""
        forward = [Series("forward", step) for step in self.steps]
        return (*forward, *(Series("backward", step) for step in self.steps if self.backward))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair, float32 (H, W, 2) px, in order; stabilized if so asked."""
        if self.stabilize is None:
            return self.method.fields(pairs)
        return StabilizedFlow(self.method.fields, self.stabilize).fields(pairs)

    def prepare(self, *, method: bool = True) -> None:
        """Compile or load, once for all, what every worker would otherwise do for itself.

        But the `method`, as `prepare_method` does it, if other processes compute the flow.
        """
        if method:
            prepare_method(self.method)
        if self.stabilize is not None:
            from flowkit.flow import camera

            camera.warm_up()

    def identity(self) -> dict[str, Any]:
        """What the sidecar keeps of the request, and a rerun compares; JSON values only."""
        sampling, camera = self.sampling.identity(), self.stabilize
        return json.loads(
            json.dumps(
                {
                    "method": describe_method(self.method),
                    "steps": self.steps,
                    "backward": self.backward,
                    "resize": self.resize,
                    **self.storage.identity(),
                    "keep_damaged": self.keep_damaged,
                    **({"sampling": sampling} if sampling else {}),
                    **({"stabilize": camera.identity()} if camera else {}),
                }
            )
        )


def target_size(resize: str | None, size: tuple[int, int]) -> tuple[int, int]:
    """The size (H, W) that `resize` makes of a frame of `size` (H, W).

    "256" is the short side, the other follows; "340x256" is width x height exactly, as users of
    video tools write it; "50%" a factor; None changes nothing. UsageError for anything else.
    """
    if resize is None:
        return size
    try:
        if "x" in resize:
            width, height = (int(part) for part in resize.split("x"))
        else:
            percent = resize.endswith("%")
            factor = float(resize[:-1]) / 100 if percent else int(resize) / min(size)
            height, width = (max(round(side * factor), factor > 0) for side in size)
    except (ValueError, OverflowError):
        height = width = 0
    if height < 1 or width < 1:
        raise UsageError(
            f"expected a size such as 256 (short side), 340x256 (width x height) or 50%, "
            f"got {resize!r}"
        )
    return height, width


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frame at `size` (H, W): by area when it shrinks, else bilinear; itself if it fits."""
    if frame.shape[:2] == size:
        return frame
    shrinks = size[0] * size[1] < frame.shape[0] * frame.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(frame, (size[1], size[0]), interpolation=interpolation)


def resized_frames(
    video: Video, resize: str | None, sampling: Sampling | None = None
) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 (H, W, 3) BGR, at the size that `resize` asks for.

    All of them, or those that `sampling` takes. Where the size changes within the video, every
    frame has the size that `resize` makes of the first one; without `resize` that is a VideoError.
    """
    size = target_size(resize, video.size)
    frames = (sampling or Sampling()).frames(video, any_size=resize is not None)
    return (resize_frame(frame, size) for frame in frames)
