"""flowkit's trajectories beside the C++ program's: CPU time on one core, and the same tracks.

    python benchmarks/idt_cpu.py FOLDER [DATA] [--clips CLIP ...] [--repeats N] [--json FILE.json]
        [--cxxflags="-I..."] [--ldflags="-L..."]

FOLDER holds the source of the authors' program as others have ported it, with DenseTrackStab.cpp
in it or in src/: programehr/improved_trajectory_ocv4 for OpenCV 4 (FXPAL/densetrack includes
headers that only OpenCV 3 and earlier have). It is only read, and built in a temporary folder
against the OpenCV that pkg-config knows or the flags name, without SURF, which stands in as a
detector that finds nothing: the same work as `--matches flow`.
DATA is the folder of real clips (default: $FLOWKIT_DATA, else ../shared/data beside the project).
Times are of the CPU, decoding included, so that other work on the machine counts little; the two
are timed in turn, and of both times and of their ratio the median is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from clips import default_data, run_benchmark

from flowkit._cv2 import cv2
from flowkit.idt.tracking import ensure_compiled_kernels, track_video
from flowkit.video.reading import open_video

MAIN = "DenseTrackStab.cpp"
CLIPS = (
    "ucf101/HammerThrow/v_HammerThrow_g10_c03.avi",
    "ucf101/BenchPress/v_BenchPress_g01_c03.avi",
)
LIBRARIES = ("videoio", "calib3d", "features2d", "highgui", "imgproc", "imgcodecs", "core")
SURF = """#pragma once
#include <opencv2/features2d.hpp>
namespace cv { namespace xfeatures2d {
struct SURF {
    static Ptr<SURF> create(double = 0, int = 0) { return makePtr<SURF>(); }
    void detect(InputArray, std::vector<KeyPoint>& found, InputArray) { found.clear(); }
    void compute(InputArray, std::vector<KeyPoint>&, OutputArray) {}
};
} }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", nargs="?", type=Path, default=default_data())
    parser.add_argument("--clips", nargs="+", default=CLIPS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cxxflags", help="default: pkg-config --cflags opencv4")
    parser.add_argument("--ldflags", help="default: pkg-config --libs opencv4")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    ensure_compiled_kernels()
    with tempfile.TemporaryDirectory() as temporary:
        program = build(options, Path(temporary))
        rows = [compare(program, options.data / clip, options.repeats) for clip in options.clips]
    for row in rows:
        print(
            f"{row['clip']}: {row['size'][0]} x {row['size'][1]}, {row['frames']} frames; ms of "
            f"CPU a frame: C++ {row['ms']['cpp']}, flowkit {row['ms']['flowkit']}, "
            f"{row['times_faster']} times as fast ({row['least_and_most'][0]} to "
            f"{row['least_and_most'][1]}); lines: C++ {row['lines']['cpp']}, "
            f"flowkit {row['lines']['flowkit']}, {row['matched']:.2%} of the C++ lines matched"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"opencv": cv2.__version__, "clips": rows}, indent=1) + "\n"
        )


def build(options: argparse.Namespace, folder: Path) -> Path:
    """The C++ program, compiled in `folder` from a copy of the sources."""
    source = next(
        (one for one in (options.folder, options.folder / "src") if (one / MAIN).is_file()), None
    )
    if source is None:
        sys.exit(f"{options.folder}: expected {MAIN} there or in src/")
    copy = Path(shutil.copytree(source, folder / "source"))
    (folder / "opencv2").mkdir()
    (folder / "opencv2/xfeatures2d.hpp").write_text(SURF)
    compile_flags = flags(options.cxxflags, "--cflags")
    link_flags = flags(options.ldflags, "--libs")
    if options.ldflags:
        link_flags += [f"-lopencv_{name}" for name in LIBRARIES]
    command = ["g++", "-O3", "-march=native", "-DNDEBUG", "-DUSE_SURF", "-w", f"-I{folder}"]
    command += [*compile_flags, MAIN, "-o", str(folder / "program"), *link_flags]
    subprocess.run(command, cwd=copy, check=True)
    return folder / "program"


def flags(given: str | None, kind: str) -> list[str]:
    if given is not None:
        return shlex.split(given)
    found = subprocess.run(
        ["pkg-config", kind, "opencv4"], capture_output=True, text=True, check=True
    )
    return shlex.split(found.stdout)


def compare(program: Path, clip: Path, repeats: int) -> dict:
    """Median CPU time of both, and how many of the C++ lines flowkit has within 0.01 px."""
    with open_video(clip) as video:
        height, width = video.size
        frames = sum(1 for _ in video.frames())
    times: dict[str, list[float]] = {"cpp": [], "flowkit": []}
    for _ in range(repeats):
        before = children_seconds()
        printed = run(program, clip)
        times["cpp"].append(children_seconds() - before)
        start = time.process_time()
        tracks = np.concatenate(list(track_video(clip)))
        times["flowkit"].append(time.process_time() - start)
    lines = [line.split(maxsplit=7)[:7] for line in printed.splitlines()]
    own: dict[tuple[int, int], list[np.ndarray]] = {}
    for track in tracks:
        own.setdefault((int(track["frame"]), round(100 * track["scale"])), []).append(track["mean"])
    means = {key: np.array(rows) for key, rows in own.items()}
    matched = sum(is_near(means, line) for line in lines)
    ratios = np.array(times["cpp"]) / times["flowkit"]
    return {
        "clip": clip.name,
        "size": [width, height],
        "frames": frames,
        "ms": {
            name: round(1e3 * float(np.median(seconds)) / frames, 1)
            for name, seconds in times.items()
        },
        "times_faster": round(float(np.median(ratios)), 2),
        "least_and_most": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
        "lines": {"cpp": len(lines), "flowkit": len(tracks)},
        "matched": matched / max(1, len(lines)),
    }


def is_near(means: dict[tuple[int, int], np.ndarray], line: list[str]) -> bool:
    """Whether a track of the line's frame and scale has its mean within 0.01 px."""
    key = int(line[0]), round(100 * float(line[6]))
    place = float(line[1]), float(line[2])
    return key in means and bool((np.abs(means[key] - place) < 0.01).all(axis=1).any())


def run(program: Path, clip: Path) -> str:
    """What the C++ program prints for a clip; it computes in one thread."""
    environment = {**os.environ, "OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1"}
    command = [str(program), str(clip)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    run_benchmark(main)
