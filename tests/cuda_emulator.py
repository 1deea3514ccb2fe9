"""CUDA C++ run on the processor, thread by thread: the kernels' own text behind a small shim.

Every thread of a block is a fiber with a stack of its own, suspended at a shuffle until its warp
has come there, and at a barrier until the block has. A warp runs from barrier to barrier before
the next one begins, and all can be run in reverse order: a kernel that lacks a barrier then gives
two answers. A barrier or shuffle that some threads never reach is an error, and so are two barriers
of the text that parts of a block wait at together: a GPU counts them as one, but need not.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from flowkit.flow.cuda.device import pack_arguments, signatures

_one_at_a_time = threading.Lock()  # the shim's blocks and threads are global variables

SHIM = r"""
#undef _FORTIFY_SOURCE
#include <csetjmp>
#include <cstddef>
#include <cmath>
#include <cstring>
#include <tuple>
#include <ucontext.h>
#include <vector>
#include <algorithm>
using std::min; using std::max;
struct Index { int x, y, z; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
#define __global__
#define __device__ static
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(type, name) alignas(16) static type name[(227 << 10) / sizeof(type)]
static Index threadIdx, blockIdx, blockDim, gridDim;

enum Place { BARRIER, SHUFFLE, END };
struct Fiber {
    ucontext_t start; jmp_buf at; bool begun; Place place; int barrier; Index thread; float given;
};
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static int running;
static jmp_buf scheduler;
static const size_t STACK = 48 << 10;
static void (*entry)(void**);
static void** entry_arguments;

static void suspend(Place place) {
    fibers[running].place = place;
    if (!_setjmp(fibers[running].at)) _longjmp(scheduler, 1);
}
static void body() {  // of a fiber, which is one thread of block after block
    for (;;) {
        entry(entry_arguments);
        suspend(END);
    }
}
static void resume(int i) {
    running = i;
    threadIdx = fibers[i].thread;
    if (_setjmp(scheduler)) return;
    if (fibers[i].begun) _longjmp(fibers[i].at, 1);
    fibers[i].begun = true;
    setcontext(&fibers[i].start);
}
static void wait_at(int barrier) {  // by its number in the text
    fibers[running].barrier = barrier;
    suspend(BARRIER);
}
#define __syncthreads() wait_at(__COUNTER__)
static void __threadfence() {}
static float shuffle(float value, int lane) {
    int base = running & ~31, mine = running & 31;
    fibers[running].given = value;
    suspend(SHUFFLE);
    float got = fibers[base + (lane < 0 || lane > 31 ? mine : lane)].given;
    suspend(SHUFFLE);
    return got;
}
static float __shfl_up_sync(unsigned, float v, int d) { return shuffle(v, (running & 31) - d); }
static float __shfl_down_sync(unsigned, float v, int d) { return shuffle(v, (running & 31) + d); }
static int __shfl_sync(unsigned, int v, int lane) {
    float given, got;
    memcpy(&given, &v, 4);
    got = shuffle(given, lane);
    memcpy(&v, &got, 4);
    return v;
}
static void __syncwarp() { shuffle(0.0f, 0); }
static float __shfl_xor_sync(unsigned, float v, int m) { return shuffle(v, (running & 31) ^ m); }
static int atomicAdd(int* at, int value) { int old = *at; *at += value; return old; }
template <class T> static T __ldcg(const T* at) { return *at; }
static float __fadd_rn(float a, float b) { volatile float c = a + b; return c; }
static float __fmul_rn(float a, float b) { volatile float c = a * b; return c; }
static float __fsub_rn(float a, float b) { volatile float c = a - b; return c; }

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
template <auto kernel> struct Unpacked;
template <class... A, void (*kernel)(A...)> struct Unpacked<kernel> {
    static void run(void** arguments) {
        call(kernel, arguments, std::index_sequence_for<A...>());
    }
    static int count(int* sizes) {
        int given[] = {(int)sizeof(A)...};
        std::copy(given, given + sizeof...(A), sizes);
        return sizeof...(A);
    }
};

// Runs fibers from `first` to `last` up to the next barrier or their end, where all must be then;
// -1 if they are not.
static int run_warp(int first, int last, int reverse) {
    for (;;) {
        for (int i = first; i < last; ++i) resume(reverse ? first + last - 1 - i : i);
        for (int i = first; i < last; ++i)
            if (fibers[i].place != fibers[first].place) return -1;
        if (fibers[first].place != SHUFFLE) return fibers[first].place;
    }
}

// Fibers that begin with the next block: at least `count`.
static void make_fibers(int count) {
    fibers.resize(max(count, (int)fibers.size()));
    stacks.resize(fibers.size() * STACK);
    for (size_t i = 0; i < fibers.size(); ++i) {
        Fiber& f = fibers[i];
        f.begun = false;
        getcontext(&f.start);
        f.start.uc_stack.ss_sp = &stacks[i * STACK];
        f.start.uc_stack.ss_size = STACK;
        f.start.uc_link = nullptr;
        makecontext(&f.start, body, 0);
    }
}

// 0, or 1 where threads come to a barrier or shuffle that others of their block or warp do not.
static int run(void (*kernel)(void**), void** arguments, Index grid, Index block, int reverse) {
    static bool broken = false;  // the last run left fibers inside a kernel
    int threads = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
    entry = kernel; entry_arguments = arguments; gridDim = grid; blockDim = block;
    if (broken || (int)fibers.size() < threads) make_fibers(threads);
    broken = true;
    for (int b = 0; b < blocks; ++b) {
        int n = reverse ? blocks - 1 - b : b;
        blockIdx = {n % grid.x, n / grid.x % grid.y, n / (grid.x * grid.y)};
        for (int i = 0; i < threads; ++i) {
            int rows = i / block.x;
            fibers[i].thread = {i % block.x, rows % block.y, rows / block.y};
        }
        int warps = (threads + 31) / 32;
        for (int place = BARRIER; place != END;) {
            for (int i = 0; i < warps; ++i) {
                int w = reverse ? warps - 1 - i : i;
                int reached = run_warp(32 * w, min(32 * w + 32, threads), reverse);
                if (reached < 0 || (i > 0 && reached != place)) return 1;
                place = reached;
            }
            for (int i = 1; place == BARRIER && i < threads; ++i)
                if (fibers[i].barrier != fibers[0].barrier) return 1;
        }
    }
    broken = false;
    return 0;
}
"""

LAUNCH = r"""
extern "C" int launch(
    int kernel, void** arguments, const int* grid, const int* block, int reverse) {
    Index g = {grid[0], grid[1], grid[2]}, b = {block[0], block[1], block[2]};
    switch (kernel) { %s }
    return 2;
}
extern "C" int parameters(int kernel, int* sizes) {
    switch (kernel) { %s }
    return -1;
}
"""


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def build(source: str, folder: Path) -> tuple[ctypes.CDLL, list[str]]:
    """The kernels of `source` as a library, and their names in order."""
    names = list(signatures(source))
    runs = "".join(
        f"case {i}: return run(Unpacked<{name}>::run, arguments, g, b, reverse);"
        for i, name in enumerate(names)
    )
    counts = "".join(
        f"case {i}: return Unpacked<{name}>::count(sizes);" for i, name in enumerate(names)
    )
    text = SHIM + source + LAUNCH % (runs, counts)
    place = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    library = place.with_suffix(".so")
    if not library.exists():
        place.with_suffix(".cpp").write_text(text)
        command = [
            compiler(), "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC",
            "-U_FORTIFY_SOURCE", "-o", library, place.with_suffix(".cpp"),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(library)), names


class EmulatedQueue:
    """A `flowkit.flow.cuda.device.Queue` whose device is the processor.

