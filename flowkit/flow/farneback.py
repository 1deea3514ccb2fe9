"""Farneback's optical flow on the CPU: OpenCV's answer, bit for bit, in flowkit's own loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.errors import UsageError
from flowkit.flow.method import check_parameters
from flowkit.flow.pairs import Pair, check_pair, consecutive
from flowkit.flow.parameters import FarnebackParameters

if TYPE_CHECKING:
    import numpy as np

SMALLEST_SIDE = 32  # px: OpenCV makes no smaller version of the frame with a shorter side
# Weights of the outer five pixels, outermost first
EDGE_WEIGHTS = (0.14, 0.14, 0.4472, 0.4472, 0.4472)
SMALLEST_SIGMA = 1.1920929e-07  # FLT_EPSILON: below it OpenCV chooses the expansion's sigma
EXPAND_SECONDS, SOLVE_SECONDS = 2, 6  # seconds to compile, measured on one core


@dataclass(frozen=True)
class Farneback(FarnebackParameters):
    """Farneback's method as ``cv2.FarnebackOpticalFlow`` computes it, parameters and defaults.

    Farnebäck, "Two-Frame Motion Estimation Based on Polynomial Expansion" (SCIA 2003),
    doi 10.1007/3-540-45103-X_50, fits x'Ax + b'x + c to the pixels around each pixel of a frame,
    weighted by a Gaussian of `poly_sigma`. A shift by d between the frames changes b by -2 A d; of
    this, with A averaged over the two frames, b2 taken at x + d for the present d, and the
    equations averaged over a window, d is the least-squares solution, `iterations` times a level.

    As OpenCV does it, and the paper does not: `levels` is the number of smaller versions of the
    frame beside the frame itself, none of them with a side under 32 px, each made from the full
    frame by a Gaussian and a bilinear resize, the frame itself smoothed by [1 2 1] / 4; `poly_n`
    is the radius of the expansion, so that 5 means 11 x 11 pixels; the window of an even
    `win_size` is a pixel wider; 1e-3 is added to the determinant; the outer five pixels weigh less.

    The field equals OpenCV's to the last bit where OpenCV computes without fused multiply-add, as
    its own builds for x86-64 do. `fast_pyramids`, which OpenCV ignores on the CPU, must be off.

    Equal parameters make equal methods; a method holds no state and can be pickled.
    """

    name: ClassVar[str] = "farneback"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        check_parameters(self)
        if not self.pyr_scale < 1:
            raise UsageError(f"farneback: expected pyr_scale below 1, got {self.pyr_scale}")
        if self.poly_n not in (5, 7):
            raise UsageError(
                f"farneback: expected poly_n 5 or 7, got {self.poly_n}: "
                "farneback-opencv takes others"
            )
        if self.fast_pyramids:
            raise UsageError(
                "farneback: expected no fast_pyramids: farneback-opencv takes them, "
                "though OpenCV ignores them on the CPU"
            )

    def prepare(self) -> None:
        """Compile, or load from disk, what it runs: once in a parent, before its workers start."""
        warm_up()

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px.

        A pair whose first frame is the very array that was second before reuses its expansions: do
        not write into a frame that is still to be first. Several threads may each run an iterator:
        the GIL is free while a field is computed.
        """
        weights = expansion_weights(self.poly_n, self.poly_sigma)
        window = gaussian_window(self.win_size) if self.gaussian else _no_window()
        latest: np.ndarray | None = None
        latest_levels: list[np.ndarray] = []
        for first, second in pairs:
            check_pair(first, second)
            sizes = self._sizes(*first.shape)
            if first is not latest:
                latest_levels = expand_levels(first, sizes, *weights)
            levels0 = latest_levels
            latest = second
            latest_levels = expand_levels(second, sizes, *weights)
            yield solve_levels(
                levels0,
                latest_levels,
                sizes,
                growth=1 / self.pyr_scale,
                win_size=self.win_size,
                window=window,
                iterations=self.iterations,
            )

    def _sizes(self, height: int, width: int) -> list[tuple[int, int, float]]:
        """Height, width and scale of the frame and its smaller versions, finest first."""
        sizes = [(height, width, 1.0)]
        while len(sizes) <= self.levels:
            scale = sizes[-1][2] * self.pyr_scale
            if min(height, width) * scale < SMALLEST_SIDE:
                break
            sizes.append((round(height * scale), round(width * scale), scale))
        return sizes


