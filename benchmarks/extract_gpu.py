"""`flowkit extract --gpu` as a whole: frames/s to JPEG from 2 to 16 cores, and what held it up.

    python benchmarks/extract_gpu.py [DATA] [--device cpu] [--cores 2,4,8,16] [--frames 20000]

DATA is the folder of real clips (default: $FLOWKIT_DATA, else ../shared/data beside the project);
where it is absent, videos of flowkit.synthetic stand in for them. Prints one JSON object.
`make gpu-check` runs this and keeps the result. With ``--device cpu`` the processor stands in
for the GPU, with Farneback: a trial of this program and of the pipeline, no statement on a GPU.
With ``--device none`` nothing is computed, and the same two planes of 4 KB, as flow has them,
are stored for every pair: what the cores could feed to a GPU that takes no time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clips import default_data, run_benchmark

from flowkit import synthetic
from flowkit.flow.cuda.device import count_gpus
from flowkit.video.reading import open_video

PROJECT = Path(__file__).parents[1]
SIZE = "340x256"  # that of the action recognition data sets
BOUND = "20"  # px
CORES = (2, 4, 8, 16)
FRAMES = 20_000  # on the most cores, a share of it on fewer: some 20 s each
RUN_S = 120  # a run that takes longer is given up
PRETENDED = [sys.executable, str(PROJECT / "tests" / "pretended_gpu.py")]
COMMANDS = {
    "cuda": [sys.executable, "-m", "flowkit_cli.main"],
    "cpu": [*PRETENDED, "PretendedFarneback"],
    "none": [*PRETENDED, "InstantFarneback"],
}
METHODS = {"cuda": ("tvl1", "farneback"), "cpu": ("farneback",), "none": ("farneback",)}
DEVICES = {
    "cuda": "NVIDIA GPU",
    "cpu": "the processor: a trial, no measurement",
    "none": "none: the cores alone",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=default_data())
    parser.add_argument("--device", choices=list(COMMANDS), default="cuda")
    parser.add_argument("--cores", default=",".join(map(str, CORES)))
    parser.add_argument("--frames", type=int, default=FRAMES)
    options = parser.parse_args()
    cores = [int(number) for number in options.cores.split(",")]
    if options.device == "cuda":
        count_gpus()  # an error where there is none
    report = measure(options.data, device=options.device, cores=cores, frames=options.frames)
    print(json.dumps(report, indent=1))


def measure(
    data: Path, *, device: str = "cuda", cores: list[int] | None = None, frames: int = FRAMES
) -> dict[str, Any]:
    """Everything that is measured, by the keys of the report; its rates are of the most cores."""
    there = len(os.sched_getaffinity(0))
    counts = sorted({min(number, there) for number in (cores or CORES)})
    with tempfile.TemporaryDirectory(prefix="flowkit-") as name:
        folder = Path(name)
        clips, kind = gather_clips(data, folder)
        counted = [(clip, count_frames(clip)) for clip in clips]
        runs = {}
        for number in counts:
            share = frames * number // counts[-1]
            videos = copy_videos(counted, folder / f"videos{number}", share)
            for method in METHODS[device] if number == counts[-1] else METHODS[device][:1]:
                runs[f"{method}, {number} cores"] = run(videos, folder, device, method, number)
            if device == "cuda" and number == counts[-1]:
                runs[f"no flow, {number} cores"] = run(videos, folder, "none", "farneback", number)
            shutil.rmtree(videos)
    whole = runs[f"{METHODS[device][0]}, {counts[-1]} cores"]
    return {
        "device": DEVICES[device],
        "clips": kind,
        "size": SIZE,
        "cores_there": there,
        "runs": runs,
        "frames_per_s": whole["frames_per_s"],
        "command_frames_per_s": whole["command_frames_per_s"],
        "gpu_busy": whole["gpus"][0]["busy"],
    }


def gather_clips(data: Path, folder: Path) -> tuple[list[Path], str]:
    if (data / "ucf101").is_dir():
        return sorted((data / "ucf101").glob("*/*.avi")), "UCF-101"
    return [video.path for video in synthetic.write_videos(folder / "made")], "synthetic"


def count_frames(clip: Path) -> int:
    with open_video(clip) as video:
        return sum(1 for _ in video.frames())


def copy_videos(counted: list[tuple[Path, int]], folder: Path, frames: int) -> Path:
    """Copies of the clips, again and again, until they have so many frames."""
    folder.mkdir()
    total = number = 0
    while total < frames:
        clip, count = counted[number % len(counted)]
        shutil.copy(clip, folder / f"{number:05d}{clip.suffix}")
        total, number = total + count, number + 1
    return folder


def run(videos: Path, folder: Path, device: str, method: str, cores: int) -> dict[str, Any]:
    """One extraction on so many cores: the last line of its --json, and the whole time it took."""
    out = folder / "flow"
    command = [
        *COMMANDS[device], "extract", str(videos), "--gpu", "--method", method, "--out", str(out),
        "--resize", SIZE, "--bound", BOUND, "--json",
    ]  # fmt: skip
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    watch = watch_gpu() if device == "cuda" else None
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        cwd=PROJECT,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    seconds, after = time.perf_counter() - start, os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])  # of children and theirs
    if done.returncode != 0:
        said = done.stderr[-500:].strip()
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {said}")
    told = json.loads(done.stdout.splitlines()[-1])
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return {
        **told,
        "command_s": round(seconds, 2),
        "command_frames_per_s": round(told["frames"] / seconds, 1),
        "cpu_ms_a_frame": round(1e3 * cpu_s / told["frames"], 3),
        "mb_per_s": round(written / 1e6 / told["seconds"], 1),
        "gpu_busy_by_driver": end_watch(watch) if watch else None,
    }


def watch_gpu() -> subprocess.Popen[str] | None:
    """nvidia-smi's own account of the GPU, twice a second; None where there is no such program."""
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=500"]
    try:
        return subprocess.Popen(["nvidia-smi", "--id=0", *query], stdout=subprocess.PIPE, text=True)
    except OSError:
        return None


def end_watch(watch: subprocess.Popen[str]) -> float | None:
    """The mean share from the first moment at which the GPU had work to the last."""
    watch.terminate()
    shares = [int(line) for line in watch.communicate()[0].split() if line.isdecimal()]
    working = [index for index, share in enumerate(shares) if share]
    if not working:
        return None
    between = shares[working[0] : working[-1] + 1]
    return round(sum(between) / len(between) / 100, 3)


if __name__ == "__main__":
    run_benchmark(main)