    New memory holds NaN or -1, so that a kernel that reads what none has written is found out.
    """

    processors = 3  # so that a block makes several tiles
    shared_bytes = 227 << 10

    def __init__(self, source: str, folder: Path, *, reverse: bool = False) -> None:
        self.library, self.names = build(source, folder)
        self.types = signatures(source)
        self.reverse = reverse
        self.launched: list[str] = []
        self.shared: set[int] = set()  # bytes given to launches that were prepared

    @contextmanager
    def running(self):
        yield

    def empty(self, shape, dtype):
        array = np.empty(math.prod(shape) + 64, dtype)
        array = array[-array.ctypes.data % 64 // array.itemsize :][: math.prod(shape)]
        array[:] = {"f": np.nan, "i": -1, "u": 77}[array.dtype.kind]
        return array.reshape(shape)

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array[:] = 0
        return array

    def write(self, array, values):
        for row, value in enumerate(values):
            array[row] = value

    def read(self, array):
        taken = array.copy()
        return lambda: taken

    def clear(self, array):
        array[:] = 0

    def watch(self, array):
        return lambda: self.read(array)

    def prepare(self, kernel, grid, block, *arguments, shared=0):
        assert shared <= self.shared_bytes
        self.shared.add(shared)
        return lambda: self.launch(kernel, grid, block, *arguments)

    def launch(self, kernel, grid, block, *arguments):
        self.launched.append(kernel)
        plain = tuple(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments)
        values, addresses = pack_arguments(self.types[kernel], plain)
        number = self.names.index(kernel)
        sizes = (ctypes.c_int * 64)()
        count = self.library.parameters(number, sizes)
        assert sizes[:count] == [ctypes.sizeof(value) for value in values], kernel
        dimensions = [(ctypes.c_int * 3)(*one) for one in (grid, block)]
        with _one_at_a_time:
            status = self.library.launch(number, addresses, *dimensions, int(self.reverse))
        assert status == 0, f"{kernel}: a barrier that some threads never reach"
