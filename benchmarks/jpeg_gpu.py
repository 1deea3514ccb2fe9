"""JPEG planes decoded by a GPU (torchvision, nvJPEG) beside OpenCV on one core.

usage: python benchmarks/jpeg_gpu.py [--device cuda] [--clips 128] [--out FILE.json]

A clip is 20 gray planes of 340x256, as `flowkit extract` writes them for L = 10. Both start from
bytes in memory; the GPU's planes stay there. They take turns; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from clips import run_benchmark
from torchvision.io import ImageReadMode, decode_jpeg

from flowkit._cv2 import cv2
from flowkit.records.formats import encode_planes
from flowkit.training.distributed import choose_device

SIZE, PLANES, ROUNDS = (256, 340), 20, 5


def made_planes(count: int) -> list[bytes]:
    """JPEG files of smooth planes under some noise, which cost a decoder what real ones cost."""
    random = np.random.default_rng(0)
    coarse = random.uniform(60, 200, (count, 12, 16)).astype(np.float32)
    smooth = [cv2.resize(one, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for one in coarse]
    noisy = [np.clip(one + random.normal(0, 2, SIZE), 0, 255).astype(np.uint8) for one in smooth]
    return encode_planes(noisy, "jpg")


def seconds(act: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    act()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    choose_device(options.device)  # an error where there is none
    cv2.setNumThreads(1)
    files = made_planes(options.clips * PLANES)
    arrays = [np.frombuffer(file, np.uint8) for file in files]
    tensors = [torch.from_numpy(array.copy()) for array in arrays]

    def on_device() -> list[torch.Tensor]:
        return decode_jpeg(tensors, mode=ImageReadMode.GRAY, device=options.device)

    def by_opencv() -> list[np.ndarray]:
        return [cv2.imdecode(array, cv2.IMREAD_GRAYSCALE) for array in arrays]

    different = max(
        int(np.abs(ours[0].cpu().numpy().astype(int) - theirs).max())
        for ours, theirs in zip(on_device(), by_opencv(), strict=True)
    )
    times: dict[str, list[float]] = {"device": [], "opencv": []}
    for _ in range(ROUNDS):
        times["device"].append(seconds(on_device, options.device))
        times["opencv"].append(seconds(by_opencv, options.device))
    medians = {name: statistics.median(found) for name, found in times.items()}
    result = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "bytes_a_plane": sum(map(len, files)) // len(files),
        "most_levels_apart": different,
        "clips_a_second": {name: round(options.clips / one) for name, one in medians.items()},
        "device_to_one_core": round(medians["opencv"] / medians["device"], 2),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
