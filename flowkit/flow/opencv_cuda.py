"""OpenCV's flow methods on an NVIDIA GPU, for builds of OpenCV with CUDA (docs/gpu.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.errors import UsageError
from flowkit.flow.method import check_parameters, parameter
from flowkit.flow.pairs import Pair, check_pair, consecutive
from flowkit.flow.parameters import FarnebackParameters, TVL1Parameters

if TYPE_CHECKING:
    import numpy as np

HELD = 16  # frames kept on the GPU: pairs 15 frames apart still find theirs


@dataclass(frozen=True)
class OpenCVCudaTVL1(TVL1Parameters):
    """TV-L1 by ``cv2.cuda.OpticalFlowDual_TVL1``, with its parameters and defaults.

    Another algorithm than OpenCV's on the CPU: 300 iterations per warp without a median, an error
    that is tested rarely, other interpolation (docs/gpu.md).
    """

    name: ClassVar[str] = "tvl1-opencv-cuda"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    iterations: int = parameter(300, "Iterations per warp (tvl1-opencv-cuda).", at_least=1)
    gamma: float = parameter(0.0, "Weight of the illumination term; 0 leaves it out.", at_least=0)

    def __post_init__(self) -> None:
        check_parameters(self)

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px; UsageError without CUDA."""
        return _fields(self.name, self.algorithm, pairs)

    def prepare(self) -> None:
        """UsageError where OpenCV cannot compute it here."""
        open_opencv_cuda(self.name)

    def algorithm(self, cv2: Any) -> Any:
        """OpenCV's object with these parameters."""
        return cv2.cuda.OpticalFlowDual_TVL1_create(
            tau=self.tau,
            lambda_=self.lambda_,
            theta=self.theta,
            nscales=self.nscales,
            warps=self.warps,
            epsilon=self.epsilon,
            iterations=self.iterations,
            scaleStep=self.scale_step,
            gamma=self.gamma,
            useInitialFlow=False,
        )


@dataclass(frozen=True)
class OpenCVCudaFarneback(FarnebackParameters):
    """Farneback by ``cv2.cuda.FarnebackOpticalFlow``, with its parameters and defaults."""

    name: ClassVar[str] = "farneback-opencv-cuda"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.poly_n not in (5, 7):
            raise UsageError(f"farneback-opencv-cuda: expected poly_n 5 or 7, got {self.poly_n}")
        if self.fast_pyramids and self.pyr_scale != 0.5:
            raise UsageError(
                f"farneback-opencv-cuda: fast_pyramids needs pyr_scale 0.5, got {self.pyr_scale}"
            )

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px; UsageError without CUDA."""
        return _fields(self.name, self.algorithm, pairs)

    def prepare(self) -> None:
        """UsageError where OpenCV cannot compute it here."""
        open_opencv_cuda(self.name)

    def algorithm(self, cv2: Any) -> Any:
        """OpenCV's object with these parameters."""
        return cv2.cuda.FarnebackOpticalFlow_create(**self.opencv_arguments(cv2))


@dataclass(frozen=True)
class OpenCVCudaBrox:
    """Brox et al. (ECCV 2004) by ``cv2.cuda.BroxOpticalFlow``: the flow of the 2014 paper.

    doi 10.1007/978-3-540-24673-2_3. It takes float32 frames; they are scaled to [0, 1], as in
    OpenCV's sample, for which the defaults of `alpha` and `gamma` are made.
    """

    name: ClassVar[str] = "brox-opencv-cuda"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    alpha: float = parameter(0.197, "Weight of smoothness, above 0.", at_least=1e-6)
    gamma: float = parameter(50.0, "Weight of gradient constancy.", at_least=0)
    scale_factor: float = parameter(0.8, "Size of a level against the finer one.", at_least=0.1)
    inner_iterations: int = parameter(5, "Lagged non-linearity iterations.", at_least=1)
    outer_iterations: int = parameter(150, "Levels of the pyramid, at most.", at_least=1)
    solver_iterations: int = parameter(10, "Iterations of the linear solver.", at_least=1)

    def __post_init__(self) -> None:
        check_parameters(self)
        if not self.scale_factor < 1:
            raise UsageError(
                f"brox-opencv-cuda: expected scale_factor below 1, got {self.scale_factor}"
            )

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px; UsageError without CUDA."""
        return _fields(self.name, self.algorithm, pairs, unit_range=True)

    def prepare(self) -> None:
        """UsageError where OpenCV cannot compute it here."""
        open_opencv_cuda(self.name)

    def algorithm(self, cv2: Any) -> Any:
        """OpenCV's object with these parameters."""
        return cv2.cuda.BroxOpticalFlow_create(
            alpha=self.alpha,
            gamma=self.gamma,
            scale_factor=self.scale_factor,
            inner_iterations=self.inner_iterations,
            outer_iterations=self.outer_iterations,
            solver_iterations=self.solver_iterations,
        )


