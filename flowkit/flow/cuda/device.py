"""The card: opened with a clear word where there is none, its kernels compiled once and kept.

Memory, streams and transfers are torch's, compiler (NVRTC) and driver are called through
cuda-bindings: all of them come with torch's CUDA wheels.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flowkit.documents import replacing
from flowkit.errors import DeviceError, DeviceMemoryError, FlowkitError, InstallError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

log = logging.getLogger("flowkit")

OLDEST = (7, 5)  # the first compute capability that NVRTC 13 compiles for
# Approximate division and square roots (1 to 2 units in the last place) are one instruction each.
FLAGS = ("--std=c++17", "--ftz=true", "--prec-div=false", "--prec-sqrt=false", "--fmad=true")
C_TYPES = {
    "int": ctypes.c_int,
    "long long": ctypes.c_longlong,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}

Dimensions = tuple[int, int, int]
Reading = Callable[[], "np.ndarray"]  # waits for a transfer and gives what came


class Queue(Protocol):
    """Work for a device, done in the order given; the kernels are those of one source."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of the device, of any content."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of the device, zero."""

    def write(self, array: Any, values: np.ndarray | list[np.ndarray]) -> None:
        """Copy to the first rows of an array of the device; the values may change thereafter."""

    def read(self, array: Any) -> Reading:
        """Begin to copy an array from the device."""

    def launch(self, kernel: str, grid: Dimensions, block: Dimensions, *arguments: Any) -> None:
        """Start a kernel on numbers, arrays of the device and, for null, None."""


def signatures(source: str) -> dict[str, list[Any]]:
    """The C types of the parameters of each kernel in CUDA C++ text."""
    found = {}
    pattern = r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)'
    for name, parameters in re.findall(pattern, source):
        types = [one.rsplit(None, 1)[0].removeprefix("const ") for one in parameters.split(",")]
        found[name] = [C_TYPES.get(" ".join(one.split()), ctypes.c_void_p) for one in types]
    return found


def pack_arguments(types: list[Any], arguments: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """C values, and the array of their addresses that a kernel launch takes."""
    if len(types) != len(arguments):
        raise TypeError(f"expected {len(types)} arguments of a kernel, got {len(arguments)}")
    values = [kind(value) for kind, value in zip(types, arguments, strict=True)]
    addresses = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    return values, addresses


def compile_kernels(source: str, capability: tuple[int, int]) -> bytes:
    """Machine code (a cubin) for cards of this compute capability; needs no card and no driver."""
    nvrtc = _bindings()[1]
    arch = f"--gpu-architecture=sm_{capability[0]}{capability[1]}"
    flags = [flag.encode() for flag in (arch, *FLAGS)]
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"flowkit.cu", 0, [], []))
    [status] = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        text = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, text))
        first = next((line for line in text.decode().splitlines() if "error" in line), status.name)
        raise FlowkitError(f"NVRTC cannot compile flowkit's kernels for {arch}: {first}")
    code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return code


def kept_kernels(source: str, capability: tuple[int, int]) -> bytes:
    """`compile_kernels`, once: later calls read it from the user's cache folder."""
    version = _checked(_bindings()[1].nvrtcVersion())
    key = hashlib.sha256(repr((source, capability, FLAGS, version)).encode()).hexdigest()[:24]
    usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    file = Path(usual) / "flowkit" / f"{key}.cubin"
    try:
        digest, code = file.read_bytes().split(b"\n", 1)
        if digest.decode() == hashlib.sha256(code).hexdigest():
            return code
        log.warning("damaged compiled code in %s: compiling anew", file)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("unreadable compiled code in %s (%s): compiling anew", file, error)
    code = compile_kernels(source, capability)
    try:
        with replacing(file) as part:
            part.write_bytes(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
    except OSError as error:
        log.warning("cannot keep the compiled code (%s): every process compiles", error)
    return code


class Card:
    """One NVIDIA card with the kernels of one source; `queues` on it may run side by side."""

    def __init__(self, source: str) -> None:
        self.torch = _torch_with_a_card()
        self.driver = _bindings()[0]
        capability = self.torch.cuda.get_device_capability()
        self.name = self.torch.cuda.get_device_name()
        if capability < OLDEST:
            raise FlowkitError(
                f"expected a card of compute capability {OLDEST[0]}.{OLDEST[1]} or more, "
                f"got {self.name} with {capability[0]}.{capability[1]}: use the CPU's methods"
            )
        self.index = self.torch.cuda.current_device()
        self.torch.zeros(1, device=f"cuda:{self.index}")  # makes torch's context this thread's
        self.context = _checked(self.driver.cuCtxGetCurrent())
        module = _checked(self.driver.cuModuleLoadData(kept_kernels(source, capability)))
        self.types = signatures(source)
        self.kernels = {
            name: _checked(self.driver.cuModuleGetFunction(module, name.encode()))
            for name in self.types
        }

    def free_bytes(self) -> int:
        """Memory of the card that is free, what torch holds in reserve included."""
        free, _ = self.torch.cuda.mem_get_info(self.index)
        cuda = self.torch.cuda
        return free + cuda.memory_reserved(self.index) - cuda.memory_allocated(self.index)


class CardQueue:
    """A stream of a card as a `Queue`; used within `running`, by one thread at a time."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.stream = card.torch.cuda.Stream(card.index)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make the stream and its context those of the calling thread."""
        _checked(self.card.driver.cuCtxSetCurrent(self.card.context))
        try:
            with self.card.torch.cuda.stream(self.stream):
                yield
        except self.card.torch.OutOfMemoryError as error:
            raise DeviceMemoryError(str(error).splitlines()[0]) from error
        except RuntimeError as error:  # torch's, where the card failed: its context is lost
            if isinstance(error, FlowkitError) or "CUDA error" not in str(error):
                raise
            raise DeviceError(str(error).splitlines()[0]) from error

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        torch = self.card.torch
        try:
            return torch.empty(shape, dtype=getattr(torch, dtype), device=self.stream.device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{self.card.name} has no memory for {shape} {dtype}: smaller frames, or a card "
                "that nothing else uses"
            ) from error

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.empty(shape, dtype).zero_()

    def write(self, array: Any, values: np.ndarray | list[np.ndarray]) -> None:
        count = len(values)
        pinned = self.card.torch.empty(
            (count, *array.shape[1:]), dtype=array.dtype, pin_memory=True
        )  # torch keeps and reuses pinned memory, and not before the copy has ended
        staging = pinned.numpy()
        for row in range(count):
            staging[row] = values[row]
        array[:count].copy_(pinned, non_blocking=True)

    def read(self, array: Any) -> Reading:
        torch = self.card.torch
        pinned = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        pinned.copy_(array, non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # sleeps while it waits: cores decode
        event.record(self.stream)

        def wait() -> np.ndarray:
            event.synchronize()
            return pinned.numpy()

        return wait

    def launch(self, kernel: str, grid: Dimensions, block: Dimensions, *arguments: Any) -> None:
        torch = self.card.torch
        plain = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
        values, addresses = pack_arguments(self.card.types[kernel], plain)
        function = self.card.kernels[kernel]
        stream = self.stream.cuda_stream
        _checked(
            self.card.driver.cuLaunchKernel(
                function, *grid, *block, 0, stream, ctypes.addressof(addresses), 0
            )
        )
        del values  # the driver has copied them


_opening = threading.Lock()


def open_card(source: str) -> Card:
    """The current card with these kernels, opened once; FlowkitError where there is none."""
    with _opening:
        return _opened(source)


@cache
def _opened(source: str) -> Card:
    return Card(source)


def _torch_with_a_card() -> Any:
    """torch, if it can use a card here; else an error that says what is missing."""
    try:
        import torch
    except ImportError as error:
        raise InstallError(f"the CUDA methods need torch ({error}): pip install torch") from error
    if torch.version.cuda is None:
        raise InstallError(
            f"torch {torch.__version__} was built without CUDA: install one of its CUDA wheels "
            "(https://pytorch.org/get-started/locally)"
        )
    driver = _bindings()[0]
    try:
        [status] = driver.cuInit(0)
    except RuntimeError as error:  # cuda-pathfinder's, where libcuda.so is nowhere
        raise FlowkitError(
            "no NVIDIA driver was found here (libcuda.so): install it, or use the CPU's methods"
        ) from error
    if status == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        raise FlowkitError(f"the NVIDIA driver sees no card{hidden}: use the CPU's methods")
    if status != driver.CUresult.CUDA_SUCCESS or not torch.cuda.is_available():
        raise FlowkitError(
            f"the NVIDIA driver does not fit torch {torch.__version__} (CUDA {torch.version.cuda}; "
            f"{status.name}): update the driver, or install torch for an older CUDA"
        )
    return torch


def count_cards() -> int:
    """The cards that this process may use; FlowkitError says what is missing where it is none."""
    return _torch_with_a_card().cuda.device_count()


def _bindings() -> tuple[Any, Any]:
    """The driver and compiler modules of cuda-bindings."""
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError as error:
        raise InstallError(
            f"the CUDA methods need cuda-bindings ({error}), which torch's CUDA wheels bring: "
            "pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from error
    return driver, nvrtc


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings gave, past its status; FlowkitError if that is not success."""
    status, *rest = answer
    if int(status) != 0:
        raise DeviceError(f"CUDA failed with {status.name}: run again with CUDA_LAUNCH_BLOCKING=1")
    return rest[0] if rest else None
