"""Farneback's method for a batch of pairs, as a sequence of kernels that needs no word back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flowkit.flow.cuda import farneback_kernels, images
from flowkit.flow.cuda.batches import frame_capacity
from flowkit.flow.cuda.images import BLOCK, Flow, Frames, Level, blocks_of, pitch_of

if TYPE_CHECKING:
    from flowkit.flow.cuda.device import Queue
    from flowkit.flow.parameters import FarnebackParameters

SOURCE = images.SOURCE + farneback_kernels.SOURCE
SMALLEST_SIDE = 32  # px: OpenCV makes no level with a shorter side
PYR_DOWN = np.array([6, 4, 1], np.float32) / 16  # weights from the center outward


def pyramid(method: FarnebackParameters, height: int, width: int) -> list[Level]:
    """The levels, finest first."""
    levels, scale = [Level(height, width)], 1.0
    while len(levels) <= method.levels:
        scale *= method.pyr_scale
        if min(height, width) * scale < SMALLEST_SIDE:
            break
        last = levels[-1]
        if method.fast_pyramids:
            half = (last.height + 1) // 2, (last.width + 1) // 2
            levels.append(Level(*half, last.offset + last.plane, scale))
        else:
            levels.append(Level(round(height * scale), round(width * scale), 0, scale))
    return levels


def half_gaussian(radius: int, sigma: float) -> np.ndarray:
    """Weights of the center and outward, float32; all of them, both sides counted, sum to 1."""
    weights = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    return (weights / (2 * weights.sum() - 1)).astype(np.float32)


def presmoothing(scale: float) -> np.ndarray:
    """The blur before a level is made from the full frame."""
    sigma = (1 / scale - 1) / 2
    radius = max(round(sigma * 5) | 1, 3) // 2
    if sigma == 0:
        return np.array([0.5, 0.25], np.float32)
    return half_gaussian(radius, sigma)


def window(size: int, gaussian: bool) -> np.ndarray:
    """The averaging window in one direction: box or Gaussian."""
    radius = size // 2
    if gaussian and radius > 0:
        return half_gaussian(radius, radius * 0.3)
    return np.full(radius + 1, 1 / size, np.float32)


def expansion_weights(n: int, sigma: float) -> tuple[np.ndarray, tuple[float, ...]]:
    """The applicability g(0..n), and the four entries of the inverse normal matrix in use."""
    g = half_gaussian(n, sigma if sigma > np.finfo(np.float32).eps else n * 0.3)
    x = np.arange(-n, n + 1)
    full = np.float64(g[np.abs(x)])
    weight = np.outer(full, full)
    across, down = np.meshgrid(x, x)
    basis = np.stack([across**0, across, down, across**2, down**2, across * down])
    inverse = np.linalg.inv(np.einsum("iyx,jyx,yx->ij", basis, basis, weight))
    return g, tuple(float(inverse[at]) for at in ((1, 1), (0, 3), (3, 3), (5, 5)))


class FarnebackBatch:
    """Memory on a device for up to `pairs` pairs of frames of one size, and the way through it."""

    bytes_a_px = 140  # bytes of memory per pixel of a pair, results included

    def __init__(
        self, queue: Queue, method: FarnebackParameters, size: tuple[int, int], pairs: int
    ) -> None:
        self.queue, self.method, self.size, self.capacity = queue, method, size, pairs
        self.levels = pyramid(method, *size)
        self.plane = size[0] * pitch_of(size[1])
        frames = frame_capacity(pairs)
        self.image_stride = sum(level.plane for level in self.levels if level.offset) + self.plane
        self.frames = Frames(queue, size, pairs, capacity=frames, stride=self.image_stride)
        self.halfway, self.smoothed, self.shrunk = (
            queue.empty((frames, self.plane), "float32") for _ in range(3)
        )
        self.sums = queue.empty((frames, 3, self.plane), "float32")
        self.expansion = queue.empty((frames, 5, self.plane), "float32")
        self.flow = queue.empty((pairs, 2, self.plane), "float32")
        self.coarser_flow = queue.empty((pairs, 2, self.plane), "float32")
        self.matrices, self.averaged = (
            queue.empty((pairs, 5, self.plane), "float32") for _ in range(2)
        )
        g, self.inverse = expansion_weights(method.poly_n, method.poly_sigma)
        self.g = self._upload(g)
        self.window = self._upload(window(method.win_size, method.gaussian))
        self.smoothing = [
            self._upload(PYR_DOWN if method.fast_pyramids else presmoothing(level.scale))
            for level in self.levels
        ]

    def solve(self, frames: list[np.ndarray], frame_of: np.ndarray) -> Flow:
        """Compute the flow of the pairs that `frame_of`, int32 (N, 2), makes of gray frames."""
        queue, count = self.queue, len(frame_of)
        self.frames.write(frames, frame_of)
        if self.method.fast_pyramids:
            self._halve(len(frames))
        self.flow = queue.zeros((self.capacity, 2, self.plane), "float32")
        coarser: Level | None = None
        for number, level in reversed(list(enumerate(self.levels))):
            if self.method.fast_pyramids:
                self._expand(self.frames.at(level), self.image_stride, level, len(frames))
            else:
                self._shrink(number, len(frames))
                self._expand(self.shrunk, self.plane, level, len(frames))
            if coarser:
                self._enlarge(coarser, level, count)
            for _ in range(self.method.iterations):
                self._iterate(level, count)
            coarser = level
        return Flow(self.flow, self.size, self.plane)

    def _upload(self, weights: np.ndarray) -> Any:
        array = self.queue.empty(weights.shape, "float32")
        self.queue.write(array, weights)
        return array

    def _blur(self, images: Any, level: Level, number: int, frames: int) -> None:
        """Planes of the images, smoothed, to `smoothed`."""
        weights = self.smoothing[number]
        grid = blocks_of(level.height, level.width, frames)
        for source, stride, target, vertical in (
            (images, self.image_stride, self.halfway, 0),
            (self.halfway, self.plane, self.smoothed, 1),
        ):
            self.queue.launch(
                "blur_image", grid, BLOCK, source, target, stride, self.plane,
                level.height, level.width, level.pitch, weights, len(weights) - 1, vertical,
            )  # fmt: skip

    def _halve(self, frames: int) -> None:
        """All levels of every frame, each from the one before."""
        for number, (source, level) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            self._blur(self.frames.at(source), source, number, frames)
            self.queue.launch(
                "take_half", blocks_of(level.height, level.width, frames), BLOCK,
                self.smoothed, self.frames.at(level), self.plane, self.image_stride,
                source.pitch, level.height, level.width, level.pitch,
            )  # fmt: skip

    def _shrink(self, number: int, frames: int) -> None:
        """Level `number` of every frame, smoothed and resized from the full one, to `shrunk`."""
        finest, level = self.levels[0], self.levels[number]
        self._blur(self.frames.images, finest, number, frames)
        self.queue.launch(
            "resize_planes", blocks_of(level.height, level.width, frames), BLOCK,
            self.smoothed, self.plane, finest.height, finest.width, finest.pitch,
            self.shrunk, self.plane, level.height, level.width, level.pitch,
            finest.height / level.height, finest.width / level.width, 1.0, 0,
        )  # fmt: skip

    def _expand(self, images: Any, stride: int, level: Level, frames: int) -> None:
        """The polynomial expansion of a level of every frame."""
        grid = blocks_of(level.height, level.width, frames)
        size = level.height, level.width, level.pitch
        self.queue.launch(
            "expand_columns", grid, BLOCK,
            images, self.sums, stride, self.plane, *size, self.g, self.method.poly_n,
        )  # fmt: skip
        self.queue.launch(
            "expand_rows", grid, BLOCK,
            self.sums, self.expansion, self.plane, *size, self.g, self.method.poly_n, *self.inverse,
        )  # fmt: skip

    def _enlarge(self, coarser: Level, level: Level, count: int) -> None:
        """The flow of the coarser level as the start of this one."""
        self.flow, self.coarser_flow = self.coarser_flow, self.flow
        self.queue.launch(
            "resize_planes", blocks_of(level.height, level.width, 2 * count), BLOCK,
            self.coarser_flow, self.plane, coarser.height, coarser.width, coarser.pitch,
            self.flow, self.plane, level.height, level.width, level.pitch,
            coarser.height / level.height, coarser.width / level.width,
            1 / self.method.pyr_scale, 0,
        )  # fmt: skip

    def _iterate(self, level: Level, count: int) -> None:
        """Equations at the present flow, averaged over the window, solved."""
        size = level.height, level.width, level.pitch
        radius = self.method.win_size // 2
        grid = blocks_of(level.height, level.width, count)
        self.queue.launch(
            "update_matrices", grid, BLOCK,
            self.expansion, self.frames.pairs, self.flow, self.plane, self.matrices, self.plane,
            *size,
        )  # fmt: skip
        self.queue.launch(
            "average_columns", blocks_of(level.height, level.width, 5 * count), BLOCK,
            self.matrices, self.averaged, self.plane, *size, self.window, radius,
        )  # fmt: skip
        self.queue.launch(
            "average_rows_and_solve", grid, BLOCK,
            self.averaged, self.flow, self.plane, self.plane, *size, self.window, radius,
        )  # fmt: skip
