"""`flowkit extract` against the plain OpenCV script a user would write, side by side.

usage: python benchmarks/extract.py [DATA] [--method tvl1] [--clips 6] [--rounds 3] [--json FILE]

Both run on all cores over the same real clips, alternately (A B A B ...), at 320x240 and, on clips
blown up to it, at 1080p. Prints a table and one JSON line: frames/s of both, their ratio, where
flowkit's time goes, and the largest memory of a worker of each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import cv2
from clips import default_data, found, run_benchmark

PLAIN = """
import multiprocessing, pathlib, sys
import cv2, numpy as np

METHOD, OUT = sys.argv[1], pathlib.Path(sys.argv[2])

def extract(path):
    cv2.setNumThreads(1)
    if METHOD == "tvl1":
        algorithm = cv2.optflow.DualTVL1OpticalFlow_create()
    elif METHOD == "farneback":
        algorithm = cv2.FarnebackOpticalFlow_create()
    else:
        algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    folder = OUT / pathlib.Path(path).stem
    folder.mkdir(parents=True)
    capture, before, count = cv2.VideoCapture(path), None, 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        count += 1
        cv2.imwrite(str(folder / f"img_{count:05d}.jpg"), frame)
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        if before is not None:
            flow = algorithm.calc(before, gray, None)
            for index, name in enumerate(("flow_x", "flow_y")):
                plane = flow[..., index]
                lo, hi = plane.min(), plane.max()
                plane = np.rint((plane - lo) * (255 / max(hi - lo, 1e-9))).astype(np.uint8)
                quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
                cv2.imwrite(str(folder / f"{name}_{count - 1:05d}.jpg"), plane, quality)
        before = gray
    return count

if __name__ == "__main__":
    with multiprocessing.Pool() as pool:
        print(sum(pool.imap_unordered(extract, sys.argv[3:])))
"""


def peak_memory_mb(session: int, stop: threading.Event, result: list[float]) -> None:
    """The largest resident memory of one process of `session`, sampled, in MB."""
    while not stop.wait(0.05):
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.getsid(int(entry.name)) == session:
                    status = (entry / "status").read_text()
                    peak = float(status.split("VmHWM:")[1].split()[0]) / 1024
                    result[0] = max(result[0], peak)
            except (OSError, IndexError):
                continue


def timed(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds, largest memory of a process in MB, and standard output of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    stop, peak = threading.Event(), [0.0]
    watcher = threading.Thread(target=peak_memory_mb, args=(process.pid, stop, peak))
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} ... ended with status {process.returncode}")
    return seconds, peak[0], output


def compare(paths: list[Path], method: str, rounds: int, scratch: Path) -> dict:
    """Both tools over `paths`, `rounds` times alternately."""
    (scratch / "plain.py").write_text(PLAIN)
    out = scratch / "out"
    names = [str(path) for path in paths]
    flowkit = [sys.executable, "-m", "flowkit_cli.main", "extract", *names, "--method", method]
    plain = [sys.executable, str(scratch / "plain.py"), method, str(out), *names]
    rates: dict[str, list[float]] = {"flowkit": [], "plain": []}
    memory = {"flowkit": 0.0, "plain": 0.0}
    stages: dict[str, float] = {}
    for _ in range(rounds):
        for tool in rates:
            shutil.rmtree(out, ignore_errors=True)
            command = plain if tool == "plain" else [*flowkit, "--json", "--out", str(out)]
            seconds, peak, output = timed(command)
            if tool == "plain":
                frames = int(output)
            else:
                *videos, summary = [json.loads(line) for line in output.splitlines()]
                frames = summary["frames"]
                for event in (one for one in videos if one["status"] == "done"):
                    for stage, spent in event["seconds"].items():
                        stages[stage] = stages.get(stage, 0) + spent
            rates[tool].append(frames / seconds)
            memory[tool] = max(memory[tool], peak)
    total = sum(stages.values())
    return {
        "frames": frames,
        "frames_per_s": {tool: round(statistics.median(r), 2) for tool, r in rates.items()},
        "ratio": round(
            statistics.median(a / b for a, b in zip(rates["flowkit"], rates["plain"], strict=True)),
            2,
        ),
        "flowkit_share": {stage: round(s / total, 3) for stage, s in stages.items()},
        "peak_process_mb": {tool: round(peak) for tool, peak in memory.items()},
    }


def blown_up(path: Path, target: Path, frames: int) -> Path:
    """The first frames of a clip at 1920x1080, as MPEG-4."""
    capture = cv2.VideoCapture(str(path))
    with av.open(str(target), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"b": "20M"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for _ in range(frames):
            image = cv2.resize(capture.read()[1], (1920, 1080), interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        container.mux(stream.encode())
    return target


def main() -> None:
    """Run both sizes and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", default=default_data(), type=Path)
    parser.add_argument("--method", default="tvl1", choices=["tvl1", "farneback", "dis"])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-frames", type=int, default=3, help="frames at 1080p; 0: none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    every = sorted(found(options.data / "jhmdb10").glob("*/*.avi"))
    paths = every[:: max(len(every) // options.clips, 1)][: options.clips]
    report: dict = {"method": options.method, "cores": os.cpu_count(), "clips": len(paths)}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        report["320x240"] = compare(paths, options.method, options.rounds, scratch)
        if options.large_frames:
            large = [
                blown_up(path, scratch / f"{n}.avi", options.large_frames)
                for n, path in enumerate(paths[:2])
            ]
            report["1920x1080"] = compare(large, options.method, options.rounds, scratch)

    print(f"flowkit extract --method {options.method} against the plain script, all cores")
    for size in ("320x240", "1920x1080"):
        if size in report:
            one = report[size]
            shares = ", ".join(f"{k} {100 * v:.0f}%" for k, v in one["flowkit_share"].items())
            print(
                f"{size}: {one['ratio']:.1f}x ({one['frames_per_s']['flowkit']:.1f} against "
                f"{one['frames_per_s']['plain']:.1f} frames/s); {shares}; largest process "
                f"{one['peak_process_mb']['flowkit']} against {one['peak_process_mb']['plain']} MB"
            )
    print(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
