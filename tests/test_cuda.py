"""The CUDA methods: their kernels run on the processor, compiled for GPUs, and run on one."""

import ctypes
import dataclasses
import gc
import itertools
import math
import pickle
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import made_textures
import numpy as np
import pytest
from cuda_emulator import EmulatedQueue, build, compiler
from driver_double import DriverDouble
from made_textures import shifted

from flowkit import fields, quantize
from flowkit._cv2 import cv2
from flowkit.errors import DeviceError, DeviceMemoryError, FlowkitError, InstallError, UsageError
from flowkit.extraction import flow_server
from flowkit.flow import tvl1, tvl1_kernels
from flowkit.flow.cuda import batches as cuda_batches
from flowkit.flow.cuda import device as cuda_device
from flowkit.flow.cuda import farneback as cuda_farneback
from flowkit.flow.cuda import images as cuda_images
from flowkit.flow.cuda import tvl1 as cuda_tvl1
from flowkit.flow.cuda.methods import CudaFarneback, CudaTVL1
from flowkit.flow.methods import describe_method
from flowkit.flow.pairs import consecutive
from flowkit.flow.stabilized import Stabilization, StabilizedFlow
from flowkit.flow.tvl1 import TVL1

SOLVERS = {CudaTVL1: cuda_tvl1.TVL1Batch, CudaFarneback: cuda_farneback.FarnebackBatch}
SOURCES = {CudaTVL1: cuda_tvl1.SOURCE, CudaFarneback: cuda_farneback.SOURCE}
QUICK = {  # a few iterations, for laws that hold for any number of them
    CudaTVL1: CudaTVL1(nscales=2, warps=1, outer_iterations=1, inner_iterations=12),
    CudaFarneback: CudaFarneback(iterations=2),
}


texture = partial(made_textures.texture, grain=3)


# --- on the processor ---


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    if compiler() is None:
        pytest.skip("no C++ compiler here to run CUDA kernels on the processor")
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def emulated(place):
    """Computes pairs as `on_card` does, on two emulated queues."""

    def compute(method, pairs, *, fetch=cuda_batches.fetch_fields, room=2, reverse=False):
        kind = type(method)
        slots = [
            cuda_batches.Slot(
                EmulatedQueue(SOURCES[kind], place, reverse=reverse), method, SOLVERS[kind], fetch
            )
            for _ in range(2)
        ]
        compute.slots = slots
        return cuda_batches.computed(pairs, slots, lambda size: room)

    return compute


def cpu_work(method: TVL1, first: np.ndarray, second: np.ndarray) -> int:
    """Pixels times iterations of the CPU method over all warps and scales."""
    tvl1.warm_up()
    total = 0

    def counting(image0, *arguments):
        nonlocal total
        total += image0.size * (count := tvl1_kernels.solve_scale(image0, *arguments))
        return count

    levels = [method._pyramid(frame) for frame in (first, second)]
    method._field(*levels, tvl1._Workspace(*first.shape), counting)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (5, 40), (70, 67)])
def test_one_warp_of_full_length_equals_the_cpu_method(emulated, size):
    first = texture(*size, grain=2)
    second = shifted(first, 0.7, -0.4)
    same = {"nscales": 1, "warps": 1, "epsilon": 0}
    [field] = emulated(CudaTVL1(**same), [(first, second)])
    [expected] = TVL1(**same).fields([(first, second)])
    assert np.abs(field - expected).max() <= 1e-5


@pytest.mark.parametrize(
    "parameters",
    [
        {"nscales": 1},
        {"nscales": 3, "warps": 2, "epsilon": 0.02, "scale_step": 0.7},
        pytest.param(
            {"nscales": 1, "inner_iterations": 7, "outer_iterations": 4, "tau": 0.2, "theta": 0.4},
            marks=pytest.mark.slow,
        ),
        {"nscales": 1, "median_filtering": 1, "lambda_": 0.1},
        TVL1.presets["faster"],
    ],
)
def test_it_stops_after_the_cpu_methods_very_iteration(emulated, parameters):
    first = texture(24, 35)
    second = shifted(first, 1.7, -1.4)
    [field] = emulated(CudaTVL1(**parameters), [(first, second)])
    same = TVL1(**parameters)
    assert emulated.slots[0].solver.work(1) == [cpu_work(same, first, second)]
    [expected] = same.fields([(first, second)])
    assert np.abs(field - expected).max() < 2e-3  # rounding, where a pixel hangs in the balance


@pytest.mark.slow
def test_the_camera_is_taken_off_on_top_of_batches(emulated):
    frames = [texture(64, 80)]
    frames += [shifted(frames[0], 2 * t, t) for t in (1, 2, 3)]
    method = QUICK[CudaFarneback]
    flow = StabilizedFlow(lambda pairs: emulated(method, pairs), Stabilization())
    plain, fields = (
        list(one(consecutive(frames))) for one in (partial(emulated, method), flow.fields)
    )
    inside = np.s_[16:-16, 16:-16]
    assert len(plain) == len(fields) == 3 and flow.plain == 0
    for before, after in zip(plain, fields, strict=True):
        assert np.abs(before[inside].mean((0, 1)) - (2, 1)).max() < 0.3
        assert np.abs(after[inside].mean((0, 1))).max() < 0.1


