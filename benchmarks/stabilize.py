"""What stabilized flow costs beside plain flow: processor time per pair, method by method.

usage: python benchmarks/stabilize.py [CLIP ...] [--pairs 12] [--rounds 5] [--resize 340x256]
           [--json FILE.json]

CLIPs are videos (default: some of UCF-101 among the real clips). Pairs of gray frames are in
memory, fields go nowhere, all in one thread; the ways take turns, and medians of the rounds count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from clips import default_data, found, run_benchmark

from flowkit._cv2 import cv2
from flowkit.extraction.request import Request, resized_frames
from flowkit.flow.methods import make_method
from flowkit.flow.pairs import Pair, consecutive
from flowkit.flow.stabilized import CAMERA_MATCHES, Stabilization, StabilizedFlow
from flowkit.video.reading import open_video

CLIPS = (
    "ucf101/HammerThrow/v_HammerThrow_g10_c03.avi",
    "ucf101/BenchPress/v_BenchPress_g01_c03.avi",
)
METHODS: dict[str, dict[str, Any]] = {
    "tvl1": {},
    "tvl1:fast": {"preset": "fast"},
    "farneback": {},
    "dis": {},
}


def read_pairs(clip: Path, resize: str, count: int) -> list[Pair]:
    """The first pairs of a clip, gray."""
    with open_video(clip) as video:
        frames = list(itertools.islice(resized_frames(video, resize), count + 1))
    return list(consecutive(frames))


def measure(name: str, clips: list[list[Pair]], rounds: int) -> dict[str, Any]:
    """Processor milliseconds per pair of a method's plain flow and of each way to stabilize it."""
    method = make_method(name.partition(":")[0], **METHODS[name])
    ways = {"plain": None} | {way: Stabilization(matches=way) for way in CAMERA_MATCHES}
    requests = {way: Request(method, stabilize=one) for way, one in ways.items()}
    for request in requests.values():
        request.prepare()
        list(request.fields(clips[0][:1]))
    times: dict[str, list[float]] = {way: [] for way in ways}
    count = sum(map(len, clips))
    for _ in range(rounds):
        for way, request in requests.items():
            start = time.process_time()
            for pairs in clips:
                for _ in request.fields(pairs):
                    pass
            times[way].append(1000 * (time.process_time() - start) / count)
    ratios = {way: np.divide(times[way], times["plain"]).tolist() for way in CAMERA_MATCHES}
    flow = StabilizedFlow(method.fields, Stabilization())
    for pairs in clips:
        for _ in flow.fields(pairs):
            pass
    return {
        "method": name,
        "ms_per_pair": {way: round(statistics.median(one), 2) for way, one in times.items()},
        "times_plain": {way: round(statistics.median(one), 2) for way, one in ratios.items()},
        "pairs": count,
        "plain_pairs": flow.plain,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resize", default="340x256")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    paths = options.clips or [found(default_data() / clip) for clip in CLIPS]
    clips = [read_pairs(path, options.resize, options.pairs) for path in paths]
    rows = [measure(name, clips, options.rounds) for name in METHODS]
    print("| method | plain, ms | stabilized, ms | times | with SIFT, ms | times |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row['ms_per_pair']['plain']:.1f}"]
        for way in CAMERA_MATCHES:
            cells += [f"{row['ms_per_pair'][way]:.1f}", f"{row['times_plain'][way]:.2f}"]
        print(f"| `{row['method']}` | {' | '.join(cells)} |")
    lost = ", ".join(f"{row['method']} {row['plain_pairs']}" for row in rows)
    print(f"pairs whose camera was not found, of {rows[0]['pairs']}: {lost}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
