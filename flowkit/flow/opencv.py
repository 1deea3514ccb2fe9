"""OpenCV's flow methods on the CPU, with OpenCV's parameters and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.errors import FlowkitError, UsageError
from flowkit.flow.method import check_parameters, parameter
from flowkit.flow.pairs import Pair, check_pair, consecutive
from flowkit.flow.parameters import FarnebackParameters, MedianTVL1Parameters

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class OpenCVTVL1(MedianTVL1Parameters):
    """TV-L1 by ``cv2.optflow.DualTVL1OpticalFlow`` (Zach, Pock, Bischof 2007).

    doi 10.1007/978-3-540-74936-3_22; the parameters carry OpenCV's names.
    """

    name: ClassVar[str] = "tvl1-opencv"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    gamma: float = parameter(0.0, "Weight of the illumination term; 0 leaves it out.", at_least=0)

    def __post_init__(self) -> None:
        check_parameters(self)

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px."""
        return _fields(self._algorithm, pairs)

    def _algorithm(self) -> Any:
        from flowkit._cv2 import cv2

        return cv2.optflow.DualTVL1OpticalFlow_create(
            tau=self.tau,
            lambda_=self.lambda_,
            theta=self.theta,
            nscales=self.nscales,
            warps=self.warps,
            epsilon=self.epsilon,
            innnerIterations=self.inner_iterations,  # OpenCV's spelling
            outerIterations=self.outer_iterations,
            scaleStep=self.scale_step,
            gamma=self.gamma,
            medianFiltering=self.median_filtering,
        )

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))


