"""A CUDA driver whose GPU is the processor: streams do nothing before somebody waits for them.

So whoever reuses memory before its transfer is done, or reads what has not come, is found out.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cuda_emulator import build


class Status(int):
    """A status with a name, as cuda-bindings have them."""

    name = "CUDA_SUCCESS"


class OutOfMemory(Status):
    name = "CUDA_ERROR_OUT_OF_MEMORY"


class NotReady(Status):
    name = "CUDA_ERROR_NOT_READY"


OK, FULL, BUSY = Status(0), OutOfMemory(2), NotReady(600)


class DriverDouble:
    """What `flowkit.flow.cuda.device` calls of ``cuda.bindings.driver``."""

    CUresult = SimpleNamespace(
        CUDA_SUCCESS=OK, CUDA_ERROR_NOT_READY=BUSY, CUDA_ERROR_NO_DEVICE=Status(100)
    )
    CUevent_flags = SimpleNamespace(
        CU_EVENT_BLOCKING_SYNC=SimpleNamespace(value=1),
        CU_EVENT_DISABLE_TIMING=SimpleNamespace(value=2),
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=3,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=227 << 10,
    )
    CUmemPool_attribute = SimpleNamespace(
        CU_MEMPOOL_ATTR_RELEASE_THRESHOLD=1,
        CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT=2,
        CU_MEMPOOL_ATTR_USED_MEM_CURRENT=3,
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    cuuint64_t = int

    def __init__(self, source: str, folder: Path, memory_bytes: int = 1 << 30) -> None:
        self.library, self.names = build(source, folder)
        self.left = memory_bytes
        self.allocated: dict[int, np.ndarray] = {}  # address -> memory of the GPU
        self.host: list[np.ndarray] = []
        self.host_left = 1 << 30  # bytes that can be pinned
        self.streams: list[list] = []  # what each has still to do
        self.events: list[tuple | None] = []  # stream and number of the thing after which it is
        self.running = threading.RLock()

    def _later(self, stream, action):
        with self.running:
            self.streams[stream].append((action,))
        return (OK,)

    def cuInit(self, flags):
        return (OK,)

    def cuDriverGetVersion(self):
        return OK, 13020

    def cuDeviceGetCount(self):
        return OK, 1

    def cuCtxGetCurrent(self):
        return OK, 0

    def cuDeviceGet(self, number):
        return OK, number

    def cuDeviceGetAttribute(self, which, device):
        return OK, which

    def cuDeviceGetName(self, room, device):
        return OK, b"processor".ljust(room, b"\0")

    def cuDevicePrimaryCtxRetain(self, device):
        return OK, 7

    def cuCtxSetCurrent(self, context):
        return (OK,)

    def cuDeviceGetDefaultMemPool(self, device):
        return OK, 0

    def cuMemPoolSetAttribute(self, pool, which, value):
        return (OK,)

    def cuMemPoolGetAttribute(self, pool, which):
        return OK, 0

    def cuMemGetInfo(self):
        return OK, self.left, self.left

    def cuModuleLoadData(self, code):
        return OK, 0

    def cuModuleGetFunction(self, module, name):
        return OK, self.names.index(name.decode())

    def cuFuncSetAttribute(self, function, which, value):
        return (OK,)

    def cuStreamCreate(self, flags):
        self.streams.append([])
        return OK, len(self.streams) - 1

    def cuMemAllocAsync(self, size, stream):
        if size > self.left:
            return FULL, None
        self.left -= size
        memory = np.full(size, 77, np.uint8)
        self.allocated[memory.ctypes.data] = memory
        return OK, memory.ctypes.data

    def cuMemFreeAsync(self, address, stream):
        def free():
            memory = self.allocated.pop(address)
            memory[:] = 99
            self.left += memory.size

        return self._later(stream, free)

    def cuMemHostAlloc(self, size, flags):
        if size > self.host_left:
            return FULL, None
        self.host_left -= size
        self.host.append(np.full(size, 55, np.uint8))
        return OK, self.host[-1].ctypes.data

    def cuMemFreeHost(self, address):
        [memory] = [one for one in self.host if one.ctypes.data == address]
        memory[:] = 88
        self.host_left += memory.size
        return (OK,)

    def cuMemsetD8Async(self, address, value, size, stream):
        return self._later(stream, lambda: ctypes.memset(address, value, size))

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        return self._later(stream, lambda: ctypes.memmove(target, source, size))

    cuMemcpyDtoHAsync = cuMemcpyHtoDAsync

    def cuEventCreate(self, flags):
        self.events.append(None)
        return OK, len(self.events) - 1

    def cuEventDestroy(self, event):
        return (OK,)

    def cuEventRecord(self, event, stream):
        with self.running:
            entry = (lambda: None,)
            self.streams[stream].append(entry)
            self.events[event] = stream, entry
        return (OK,)

    def _waits(self, event):
        recorded = self.events[event]
        return recorded is not None and any(one is recorded[1] for one in self.streams[recorded[0]])

    def cuEventQuery(self, event):
        return (BUSY if self._waits(event) else OK,)

    def cuEventSynchronize(self, event):
        with self.running:
            while self._waits(event):
                self.streams[self.events[event][0]].pop(0)[0]()
        return (OK,)

    def cuStreamSynchronize(self, stream):
        with self.running:
            while self.streams[stream]:
                self.streams[stream].pop(0)[0]()
        return (OK,)

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
        sizes = (ctypes.c_int * 64)()
        count = self.library.parameters(function, sizes)
        given = (ctypes.c_void_p * count).from_address(arguments)
        values = [ctypes.string_at(given[i], sizes[i]) for i in range(count)]  # copied at once
        dimensions = [(ctypes.c_int * 3)(*one) for one in ((gx, gy, gz), (bx, by, bz))]

        def run():
            kept = [ctypes.create_string_buffer(value, len(value)) for value in values]
            addresses = (ctypes.c_void_p * count)(*[ctypes.addressof(one) for one in kept])
            assert self.library.launch(function, addresses, *dimensions, 0) == 0

        return self._later(stream, run)
