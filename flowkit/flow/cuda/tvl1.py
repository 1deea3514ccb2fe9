"""TV-L1 of a batch of pairs as a sequence of kernels; the host looks at the device once a round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowkit.flow.cuda import images, tvl1_kernels
from flowkit.flow.cuda.batches import frame_capacity
from flowkit.flow.cuda.images import BLOCK, Flow, Frames, Level, blocks_of
from flowkit.flow.cuda.tvl1_kernels import (
    BORDER,
    DECLARED_BYTES,
    HALO,
    STAGING_BYTES,
    STATE_INTS,
    STEP,
    THREADS,
)

if TYPE_CHECKING:
    import numpy as np

    from flowkit.flow.cuda.device import Queue, Reading
    from flowkit.flow.parameters import CudaTVL1Parameters

SOURCE = images.SOURCE + tvl1_kernels.SOURCE
SMALLEST_SIDE = 16  # px: OpenCV drops a level of the pyramid with a shorter side
LISTS = 3  # lists of the pairs at work: one is read, one is written, one is emptied
LIST_HEAD = 3  # ints before the entries of a list
MEDIAN_BLOCKS = 4  # blocks of `begin_round` that fit a multiprocessor
FLAT_PASSES = 5  # passes between two looks where no median divides the iterations


@dataclass(frozen=True)
class Launches:
    """The kernels of one scale that are launched again and again, by the list whose turn it is."""

    begin_round: list[Callable[[], None]]
    iterate: list[Callable[[], None]]


def pyramid(method: CudaTVL1Parameters, height: int, width: int) -> list[Level]:
    """The scales, finest first."""
    levels = [Level(height, width)]
    while len(levels) < method.nscales:
        last = levels[-1]
        size = round(last.height * method.scale_step), round(last.width * method.scale_step)
        if min(size) < SMALLEST_SIDE:
            break
        levels.append(Level(*size, last.offset + last.plane))
    return levels


def tiles_of(level: Level) -> tuple[int, int]:
    """Tiles along x and y; the first and the last need no halo at the edge of the frame."""
    columns, rows = (max(1, -(-(side - 2 * HALO) // STEP)) for side in (level.width, level.height))
    return columns, rows


class TVL1Batch:
    """Memory on a device for up to `pairs` pairs of frames of one size, and the way through it."""

    bytes_a_px = 120  # bytes of memory per pixel of a pair, results included

    def __init__(
        self, queue: Queue, method: CudaTVL1Parameters, size: tuple[int, int], pairs: int
    ) -> None:
        self.queue, self.method, self.size, self.capacity = queue, method, size, pairs
        self.levels = pyramid(method, *size)
        finest = self.levels[0]
        self.plane = finest.plane
        self.frame_stride = sum(level.plane for level in self.levels)
        self.sample_stride = (finest.height + 2 * BORDER) * (finest.width + 2 * BORDER)
        self.frames = Frames(
            queue, size, pairs, capacity=frame_capacity(pairs), stride=self.frame_stride
        )
        self.samples = queue.empty((frame_capacity(pairs), self.sample_stride, 4), "float32")
        self.flow = queue.empty((2, pairs, 2, self.plane), "float32")
        self.dual = queue.empty((2, pairs, 4, self.plane), "float32")
        self.data = queue.empty((pairs, 3, self.plane), "float32")
        self.states = queue.empty((pairs, STATE_INTS), "int32")
        tiles = max(math.prod(tiles_of(level)) for level in self.levels)
        self.partial = queue.empty((pairs, tiles, HALO), "float32")
        self.finished = queue.empty((1,), "int32")
        self.look = queue.watch(self.finished)
        self.list_ints = LIST_HEAD + 2 * pairs
        self.lists = queue.empty((LISTS, self.list_ints), "int32")
        self.launches = {level: self._prepare(level) for level in self.levels}

    def solve(self, frames: list[np.ndarray], frame_of: np.ndarray) -> Flow:
        """Compute the flow of the pairs that `frame_of`, int32 (N, 2), makes of gray frames."""
        queue, count = self.queue, len(frame_of)
        self.frames.write(frames, frame_of)
        queue.clear(self.states)
        queue.clear(self.finished)
        self.warps_begun = 0
        self._build_pyramids(len(frames))
        coarser = None
        for level in reversed(self.levels):
            self._enter(level, coarser, len(frames), count)
            for _ in range(self.method.warps):
                self._warp(level, count)
            coarser = level
        return Flow(
            self.flow, self.size, self.plane,
            buffer=self.flow_buffer, which=self.states, which_stride=STATE_INTS,
        )  # fmt: skip

    @property
    def flow_buffer(self) -> int:
        return self.capacity * 2 * self.plane

    @property
    def dual_buffer(self) -> int:
        return self.capacity * 4 * self.plane

    def _build_pyramids(self, frames: int) -> None:
        scale = 1 / self.method.scale_step
        for source, level in zip(self.levels, self.levels[1:], strict=False):
            self.queue.launch(
                "resize_planes", blocks_of(level.height, level.width, frames), BLOCK,
                self.frames.at(source), self.frame_stride,
                source.height, source.width, source.pitch,
                self.frames.at(level), self.frame_stride,
                level.height, level.width, level.pitch,
                scale, scale, 1.0, self.method.like_opencv_cuda,
            )  # fmt: skip

    def _enter(self, level: Level, coarser: Level | None, frames: int, count: int) -> None:
        """The gradients of a scale, its first u and v, and a dual field of zeros."""
        self.queue.launch(
            "gradients",
            blocks_of(level.height + 2 * BORDER, level.width + 2 * BORDER, frames), BLOCK,
            self.frames.at(level), self.frame_stride, self.samples, self.sample_stride,
            level.height, level.width, level.pitch,
        )  # fmt: skip
        h0, w0, pitch0 = (coarser.height, coarser.width, coarser.pitch) if coarser else (0, 0, 0)
        self.queue.launch(
            "enter_scale", blocks_of(level.height, level.width, count), BLOCK,
            self.flow, self.dual, self.states, self.flow_buffer, self.dual_buffer, self.plane,
            h0, w0, pitch0, level.height, level.width, level.pitch,
            h0 / level.height, w0 / level.width, 1 / self.method.scale_step,
            self.method.like_opencv_cuda,
        )  # fmt: skip

    def _warp(self, level: Level, count: int) -> None:
        """One warp of every pair: rounds of a median and passes, until all pairs have ended."""
        method, launches = self.method, self.launches[level]
        cuda_rule = method.like_opencv_cuda
        inner, outer = method.inner_iterations, method.outer_iterations
        median = method.median_filtering == 5
        if median:
            rounds, passes = outer, -(-inner // HALO) + 1  # one more repeats a part of the last
        else:
            inner, outer = inner * outer, 0
            passes = FLAT_PASSES
            rounds = -(-(-(-inner // HALO) + 1) // passes)
        self.queue.launch(
            "linearize", blocks_of(level.height, level.width, count), BLOCK,
            self.frames.at(level), self.frame_stride, self.samples, self.sample_stride,
            self.frames.pairs, self.flow, self.flow_buffer, self.plane, self.data, self.states,
            self.lists, self.list_ints, level.height, level.width, level.pitch,
            -0.5 if cuda_rule else -0.75, cuda_rule, 0 if median else inner, outer,
        )  # fmt: skip
        self.warps_begun += 1
        former: Reading | None = None
        turn = 0
        for _ in range(rounds):
            if median:
                launches.begin_round[turn]()
                turn = (turn + 1) % LISTS
            for _ in range(passes):
                launches.iterate[turn]()
                turn = (turn + 1) % LISTS
            latest = self.look()
            # The answer is read a round late, so that the device always has a round to work on.
            if former is not None and former()[0] == self.warps_begun * count:
                break
            former = latest

    def _prepare(self, level: Level) -> Launches:
        """Both kernels go through the pairs of a list, so that no launch depends on a batch."""
        method, prepare, processors = self.method, self.queue.prepare, self.queue.processors
        columns, rows = -(-level.width // 64), -(-level.height // 16)
        parts = min(2 * columns * rows * self.capacity, MEDIAN_BLOCKS * processors)
        tiles = min(math.prod(tiles_of(level)) * self.capacity, processors)
        stop = method.epsilon**2 * level.height * level.width
        staged = self.queue.shared_bytes >= DECLARED_BYTES + STAGING_BYTES
        return Launches(
            begin_round=[
                prepare(
                    "begin_round", (parts, 1, 1), (256, 1, 1),
                    self.flow, self.states, self.lists, self.list_ints, turn,
                    self.flow_buffer, self.plane, level.height, level.width, level.pitch,
                    columns, rows, method.inner_iterations,
                )
                for turn in range(LISTS)
            ],
            iterate=[
                prepare(
                    "iterate", (tiles, 1, 1), (THREADS, 1, 1),
                    self.flow, self.dual, self.data, self.states, self.partial, self.finished,
                    self.lists, self.list_ints, turn,
                    self.flow_buffer, self.dual_buffer, self.plane,
                    level.height, level.width, level.pitch, *tiles_of(level),
                    method.theta, method.lambda_ * method.theta, method.tau / method.theta, stop,
                    method.like_opencv_cuda, staged, shared=STAGING_BYTES if staged else 0,
                )
                for turn in range(LISTS)
            ],
        )  # fmt: skip

    def work(self, count: int) -> np.ndarray:
        """Pixels times iterations of each pair, int64 (count,), over all its warps and scales."""
        return self.queue.read(self.states)()[:count, 10:12].copy().view("int64")[:, 0]