def test_shared_memory_for_the_next_tile_changes_no_bit(place):
    first = texture(70, 131)
    pairs = [(first, shifted(first, dx, 0.3)) for dx in (0.4, 1.5)]
    method = CudaTVL1(nscales=1, warps=1, outer_iterations=1, inner_iterations=12)
    found = []
    for room in (227 << 10, 48 << 10):
        queue = EmulatedQueue(cuda_tvl1.SOURCE, place)
        queue.shared_bytes = room
        slot = cuda_batches.Slot(queue, method, SOLVERS[CudaTVL1], cuda_batches.fetch_fields)
        found.append((list(cuda_batches.computed(pairs, [slot], lambda size: 2)), queue.shared))
    (staged, given), (direct, none) = found
    assert np.array_equal(staged, direct)
    assert given > none == {0}


def test_each_pair_of_a_batch_stops_by_itself(emulated):
    first = texture(20, 24)
    pairs = [(first, shifted(first, dx, 0.3)) for dx in (0.1, 2.5)] + [(first, first.copy())]
    method = CudaTVL1(nscales=1, warps=2)
    together = list(emulated(method, pairs, room=3))
    counts = emulated.slots[0].solver.work(3) // first.size
    assert counts[2] == 2 and len(set(counts)) == 3
    for pair, field in zip(pairs, together, strict=True):
        [alone] = emulated(method, [pair])
        assert np.array_equal(field, alone)
    assert not together[2].any()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"gaussian": True, "levels": 1},
        {"poly_n": 7, "poly_sigma": 1.5, "pyr_scale": 0.702, "win_size": 10, "iterations": 2},
        {"pyr_scale": 0.8, "win_size": 15, "iterations": 3, "poly_sigma": 1.2},
    ],
)
def test_farneback_equals_opencv(emulated, parameters):
    first = texture(70, 61)
    second = shifted(first, 2.7, -1.4)
    method = CudaFarneback(**parameters)
    [field] = emulated(method, [(first, second)])
    expected = cv2.FarnebackOpticalFlow_create(
        method.levels, method.pyr_scale, False, method.win_size, method.iterations,
        method.poly_n, method.poly_sigma, cv2.OPTFLOW_FARNEBACK_GAUSSIAN if method.gaussian else 0,
    ).calc(first, second, None)  # fmt: skip
    assert np.abs(field - expected).max() <= 2e-5


def test_fast_pyramids_are_opencvs_pyr_down(emulated):
    first = texture(131, 70)
    method = CudaFarneback(fast_pyramids=True, iterations=1)
    [_] = emulated(method, [(first, shifted(first, 1, 1))])
    solver = emulated.slots[0].solver
    expected = first.astype(np.float32)
    assert len(solver.levels) == 2  # (35, 18) would have a side under 32
    for level in solver.levels:
        plane = solver.frames.images[0, level.offset :][: level.plane].reshape(-1, level.pitch)
        assert np.abs(plane[:, : level.width] - expected).max() < 1e-4
        expected = cv2.pyrDown(expected)


def sampled(image: np.ndarray, at_x: np.ndarray, at_y: np.ndarray) -> np.ndarray:
    """OpenCV CUDA's bicubic sampling: A = -0.5, normalized weights, the nearest pixel outside."""

    def weight(t):
        t = np.abs(t)
        near, far = t * t * (1.5 * t - 2.5) + 1, t * (t * (-0.5 * t + 2.5) - 4) + 2
        return np.where(t <= 1, near, np.where(t < 2, far, 0))

    total, norm = 0, 0
    for i in range(-1, 3):
        for j in range(-1, 3):
            y, x = np.floor(at_y) + i, np.floor(at_x) + j
            w = weight(at_y - y) * weight(at_x - x)
            inside = np.clip(y, 0, len(image) - 1), np.clip(x, 0, image.shape[1] - 1)
            total = total + w * image[inside[0].astype(int), inside[1].astype(int)]
            norm = norm + w
    return total / norm


def corner_resized(image: np.ndarray, size: tuple[int, int], steps: tuple[float, float]):
    at = [np.arange(side) * step for side, step in zip(size, steps, strict=True)]
    low = [np.minimum(np.floor(a).astype(int), n - 1) for a, n in zip(at, image.shape, strict=True)]
    high = [np.minimum(k + 1, n - 1) for k, n in zip(low, image.shape, strict=True)]
    wy, wx = (a - k for a, k in zip(at, low, strict=True))
    rows = image[low[0]] * (1 - wy)[:, None] + image[high[0]] * wy[:, None]
    return rows[:, low[1]] * (1 - wx) + rows[:, high[1]] * wx


