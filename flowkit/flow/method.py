"""What a flow method is: parameters that identify it; pairs of frames in, fields out."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from flowkit.errors import FlowkitError, UsageError
from flowkit.series import Series

if TYPE_CHECKING:  # the command line reads parameters without numpy
    import numpy as np

Pair = tuple["np.ndarray", "np.ndarray"]  # two frames, uint8: gray (H, W), else BGR (H, W, 3)


class FlowMethod(Protocol):
    """A flow method: a frozen dataclass whose fields are its parameters.

    It is its own identity in the sidecar, and picklable, so that it can travel to a worker. `name`
    is the word of ``--method``; `presets` are named sets of parameters. It is given pairs of gray
    frames, but one that says `color = True` those of the video, in color unless that is gray.
    """

    name: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair, in order: float32 (H, W, 2) px, moving first to second.

        Lazy, but a method may read some pairs ahead, to compute them in one batch.
        """


def parameter(
    default: Any, text: str, *, at_least: float | None = None, at_most: float | None = None
) -> Any:
    """A dataclass field with the help text and the limits of a flow method's parameter."""
    limits = {"at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata={"help": text, **limits})


def check_parameters(method: FlowMethod) -> None:
    """Raise UsageError if a parameter is outside its limits; for ``__post_init__``."""
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        at_least, at_most = field.metadata["at_least"], field.metadata["at_most"]
        if at_least is not None and not value >= at_least:
            limit = f"at least {at_least}"
        elif at_most is not None and not value <= at_most:
            limit = f"at most {at_most}"
        else:
            continue
        raise UsageError(f"{method.name}: expected {field.name} of {limit}, got {value}")


def takes_color(method: FlowMethod) -> bool:
    """True for a method that says that it is given frames in color."""
    return getattr(method, "color", False)


def to_gray(frame: np.ndarray) -> np.ndarray:
    """The frame as gray uint8 (H, W): OpenCV's BGR2GRAY; a gray frame is returned as it is."""
    _check_frame(frame)
    if frame.ndim == 2:
        return frame
    from flowkit._cv2 import cv2

    return cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)


def _check_frame(frame: np.ndarray) -> None:
    """Refuse with FlowkitError what is no frame, gray or BGR."""
    if frame.dtype != "uint8" or not (frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)):
        raise FlowkitError(
            f"expected a frame, uint8 (H, W) or (H, W, 3), instead got {frame.dtype} {frame.shape}"
        )


def consecutive(frames: Iterable[np.ndarray], *, color: bool = False) -> Iterator[Pair]:
    """The pairs (frame t, frame t + 1) of gray or BGR frames: gray ones, or with `color` as is."""
    forward = [Series("forward", 1)]
    return ((first, second) for _, _, first, second in series_pairs(frames, forward, color=color))


def series_pairs(
    frames: Iterable[np.ndarray], series: Iterable[Series], *, color: bool = False
) -> Iterator[tuple[Series, int, np.ndarray, np.ndarray]]:
    """Yield (series, t, first, second) for every pair that the series ask for, in one pass.

    Both directions between frames t and t + step carry the index t of the earlier frame. Frames
    are made gray, or with `color` (see `takes_color`) left as they are. Only the last
    max(step) + 1 of them are held.
    """
    series = tuple(series)
    window: deque[np.ndarray] = deque(maxlen=max(one.step for one in series) + 1)
    for latest, frame in enumerate(frames):
        if color:
            _check_frame(frame)
        window.append(frame if color else to_gray(frame))
        for one in series:
            if latest < one.step:
                continue
            earlier, later = window[-1 - one.step], window[-1]
            if one.direction == "forward":
                yield one, latest - one.step, earlier, later
            else:
                yield one, latest - one.step, later, earlier


def check_pair(first: np.ndarray, second: np.ndarray, *, color: bool = False) -> None:
    """Refuse with FlowkitError what is no pair of uint8 frames of one size: gray, or BGR."""
    for frame in (first, second):
        if color:
            _check_frame(frame)
        elif frame.ndim != 2 or frame.dtype != "uint8":
            raise FlowkitError(
                f"expected gray frames, uint8 (H, W), instead got {frame.dtype} {frame.shape}"
            )
    if first.shape != second.shape:
        raise FlowkitError(
            f"expected two frames of one size (H, W), instead got {first.shape} and {second.shape}"
        )
