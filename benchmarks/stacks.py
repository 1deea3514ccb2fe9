"""Trajectory stacking of a batch beside plain stacking of the same batch, on one machine.

usage: python benchmarks/stacks.py [--device cuda] [--batch 64] [--out results/stacks.json]

Fields of 256x341 px with smooth motion of a few px, L = 10, random 224 crops and flips, means
subtracted: what a training batch needs. The two modes take turns; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from clips import run_benchmark

from flowkit.data.clips import random_view
from flowkit.data.stacks import stack_batch
from flowkit.training.distributed import choose_device

LENGTH, SIZE, CROP = 10, (256, 341), 224


def made_fields(batch: int) -> torch.Tensor:
    """Smooth fields of a few px, float32 (B, L, H, W, 2)."""
    coarse = torch.randn(batch * LENGTH, 2, 16, 22, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(3 * coarse, size=SIZE, mode="bilinear")
    return fine.reshape(batch, LENGTH, 2, *SIZE).permute(0, 1, 3, 4, 2).contiguous()


def seconds(mode: str, fields: torch.Tensor, views: list) -> float:
    """The time of one batch in one mode."""
    start = time.perf_counter()
    stack_batch(fields, mode=mode, views=views)
    if fields.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    fields = made_fields(options.batch).to(device)
    random = np.random.default_rng(0)
    views = [random_view(SIZE, random, crop=CROP) for _ in range(options.batch)]
    times: dict[str, list[float]] = {"flow": [], "trajectory": []}
    for mode in times:
        seconds(mode, fields, views)  # compiles, warms up
    for _ in range(options.rounds):
        for mode, found in times.items():
            found.append(seconds(mode, fields, views) / options.batch * 1000)
    medians = {mode: statistics.median(found) for mode, found in times.items()}
    ratios = [b / a for a, b in zip(times["flow"], times["trajectory"], strict=True)]
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "ms_a_clip": {mode: round(value, 3) for mode, value in medians.items()},
        "trajectory_to_flow": round(statistics.median(ratios), 2),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
