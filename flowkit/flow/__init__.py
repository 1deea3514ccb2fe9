"""The flow methods, one file per implementation, named in one place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkit.errors import FlowkitError, UsageError

if TYPE_CHECKING:
    from flowkit.flow.method import FlowMethod

METHODS = ("tvl1", "tvl1-opencv", "farneback", "farneback-opencv", "dis")  # on the CPU
CUDA_METHODS = ("tvl1-cuda", "farneback-cuda")
OPENCV_CUDA_METHODS = ("tvl1-opencv-cuda", "farneback-opencv-cuda", "brox-opencv-cuda")
LEARNED_METHODS = ("raft",)  # on a CUDA device if there is one, else on the CPU
ALL_METHODS = METHODS + CUDA_METHODS + OPENCV_CUDA_METHODS + LEARNED_METHODS
# One process of these fills the machine: a card, or all cores by threads of torch.
ONE_WORKER_METHODS = OPENCV_CUDA_METHODS + LEARNED_METHODS


def method_class(name: str) -> type[FlowMethod]:
    """The class of a flow method by its name; UsageError names those there are."""
    from flowkit.flow import farneback, opencv, opencv_cuda, raft, tvl1
    from flowkit.flow.cuda import methods as cuda

    match name:
        case "tvl1":
            return tvl1.TVL1
        case "tvl1-opencv":
            return opencv.OpenCVTVL1
        case "farneback":
            return farneback.Farneback
        case "farneback-opencv":
            return opencv.OpenCVFarneback
        case "dis":
            return opencv.DIS
        case "tvl1-cuda":
            return cuda.CudaTVL1
        case "farneback-cuda":
            return cuda.CudaFarneback
        case "tvl1-opencv-cuda":
            return opencv_cuda.OpenCVCudaTVL1
        case "farneback-opencv-cuda":
            return opencv_cuda.OpenCVCudaFarneback
        case "brox-opencv-cuda":
            return opencv_cuda.OpenCVCudaBrox
        case "raft":
            return raft.RAFT
    raise UsageError(f"expected a method of {', '.join(ALL_METHODS)}, got {name!r}")


def make_method(name: str, *, preset: str | None = None, **parameters: Any) -> FlowMethod:
    """A flow method by name, with its defaults, a preset's values over them, then `parameters`."""
    chosen = method_class(name)
    if preset is not None and preset not in chosen.presets:
        there = ", ".join(chosen.presets) or "none"
        raise UsageError(f"method {name} has no preset {preset!r}; it has: {there}")
    unknown = set(parameters) - {field.name for field in dataclasses.fields(chosen)}
    if unknown:
        raise UsageError(f"method {name} has no parameter {', '.join(sorted(unknown))}")
    return chosen(**{**(chosen.presets[preset] if preset else {}), **parameters})


def prepare_method(method: FlowMethod) -> None:
    """Compile, once for all, what every worker would otherwise compile for itself.

    UsageError for a CUDA method where no card can be used, and for weights that do not fit, before
    any work.
    """
    from flowkit.flow import farneback, opencv_cuda, raft, tvl1

    if isinstance(method, tvl1.TVL1):
        tvl1.warm_up()
    if isinstance(method, farneback.Farneback):
        farneback.warm_up()
    if isinstance(method, raft.RAFT):
        raft.load_network(method.weights, method.sha256, "cpu")
    match method:
        case (
            opencv_cuda.OpenCVCudaTVL1()
            | opencv_cuda.OpenCVCudaFarneback()
            | opencv_cuda.OpenCVCudaBrox()
        ):
            opencv_cuda.open_opencv_cuda(method.name, method.algorithm)
    if method.name in CUDA_METHODS:
        from flowkit.flow.cuda import device as cuda_device
        from flowkit.flow.cuda import tvl1 as cuda_tvl1

        try:
            cuda_device.open_card(cuda_tvl1.SOURCE)
        except FlowkitError as error:
            raise UsageError(f"--method {method.name}: {error}") from error


def describe_method(method: FlowMethod) -> dict[str, Any]:
    """The identity of a method as the sidecar holds it: its name and every parameter.

    Of a file it holds the name and the checksum, wherever the file lies.
    """
    identity = {"name": method.name, **dataclasses.asdict(method)}
    if method.name in LEARNED_METHODS:
        identity["weights"] = Path(identity["weights"]).name
    return identity


def device_of(method: FlowMethod) -> str:
    """The kind of device that a method computes on here: "cuda" or "cpu"."""
    from flowkit.flow import raft

    if isinstance(method, raft.RAFT):
        return raft.device()
    return "cuda" if method.name in CUDA_METHODS + OPENCV_CUDA_METHODS else "cpu"