def opencv_cuda_tvl1(first, second, *, scales: int, warps: int, epsilon: float, iterations: int):
    """The published algorithm of cv2.cuda.OpticalFlowDual_TVL1, written out plainly in float64."""
    levels = [(first.astype(float), second.astype(float))]
    for _ in range(scales - 1):
        size = tuple(round(side * 0.8) for side in levels[-1][0].shape)
        levels.append(tuple(corner_resized(one, size, (1.25, 1.25)) for one in levels[-1]))
    u = v = np.zeros_like(levels[-1][0])
    for image0, image1 in reversed(levels):
        height, width = image0.shape
        if u.shape != image0.shape:
            steps = len(u) / height, u.shape[1] / width
            u, v = (corner_resized(one, image0.shape, steps) * 1.25 for one in (u, v))
        padded = np.pad(image1, 1, mode="edge")
        gx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
        gy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
        y, x = np.mgrid[:height, :width]
        p = [np.zeros_like(u) for _ in range(4)]
        for _ in range(warps):
            warped, ix, iy = (sampled(one, x + u, y + v) for one in (image1, gx, gy))
            square = ix**2 + iy**2
            rho_c = warped - ix * u - iy * v - image0
            stop, former, error, n = epsilon**2 * u.size, 0.0, np.inf, 0
            while error > stop and n < iterations:
                rho = rho_c + ix * u + iy * v
                step = np.clip(-rho / np.maximum(square, 1.19e-7), -0.045, 0.045)
                backward = [
                    np.diff(one, axis=axis, prepend=0)
                    for one, axis in zip(p, (1, 0, 1, 0), strict=True)
                ]
                du = step * ix + 0.3 * (backward[0] + backward[1])
                dv = step * iy + 0.3 * (backward[2] + backward[3])
                u, v = u + du, v + dv
                if epsilon > 0 and n % 2 == 1 and former < stop:
                    error = former = (du**2 + dv**2).sum()
                else:
                    error, former = np.inf, former - stop
                for k, one in ((0, u), (2, v)):
                    ax = np.diff(one, axis=1, append=one[:, -1:])
                    ay = np.diff(one, axis=0, append=one[-1:])
                    norm = 1 + 0.25 / 0.3 * np.hypot(ax, ay)
                    p[k] = (p[k] + 0.25 / 0.3 * ax) / norm
                    p[k + 1] = (p[k + 1] + 0.25 / 0.3 * ay) / norm
                n += 1
    return np.stack([u, v], axis=2)


@pytest.mark.parametrize(("scales", "epsilon"), [(1, 0.0), (1, 0.02), (2, 0.02)])
def test_the_opencv_cuda_variant_is_its_published_algorithm(emulated, scales, epsilon):
    first = texture(33, 41)
    second = shifted(first, 2.3, -1.2)
    preset = {**CudaTVL1.presets["opencv-cuda"], "inner_iterations": 60}
    method = CudaTVL1(**preset, nscales=scales, warps=2, epsilon=epsilon)
    [field] = emulated(method, [(first, second)])
    expected = opencv_cuda_tvl1(
        first, second, scales=scales, warps=2, epsilon=epsilon, iterations=60
    )
    assert np.abs(field - expected).max() < 1e-3
    [cpu] = TVL1(nscales=scales, warps=2, epsilon=epsilon).fields([(first, second)])
    assert np.abs(cpu - expected).max() > 0.05  # another algorithm, not this one faster


@pytest.mark.parametrize("kind", SOLVERS)
def test_the_order_of_threads_and_blocks_changes_no_bit(emulated, kind):
    frames = [texture(40, 67, seed=seed) for seed in range(3)]
    pairs = list(itertools.pairwise(frames))
    forward, backward = (list(emulated(QUICK[kind], pairs, reverse=r)) for r in (False, True))
    assert np.array_equal(forward, backward)


@pytest.mark.parametrize("kind", SOLVERS)
def test_batches_mix_sizes_videos_and_directions(emulated, kind):
    """Three sizes, a frame in several pairs, pairs that share no frame: each as if alone."""
    a, b, c, d, e = (texture(24, 37, seed=seed) for seed in range(5))
    small, other = (texture(20, 19, seed=seed) for seed in (5, 6))
    pairs = [(a, b), (b, a), (b, c), (small, other), (d, e), (a, c)]
    frames = {id(f): f.copy() for pair in pairs for f in pair}
    computed = list(emulated(QUICK[kind], pairs))
    for pair, field in zip(pairs, computed, strict=True):
        [alone] = emulated(QUICK[kind], [(pair[0].copy(), pair[1].copy())])
        assert field.dtype == np.float32 and np.array_equal(field, alone)
    assert not np.shares_memory(computed[0], computed[1])
    assert all(np.array_equal(f, frames[id(f)]) for pair in pairs for f in pair)


def test_a_frame_is_uploaded_once_a_batch():
    a, b, c = (texture(16, 16, seed=seed) for seed in range(3))
    [batch] = cuda_batches.batches([(a, b), (b, c), (c, b)], lambda size: 8)
    assert [frame is wanted for frame, wanted in zip(batch.frames, (a, b, c), strict=True)]
    assert batch.frame_of.tolist() == [[0, 1], [1, 2], [2, 1]]


def test_a_batch_has_room_for_its_frames():
    frames = [np.full((16, 16), value, np.uint8) for value in range(40)]
    pairs = list(zip(frames[::2], frames[1::2], strict=True))  # twenty that share no frame
    made = list(cuda_batches.batches(pairs, lambda size: 8))
    assert sum(len(batch.frame_of) for batch in made) == 20
    assert all(len(batch.frames) <= cuda_batches.frame_capacity(8) for batch in made)


