"""flowkit's CUDA methods on the GPU at hand: pairs/s, share of its bounds, agreement.

    python benchmarks/tvl1_gpu.py [DATA] [--part NAME]

DATA is the folder of real clips (default: $FLOWKIT_DATA, else ../shared/data beside the project);
where it is absent, textures move instead, and the result says so. Prints one JSON object.
`make gpu-check` runs its parts and keeps the results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tvl1_cpu
from clips import default_data, run_benchmark

from flowkit import fields
from flowkit._cv2 import cv2
from flowkit.flow.cuda import batches as cuda_batches
from flowkit.flow.cuda import device as cuda_device
from flowkit.flow.cuda import tvl1 as cuda_tvl1
from flowkit.flow.cuda import tvl1_kernels as cuda_tvl1_kernels
from flowkit.flow.cuda.methods import CudaFarneback, CudaTVL1
from flowkit.flow.tvl1 import TVL1

SIZE = (256, 340)  # (H, W): that of the action recognition data sets
FRAMES_A_CLIP = 25
ROUNDS = 4  # times the clips are gone through: 2,112 pairs of 22 clips
BOUND = 20.0  # px
# One pass reads nine floats a pixel and writes six, for HALO iterations: the least that it moves.
BYTES_A_PX_ITERATION = (9 + 6) * 4 / cuda_tvl1_kernels.HALO
# Counted in the machine code of `iterate` for sm_90: 419 in the loop for 8 px and one iteration.
INSTRUCTIONS_A_PX_ITERATION = 419 / 8
ISSUED_A_CYCLE = 4 * 32  # lanes of the four schedulers of a multiprocessor
OTHER_SIZES = {"1920x1080": ((1080, 1920), 96), "64x64": ((64, 64), 2112)}  # and how many pairs

Pair = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=default_data())
    parser.add_argument("--part", choices=list(PARTS), help="only this part of the report")
    options = parser.parse_args()
    gpu = cuda_device.open_gpu(cuda_tvl1.SOURCE)
    if options.part:
        found = PARTS[options.part](gpu, options.data)
    else:
        found = {name: measure(gpu, options.data) for name, measure in PARTS.items()}
    print(json.dumps(found, indent=1))


# --- what is computed ---


@cache
def pairs_of(data: Path) -> tuple[list[Pair], str]:
    """The pairs, and what they are made of: real clips where they are there."""
    pairs = real_pairs(data)
    return (pairs, "real clips") if pairs else (made_pairs(), "textures")


def real_pairs(data: Path) -> list[Pair]:
    """Consecutive pairs of the clips of the CPU's benchmark, gray, at SIZE."""
    pairs: list[Pair] = []
    for _ in range(ROUNDS):  # frames of their own each time: nothing is uploaded once for all
        for _, clip, index in tvl1_cpu.PAIRS:
            capture = cv2.VideoCapture(str(data / clip))
            read = (capture.read()[1] for _ in range(index + FRAMES_A_CLIP))
            shown = [frame for frame in read if frame is not None][index:]
            grays = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in shown]
            pairs += pairwise(cv2.resize(gray, SIZE[::-1]) for gray in grays)
    return pairs