@dataclass(frozen=True)
class OpenCVFarneback(FarnebackParameters):
    """Farneback's polynomial expansion by ``cv2.FarnebackOpticalFlow`` (SCIA 2003).

    doi 10.1007/3-540-45103-X_50; the defaults are those of OpenCV's class.
    """

    name: ClassVar[str] = "farneback-opencv"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        check_parameters(self)

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px."""
        return _fields(self._algorithm, pairs)

    def _algorithm(self) -> Any:
        from flowkit._cv2 import cv2

        return cv2.FarnebackOpticalFlow_create(**self.opencv_arguments(cv2))

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))


@dataclass(frozen=True)
class DIS:
    """Dense inverse search by ``cv2.DISOpticalFlow`` (Kroeger et al., ECCV 2016).

    doi 10.1007/978-3-319-46493-0_29; the defaults are those of OpenCV's "fast" preset. Within the
    limits of its parameters, and for frames that `fields` takes, OpenCV does not crash.
    """

    name: ClassVar[str] = "dis"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ultrafast": {"gradient_descent_iterations": 12, "refinement_iterations": 0},
        "fast": {},
        "medium": {"finest_scale": 1, "patch_stride": 3, "gradient_descent_iterations": 25},
    }

    finest_scale: int = parameter(
        2, "Finest level computed; 0 is full size.", at_least=0, at_most=20
    )
    coarsest_scale: int = parameter(
        -1, "Coarsest level; -1 chooses by the size.", at_least=-1, at_most=20
    )
    patch_size: int = parameter(8, "Side of a patch in px.", at_least=1, at_most=1024)
    patch_stride: int = parameter(4, "Stride of the patches in px.", at_least=1)
    gradient_descent_iterations: int = parameter(
        16, "Iterations of the search.", at_least=1, at_most=10_000
    )
    mean_normalization: bool = parameter(True, "Take each patch's mean out.")
    spatial_propagation: bool = parameter(True, "Propagate good vectors to neighbors.")
    refinement_iterations: int = parameter(
        5, "Variational refinement steps.", at_least=0, at_most=10_000
    )
    refinement_alpha: float = parameter(20.0, "Weight of smoothness.", at_least=0, at_most=1e4)
    refinement_delta: float = parameter(5.0, "Weight of color constancy.", at_least=0, at_most=1e4)
    refinement_gamma: float = parameter(
        10.0, "Weight of gradient constancy.", at_least=0, at_most=1e4
    )
    refinement_epsilon: float = parameter(
        0.01, "Epsilon of the robust norm.", at_least=1e-4, at_most=1e4
    )

    def __post_init__(self) -> None:
        check_parameters(self)
        if -1 < self.coarsest_scale < self.finest_scale:
            raise UsageError(
                f"dis: expected coarsest_scale -1 or of at least {self.finest_scale}, "
                f"the finest_scale, got {self.coarsest_scale}"
            )
        if self.patch_stride > self.patch_size:
            raise UsageError(
                f"dis: expected patch_stride from 1 to the {self.patch_size} px of patch_size, "
                f"got {self.patch_stride}"
            )

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px.

        FlowkitError where the frames are too small or too narrow for OpenCV, which would crash.
        """
        size: tuple[int, ...] = ()
        for first, second in pairs:
            check_pair(first, second)
            if first.shape != size:
                size = first.shape
                adapts = self._check_size(*size)
                algorithm = self._algorithm()
            yield algorithm.calc(first, second, None)
            if adapts:  # the object would keep what it chose, so that the next pair would differ
                algorithm = self._algorithm()

    def _check_size(self, height: int, width: int) -> bool:
        """Refuse frames that crash OpenCV; True where it replaces scales and patch by its own.

        As `cv2.DISOpticalFlow.calc` chooses them (4.5 to 5.1): a coarsest scale by both sides; but
        where that is finer than `finest_scale`, patch and scales by the width alone.
        """
        short, long = min(height, width), max(height, width)
        patch = self.patch_size
        scale = -1
        if short >= patch and long >= 2**0.5 * patch:
            by_motion = int(math.log2(long / (4 * patch)) + 0.5)  # a quarter of the longer side
            scale = min(by_motion, int(math.log2(short // patch)))
        adapts = 0 <= scale < self.finest_scale
        if adapts:
            patch = 12 if self.finest_scale in (3, 4) else 8
            scale = max(0, math.floor(math.log2(2 * width / (5 * patch))))
        least = math.ceil(2**0.5 * patch) if scale < 0 else patch << scale
        if scale < 0 or short < least:
            raise FlowkitError(
                f"dis: expected frames of at least {least} px on the shorter side "
                f"(patches of {patch} px at scale {max(scale, 0)}), got {width}x{height} px: "
                "--resize enlarges them, or take another method"
            )
        if self.patch_stride > patch:
            raise FlowkitError(
                f"dis: expected patch_stride of at most {patch} for frames of {width}x{height} px, "
                f"whose patches OpenCV makes of {patch} px, got {self.patch_stride}"
            )
        return adapts

    def _algorithm(self) -> Any:
        from flowkit._cv2 import cv2

        algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        algorithm.setFinestScale(self.finest_scale)
        algorithm.setCoarsestScale(self.coarsest_scale)
        algorithm.setPatchSize(self.patch_size)
        algorithm.setPatchStride(self.patch_stride)
        algorithm.setGradientDescentIterations(self.gradient_descent_iterations)
        algorithm.setUseMeanNormalization(self.mean_normalization)
        algorithm.setUseSpatialPropagation(self.spatial_propagation)
        algorithm.setVariationalRefinementIterations(self.refinement_iterations)
        algorithm.setVariationalRefinementAlpha(self.refinement_alpha)
        algorithm.setVariationalRefinementDelta(self.refinement_delta)
        algorithm.setVariationalRefinementGamma(self.refinement_gamma)
        algorithm.setVariationalRefinementEpsilon(self.refinement_epsilon)
        return algorithm

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))


def _fields(create: Callable[[], Any], pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
    """The field of each pair by an OpenCV algorithm, a new one wherever the size changes.

    The object of TV-L1 keeps fewer levels for good after one small frame.
    """
    size: tuple[int, ...] = ()
    algorithm: Any = None
    for first, second in pairs:
        check_pair(first, second)
        if first.shape != size:
            algorithm, size = create(), first.shape
        yield algorithm.calc(first, second, None)