@pytest.mark.parametrize("kind", SOLVERS)
def test_an_endless_stream_is_read_in_batches(emulated, kind):
    first = texture(16, 18)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield first, first.copy()

    stream = emulated(QUICK[kind], endless())
    assert next(stream).shape == (16, 18, 2)
    stream.close()
    assert taken <= 9  # three batches of two, and no more than the next


@pytest.mark.parametrize("bound", [None, 1.5])
def test_planes_are_those_of_the_field_byte_for_byte(emulated, bound):
    first = texture(33, 45)
    pairs = [(first, shifted(first, dx, -0.8)) for dx in (2.1, 0.0)] + [(first, first.copy())]
    computed = list(emulated(QUICK[CudaTVL1], pairs, room=3))
    quantized = list(
        emulated(QUICK[CudaTVL1], pairs, room=3, fetch=cuda_batches.fetch_planes(bound))
    )
    for field, (planes, ranges) in zip(computed, quantized, strict=True):
        for i, (lo, hi) in enumerate(ranges):
            component = field[..., i]
            if bound is None:
                assert (lo, hi) == quantize.own_range(component)
                expected = quantize.quantize(component, lo, hi)
            else:
                assert (lo, hi) == quantize.bound_range(bound)
                expected = quantize.quantize_bounded(component, bound)
            assert np.array_equal(planes[i], expected)


@pytest.mark.parametrize("bound", [None, 20.0])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_field_that_is_not_finite_is_refused(place, bound, wrong):
    queue = EmulatedQueue(cuda_images.SOURCE, place)
    planes = queue.zeros((1, 2, 5 * 32), "float32")
    planes[0, 1, 40] = wrong
    flow = cuda_images.Flow(planes, (5, 9), 5 * 32)
    with pytest.raises(ValueError, match="got NaN or infinity"):
        list(cuda_batches.fetch_planes(bound)(queue, flow, 1))


class SmallGpu(EmulatedQueue):
    """A queue of a GPU whose memory holds `most` bytes in one array, and seems to hold more."""

    most = 10**9
    gpu = SimpleNamespace(free_bytes=lambda: 6_000_000)

    def empty(self, shape, dtype):
        if np.dtype(dtype).itemsize * math.prod(shape) > self.most:
            raise DeviceMemoryError(f"no memory for {shape}")
        return super().empty(shape, dtype)


@dataclasses.dataclass(frozen=True)
class EmulatedTVL1:
    """A method whose slots are on an emulated GPU, opened by a flow process as a GPU's are."""

    queue: EmulatedQueue

    def open_slot(self, fetch):
        return cuda_batches.Slot(self.queue, QUICK[CudaTVL1], cuda_tvl1.TVL1Batch, fetch)


class Listener:
    """A client of a flow server that keeps what it is told."""

    def __init__(self, frames, quantized):
        self.size, self.frames = frames[0].shape, frames
        kind, shape = (np.uint8, (2, *self.size)) if quantized else (np.float32, (*self.size, 2))
        self.results = [np.zeros(shape, kind) for _ in range(8)]
        self.told = []

    def send(self, answer):
        self.told += [answer] if isinstance(answer, str) else sorted(answer)


@pytest.mark.parametrize(
    ("quantized", "most", "halved"),
    [
        (True, 10**9, []),
        pytest.param(False, 10**9, [], marks=pytest.mark.slow),
        (False, 80_000, [10, 5, 2]),
        (True, 50_000, [10, 5, 2, 1]),
    ],
)
def test_a_flow_process_computes_on_the_slots_of_a_gpu(place, emulated, quantized, most, halved):
    queue = SmallGpu(cuda_tvl1.SOURCE, place)
    queue.most = most
    said = []
    solver = flow_server.Solver(flow_server.Work(EmulatedTVL1(queue), quantized, 1.5))
    server = flow_server.FlowServer(said.append, [solver] * cuda_batches.SLOTS)
    frames = [texture(20, 24, seed=seed) for seed in range(6)]
    client = Listener(frames, quantized)
    server.ask(client, [(number, number, number + 1) for number in range(5)])
    batch, room = server._gather()
    assert room == int(6_000_000 * 0.8 / cuda_batches.SLOTS / (120 * 480))
    server._compute(solver, batch, room)
    assert [number for number, _ in client.told] == list(range(5))
    assert [one.pairs for one in said] == halved
    assert server._limited(room, (20, 24)) == (said[-1].pairs if said else room)
    fetch = cuda_batches.fetch_planes(1.5) if quantized else cuda_batches.fetch_fields
    expected = emulated(QUICK[CudaTVL1], itertools.pairwise(frames), fetch=fetch)
    for number, one in enumerate(expected):
        planes, ranges = one if quantized else (one, None)
        assert np.array_equal(client.results[number], planes)
        assert client.told[number] == (number, ranges)