def made_pairs() -> list[Pair]:
    """Textures that turn and move at speeds from 0 to 8 px per frame, with some noise."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    pairs: list[Pair] = []
    for number in range(ROUNDS * len(tvl1_cpu.PAIRS)):
        noise = rng.normal(size=(2 * height, 2 * width)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 2) + 4 * cv2.GaussianBlur(noise, (0, 0), 12)
        image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
        frames = []
        for t in range(FRAMES_A_CLIP):
            turn = cv2.getRotationMatrix2D((width, height), 0.2 * t * (number % 3 - 1), 1)
            turn[:, 2] += np.array([1, 0.5]) * t * (number % 11) * 0.72 - [width / 2, height / 2]
            frame = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
            frames.append(np.clip(frame + rng.normal(size=SIZE), 0, 255).astype(np.uint8))
        pairs += pairwise(frames)
    return pairs


# --- speed ---


def speed(method: Any, pairs: list[Pair], *, quantized: bool = True) -> float:
    """Pairs a second from gray frames in memory to bytes (or floats) in memory: median of three."""

    def run(some: list[Pair]) -> float:
        results: Iterable[Any] = method.planes(some, bound=BOUND)
        if not quantized:
            results = method.fields(some)
        start = time.perf_counter()
        for _ in results:
            pass
        return len(some) / (time.perf_counter() - start)

    run(pairs[:200])  # memory, contexts, clocks
    return round(statistics.median(run(pairs) for _ in range(3)), 1)


def tvl1_speed(data: Path) -> dict[str, Any]:
    presets = {name: CudaTVL1(**given) for name, given in CudaTVL1.presets.items()}
    pairs, made_of = pairs_of(data)
    return {
        "size": list(SIZE),
        "pairs": len(pairs),
        "pairs_of": made_of,
        "pairs_per_s": speed(CudaTVL1(), pairs),
        "fields_pairs_per_s": speed(CudaTVL1(), pairs, quantized=False),
        "fast_pairs_per_s": speed(presets["fast"], pairs),
        "opencv_cuda_pairs_per_s": speed(presets["opencv-cuda"], pairs),
        "eps0_pairs_per_s": speed(CudaTVL1(epsilon=0), pairs[: len(pairs) // 4]),
    }


def sizes_speed(data: Path) -> dict[str, dict[str, float]]:
    """Pairs/s of both methods at sizes far above and below the usual one."""
    return {
        name: {
            "tvl1_pairs_per_s": speed(CudaTVL1(), some),
            "farneback_pairs_per_s": speed(CudaFarneback(), some),
        }
        for name, (size, count) in OTHER_SIZES.items()
        for some in [resized(pairs_of(data)[0][:count], size)]
    }


def resized(pairs: list[Pair], size: tuple[int, int]) -> list[Pair]:
    """The pairs at another size (H, W); a frame of two pairs stays one."""
    frames = {id(frame): cv2.resize(frame, size[::-1]) for pair in pairs for frame in pair}
    return [(frames[id(first)], frames[id(second)]) for first, second in pairs]


class TimedQueue(cuda_device.GpuQueue):
    """A queue that takes the time of every kernel."""

    def __init__(self, gpu: cuda_device.Gpu) -> None:
        super().__init__(gpu)
        self.events: list[tuple[str, Any, Any]] = []

    def prepare(self, kernel: str, *arguments: Any, **options: Any) -> Callable[[], None]:
        launch = super().prepare(kernel, *arguments, **options)

        def timed() -> None:
            begin = self._event()
            launch()
            self.events.append((kernel, begin, self._event()))

        return timed

    def _event(self) -> Any:
        event = cuda_device._checked(self.driver.cuEventCreate(0))
        cuda_device._checked(self.driver.cuEventRecord(event, self.stream))
        return event

    def milliseconds(self) -> dict[str, float]:
        self.finish()
        total: dict[str, float] = defaultdict(float)
        for kernel, begin, end in self.events:
            total[kernel] += cuda_device._checked(self.driver.cuEventElapsedTime(begin, end))
        return {kernel: round(ms, 3) for kernel, ms in sorted(total.items())}


def batch_report(gpu: cuda_device.Gpu, data: Path) -> dict[str, Any]:
    """One batch alone on the GPU: its time by kernel, and the share of the two bounds reached."""
    pairs, chip = pairs_of(data)[0], describe(gpu)
    room = cuda_batches.BATCH_PX // math.prod(SIZE)
    [batch, *_] = cuda_batches.batches(pairs, lambda size: room)
    count = len(batch.frame_of)

    def solved(queue: cuda_device.GpuQueue, method: CudaTVL1) -> tuple[float, float]:
        with queue.running():
            solver = cuda_tvl1.TVL1Batch(queue, method, SIZE, count)
            times = []
            for _ in range(4):
                queue.finish()
                start = time.perf_counter()
                solver.solve(batch.frames, batch.frame_of)
                queue.finish()
                times.append(time.perf_counter() - start)
            return min(times), float(solver.work(count).sum())

    report: dict[str, Any] = {"batch_pairs": count}
    for name, method in (("typical", CudaTVL1()), ("eps0", CudaTVL1(epsilon=0))):
        seconds, work = solved(cuda_device.GpuQueue(gpu), method)
        moved = work * BYTES_A_PX_ITERATION / chip["copy_bytes_per_s"]
        issued = work * INSTRUCTIONS_A_PX_ITERATION / chip["issue_per_s"]
        report[name] = {
            "batch_s": round(seconds, 5),
            "px_iterations_per_s": round(work / seconds),
            "px_iterations_a_pair": round(work / count),
            "share_of_memory_bound": round(moved / seconds, 3),
            "share_of_issue_bound": round(issued / seconds, 3),
        }
    timed = TimedQueue(gpu)
    solved(timed, CudaTVL1())
    report["ms_by_kernel_4_batches"] = timed.milliseconds()
    return report


def describe(gpu: cuda_device.Gpu) -> dict[str, Any]:
    """The chip, and its two ceilings: bytes copied a second, instructions of a lane a second."""
    import torch

    driver = gpu.driver
    attributes = driver.CUdevice_attribute
    clock = gpu.attribute(attributes.CU_DEVICE_ATTRIBUTE_CLOCK_RATE)
    processors = gpu.attribute(attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    half = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    other = torch.ones_like(half)
    for _ in range(3):
        half.copy_(other)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        half.copy_(other)
    end.record()
    end.synchronize()
    copied = 20 * 2 * half.numel() / (begin.elapsed_time(end) / 1e3)  # read and written
    return {
        "name": gpu.name,
        "multiprocessors": processors,
        "clock_hz": clock * 1000,
        "copy_bytes_per_s": round(copied),
        "issue_per_s": processors * ISSUED_A_CYCLE * clock * 1000,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": cuda_device._checked(driver.cuDriverGetVersion()),
    }


FIRST_FIELD = """
import numpy as np
from flowkit.flow.cuda.methods import CudaTVL1

