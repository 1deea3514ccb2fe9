"""TV-L1 optical flow on the CPU: OpenCV's algorithm and answer in flowkit's own compiled loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.errors import UsageError
from flowkit.flow.method import check_parameters, parameter
from flowkit.flow.pairs import Pair, check_pair, consecutive
from flowkit.flow.parameters import TVL1_PRESETS, MedianTVL1Parameters

if TYPE_CHECKING:
    import numpy as np

    from flowkit.flow.tvl1_kernels import Room

SMALLEST_SIDE = 16  # px: OpenCV drops a level of the pyramid with a shorter side
COMPILE_SECONDS = 6  # measured on one core


@dataclass(frozen=True)
class TVL1(MedianTVL1Parameters):
    """TV-L1 as ``cv2.optflow.DualTVL1OpticalFlow`` computes it, parameters and defaults included.

    Zach, Pock and Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow" (2007),
    doi 10.1007/978-3-540-74936-3_22, minimize over the field u

        E(u) = sum |grad u_x| + |grad u_y| + lambda |rho(u)|,
        rho(u) = I1(x + u0) + <grad I1(x + u0), u - u0> - I0,

    the data term being linear around the present field u0. With a second field v, tied to u by
    |u - v|^2 / (2 theta), the minimum is found in turns: v for a fixed u in one step a pixel along
    grad I1, of -rho / |grad I1|^2 cut at +-lambda theta; u for a fixed v as v + theta div p, where
    the dual field p is Chambolle's fixed point iteration of time step tau / theta. This runs from
    coarse to fine over a pyramid, `warps` times a scale with I1 sampled again at x + u.

    As OpenCV does it, and the paper does not: one dual step a primal step; p starts at 0 once a
    scale and is kept across its warps; a `median_filtering` median of u before each of
    `outer_iterations` x `inner_iterations`; a warp ends early once the squared change of u is, on
    average, at most epsilon^2; no smoothing before the pyramid of step `scale_step`, whose levels
    have no side under 16 px; images and their gradients (half of right minus left, at an edge too,
    where one of them is the pixel itself) sampled bicubically (A = -0.75) and 0 outside the frame.

    As here and not in OpenCV: sums are taken in another order and -1 / |grad|^2 once a warp. Where
    |grad|^2 is under 1.2e-7 (gray levels/px)^2, the step is not 0 but at most lambda theta |grad|,
    below 2e-5 px. Several iterations are done at once where the change foretells that they will be
    needed; where it falls much faster than it did, a warp so does up to three more. `gamma`,
    OpenCV's illumination term, must be 0.

    Equal parameters make equal methods; a method holds no state and can be pickled.
    """

    name: ClassVar[str] = "tvl1"
    presets: ClassVar[dict[str, dict[str, Any]]] = TVL1_PRESETS

    gamma: float = parameter(0.0, "Weight of the illumination term; 0 leaves it out.", at_least=0)

    def __post_init__(self) -> None:
        check_parameters(self)
        if not self.scale_step < 1:
            raise UsageError(f"tvl1: expected scale_step below 1, got {self.scale_step}")
        if self.gamma != 0:
            raise UsageError(f"tvl1: expected gamma 0, got {self.gamma}: tvl1-opencv takes others")
        if self.median_filtering not in (1, 5):
            raise UsageError(
                f"tvl1: expected median_filtering 5 or 1, got {self.median_filtering}: "
                "tvl1-opencv takes others"
            )

    def prepare(self) -> None:
        """Compile, or load from disk, what it runs: once in a parent, before its workers start."""
        warm_up()

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px.

        A pair whose first frame is the very array that was second before reuses its pyramid: do not
        write into a frame that is still to be first. Several threads may each run an
        iterator: the GIL is free while a field is computed.
        """
        solve_scale = _compiled()
        workspace = None
        latest: np.ndarray | None = None
        latest_levels: list[np.ndarray] = []
        for first, second in pairs:
            check_pair(first, second)
            levels0 = latest_levels if first is latest else self._pyramid(first)
            latest, latest_levels = second, self._pyramid(second)
            if workspace is None or workspace.size != first.shape:
                workspace = _Workspace(*first.shape)
            yield self._field(levels0, latest_levels, workspace, solve_scale)

    def _pyramid(self, frame: np.ndarray) -> list[np.ndarray]:
        """The frame and its smaller versions, float32, finest first."""
        import numpy as np

        from flowkit._cv2 import cv2

        levels = [frame.astype(np.float32, order="C")]
        while len(levels) < self.nscales:
            level = cv2.resize(levels[-1], None, fx=self.scale_step, fy=self.scale_step)
            if min(level.shape) < SMALLEST_SIDE:
                break
            levels.append(level)
        return levels

    def _field(
        self,
        levels0: list[np.ndarray],
        levels1: list[np.ndarray],
        workspace: _Workspace,
        solve_scale: Callable[..., int],
    ) -> np.ndarray:
        import numpy as np

        from flowkit._cv2 import cv2
        from flowkit.flow.tvl1_kernels import Numbers

        u = np.zeros_like(levels0[-1])
        v = np.zeros_like(levels0[-1])
        for image0, image1 in zip(reversed(levels0), reversed(levels1), strict=True):
            height, width = image0.shape
            if u.shape != image0.shape:
                u = cv2.resize(u, (width, height)) * np.float32(1 / self.scale_step)
                v = cv2.resize(v, (width, height)) * np.float32(1 / self.scale_step)
            solve_scale(
                image0,
                image1,
                u,
                v,
                workspace.at(height, width),
                Numbers(
                    theta=np.float32(self.theta),
                    limit=np.float32(self.lambda_ * self.theta),
                    taut=np.float32(self.tau / self.theta),
                    stop=np.float32(self.epsilon**2 * image0.size),
                    warps=self.warps,
                    outer_iterations=self.outer_iterations,
                    inner_iterations=self.inner_iterations,
                    median=self.median_filtering,
                ),
            )
        return cv2.merge([u, v])  # (H, W), (H, W) -> (H, W, 2)


