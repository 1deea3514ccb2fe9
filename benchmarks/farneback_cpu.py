"""flowkit's Farneback beside OpenCV's on fixed real pairs: speed on one core, and agreement.

    python benchmarks/farneback_cpu.py [DATA] [--repeats N] [--size W H]

DATA is the folder of real clips (default: $FLOWKIT_DATA, else ../shared/data beside the project).
Both are timed in turn, pair by pair, in processor time, and medians over the repeats are compared,
so that whatever else the machine does meets both. Prints a table to stderr and one JSON object to
stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from clips import default_data, run_benchmark
from tvl1_cpu import PAIRS, Pair, read_pair, seconds

from flowkit._cv2 import cv2
from flowkit.flow import farneback
from flowkit.flow.farneback import Farneback

SETTINGS = {
    "default": Farneback(),
    "dense_flow": Farneback(
        pyr_scale=0.702, win_size=10, iterations=2, poly_n=7, poly_sigma=1.5, gaussian=True
    ),
    "mmaction2": Farneback(levels=3, win_size=15, iterations=3, poly_sigma=1.2),
    "gaussian": Farneback(gaussian=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=default_data())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(340, 256), metavar=("W", "H"))
    options = parser.parse_args()

    pairs = []
    for _, clip, index in PAIRS:
        first, second = read_pair(options.data / clip, index)
        pairs.append((cv2.resize(first, options.size), cv2.resize(second, options.size)))
    start = time.perf_counter()
    farneback.warm_up()
    result = {
        "opencv": cv2.__version__,
        "size": list(options.size),
        "warm_up_s": round(time.perf_counter() - start, 2),
        **{name: compare(pairs, method, options.repeats) for name, method in SETTINGS.items()},
    }
    print_table(result)
    print(json.dumps(result))


def compare(pairs: list[Pair], method: Farneback, repeats: int) -> dict:
    """Median processor times on one core, and the largest difference over all pairs, px.

    "in_sequence" is the time of a pair whose first frame was second in the pair before.
    """
    cv2.setNumThreads(1)
    algorithm = opencv(method)
    times: dict[str, list[list[float]]] = {
        name: [[] for _ in pairs] for name in ("opencv", "alone", "in_sequence")
    }
    for _ in range(repeats):
        for number, (first, second) in enumerate(pairs):
            sequence = begun(method, first, second)
            calls = {
                "opencv": lambda a=first, b=second: algorithm.calc(a, b, None),
                "alone": lambda a=first, b=second: list(method.fields([(a, b)])),
                "in_sequence": lambda fields=sequence: next(fields),
            }
            for name, call in calls.items():
                times[name][number].append(seconds(call, time.process_time))
    medians = {name: [statistics.median(t) for t in rows] for name, rows in times.items()}

    differences = []
    for first, second in pairs:
        (field,) = method.fields([(first, second)])
        differences.append(np.abs(field - algorithm.calc(first, second, None)))
    result: dict = {
        "ms": {name: round(1e3 * statistics.mean(t), 2) for name, t in medians.items()},
        "max_difference_px": float(max(d.max() for d in differences)),
        "equal_values": float(np.mean([(d == 0).mean() for d in differences])),
    }
    for name in ("alone", "in_sequence"):
        ratios = [a / b for a, b in zip(medians["opencv"], medians[name], strict=True)]
        result[f"times_faster_{name}"] = round(statistics.median(ratios), 2)
        result[f"times_faster_{name}_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return result


def opencv(method: Farneback) -> cv2.FarnebackOpticalFlow:
    return cv2.FarnebackOpticalFlow_create(
        numLevels=method.levels,
        pyrScale=method.pyr_scale,
        winSize=method.win_size,
        numIters=method.iterations,
        polyN=method.poly_n,
        polySigma=method.poly_sigma,
        flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN if method.gaussian else 0,
    )


def begun(method: Farneback, first: np.ndarray, second: np.ndarray) -> Iterator[np.ndarray]:
    """Fields of which (second, first) is computed and (first, second) comes next."""
    fields = method.fields([(second, first), (first, second)])
    next(fields)
    return fields


def print_table(result: dict) -> None:
    width, height = result["size"]
    lines = [
        f"{width} x {height}, one core, {len(PAIRS)} pairs, OpenCV {result['opencv']}",
        f"{'settings':11} {'OpenCV ms':>10} {'alone ms':>9} {'in sequence':>12} "
        f"{'x faster':>9} {'in sequence':>12} {'largest difference px':>22}",
    ]
    for name in SETTINGS:
        found = result[name]
        ms = found["ms"]
        lines.append(
            f"{name:11} {ms['opencv']:10} {ms['alone']:9} {ms['in_sequence']:12} "
            f"{found['times_faster_alone']:9} {found['times_faster_in_sequence']:12} "
            f"{found['max_difference_px']:22}"
        )
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    run_benchmark(main)
