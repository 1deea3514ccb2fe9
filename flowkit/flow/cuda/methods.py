"""flowkit's own flow methods on an NVIDIA GPU: pairs read ahead, computed in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.errors import FlowkitError, UsageError
from flowkit.flow.method import check_parameters
from flowkit.flow.pairs import Pair, consecutive
from flowkit.flow.parameters import TVL1_PRESETS, CudaTVL1Parameters, FarnebackParameters

if TYPE_CHECKING:
    import numpy as np

    from flowkit.flow.cuda.batches import Fetch, Ranges, Slot


@dataclass(frozen=True)
class CudaTVL1(CudaTVL1Parameters):
    """TV-L1 on an NVIDIA GPU: `flowkit.flow.tvl1.TVL1`, parameters and defaults included.

    The same algorithm with the same exact stop test, in sums of another order: it agrees with the
    CPU method as that agrees with OpenCV. Preset ``opencv-cuda`` instead follows the conventions of
    ``cv2.cuda.OpticalFlowDual_TVL1``, which is another algorithm (docs/gpu.md): a flat loop without
    median whose error is tested rarely, bicubic A = -0.5, edges repeated, corners aligned.

    Iterating needs a GPU: FlowkitError says what is missing. Equal parameters make equal methods;
    a method holds no state and can be pickled.
    """

    name: ClassVar[str] = "tvl1-cuda"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **TVL1_PRESETS,
        "opencv-cuda": {
            "like_opencv_cuda": True,
            "median_filtering": 1,
            "inner_iterations": 300,
            "outer_iterations": 1,
        },
    }

    def __post_init__(self) -> None:
        check_parameters(self)
        if not self.scale_step < 1:
            raise UsageError(f"tvl1-cuda: expected scale_step below 1, got {self.scale_step}")
        if self.median_filtering not in (1, 5):
            raise UsageError(
                f"tvl1-cuda: expected median_filtering 5 or 1, got {self.median_filtering}"
            )
        if self.like_opencv_cuda and self.median_filtering != 1:
            raise UsageError("tvl1-cuda: like_opencv_cuda has no median: median_filtering 1")

    def prepare(self) -> None:
        """UsageError where no GPU can be used."""
        _open_gpu(self.name)

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, in order, float32 (H, W, 2) px.

        Reads up to five batches of pairs ahead; pairs of several videos may follow each other. A
        batch ends where the size changes. A frame is uploaded once a batch, however many pairs hold
        that very array: do not write into a frame before its fields have come.
        """
        from flowkit.flow.cuda import batches

        return batches.on_gpu(pairs, self.open_slot, batches.fetch_fields)

    def planes(
        self, pairs: Iterable[Pair], *, bound: float | None = None
    ) -> Iterator[tuple[np.ndarray, Ranges]]:
        """The fields quantized on the GPU: planes uint8 (2, H, W) and (lo, hi) of x and of y.

        `bound` in px fixes the range, None takes each component's own: bytes and ranges are those
        that `records.formats.encode_field` makes of the field. ValueError where one is not finite.
        """
        from flowkit.flow.cuda import batches

        return batches.on_gpu(pairs, self.open_slot, batches.fetch_planes(bound))

    def open_slot(self, fetch: Fetch) -> Slot:
        """What computes one batch at a time on the current GPU, for a flow process."""
        from flowkit.flow.cuda import batches, tvl1

        return batches.open_slot(self, tvl1.SOURCE, tvl1.TVL1Batch, fetch)


@dataclass(frozen=True)
class CudaFarneback(FarnebackParameters):
    """Farneback's polynomial expansion on an NVIDIA GPU, as ``cv2.FarnebackOpticalFlow``.

    SCIA 2003, doi 10.1007/3-540-45103-X_50; parameters and defaults are those of OpenCV's class.
    OpenCV's CPU code ignores `fast_pyramids`; here, as in its CUDA code, levels are then made by
    pyrDown, each from the one before.
    """

    name: ClassVar[str] = "farneback-cuda"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __post_init__(self) -> None:
        check_parameters(self)
        if not self.pyr_scale < 1:
            raise UsageError(f"farneback-cuda: expected pyr_scale below 1, got {self.pyr_scale}")
        if self.fast_pyramids and self.pyr_scale != 0.5:
            raise UsageError(
                f"farneback-cuda: fast_pyramids needs pyr_scale 0.5, got {self.pyr_scale}"
            )

    def prepare(self) -> None:
        """UsageError where no GPU can be used."""
        _open_gpu(self.name)

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The n-1 fields of n gray or BGR frames, lazily."""
        return self.fields(consecutive(frames))

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair of gray frames, float32 (H, W, 2) px; batched as `CudaTVL1`'s."""
        from flowkit.flow.cuda import batches

        return batches.on_gpu(pairs, self.open_slot, batches.fetch_fields)

    def planes(
        self, pairs: Iterable[Pair], *, bound: float | None = None
    ) -> Iterator[tuple[np.ndarray, Ranges]]:
        """The fields quantized on the GPU: as `CudaTVL1.planes`."""
        from flowkit.flow.cuda import batches

        return batches.on_gpu(pairs, self.open_slot, batches.fetch_planes(bound))

    def open_slot(self, fetch: Fetch) -> Slot:
        """What computes one batch at a time on the current GPU, for a flow process."""
        from flowkit.flow.cuda import batches, farneback

        return batches.open_slot(self, farneback.SOURCE, farneback.FarnebackBatch, fetch)


def _open_gpu(name: str) -> None:
    from flowkit.flow.cuda import device, tvl1

    try:
        device.open_gpu(tvl1.SOURCE)
    except FlowkitError as error:
        raise UsageError(f"--method {name}: {error}") from error