def warm_up() -> None:
    """Compile, or load from disk, what `TVL1` runs: once in a parent, before its workers start."""
    _compiled()


def _compiled() -> Callable[..., int]:
    """`solve_scale`, compiled or read from disk on the first call in a process."""
    from flowkit.flow import tvl1_kernels as kernels
    from flowkit.flow.compiled import ensure_compiled

    solve_scale = kernels.solve_scale
    ensure_compiled(solve_scale, kernels.SIGNATURE, title="TV-L1", seconds=COMPILE_SECONDS)
    return solve_scale


class _Workspace:
    """Memory for frames of one size, shared by all scales of all their pairs."""

    def __init__(self, height: int, width: int) -> None:
        import numpy as np

        from flowkit.flow import tvl1_kernels as kernels
        from flowkit.flow.lanes import LINE, from_line

        def zeros(count: int) -> np.ndarray:
            return from_line(np.zeros(count + LINE, np.float32))

        self.size = (height, width)
        self._kernels = kernels
        rows, columns = kernels.plane_shape(height, width)
        border = 2 * kernels.BORDER
        self._planes = zeros(kernels.PLANES * (rows + 1) * columns)
        self._samples = zeros((height + border) * (width + border) * 4)
        self._rows = zeros(kernels.ROWS * columns)
        self._starts = np.zeros(columns, np.int32)

    def at(self, height: int, width: int) -> Room:
        """What `solve_scale` works in on a scale of this size."""
        rows, columns = self._kernels.plane_shape(height, width)
        border = 2 * self._kernels.BORDER

        def view(flat: np.ndarray, *shape: int) -> np.ndarray:
            return flat[: math.prod(shape)].reshape(shape)

        return self._kernels.Room(
            planes=view(self._planes, self._kernels.PLANES, rows, columns),
            samples=view(self._samples, height + border, width + border, 4),
            rows=view(self._rows, self._kernels.ROWS, columns),
            starts=self._starts[:columns],
        )
