"""The parameters that implementations of an algorithm share, with OpenCV's names and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from flowkit.flow.method import parameter

# The points that tell the camera's motion: along the flow, those and SIFT's, or none at all
Matches = Literal["flow", "flow+sift", "none"]
MATCHES: tuple[Matches, ...] = get_args(Matches)


@dataclass(frozen=True)
class TVL1Parameters:
    """Of every TV-L1 (Zach, Pock, Bischof 2007, doi 10.1007/978-3-540-74936-3_22)."""

    tau: float = parameter(0.25, "Time step of the dual update.", at_least=0)
    lambda_: float = parameter(0.15, "Weight of the data term: smaller is smoother.", at_least=0)
    theta: float = parameter(0.3, "Tightness between data and smoothness term.", at_least=1e-6)
    nscales: int = parameter(5, "Levels of the pyramid.", at_least=1)
    warps: int = parameter(5, "Warps of the second frame per level.", at_least=1)
    epsilon: float = parameter(0.01, "Mean change in px at which a warp stops.", at_least=0)
    scale_step: float = parameter(0.8, "Size of a level against the finer one.", at_least=0.1)


@dataclass(frozen=True)
class MedianTVL1Parameters(TVL1Parameters):
    """Of TV-L1 with medians of the field between its iterations, as OpenCV has it on the CPU."""

    inner_iterations: int = parameter(30, "Iterations between two medians.", at_least=1)
    outer_iterations: int = parameter(10, "Rounds of median and iterations per warp.", at_least=1)
    median_filtering: int = parameter(
        5, "Side of the median: 1 (none), 5, or for tvl1-opencv 3.", at_least=1
    )


# Of flowkit's TV-L1, wherever it runs; what each is like: docs/tvl1.md
TVL1_PRESETS: dict[str, dict[str, Any]] = {
    "opencv": {},
    "fast": {"epsilon": 0.02},
    "faster": {
        "scale_step": 0.5, "nscales": 3, "warps": 3, "epsilon": 0.03, "inner_iterations": 10,
    },
}  # fmt: skip


@dataclass(frozen=True)
class CudaTVL1Parameters(MedianTVL1Parameters):
    """Of flowkit's TV-L1 on a GPU, which can follow the conventions of OpenCV's on a GPU too."""

    like_opencv_cuda: bool = parameter(False, "OpenCV CUDA's sampling, resizing and stop test.")


@dataclass(frozen=True)
class FarnebackParameters:
    """Of Farneback's polynomial expansion (SCIA 2003, doi 10.1007/3-540-45103-X_50).

    The upper limits are far above any use; far beyond them OpenCV fails or does not end.
    """

    levels: int = parameter(5, "Levels of the pyramid.", at_least=1, at_most=100)
    pyr_scale: float = parameter(0.5, "Size of a level against the finer one.", at_least=0.1)
    fast_pyramids: bool = parameter(False, "Pyramids by pyrDown; needs pyr_scale 0.5.")
    win_size: int = parameter(13, "Side of the averaging window in px.", at_least=1, at_most=1001)
    iterations: int = parameter(10, "Iterations per level.", at_least=1, at_most=10_000)
    poly_n: int = parameter(5, "Neighborhood of the expansion: 5 or 7.", at_least=3, at_most=101)
    poly_sigma: float = parameter(
        1.1, "Sigma of the expansion: 1.1 for 5, 1.5 for 7.", at_least=0, at_most=1000
    )
    gaussian: bool = parameter(False, "Gaussian instead of box window: slower, more accurate.")

    def opencv_arguments(self, cv2: Any) -> dict[str, Any]:
        """The parameters as OpenCV's own classes take them, on the CPU and on a GPU."""
        return {
            "numLevels": self.levels,
            "pyrScale": self.pyr_scale,
            "fastPyramids": self.fast_pyramids,
            "winSize": self.win_size,
            "numIters": self.iterations,
            "polyN": self.poly_n,
            "polySigma": self.poly_sigma,
            "flags": cv2.OPTFLOW_FARNEBACK_GAUSSIAN if self.gaussian else 0,
        }