def test_a_flow_process_says_so_where_not_even_one_pair_has_room(place):
    queue = SmallGpu(cuda_tvl1.SOURCE, place)
    queue.most = 3_000
    solver = flow_server.Solver(flow_server.Work(EmulatedTVL1(queue), False, None))
    server = flow_server.FlowServer(lambda message: None, [solver])
    client = Listener([texture(20, 24, seed=seed) for seed in range(3)], False)
    server.ask(client, [(0, 0, 1), (1, 1, 2)])
    server._compute(solver, *server._gather())
    assert client.told == ["no memory for (2, 1152)"] * 2


def test_unfit_pairs_are_refused(emulated):
    frames = np.zeros((16, 16), np.uint8), np.zeros((16, 17), np.uint8)
    with pytest.raises(FlowkitError, match=r"two frames of one size \(H, W\), instead got"):
        list(emulated(QUICK[CudaTVL1], [frames]))


# --- the emulator itself ---


BODIES = {  # bodies of small kernels, by name
    "good": "cells[i] = i; __syncthreads(); out[i] = cells[(i + 1) % 64]; __syncthreads();",
    "bare": "cells[i] = i; out[i] = cells[(i + 1) % 64];",
    "missed": "if (i < 32) __syncthreads();",
    "parted": "if (i < 32) __syncthreads(); else __syncthreads();",
}
SMALL = "".join(
    f'extern "C" __global__ void {name}(int* out)\n'
    f"{{ __shared__ int cells[64]; int i = threadIdx.x; {body} }}\n"
    for name, body in BODIES.items()
)


def run_small(place, name: str, *, reverse: bool = False) -> np.ndarray:
    queue = EmulatedQueue(SMALL, place, reverse=reverse)
    out = queue.zeros((64,), "int32")
    queue.launch(name, (1, 1, 1), (64, 1, 1), out)
    return out


def test_a_missing_barrier_gives_two_answers(place):
    good = [run_small(place, "good", reverse=reverse) for reverse in (False, True)]
    assert np.array_equal(*good) and good[0].tolist() == [*range(1, 64), 0]
    bare = [run_small(place, "bare", reverse=reverse) for reverse in (False, True)]
    assert not np.array_equal(*bare)


@pytest.mark.parametrize("name", ["missed", "parted"])
def test_a_barrier_that_some_threads_miss_is_an_error(place, name):
    """Also where the others wait at another barrier of the text."""
    with pytest.raises(AssertionError, match=f"{name}: a barrier"):
        run_small(place, name)


# --- compiled for GPUs, without one ---


@pytest.fixture
def nvrtc():
    return pytest.importorskip("cuda.bindings.nvrtc", reason="torch here is without CUDA")


@pytest.mark.parametrize(
    "capability", [(9, 0), *(pytest.param(one, marks=pytest.mark.slow) for one in ((7, 5), (8, 0)))]
)
@pytest.mark.parametrize("kind", SOLVERS)
def test_kernels_compile_ahead_of_time(nvrtc, kind, capability):
    code = cuda_device.compile_kernels(SOURCES[kind], capability)
    assert code[:4] == b"\x7fELF"
    for name in cuda_device.signatures(SOURCES[kind]):
        assert f".text.{name}".encode() in code


