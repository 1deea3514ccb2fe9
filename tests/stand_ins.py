"""Flow methods that stand in for a GPU's: the processor computes them, in a flow process, too."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowkit import quantize
from flowkit._cv2 import cv2
from flowkit.errors import DeviceError, DeviceMemoryError
from flowkit.flow.cuda.methods import CudaFarneback
from flowkit.flow.opencv import OpenCVFarneback
from flowkit.flow.pairs import Pair


@dataclass(frozen=True)
class PretendedFarneback(CudaFarneback):
    """CudaFarneback, identity and options included, computed by OpenCV and quantized in numpy."""

    open_slot = None  # no GPU is opened

    def fields(self, pairs):
        return OpenCVFarneback(**dataclasses.asdict(self)).fields(pairs)

    def planes(self, pairs, *, bound=None):
        return quantized(self.fields(pairs), bound)


@dataclass(frozen=True)
class InstantFarneback(CudaFarneback):
    """CudaFarneback that computes nothing: all pairs have the same planes."""

    open_slot = None

    def planes(self, pairs, *, bound=None):
        return ((smooth_planes(first.shape), [(-1.0, 1.0)] * 2) for first, _ in pairs)


@functools.cache
def smooth_planes(size: tuple[int, int]) -> np.ndarray:
    """Two planes, uint8 (2, H, W), that have 2 to 5 KB as JPEGs of 340x256 px, as TV-L1's have."""
    random = np.random.default_rng(0)
    coarse = random.normal(128, 24, (2, 5, 7)).astype(np.float32)
    fields = [cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC) for one in coarse]
    noise = random.normal(0, 0.3, (2, *size))
    return np.clip(np.stack(fields) + noise, 0, 255).astype(np.uint8)


def quantized(fields: Iterable[np.ndarray], bound: float | None) -> Iterator[Any]:
    for field in fields:
        both = field[..., 0], field[..., 1]
        if bound is None:
            ranges = [quantize.own_range(one) for one in both]
            planes = [quantize.quantize(both[i], *ranges[i]) for i in (0, 1)]
            yield np.stack(planes), ranges
        else:
            planes = np.stack([quantize.quantize_bounded(one, bound) for one in both])
            yield planes, [quantize.bound_range(bound)] * 2


QUICK = OpenCVFarneback(levels=2, iterations=2)


@dataclass(frozen=True)
class Plain:
    """Farneback as fields only: the workers quantize."""

    name = "plain"

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        return QUICK.fields(pairs)


@dataclass(frozen=True)
class Quantizing(Plain):
    """Farneback that quantizes, too."""

    def planes(self, pairs, *, bound=None):
        return quantized(self.fields(pairs), bound)


@dataclass(frozen=True)
class Troubled(Plain):
    """Farneback, and the `trouble` of a GPU where a first frame is darker than `dark`.

    A file at `once` is made before, and no trouble follows where it is there already.
    """

    trouble: str = "none"
    dark: float = 100.0
    once: str = ""

    def fields(self, pairs):
        pairs = list(pairs)
        if self.trouble == "small GPU" and len(pairs) > 3:
            raise DeviceMemoryError(f"no memory for {len(pairs)} pairs")
        for first, _ in pairs:
            if first.mean() < self.dark:
                self._happen()
        return QUICK.fields(pairs)

    def _happen(self) -> None:
        if self.once:
            try:
                Path(self.once).touch(exist_ok=False)
            except FileExistsError:
                return
        match self.trouble:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "GPU lost":
                raise DeviceError("CUDA failed with CUDA_ERROR_ILLEGAL_ADDRESS")
            case "not finite":
                raise ValueError("expected finite displacements, got NaN or infinity in a field")
            case "no memory":
                raise DeviceMemoryError("no memory for 1 pair")
            case "slow":
                time.sleep(1000)


@dataclass(frozen=True)
class Visible(Plain):
    """A field whose every value is the number of the GPU that its process may use."""

    def fields(self, pairs):
        for first, _ in pairs:
            gpu = float(os.environ["CUDA_VISIBLE_DEVICES"])
            yield np.full((*first.shape, 2), gpu, np.float32)


@dataclass(frozen=True)
class Missing(Plain):
    """No GPU: opening it fails."""

    def open_slot(self, fetch):
        raise DeviceError("no GPU here")
