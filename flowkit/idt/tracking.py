"""Improved dense trajectories of a video: frames in, the tracks that end in each frame out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowkit._cv2 import cv2
from flowkit.errors import FlowkitError
from flowkit.flow import camera
from flowkit.flow.camera import Camera, warp_back
from flowkit.flow.compiled import ensure_compiled
from flowkit.flow.pairs import to_gray
from flowkit.idt import flow_kernels, kernels
from flowkit.idt.boxes import Boxes, box_mask
from flowkit.idt.flow import STRIDE, Size, expand, solve
from flowkit.idt.parameters import TrackParameters

COMPILE_SECONDS = 28  # measured on one core
FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)


def track_dtype(parameters: TrackParameters, descriptors: np.dtype = FLOAT32) -> np.dtype:
    """A track as a row of a structured array.

    frame: index from 0 of the frame in which the track ends. mean, deviation: of its points, x and
    y in px of the frame (standard deviation of the population). length: of its path in px. scale:
    1, 1.41, 2, ... travel: length in px of its path less the camera's motion. trajectory: the
    displacements of that path divided by `travel`, x0 y0 x1 y1 ... hog, hof, mbhx, mbhy: cells of
    time, then of x, then of y, then bins.
    """
    numbers = [(name, np.float32) for name in ("length", "scale", "travel")]
    columns = [(name, descriptors, (width,)) for name, width in parameters.widths.items()]
    return np.dtype(
        [
            ("frame", np.int32),
            ("mean", np.float32, (2,)),
            ("deviation", np.float32, (2,)),
            *numbers,
            *columns,
        ]
    )


def level_sizes(height: int, width: int, parameters: TrackParameters) -> list[tuple[int, int]]:
    """Height and width of each level, finest first; FlowkitError for frames under a patch."""
    if min(height, width) < parameters.patch:
        raise FlowkitError(
            f"expected frames of at least {parameters.patch} px a side, got {width} x {height} "
            "(width x height)"
        )
    side, count = np.float32(min(height, width)), 0
    while side >= parameters.patch:
        side, count = side / STRIDE, count + 1
    return [
        (round(height / float(scale)), round(width / float(scale)))
        for scale in level_scales(min(parameters.scales, count))
    ]


def level_scales(count: int) -> list[np.float32]:
    """How many times smaller each of `count` levels is, in float32 as in the authors' program."""
    scales = [np.float32(1)]
    while len(scales) < count:
        scales.append(scales[-1] * STRIDE)
    return scales


def track_video(
    path: str | Path, parameters: TrackParameters | None = None, *, boxes: Boxes | None = None
) -> Iterator[np.ndarray]:
    """The tracks of a video file or a folder of frames, as `track_frames` gives them.

    VideoError, at the end, if the video did not give every frame that its file promises.
    """
    from flowkit.video.reading import open_video

    with open_video(Path(path)) as video:
        yield from track_frames(video.frames(), parameters, boxes=boxes)


def track_frames(
    frames: Iterable[np.ndarray],
    parameters: TrackParameters | None = None,
    *,
    boxes: Boxes | None = None,
) -> Iterator[np.ndarray]:
    """For each frame the tracks that end in it, lazily: arrays of `track_dtype`, most often empty.

    `frames` are gray or BGR, uint8, of one size. `boxes` are people, whose motion is not the
    camera's. Wang & Schmid 2013, with the flow and the numbers of the authors' program.
    """
    parameters = parameters or TrackParameters()
    ensure_compiled_kernels()
    tracker: _Tracker | None = None
    for index, frame in enumerate(frames):
        gray = np.ascontiguousarray(to_gray(frame))
        mask = box_mask(gray.shape, boxes.get(index)) if boxes else None
        if tracker is None:
            tracker = _Tracker(gray, mask, parameters)
            yield np.zeros(0, track_dtype(parameters))
        else:
            yield tracker.advance(index, gray, mask)


def ensure_compiled_kernels() -> None:
    """Compile, or load from disk, what tracking runs: once in a parent, before its workers."""
    camera.warm_up()
    entries = [(module, name) for module in (flow_kernels, kernels) for name in module.ENTRIES]
    for module, name in entries:
        ensure_compiled(
            getattr(module, name),
            module.ENTRIES[name],
            title=f"the trajectories' {name}",
            seconds=COMPILE_SECONDS // len(entries),
        )


