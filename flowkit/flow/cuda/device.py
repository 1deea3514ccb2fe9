"""The GPU: opened with a clear word where there is none, its kernels compiled once and kept.

Driver and compiler (NVRTC) are called through cuda-bindings, which come with torch's CUDA wheels.
torch itself would take 2 to 4 s to import, for what a few calls of the driver do.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import math
import os
import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flowkit.documents import replacing
from flowkit.errors import DeviceError, DeviceMemoryError, FlowkitError, InstallError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("flowkit")

OLDEST = (7, 5)  # first compute capability that NVRTC 13 compiles for
# Approximate division and square roots (1 to 2 units in the last place) are one instruction each.
FLAGS = ("--std=c++17", "--ftz=true", "--prec-div=false", "--prec-sqrt=false", "--fmad=true")
# What the driver answers in a process that was forked after CUDA was used in its parent.
FORKED = (
    "CUDA cannot be used in this process, which was forked from one that had used it: "
    "start it fresh, as multiprocessing's start method 'spawn' does"
)
NAME_BYTES = 256  # bytes for a GPU's name
C_TYPES = {
    "int": ctypes.c_int,
    "long long": ctypes.c_longlong,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}

Dimensions = tuple[int, int, int]
Reading = Callable[[], np.ndarray]  # a call that waits for a transfer and gives what came
LOOKS = 4  # readings of one watched array that may be under way together


class Queue(Protocol):
    """Work for a device, done in the order given; the kernels are those of one source."""

    processors: int  # multiprocessors of the device
    shared_bytes: int  # shared memory that a block may have

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of the device, of any content."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of the device, zero."""

    def write(self, array: Any, values: np.ndarray | list[np.ndarray]) -> None:
        """Copy to the first rows of an array of the device; the values may change thereafter."""

    def clear(self, array: Any) -> None:
        """Fill an array of the device with zeros."""

    def read(self, array: Any) -> Reading:
        """Begin to copy an array from the device."""

    def watch(self, array: Any) -> Callable[[], Reading]:
        """What begins a `read` of this array when called, without new memory.

        What came holds until LOOKS - 1 further calls.
        """

    def launch(self, kernel: str, grid: Dimensions, block: Dimensions, *arguments: Any) -> None:
        """Start a kernel on numbers, arrays of the device and, for null, None."""

    def prepare(
        self, kernel: str, grid: Dimensions, block: Dimensions, *arguments: Any, shared: int = 0
    ) -> Callable[[], None]:
        """What does this `launch` whenever called, as long as the arrays live.

        `shared` is in bytes, of shared memory that the launch gives to each block.
        """


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
    """Machine code (a cubin) for GPUs of this compute capability; needs no GPU and no driver.

    For one that is newer than the compiler it is PTX, which the driver translates.
    """
    nvrtc = _bindings()[1]
    wanted = 10 * capability[0] + capability[1]
    known = _checked(nvrtc.nvrtcGetSupportedArchs())
    is_known = wanted in known
    newest = max((one for one in known if one <= wanted), default=wanted)
    arch = f"--gpu-architecture={'sm' if is_known else 'compute'}_{newest}"
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"flowkit.cu", 0, [], []))
    flags = [flag.encode() for flag in (arch, *FLAGS)]
    [status] = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        text = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, text))
        first = next((line for line in text.decode().splitlines() if "error" in line), status.name)
        raise FlowkitError(f"NVRTC cannot compile flowkit's kernels for {arch}: {first}")
    size, get = (
        (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        if is_known
        else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    code = b" " * _checked(size(program))
    _checked(get(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return code


@cache
def compiler_version() -> str:
    """The compiler's full version, as it stands at the head of the PTX that it makes."""
    head = compile_kernels("", (10**6, 0)).decode()  # no compiler knows this GPU, so it writes PTX
    return "".join(line for line in head.splitlines() if line.startswith("//"))


def kept_file(source: str, capability: tuple[int, int]) -> Path | None:
    """Where the user's cache keeps this code; None where the user has no home folder."""
    key = repr((source, capability, FLAGS, compiler_version()))
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return usual / "flowkit" / name


def kept_kernels(source: str, capability: tuple[int, int]) -> bytes:
    """`compile_kernels`, once: later calls read it from the user's cache folder."""
    file = kept_file(source, capability)
    if file is None:
        log.warning("no home folder to keep the compiled code in: every process compiles")
        return compile_kernels(source, capability)
    try:
        digest, code = file.read_bytes().split(b"\n", 1)
        if digest.decode() == hashlib.sha256(code).hexdigest():
            return code
        log.warning("damaged compiled code in %s: compiling again", file)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("unreadable compiled code in %s (%s): compiling again", file, error)
    code = compile_kernels(source, capability)
    try:
        with replacing(file) as part:
            part.write_bytes(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
    except OSError as error:
        log.warning("cannot keep the compiled code (%s): every process compiles", error)
    return code


class Memory:
    """Bytes of a GPU, given back in the order of a stream when nothing refers to them."""

    def __init__(self, driver: Any, size: int, stream: Any) -> None:
        self.driver, self.stream = driver, stream
        self.address = 0  # no memory yet
        self.address = int(_checked(driver.cuMemAllocAsync(size, stream)))

    def __del__(self) -> None:
        if self.address:
            self.driver.cuMemFreeAsync(self.address, self.stream)


class DeviceArray:
    """An array in the memory of a GPU; a slice of it has its own address."""

    def __init__(self, places: np.ndarray, memory: Memory) -> None:
        self._places = places  # shape, and addresses on the GPU, which only the GPU reads
        self._memory = memory

    @classmethod
    def of(cls, memory: Memory, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """All of a memory as an array."""
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        raw: Any = (ctypes.c_char * size).from_address(memory.address)
        return cls(np.frombuffer(raw, np.dtype(dtype), count).reshape(shape), memory)

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(self._places[key], self._memory)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._places.shape

    @property
    def dtype(self) -> np.dtype:
        return self._places.dtype

    @property
    def nbytes(self) -> int:
        return self._places.nbytes

    @property
    def address(self) -> int:
        return self._places.ctypes.data


class PinnedBlock:
    """Page-locked memory for transfers, and the event after which its latest one is done."""

    def __init__(self, driver: Any, size: int) -> None:
        self.driver, self.size = driver, size
        flags = driver.CUevent_flags
        self.event = _checked(
            driver.cuEventCreate(
                # A thread sleeps while it waits: the cores decode meanwhile.
                flags.CU_EVENT_BLOCKING_SYNC.value | flags.CU_EVENT_DISABLE_TIMING.value
            )
        )
        status, *address = driver.cuMemHostAlloc(size, 0)
        if status.name in ("CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_OPERATING_SYSTEM"):
            _checked(driver.cuEventDestroy(self.event))
            raise DeviceMemoryError(
                f"{size / 1e6:.3g} MB of this machine's memory cannot be pinned for transfers "
                f"({status.name})"
            )
        self.address = int(_checked((status, *address)))

    def free(self) -> None:
        _checked(self.driver.cuMemFreeHost(self.address))
        _checked(self.driver.cuEventDestroy(self.event))

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Its beginning as an array."""
        count = math.prod(shape)
        raw: Any = (ctypes.c_char * self.size).from_address(self.address)
        return np.frombuffer(raw, np.dtype(dtype), count).reshape(shape)


class PinnedBlocks:
    """Blocks used again and again, by the power of two of their size; they live as the process."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.free: dict[int, list[PinnedBlock]] = defaultdict(list)

    def take(self, nbytes: int) -> PinnedBlock:
        """A block of at least so many bytes that no transfer uses."""
        size = 1 << max(12, (nbytes - 1).bit_length())
        busy = self.driver.CUresult.CUDA_ERROR_NOT_READY
        blocks = self.free[size]
        for number, block in enumerate(blocks):
            [status] = self.driver.cuEventQuery(block.event)
            if status != busy:
                _checked((status,))
                return blocks.pop(number)
        try:
            return PinnedBlock(self.driver, size)
        except DeviceMemoryError:
            if not self._free_unused():
                raise
            return PinnedBlock(self.driver, size)

    def _free_unused(self) -> int:
        """Free the blocks that no transfer uses, of whatever size; the number of them."""
        freed = 0
        for blocks in list(self.free.values()):
            while blocks:
                block = blocks.pop()
                _checked(self.driver.cuEventSynchronize(block.event))
                block.free()
                freed += 1
        return freed

    def give_back(self, block: PinnedBlock) -> None:
        self.free[block.size].append(block)


class Gpu:
    """One NVIDIA GPU with the kernels of one source; `queues` on it may run side by side."""

    def __init__(self, source: str) -> None:
        self.driver = driver = _open_driver()
        if int(_checked(driver.cuCtxGetCurrent())):  # there is one, of torch perhaps
            self.device = _checked(driver.cuCtxGetDevice())
        else:
            self.device = _checked(driver.cuDeviceGet(0))
        attributes = driver.CUdevice_attribute
        capability = (
            self.attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self.attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.processors = self.attribute(attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self.shared_bytes = self.attribute(
            attributes.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        )
        name = _checked(driver.cuDeviceGetName(NAME_BYTES, self.device))
        self.name = name.split(b"\0")[0].decode()
        if capability < OLDEST:
            raise FlowkitError(
                f"expected a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or more, "
                f"got {self.name} with {capability[0]}.{capability[1]}: use the CPU's methods"
            )
        self.context = self._context()
        self.enter()
        self.pool = _checked(driver.cuDeviceGetDefaultMemPool(self.device))
        keep = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        everything = driver.cuuint64_t(2**64 - 1)  # all bytes are kept for the next batch
        _checked(driver.cuMemPoolSetAttribute(self.pool, keep, everything))
        module = _checked(driver.cuModuleLoadData(kept_kernels(source, capability)))
        self.types = signatures(source)
        self.kernels = {
            name: _checked(driver.cuModuleGetFunction(module, name.encode())) for name in self.types
        }

    def _context(self) -> Any:
        """The process's context on the GPU; an error that says who else may have it."""
        status, *context = self.driver.cuDevicePrimaryCtxRetain(self.device)
        if status.name == "CUDA_ERROR_DEVICE_UNAVAILABLE":
            raise FlowkitError(
                f"{self.name} takes no further process: it is in exclusive-process mode and "
                "another one uses it, or prohibited (nvidia-smi -q -d COMPUTE)"
            )
        if status.name == "CUDA_ERROR_OUT_OF_MEMORY":
            raise DeviceMemoryError(
                f"{self.name} has no memory left to begin with: nvidia-smi lists what uses it"
            )
        return _checked((status, *context))

    def attribute(self, which: Any) -> int:
        """A number that the driver has of the GPU, by its `CUdevice_attribute`."""
        return _checked(self.driver.cuDeviceGetAttribute(which, self.device))

    def enter(self) -> None:
        """Make its context that of the calling thread."""
        _checked(self.driver.cuCtxSetCurrent(self.context))

    def free_bytes(self) -> int:
        """Memory of the GPU that is free, what this process has in reserve included."""
        free, _ = self._memory()
        which = self.driver.CUmemPool_attribute
        used = self._pooled(which.CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
        return free + self._pooled(which.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) - used

    def memory_in_words(self) -> str:
        """How much of its memory is free, and how much this process does not hold."""
        free, total = self._memory()
        which = self.driver.CUmemPool_attribute
        others = total - free - self._pooled(which.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
        return (
            f"{free / 1e9:.2f} of {total / 1e9:.2f} GB are free, contexts and other programs "
            f"hold {others / 1e9:.2f}: nvidia-smi lists them"
        )

    def _memory(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        self.enter()
        status, free, total = self.driver.cuMemGetInfo()
        _checked((status,))
        return free, total

    def _pooled(self, which: Any) -> int:
        return int(_checked(self.driver.cuMemPoolGetAttribute(self.pool, which)))


class GpuQueue:
    """A stream of a GPU as a `Queue`; used within `running`, by one thread at a time."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.driver = gpu.driver
        gpu.enter()
        independent = self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        self.stream = _checked(self.driver.cuStreamCreate(independent))
        self.pinned = PinnedBlocks(self.driver)
        self.processors, self.shared_bytes = gpu.processors, gpu.shared_bytes

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make the context that of the calling thread."""
        self.gpu.enter()
        yield

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            return DeviceArray.of(Memory(self.driver, size, self.stream), shape, dtype)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"{self.gpu.name} has no memory for {shape} {dtype}, {size / 1e9:.2f} GB "
                f"({self.gpu.memory_in_words()}): smaller frames, or a GPU that nothing else uses"
            ) from error

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.clear(array)
        return array

    def clear(self, array: DeviceArray) -> None:
        _checked(self.driver.cuMemsetD8Async(array.address, 0, array.nbytes, self.stream))

    def write(self, array: DeviceArray, values: np.ndarray | list[np.ndarray]) -> None:
        rows = array[: len(values)]
        block = self.pinned.take(rows.nbytes)
        staging = block.array(rows.shape, rows.dtype)
        for row, value in enumerate(values):
            staging[row] = value
        copy = self.driver.cuMemcpyHtoDAsync
        _checked(copy(rows.address, block.address, rows.nbytes, self.stream))
        _checked(self.driver.cuEventRecord(block.event, self.stream))
        self.pinned.give_back(block)

    def read(self, array: DeviceArray) -> Reading:
        block = self.pinned.take(array.nbytes)
        copy = self.driver.cuMemcpyDtoHAsync
        _checked(copy(block.address, array.address, array.nbytes, self.stream))
        _checked(self.driver.cuEventRecord(block.event, self.stream))
        values = block.array(array.shape, array.dtype)
        # It is given back with the last array of it, also where nobody waits for what comes.
        weakref.finalize(values.base, self.pinned.give_back, block)

        def wait() -> np.ndarray:
            _checked(self.driver.cuEventSynchronize(block.event))
            return values

        return wait

    def watch(self, array: DeviceArray) -> Callable[[], Reading]:
        blocks = [self.pinned.take(array.nbytes) for _ in range(LOOKS)]
        turns = itertools.cycle(
            [(block, block.array(array.shape, array.dtype)) for block in blocks]
        )
        copy, wait_for = self.driver.cuMemcpyDtoHAsync, self.driver.cuEventSynchronize
        source, size = array.address, array.nbytes

        def look() -> Reading:
            block, values = next(turns)
            _checked(copy(block.address, source, size, self.stream))
            _checked(self.driver.cuEventRecord(block.event, self.stream))

            def wait() -> np.ndarray:
                _checked(wait_for(block.event))
                return values

            return wait

        for block in blocks:
            weakref.finalize(look, self.pinned.give_back, block)
        return look

    def launch(self, kernel: str, grid: Dimensions, block: Dimensions, *arguments: Any) -> None:
        self.prepare(kernel, grid, block, *arguments)()

    def prepare(
        self, kernel: str, grid: Dimensions, block: Dimensions, *arguments: Any, shared: int = 0
    ) -> Callable[[], None]:
        plain = tuple(a.address if isinstance(a, DeviceArray) else a for a in arguments)
        packed = pack_arguments(self.gpu.types[kernel], plain)
        start, function = self.driver.cuLaunchKernel, self.gpu.kernels[kernel]
        if shared:
            limit = self.driver.CUfunction_attribute
            most = limit.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(self.driver.cuFuncSetAttribute(function, most, shared))
        given = (*grid, *block, shared, self.stream, ctypes.addressof(packed[1]), 0)

        def launch(kept: Any = packed) -> None:  # the driver copies them at each launch
            _checked(start(function, *given))

        return launch

    def finish(self) -> None:
        """Wait until all is done."""
        _checked(self.driver.cuStreamSynchronize(self.stream))


_opening = threading.Lock()


def open_gpu(source: str) -> Gpu:
    """The current GPU with these kernels, opened once; FlowkitError where there is none."""
    with _opening:
        return _opened(source)


@cache
def _opened(source: str) -> Gpu:
    return Gpu(source)


def _open_driver() -> Any:
    """The driver's calls, if a GPU can be used here; else an error that says what is missing."""
    driver, nvrtc = _bindings()
    try:
        [status] = driver.cuInit(0)
    except RuntimeError as error:  # cuda-pathfinder raises it where libcuda.so is nowhere
        raise FlowkitError(
            "no NVIDIA driver was found here (libcuda.so): install it, or use the CPU's methods"
        ) from error
    if status == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        raise FlowkitError(f"the NVIDIA driver sees no GPU{hidden}: use the CPU's methods")
    if status.name == "CUDA_ERROR_NOT_INITIALIZED":
        raise FlowkitError(FORKED)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise FlowkitError(f"the NVIDIA driver cannot be used ({status.name}): update the driver")
    supported = _checked(driver.cuDriverGetVersion()) // 1000  # 13020: CUDA 13.2
    status, major, minor = nvrtc.nvrtcVersion()
    _checked((status,))
    if major > supported:
        raise FlowkitError(
            f"the NVIDIA driver is made for CUDA {supported}, the compiler here for CUDA "
            f"{major}.{minor}: update the driver, or install torch for CUDA {supported}"
        )
    return driver


def count_gpus() -> int:
    """The GPUs that this process may use; FlowkitError says what is missing where it is none."""
    return _checked(_open_driver().cuDeviceGetCount())


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
    if status.name in ("CUDA_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_OUT_OF_MEMORY"):
        raise DeviceMemoryError(f"no memory is left ({status.name})")
    if status.name == "CUDA_ERROR_NOT_INITIALIZED":
        raise DeviceError(FORKED)
    if int(status) != 0:
        raise DeviceError(f"CUDA failed with {status.name}: run again with CUDA_LAUNCH_BLOCKING=1")
    return rest[0] if rest else None