frames = np.random.default_rng(0).integers(0, 256, (2, 256, 340), dtype=np.uint8)
next(CudaTVL1()(frames))
"""


def starts() -> dict[str, float]:
    """Seconds from the start of a process to its first field: the first time, and with a cache."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            start = time.perf_counter()
            environment = {**os.environ, "XDG_CACHE_HOME": folder}
            subprocess.run([sys.executable, "-c", FIRST_FIELD], check=True, env=environment)
            times.append(round(time.perf_counter() - start, 2))
    return {"first_s": times[0], "cached_s": times[1]}


# --- agreement ---


def parity(data: Path) -> dict[str, Any]:
    """Differences to the CPU methods, and to OpenCV's TV-L1 where this OpenCV has it."""
    pairs, made_of = pairs_of(data)
    is_real = made_of == "real clips"
    if is_real:
        fixed = [tvl1_cpu.read_pair(data / clip, index) for _, clip, index in tvl1_cpu.PAIRS]
    else:
        fixed = pairs[:: len(pairs) // 22][:22]
    result: dict[str, Any] = {
        "tvl1_to_cpu": compare(fixed, CudaTVL1(), lambda a, b: next(TVL1().fields([(a, b)]))),
        "farneback_to_opencv": compare(
            fixed,
            CudaFarneback(),
            lambda a, b: cv2.FarnebackOpticalFlow_create().calc(a, b, None),
        ),
    }
    if hasattr(cv2, "optflow"):
        result["opencv"] = cv2.__version__
        both = tvl1_cpu.parity(fixed, {"opencv": CudaTVL1()})
        result["tvl1_to_opencv"] = both["opencv"]
    if is_real:
        result["ground_truth_px"] = {
            scene: ground_truth(data / "middlebury" / scene) for scene in tvl1_cpu.SCENES
        }
    return result


def compare(
    pairs: list[Pair], method: Any, expected: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> dict[str, float]:
    """End-point differences in px over the pairs: mean and worst of their means, 99 % quantile."""
    means, high, codes = [], [], []
    for field, (first, second) in zip(method.fields(pairs), pairs, strict=True):
        wanted = expected(first, second)
        difference = fields.end_point_error(field, wanted)
        means.append(float(difference.mean()))
        high.append(float(np.quantile(difference, 0.99)))
        scaled = [np.rint(one * tvl1_cpu.CODES_PER_PX) for one in (field, wanted)]
        codes.append(float((scaled[0] != scaled[1]).mean()))
    return {
        "mean_px": round(statistics.mean(means), 6),
        "worst_mean_px": round(max(means), 6),
        "p99_px": round(statistics.mean(high), 6),
        "codes_changed": round(statistics.mean(codes), 5),
    }


def ground_truth(folder: Path) -> dict[str, float]:
    """Mean end-point error of each preset on one of Middlebury's scenes, px."""
    first, second = (
        cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
        for name in ("frame10.png", "frame11.png")
    )
    truth = fields.read_flo(folder / "flow10.flo")
    return {
        name: round(
            float(
                np.nanmean(
                    fields.end_point_error(next(CudaTVL1(**given).fields([(first, second)])), truth)
                )
            ),
            4,
        )
        for name, given in CudaTVL1.presets.items()
    }


# The parts of the report, each of a GPU and the folder of real clips.
PARTS: dict[str, Callable[[cuda_device.Gpu, Path], dict[str, Any]]] = {
    "chip": lambda gpu, data: describe(gpu),
    "start": lambda gpu, data: starts(),
    "tvl1": lambda gpu, data: tvl1_speed(data),
    "farneback": lambda gpu, data: {"pairs_per_s": speed(CudaFarneback(), pairs_of(data)[0])},
    "batch": batch_report,
    "sizes": lambda gpu, data: sizes_speed(data),
    "parity": lambda gpu, data: parity(data),
}


if __name__ == "__main__":
    run_benchmark(main)