def expand_levels(
    frame: np.ndarray,
    sizes: Sequence[tuple[int, int, float]],
    weights: np.ndarray,
    inverse: np.ndarray,
) -> list[np.ndarray]:
    """The polynomial expansion of a gray frame at each size: float32 (h, PLANES, columns).

    `sizes` are height, width and scale (1 for the frame itself), `weights` and `inverse` those of
    `expansion_weights`.
    """
    import numpy as np

    from flowkit._cv2 import cv2
    from flowkit.flow import farneback_kernels as kernels

    expand, _ = _compiled()
    image = frame.astype(np.float32, order="C")
    expansions = []
    for height, width, scale in sizes:
        sigma = (1 / scale - 1) / 2
        side = max(round(5 * sigma) | 1, 3)
        smooth = cv2.GaussianBlur(image, (side, side), sigma, sigmaY=sigma)
        small = cv2.resize(smooth, (width, height))
        columns = kernels.columns(width)
        level = _room(height, columns)
        level[:, :width], level[:, width:] = small, 0
        planes = _room(height, kernels.PLANES, columns)
        expand(level, width, weights, inverse, False, planes)
        expansions.append(planes)
    return expansions


def solve_levels(
    levels0: Sequence[np.ndarray],
    levels1: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int, float]],
    *,
    growth: float,
    win_size: int,
    window: np.ndarray,
    iterations: int,
) -> np.ndarray:
    """The field at the finest size: float32 (H, W, 2), px.

    `levels0` and `levels1` are the expansions of the two frames, `growth` is how much larger a
    level is than the coarser one, whose field it starts from.
    """
    import numpy as np

    from flowkit._cv2 import cv2

    _, solve_level = _compiled()
    field = np.zeros((1, 1, 2), np.float32)
    for first, second, (height, width, _) in zip(
        reversed(levels0), reversed(levels1), reversed(sizes), strict=True
    ):
        columns = first.shape[2]
        flow = _room(2, height, columns)
        flow[:, :, width:] = 0
        larger = cv2.resize(field, (width, height)) * np.float32(growth)
        flow[0, :, :width], flow[1, :, :width] = cv2.split(larger)
        edges = edge_weights(height, width, columns)
        solve_level(flow, first, second, width, edges, win_size, window, iterations)
        field = cv2.merge([flow[0, :, :width], flow[1, :, :width]])  # -> (H, W, 2)
    return field


def _room(*shape: int) -> np.ndarray:
    """An array, float32, that begins with a line of the cache; its values are any."""
    import numpy as np

    from flowkit.flow.lanes import LINE, from_line

    return from_line(np.empty(math.prod(shape) + LINE, np.float32)).reshape(shape)


def warm_up() -> None:
    """Compile, or load from disk, what `Farneback` runs: once in a parent, before its workers."""
    _compiled()


def _compiled() -> tuple[Callable[..., None], Callable[..., None]]:
    """`expand` and `solve_level`, compiled or read from disk on the first call in a process."""
    from flowkit.flow import farneback_kernels as kernels
    from flowkit.flow.compiled import ensure_compiled

    ensure_compiled(
        kernels.expand, kernels.EXPAND, title="Farneback's expansion", seconds=EXPAND_SECONDS
    )
    ensure_compiled(
        kernels.solve_level,
        kernels.SOLVE_LEVEL,
        title="Farneback's iterations",
        seconds=SOLVE_SECONDS,
    )
    return kernels.expand, kernels.solve_level


