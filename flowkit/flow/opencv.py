"""OpenCV's flow methods on the CPU, with OpenCV's parameters and defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.flow.method import Pair, check_pair, check_parameters, consecutive, parameter
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

    doi 10.1007/978-3-319-46493-0_29; the defaults are those of OpenCV's "fast" preset.
    """

    name: ClassVar[str] = "dis"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ultrafast": {"gradient_descent_iterations": 12, "refinement_iterations": 0},
        "fast": {},
        "medium": {"finest_scale": 1, "patch_stride": 3, "gradient_descent_iterations": 25},
    }

    finest_scale: int = parameter(2, "Finest level computed; 0 is full size.", at_least=0)
    coarsest_scale: int = parameter(-1, "Coarsest level; -1 chooses by the size.", at_least=-1)
    patch_size: int = parameter(8, "Side of a patch in px.", at_least=1)
    patch_stride: int = parameter(4, "Stride of the patches in px.", at_least=1)
    gradient_descent_iterations: int = parameter(16, "Iterations of the search.", at_least=1)
    mean_normalization: bool = parameter(True, "Take each patch's mean out.")
    spatial_propagation: bool = parameter(True, "Propagate good vectors to neighbors.")
    refinement_iterations: int = parameter(5, "Variational refinement steps.", at_least=0)
    refinement_alpha: float = parameter(20.0, "Weight of smoothness.", at_least=0)
    refinement_delta: float = parameter(5.0, "Weight of color constancy.", at_least=0)
    refinement_gamma: float = parameter(10.0, "Weight of gradient constancy.", at_least=0)
    refinement_epsilon: float = parameter(0.01, "Epsilon of the robust norm.", at_least=0)

    def __post_init__(self) -> None:
        check_parameters(self)

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px."""
        return _fields(self._algorithm, pairs)

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

    The objects of TV-L1 and DIS keep fewer levels for good after one small frame.
    """
    size: tuple[int, ...] = ()
    algorithm: Any = None
    for first, second in pairs:
        check_pair(first, second)
        if first.shape != size:
            algorithm, size = create(), first.shape
        yield algorithm.calc(first, second, None)