def open_opencv_cuda(name: str) -> Any:
    """cv2 with CUDA, of which nothing is on the GPU yet: that may take one process only.

    UsageError where this build of OpenCV has no CUDA flow, or can use no GPU.
    """
    from flowkit._cv2 import cv2

    if not hasattr(cv2.cuda, "OpticalFlowDual_TVL1_create"):
        raise UsageError(
            f"--method {name} needs an OpenCV built with CUDA, which OpenCV {cv2.__version__} here "
            "is not: make opencv-cuda builds one (docs/gpu.md); --method tvl1-cuda needs none"
        )
    with _failures_told(name, cv2):
        # Counting comes first: without a driver other calls of cv2.cuda end the process.
        if cv2.cuda.getCudaEnabledDeviceCount() < 1:
            raise UsageError(
                f"--method {name}: OpenCV {cv2.__version__} finds no NVIDIA GPU that it can use: "
                "see whether nvidia-smi does, or use the CPU's methods"
            )
        gpu = cv2.cuda.DeviceInfo(cv2.cuda.getDevice())
        if not gpu.isCompatible():
            capability = f"{gpu.majorVersion()}.{gpu.minorVersion()}"
            raise UsageError(
                f"--method {name}: OpenCV {cv2.__version__} here was built for other GPUs than "
                f"this one of compute capability {capability}: build it again with "
                f"CUDA_ARCH_BIN={capability} make opencv-cuda"
            )
    return cv2


@contextmanager
def _failures_told(name: str, cv2: Any) -> Iterator[None]:
    """Where CUDA fails in OpenCV, UsageError with the reason in one line."""
    try:
        yield
    except (cv2.error, SystemError) as error:  # a constructor's cv2.error is a SystemError's cause
        cause = error.__cause__ or error
        reason = getattr(cause, "err", None) or str(cause).strip().partition("\n")[0]
        raise UsageError(
            f"--method {name}: OpenCV {cv2.__version__} cannot use the GPU ({reason}): see whether "
            "nvidia-smi can, or use the CPU's methods"
        ) from error


class _FramesOnGpu:
    """The latest frames of one size, each uploaded once: known by the identity of its array."""

    def __init__(self, cv2: Any, stream: Any, *, unit_range: bool) -> None:
        self.cv2, self.stream, self.unit_range = cv2, stream, unit_range
        self._held: dict[int, tuple[np.ndarray, Any]] = {}  # oldest first; keeps an id its own

    def get(self, frame: np.ndarray) -> Any:
        """The frame's GpuMat."""
        import numpy as np

        if id(frame) in self._held:
            self._held[id(frame)] = self._held.pop(id(frame))  # the youngest now
            return self._held[id(frame)][1]
        if len(self._held) < HELD:
            place = self.cv2.cuda.GpuMat()
        else:
            _, place = self._held.pop(next(iter(self._held)))  # its memory is used again
        pixels = frame.astype(np.float32) / 255 if self.unit_range else frame
        pixels = np.ascontiguousarray(pixels)  # a name, to live until the wait is over
        place.upload(pixels, stream=self.stream)
        self.stream.waitForCompletion()  # Farneback reads it from another stream as well
        self._held[id(frame)] = frame, place
        return place


def _fields(
    name: str, create: Callable[[Any], Any], pairs: Iterable[Pair], *, unit_range: bool = False
) -> Iterator[np.ndarray]:
    """The field of each pair; algorithm and memory are made again wherever the size changes.

    TV-L1's object keeps fewer levels for good after one small frame.
    """
    cv2 = open_opencv_cuda(name)
    with _failures_told(name, cv2):
        stream, algorithm = cv2.cuda.Stream(), create(cv2)
    size: tuple[int, ...] = ()
    for first, second in pairs:
        check_pair(first, second)
        if first.shape != size:
            if size:
                algorithm = create(cv2)
            size = first.shape
            frames = _FramesOnGpu(cv2, stream, unit_range=unit_range)
            flow = cv2.cuda.GpuMat()
        there = frames.get(first), frames.get(second)
        flow = algorithm.calc(*there, flow, stream=stream)
        field = flow.download(stream=stream)
        stream.waitForCompletion()
        yield field