def test_compiled_code_is_kept_and_damage_is_noticed(nvrtc, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = cuda_device.kept_kernels(cuda_images.SOURCE, (9, 0))
    [file] = (tmp_path / "flowkit").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(cuda_device, "compile_kernels", lambda *_: pytest.fail("compiled again"))
        assert cuda_device.kept_kernels(cuda_images.SOURCE, (9, 0)) == code
    file.write_bytes(file.read_bytes()[:-100])
    assert cuda_device.kept_kernels(cuda_images.SOURCE, (9, 0)) == code
    assert "damaged compiled code in" in caplog.text


def test_a_gpu_newer_than_the_compiler_gets_ptx_that_its_driver_translates(nvrtc):
    newest = max(nvrtc.nvrtcGetSupportedArchs()[1])
    code = cuda_device.compile_kernels(cuda_images.SOURCE, (newest // 10 + 1, 0)).decode()
    assert f".target sm_{newest}" in code and ".entry to_float" in code


def test_code_of_another_compiler_is_not_taken(nvrtc, tmp_path, monkeypatch):
    assert re.search(r"V\d+\.\d+\.\d+", cuda_device.compiler_version())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = cuda_device.kept_file(cuda_images.SOURCE, (9, 0))
    assert file == cuda_device.kept_file(cuda_images.SOURCE, (9, 0))
    monkeypatch.setattr(cuda_device, "compiler_version", lambda: "release 13.0, V13.0.89")
    assert file != cuda_device.kept_file(cuda_images.SOURCE, (9, 0))


def test_without_a_home_folder_it_warns_and_works(nvrtc, monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cuda_device.Path, "home", no_home)
    assert cuda_device.kept_kernels(cuda_images.SOURCE, (9, 0))[:4] == b"\x7fELF"
    assert "no home folder" in caplog.text


def test_without_a_cache_folder_it_warns_and_works(nvrtc, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cuda_device.kept_kernels(cuda_images.SOURCE, (9, 0))[:4] == b"\x7fELF"
    assert "every process compiles" in caplog.text


def test_source_that_does_not_compile_is_one_line(nvrtc):
    with pytest.raises(FlowkitError, match=r"cannot compile .*sm_90: flowkit\.cu\(1\): error"):
        cuda_device.compile_kernels('extern "C" __global__ void f() { nonsense(); }', (9, 0))


def test_every_kernel_has_a_c_type_for_each_parameter(place):
    for source in SOURCES.values():
        library, names = build(source, place)
        for number, (name, types) in enumerate(cuda_device.signatures(source).items()):
            sizes = (ctypes.c_int * 64)()
            count = library.parameters(number, sizes)
            assert (names[number], sizes[:count]) == (name, [ctypes.sizeof(t) for t in types])


# --- what is said where no GPU can be used ---


def pretended(monkeypatch, *, status="CUDA_SUCCESS", raises=None, driver=13020, compiler=13):
    """The driver and the compiler as they answer on some other machine."""

    names = ("CUDA_SUCCESS", "CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
             "CUDA_ERROR_NOT_INITIALIZED")  # fmt: skip
    results = {
        name: type("Result", (int,), {"name": name})(number) for number, name in enumerate(names)
    }

    def initialize(flags):
        if raises:
            raise raises
        return (results[status],)

    calls = SimpleNamespace(
        cuInit=initialize,
        CUresult=SimpleNamespace(**results),
        cuDriverGetVersion=lambda: (results["CUDA_SUCCESS"], driver),
    )
    nvrtc = SimpleNamespace(nvrtcVersion=lambda: (results["CUDA_SUCCESS"], compiler, 2))
    monkeypatch.setattr(cuda_device, "_bindings", lambda: (calls, nvrtc))


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"raises": RuntimeError("no cuda")}, r"no NVIDIA driver was found here"),
        (
            {"status": "CUDA_ERROR_NO_DEVICE"},
            r"no GPU \(CUDA_VISIBLE_DEVICES is '7'\)",
        ),
        (
            {"status": "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
            r"DRIVER_MISMATCH\): update",
        ),
        (
            {"status": "CUDA_ERROR_NOT_INITIALIZED"},
            r"forked from one .*: start it fresh",
        ),
        ({"driver": 12040}, r"CUDA 12, the compiler here for CUDA 13\.2"),
    ],
)
def test_without_a_gpu_the_error_says_what_is_missing(monkeypatch, machine, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    pretended(monkeypatch, **machine)
    with pytest.raises(FlowkitError, match=message):
        list(CudaTVL1()([texture(20, 20)] * 2))
    with pytest.raises(FlowkitError, match=message):
        cuda_device.count_gpus()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CUDA_ERROR_NOT_INITIALIZED", "forked .*: start it fresh"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", "ILLEGAL_ADDRESS: .*CUDA_LAUNCH_BLOCKING=1"),
    ],
)
def test_a_call_of_the_driver_that_fails_says_what_to_do(name, message):
    status = type("Result", (int,), {"name": name})(3)
    with pytest.raises(DeviceError, match=message):
        cuda_device._checked((status,))


def test_without_cuda_bindings_the_error_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for use in (
        lambda: cuda_device.compile_kernels(cuda_images.SOURCE, (9, 0)),
        lambda: next(CudaFarneback()([texture(20, 20)] * 2)),
    ):
        with pytest.raises(InstallError, match="pip install cuda-bindings nvidia-cuda-nvrtc"):
            use()


# --- memory, streams and transfers, on a driver whose streams wait ---


@pytest.fixture
def gpu(place, monkeypatch):
    """Opens a `Gpu` with the kernels of a method, and so many bytes of memory."""

    def open_one(kind, memory_bytes=1 << 30):
        driver = DriverDouble(SOURCES[kind], place, memory_bytes)
        monkeypatch.setattr(cuda_device, "_open_driver", lambda: driver)
        monkeypatch.setattr(cuda_device, "kept_kernels", lambda *_: b"")
        return cuda_device.Gpu(SOURCES[kind])

    return open_one


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_gpu_gives_the_fields_of_its_kernels_and_gives_its_memory_back(gpu, emulated, kind):
    first = texture(20, 24)
    pairs = [(first, shifted(first, dx, 0.3)) for dx in (0.1, 1.5, 3.1)]
    method, opened = QUICK[kind], gpu(kind)
    driver, free = opened.driver, opened.free_bytes()
    for fetch in (cuda_batches.fetch_fields, cuda_batches.fetch_planes(None)):
        slots = [
            cuda_batches.Slot(cuda_device.GpuQueue(opened), method, SOLVERS[kind], fetch)
            for _ in range(2)
        ]
        results = list(cuda_batches.computed(pairs, slots, lambda size: 2))
        expected = list(emulated(method, pairs, fetch=fetch))
        for one, other in zip(results, expected, strict=True):
            assert np.array_equal(np.asarray(one[0]), np.asarray(other[0]))
    before = len(driver.host)
    list(cuda_batches.computed(pairs * 2, slots, lambda size: 2))
    assert len(driver.host) <= before + 6  # page-locked memory is used again
    del slots
    gc.collect()
    for stream in range(len(driver.streams)):
        driver.cuStreamSynchronize(stream)
    assert driver.allocated == {} and opened.free_bytes() == free