# --- weights, in OpenCV's order and precision ---


@lru_cache(maxsize=8)
def expansion_weights(radius: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the expansion: float32 (3, radius + 1) and float64 (4,), as `expand` takes them.

    The metric's elements are sums of the weights times 1, x^2, x^4 and x^2 y^2, each product in
    float32 and the sums, in OpenCV's order, in float64.
    """
    import numpy as np

    from flowkit._cv2 import cv2

    if sigma < SMALLEST_SIGMA:
        sigma = 0.3 * radius
    x = np.arange(-radius, radius + 1, dtype=np.float32)
    bell = [math.exp(-k * k / (2 * sigma * sigma)) for k in range(-radius, radius + 1)]
    g = np.array(bell, np.float32)
    g = (g * np.float64(1 / _ordered_sum(g))).astype(np.float32)
    xg, xxg = x * g, x * x * g

    both = np.outer(g, g)  # [y, x]
    moment2 = both * x * x
    metric = np.zeros((6, 6))
    metric[0, 0] = _ordered_sum(both)
    for i, j in [(1, 1), (2, 2), (0, 3), (0, 4), (3, 0), (4, 0)]:
        metric[i, j] = _ordered_sum(moment2)
    metric[3, 3] = metric[4, 4] = _ordered_sum(moment2 * x * x)
    y = x[:, None]
    metric[5, 5] = metric[3, 4] = metric[4, 3] = _ordered_sum(moment2 * y * y)
    inverse = cv2.invert(metric, flags=cv2.DECOMP_CHOLESKY)[1]
    elements = [inverse[1, 1], inverse[0, 3], inverse[3, 3], inverse[5, 5]]
    return np.stack([g[radius:], xg[radius:], xxg[radius:]]), np.array(elements)


def _ordered_sum(values: np.ndarray) -> float:
    """The sum in float64, one value after the other: NumPy's own sum takes them in pairs."""
    import numpy as np

    return float(np.cumsum(values, dtype=np.float64)[-1])


@lru_cache(maxsize=8)
def gaussian_window(win_size: int) -> np.ndarray:
    """The Gaussian window from its center outward, float32; its sigma is 0.3 of its radius."""
    import numpy as np

    sigma = 0.3 * (win_size // 2)
    outward = [math.exp(-k * k / (2 * sigma * sigma)) for k in range(1, win_size // 2 + 1)]
    kernel = np.array([1, *outward], np.float32)
    total = 1.0
    for weight in kernel[1:]:
        total += float(weight) * 2
    return (kernel * np.float64(1 / total)).astype(np.float32)


def _no_window() -> np.ndarray:
    import numpy as np

    return np.zeros(0, np.float32)


@lru_cache(maxsize=64)  # levels of a few videos: they are the same for every pair
@lru_cache(maxsize=32)
def edge_weights(height: int, width: int, columns: int) -> np.ndarray:
    """The weights of the pixels, float32 (min(height, 11), columns), one row for all inner ones.

    Within a side under 10 px, where OpenCV's unsigned numbers wrap around, some pixels count as
    inner ones that are none.
    """
    import numpy as np

    def along(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        near, far = np.ones(side, np.float32), np.ones(side, np.float32)
        outer = min(side, len(EDGE_WEIGHTS))
        near[:outer] = EDGE_WEIGHTS[:outer]
        far[side - outer :] = EDGE_WEIGHTS[:outer][::-1]
        place = np.arange(side, dtype=np.int64) - len(EDGE_WEIGHTS)
        inner = place % 2**32 < (side - 2 * len(EDGE_WEIGHTS)) % 2**32
        return near, far, inner

    left, right, inner_x = along(width)
    top, bottom, inner_y = along(min(height, 11))
    weights = np.ones((len(top), columns), np.float32)
    weights[:, :width] = left * right * top[:, None] * bottom[:, None]
    weights[:, :width][inner_y[:, None] & inner_x] = 1
    return weights