class _Tracker:
    """The tracks of all levels, and what is kept of the latest frame."""

    def __init__(
        self, gray: np.ndarray, mask: np.ndarray | None, parameters: TrackParameters
    ) -> None:
        self.parameters = parameters
        shapes = level_sizes(gray.shape[0], gray.shape[1], parameters)
        scales = level_scales(len(shapes))
        self.sizes = [Size(*shape, scale) for shape, scale in zip(shapes, scales, strict=True)]
        self.levels = [_Level(*size, parameters) for size in self.sizes]
        self.camera = Camera(parameters.matches)
        self.camera.begin(gray, mask)
        self.gray = gray
        self.grays = self._pyramid(gray)
        self.expansions = expand(gray, self.sizes)
        for level, smaller in zip(self.levels, self.grays, strict=True):
            level.sample(smaller)

    def advance(self, index: int, gray: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Take frame number `index`; returns the tracks that end in it."""
        if gray.shape != self.gray.shape:
            raise FlowkitError(
                f"expected frames of one size (H, W), got {self.gray.shape} and {gray.shape}"
            )
        expansions = expand(gray, self.sizes)
        fields = solve(self.expansions, expansions, self.sizes)
        homography = self.camera.follow(self.gray, gray, fields[0], mask)
        warped = warp_back(self.gray, gray, homography)
        warped_fields = solve(self.expansions, expand(warped, self.sizes), self.sizes)
        ended = []
        grays = self._pyramid(gray)
        for level, before, after, flow, less in zip(
            self.levels, self.grays, grays, fields, warped_fields, strict=True
        ):
            level.step(before, flow, less)
            ended.append(level.finish(index))
            if index % self.parameters.gap == 0:
                level.sample(after)
        self.gray, self.grays, self.expansions = gray, grays, expansions
        return np.concatenate(ended)

    def _pyramid(self, gray: np.ndarray) -> list[np.ndarray]:
        """The gray frame at each size, each made from the finer one."""
        grays = [gray]
        for height, width, _ in self.sizes[1:]:
            grays.append(cv2.resize(grays[-1], (width, height)))
        return grays


@dataclass
class _Level:
    """The tracks of one level, in the slots that `kernels` describes."""

    height: int
    width: int
    scale: np.float32
    parameters: TrackParameters
    count: int = 0  # number of living tracks
    order: np.ndarray = field(init=False)
    ages: np.ndarray = field(init=False)
    points: np.ndarray = field(init=False)
    moves: np.ndarray = field(init=False)
    sums: np.ndarray = field(init=False)
    dtype: np.dtype = field(init=False)
    bins: dict[str, int] = field(init=False)  # by descriptor

    def __post_init__(self) -> None:
        one = self.parameters
        self.dtype, self.bins = track_dtype(one), one.planes
        self.order = np.zeros(0, np.int32)
        self.ages = np.zeros(0, np.int32)
        self.points = np.zeros((0, one.track_length + 1, 2), np.float32)
        self.moves = np.zeros((0, one.track_length, 2), np.float32)
        numbers = one.cells**2 * sum(map(kernels.whole_lanes, self.bins.values()))
        self.sums = np.zeros((0, one.time_cells, numbers), np.float32)

    def sample(self, gray: np.ndarray) -> None:
        """Begin tracks in `gray`, uint8 (H, W), where there are none."""
        distance = self.parameters.sampling
        self._reserve(self.count + (self.height // distance) * (self.width // distance))
        mirrored = cv2.copyMakeBorder(gray, 1, 1, 1, 1, cv2.BORDER_REFLECT_101)
        self.count = kernels.sample(
            self.order,
            self.count,
            self.ages,
            self.points,
            self.sums,
            mirrored,
            self.parameters.quality,
            distance,
        )

    def step(self, gray: np.ndarray, flow: np.ndarray, warped: np.ndarray) -> None:
        """Move every track along `flow` and describe where it came from.

        gray: uint8 (H, W). flow, and `warped`, less the camera's motion: float32 (2, H, W), px.
        """
        one = self.parameters
        self.count = kernels.move(
            self.order, self.count, self.ages, self.points, self.moves, flow, warped
        )
        if not self.count:
            return
        kernels.describe(
            gray,
            warped[0],
            warped[1],
            self.order,
            self.count,
            self.ages,
            self.points,
            one.patch,
            one.cells,
            one.bins,
            np.float32(one.zero_flow),
            np.float32(one.epsilon),
            one.track_length // one.time_cells,
            self.sums,
        )

    def finish(self, index: int) -> np.ndarray:
        """End the tracks of full length; returns the valid ones as arrays of `track_dtype`."""
        one = self.parameters
        done = np.count_nonzero(self.ages[self.order[: self.count]] == one.track_length)
        if not done:
            return np.zeros(0, self.dtype)
        numbers = np.empty((done, 6), np.float32)
        paths = np.empty((done, 2 * one.track_length), np.float32)
        sums = np.empty((done, *self.sums.shape[1:]), np.float32)
        limits = [one.min_deviation, one.max_deviation, one.max_step, one.camera_step]
        self.count, valid = kernels.finish(
            self.order,
            self.count,
            self.ages,
            self.points,
            self.moves,
            self.sums,
            self.scale,
            np.array(limits, np.float32),
            numbers,
            paths,
            sums,
        )
        tracks = np.zeros(valid, self.dtype)
        if not valid:
            return tracks
        tracks["frame"], tracks["scale"] = index, self.scale
        tracks["mean"], tracks["deviation"] = numbers[:valid, 0:2], numbers[:valid, 2:4]
        tracks["length"], tracks["travel"] = numbers[:valid, 4], numbers[:valid, 5]
        tracks["trajectory"] = paths[:valid]
        means = sums[:valid] / np.float32(one.track_length // one.time_cells)
        first = 0
        for name, bins in self.bins.items():
            lanes = kernels.whole_lanes(bins)
            last = first + one.cells**2 * lanes
            cells = means[..., first:last].reshape(valid, one.time_cells, one.cells**2, lanes)
            tracks[name] = cells[..., :bins].reshape(valid, one.widths[name])
            first = last
        return tracks

    def _reserve(self, slots: int) -> None:
        """Have at least so many slots, half as many again where there are too few."""
        there = len(self.order)
        if slots <= there:
            return
        more = slots + slots // 2 - there
        self.order = np.append(self.order, np.arange(there, there + more, dtype=np.int32))
        self.ages = np.append(self.ages, np.zeros(more, np.int32))
        for name in ("points", "moves", "sums"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((more, *old.shape[1:]), old.dtype)]))