def test_pinned_memory_that_nothing_uses_makes_room_for_another_size(gpu):
    queue = cuda_device.GpuQueue(gpu(CudaFarneback))
    driver = queue.driver
    driver.host_left = 3 << 14
    small, large = queue.empty((1 << 12,), "float32"), queue.empty((1 << 13,), "float32")
    queue.write(small, np.ones(1 << 12, np.float32))  # its blocks stay pinned
    held = queue.read(small)
    queue.write(large, np.full(1 << 13, 2, np.float32))
    assert np.all(held() == 1)
    reading = queue.read(large)
    with pytest.raises(DeviceMemoryError, match=r"cannot be pinned .*OUT_OF_MEMORY"):
        queue.read(large)
    assert np.all(reading() == 2)


def test_the_room_for_another_size_counts_what_will_be_given_back(gpu):
    size, others = (30, 40), (20, 30)
    opened = gpu(CudaFarneback, 8 << 20)
    slots = [
        cuda_batches.Slot(
            cuda_device.GpuQueue(opened),
            QUICK[CudaFarneback],
            SOLVERS[CudaFarneback],
            cuda_batches.fetch_fields,
        )
        for _ in range(2)
    ]
    room = cuda_batches.room_for(others, slots)
    assert room < cuda_batches.MOST_PAIRS  # it is the memory that limits it
    first = texture(*size)
    [batch] = cuda_batches.batches([(first, shifted(first, 1, 0))], lambda size: 1)
    slots[0].compute(batch, cuda_batches.room_for(size, slots))
    assert opened.free_bytes() < 6 << 20
    assert cuda_batches.room_for(others, slots) >= room * 0.8  # half, if it did not count


def test_a_flow_process_asks_again_how_many_pairs_fit_when_the_size_changes(place):
    queue = SmallGpu(cuda_tvl1.SOURCE, place)
    memory = []
    queue.gpu = SimpleNamespace(free_bytes=lambda: memory[-1])
    solvers = [
        flow_server.Solver(flow_server.Work(EmulatedTVL1(queue), True, 1.5)) for _ in range(2)
    ]
    server = flow_server.FlowServer(lambda message: None, solvers)
    rooms = []
    for free, size in ((3_000_000, (20, 24)), (900_000, (20, 24)), (900_000, (18, 20))) * 2:
        memory.append(free)
        frames = [texture(*size, seed=seed) for seed in range(2)]
        server.ask(Listener(frames, True), [(0, 0, 1)])
        rooms.append(server._gather()[1])
        server.at_work = 0
    large, other = (int(free * 0.8 / 2 / (120 * px)) for free, px in ((3e6, 480), (9e5, 360)))
    assert rooms == [large, large, other] * 2


def test_a_full_gpu_is_named_with_what_it_holds(gpu):
    queue = cuda_device.GpuQueue(gpu(CudaFarneback, 1 << 20))
    with pytest.raises(DeviceMemoryError, match=r"0\.01 GB \(0\.00 of .* GB are free.*nvidia-smi"):
        queue.empty((1 << 21,), "float32")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("CUDA_ERROR_DEVICE_UNAVAILABLE", FlowkitError, r"exclusive-process mode"),
        ("CUDA_ERROR_OUT_OF_MEMORY", DeviceMemoryError, r"no memory left .*nvidia-smi"),
    ],
)
def test_a_gpu_that_others_have_is_said_to_be_theirs(gpu, monkeypatch, name, kind, message):
    status = type("Result", (int,), {"name": name})(1)
    monkeypatch.setattr(DriverDouble, "cuDevicePrimaryCtxRetain", lambda *_: (status, None))
    with pytest.raises(kind, match=message):
        gpu(CudaFarneback)


def test_what_is_written_and_read_is_not_overtaken(gpu):
    queue = cuda_device.GpuQueue(gpu(CudaFarneback))
    array = queue.empty((3, 4), "float32")
    values = [np.full((3, 4), number, np.float32) for number in range(5)]
    readings = []
    for value in values:
        queue.write(array, value)
        readings.append(queue.read(array))
    queue.write(array[1:], [np.full(4, 9, np.float32)])
    last = queue.read(array)
    del readings[2]  # nobody waits for it
    queue.read(array)
    for number, reading in zip((0, 1, 3, 4), readings, strict=True):
        assert np.array_equal(reading(), values[number])
    assert np.array_equal(last(), [[4] * 4, [9] * 4, [4] * 4])
    assert not queue.read(queue.zeros((2, 2), "int32"))().any()


def test_memory_of_a_gpu_that_runs_out_is_an_error_of_its_own(gpu):
    queue = cuda_device.GpuQueue(gpu(CudaFarneback, 1000))
    with pytest.raises(DeviceMemoryError, match=r"processor has no memory for \(10, 30\) float32"):
        queue.empty((10, 30), "float32")


# --- the methods as values ---


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_method_is_a_value_that_travels(kind):
    assert pickle.loads(pickle.dumps(kind())) == kind()
    assert describe_method(kind())["name"] == kind.name
    assert all(kind(**parameters) for parameters in kind.presets.values())


