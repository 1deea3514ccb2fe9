"""Frames to the pairs that a flow method is given, and its fields back in their places."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from flowkit.errors import FlowkitError
from flowkit.series import Series

if TYPE_CHECKING:  # the command line reads parameters without numpy
    import numpy as np

Computed = TypeVar("Computed")  # a field, or its planes and their ranges


Pair = tuple["np.ndarray", "np.ndarray"]  # two frames, uint8: gray (H, W), else BGR (H, W, 3)


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


def series_fields(
    frames: Iterable[np.ndarray],
    series: Iterable[Series],
    compute: Callable[[Iterator[Pair]], Iterable[Computed]],
    *,
    color: bool = False,
    wanted: Mapping[Series, Collection[int]] | None = None,
) -> Iterator[tuple[Series, int, Computed]]:
    """Yield (series, t, what `compute` made of the pair) for the series of a video, in one pass.

    `compute` is a method's ``fields``, or anything that gives one result per pair, in their order;
    it may read ahead. `wanted` names the indices t of each series to compute, None all of them.
    """
    handed: deque[tuple[Series, int]] = deque()  # pairs handed to `compute`, without a result yet

    def pairs() -> Iterator[Pair]:
        for one, index, first, second in series_pairs(frames, series, color=color):
            if wanted is None or index in wanted[one]:
                handed.append((one, index))
                yield first, second

    for computed in compute(pairs()):
        yield *handed.popleft(), computed
