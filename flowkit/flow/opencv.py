"""OpenCV's flow methods on the CPU, with OpenCV's parameters and defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.flow.method import Pair, check_pair, check_parameters, consecutive, parameter

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class OpenCVTVL1:
    """TV-L1 by ``cv2.optflow.DualTVL1OpticalFlow`` (Zach, Pock, Bischof 2007).

    doi 10.1007/978-3-540-74936-3_22; the parameters carry OpenCV's names.
    """

    name: ClassVar[str] = "tvl1-opencv"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    tau: float = parameter(0.25, "Time step of the dual update.", at_least=0)
    lambda_: float = parameter(0.15, "Weight of the data term: smaller is smoother.", at_least=0)
    theta: float = parameter(0.3, "Tightness between data and smoothness term.", at_least=1e-6)
    nscales: int = parameter(5, "Levels of the pyramid.", at_least=1)
    warps: int = parameter(5, "Warps of the second frame a level.", at_least=1)
    epsilon: float = parameter(0.01, "Mean change in px at which a warp stops.", at_least=0)
    inner_iterations: int = parameter(30, "Iterations between two medians.", at_least=1)
    outer_iterations: int = parameter(10, "Rounds of median and iterations a warp.", at_least=1)
    scale_step: float = parameter(0.8, "Size of a level against the finer one.", at_least=0.1)
    gamma: float = parameter(0.0, "Weight of the illumination term; 0 leaves it out.", at_least=0)
    median_filtering: int = parameter(5, "Side of the median: 1 (none), 3 or 5.", at_least=1)

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
class OpenCVFarneback:
    """Farneback's polynomial expansion by ``cv2.FarnebackOpticalFlow`` (SCIA 2003).

    doi 10.1007/3-540-45103-X_50; the defaults are those of OpenCV's class.
    """

    name: ClassVar[str] = "farneback-opencv"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    levels: int = parameter(5, "Levels of the pyramid.", at_least=1)
    pyr_scale: float = parameter(0.5, "Size of a level against the finer one.", at_least=0.1)
    fast_pyramids: bool = parameter(False, "Pyramids by pyrDown; needs pyr_scale 0.5.")
    win_size: int = parameter(13, "Side of the averaging window in px.", at_least=1)
    iterations: int = parameter(10, "Iterations a level.", at_least=1)
    poly_n: int = parameter(5, "Neighborhood of the expansion: 5 or 7.", at_least=3)
    poly_sigma: float = parameter(1.1, "Sigma of the expansion: 1.1 for 5, 1.5 for 7.", at_least=0)
    gaussian: bool = parameter(False, "Gaussian instead of box window: slower, more accurate.")

    def __post_init__(self) -> None:
        check_parameters(self)

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px."""
        return _fields(self._algorithm, pairs)

    def _algorithm(self) -> Any:
        from flowkit._cv2 import cv2

        return cv2.FarnebackOpticalFlow_create(
            numLevels=self.levels,
            pyrScale=self.pyr_scale,
            fastPyramids=self.fast_pyramids,
            winSize=self.win_size,
            numIters=self.iterations,
            polyN=self.poly_n,
            polySigma=self.poly_sigma,
            flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN if self.gaussian else 0,
        )

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