def test_defaults_are_those_of_the_cpu_method():
    here, there = (dataclasses.asdict(method) for method in (CudaTVL1(), TVL1()))
    assert set(there) - set(here) == {"gamma"}
    assert all(here[name] == there[name] for name in set(here) & set(there))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CudaTVL1(theta=0), "theta of at least 1e-06, got 0"),
        (lambda: CudaTVL1(scale_step=1), "tvl1-cuda: expected scale_step below 1, got 1"),
        (lambda: CudaTVL1(median_filtering=3), "expected median_filtering 5 or 1, got 3"),
        (lambda: CudaTVL1(like_opencv_cuda=True), "like_opencv_cuda has no median: median_filt"),
        (lambda: CudaFarneback(levels=0), "levels of at least 1, got 0"),
        (lambda: CudaFarneback(pyr_scale=1), "pyr_scale below 1, got 1"),
        (
            lambda: CudaFarneback(fast_pyramids=True, pyr_scale=0.7),
            "needs pyr_scale 0.5, got 0.7",
        ),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_importing_the_methods_imports_nothing_heavy():
    code = "import sys, flowkit.flow.cuda; print({'torch', 'cuda', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- on a GPU ---


@pytest.fixture
def real_gpu():
    try:
        return cuda_device.open_gpu(cuda_tvl1.SOURCE)
    except FlowkitError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(16, 16), (5, 40), (70, 131), (256, 340), (481, 641)])
def test_on_a_gpu_one_warp_of_full_length_equals_the_cpu_method(real_gpu, size):
    first = texture(*size, grain=2)
    second = shifted(first, 0.7, -0.4)
    same = {"nscales": 1, "warps": 1, "epsilon": 0}
    [field] = CudaTVL1(**same).fields([(first, second)])
    [expected] = TVL1(**same).fields([(first, second)])
    assert np.abs(field - expected).max() <= 2e-5  # 1e-5, and approximate square roots


@pytest.mark.gpu
def test_on_a_gpu_defaults_agree_with_the_cpu_method(real_gpu):
    first = texture(256, 340)
    pairs = [(first, shifted(first, dx, -0.8)) for dx in (0.4, 1.3, 3.2)]
    for field, expected in zip(CudaTVL1().fields(pairs), TVL1().fields(pairs), strict=True):
        difference = fields.end_point_error(field, expected)
        assert difference.mean() < 0.03 and np.quantile(difference, 0.99) < 0.25


@pytest.mark.gpu
@pytest.mark.parametrize("parameters", [{}, {"gaussian": True, "poly_n": 7, "poly_sigma": 1.5}])
def test_on_a_gpu_farneback_equals_opencv(real_gpu, parameters):
    first = texture(256, 340)
    second = shifted(first, 2.7, -1.4)
    [field] = CudaFarneback(**parameters).fields([(first, second)])
    flags = cv2.OPTFLOW_FARNEBACK_GAUSSIAN if parameters else 0
    n, sigma = parameters.get("poly_n", 5), parameters.get("poly_sigma", 1.1)
    expected = cv2.FarnebackOpticalFlow_create(5, 0.5, False, 13, 10, n, sigma, flags).calc(
        first, second, None
    )
    assert np.abs(field - expected).max() < 1e-3
    assert np.abs(field - expected).mean() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SOLVERS)
def test_on_a_gpu_every_run_and_every_batch_gives_the_same_bits(real_gpu, kind):
    frames = [texture(120, 161, seed=seed // 2) for seed in range(300)]
    pairs = list(itertools.pairwise(frames))
    runs = [list(kind().fields(pairs)) for _ in range(2)]
    assert np.array_equal(*runs)
    for number in (0, 150, 298):
        [alone] = kind().fields([pairs[number]])
        assert np.array_equal(alone, runs[0][number])


@pytest.mark.gpu
@pytest.mark.parametrize("bound", [None, 20.0])
def test_on_a_gpu_planes_are_those_of_the_field_byte_for_byte(real_gpu, bound):
    first = texture(100, 131)
    pairs = [(first, shifted(first, dx, -0.8)) for dx in (2.1, 0.0)]
    computed, quantized = CudaTVL1().fields(pairs), CudaTVL1().planes(pairs, bound=bound)
    for field, (planes, ranges) in zip(computed, quantized, strict=True):
        for i, (lo, hi) in enumerate(ranges):
            component = field[..., i]
            if bound is None:
                assert (lo, hi) == quantize.own_range(component)
                assert np.array_equal(planes[i], quantize.quantize(component, lo, hi))
            else:
                assert np.array_equal(planes[i], quantize.quantize_bounded(component, bound))


@pytest.mark.gpu
def test_on_a_gpu_the_emulated_kernels_give_the_same_flow(real_gpu, emulated):
    first = texture(70, 91)
    pairs = [(first, shifted(first, 1.3, 0.6))]
    for method in (CudaTVL1(nscales=1, warps=1, epsilon=0), QUICK[CudaFarneback]):
        [there], [here] = method.fields(pairs), emulated(method, pairs)
        assert np.abs(there - here).max() < 1e-4
