"""Flow methods side by side: pairs/s in one run, agreement with TV-L1, error against ground truth.

    python benchmarks/flow_methods.py [DATA] [--gpu] [--methods NAME[:PRESET] ...] [--out FILE]

DATA is the folder of real clips (default: $FLOWKIT_DATA, else ../shared/data beside the project),
or a file that `--sample FILE` made of one, for a machine that cannot read it: frames, OpenCV's
TV-L1 of them and Middlebury's scenes. On the CPU every method has one core, and seconds are those
of processor time, so that others at work there matter less. With `--gpu` those of a GPU are
measured, and torchvision's RAFT at random weights, on which its speed does not depend, as
raft_small:DTYPE:BATCH. Methods take turns, each for `--rounds` times `--seconds` and always through
whole sweeps: two pairs of every clip. What fails or comes after `--limit` seconds costs itself
only. FILE, one JSON object, is whole after each process; stderr gets a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from clips import default_data, found, run_benchmark
from gpu_check import commit
from tvl1_cpu import PAIRS, SCENES, opencv, read_scene

import flowkit
from flowkit.documents import replacing
from flowkit.fields import end_point_error, read_flo
from flowkit.flow import raft
from flowkit.flow.cuda.device import count_gpus
from flowkit.flow.methods import METHODS, make_method
from flowkit.flow.opencv import OpenCVFarneback
from flowkit.flow.pairs import Pair, to_gray
from flowkit.workers.children import CHILD_ENVIRONMENT

SIZE = (256, 340)  # (H, W) px: that of the action recognition data sets
FRAMES = 9  # of a clip: four sweeps of two pairs
WARM = 32  # pairs before the first round on a GPU: compilation, memory, clocks; on the CPU two
ON_CPU = (
    "tvl1-opencv", "tvl1", "tvl1:fast", "tvl1:faster", "farneback-opencv", "farneback",
    "dis:medium", "dis", "dis:ultrafast",
)  # fmt: skip
ON_GPU = (
    "tvl1-opencv-cuda", "tvl1-cuda", "tvl1-cuda:fast", "tvl1-cuda:faster", "tvl1-cuda:opencv-cuda",
    "farneback-cuda", "brox-opencv-cuda", "farneback-opencv-cuda",
    "raft_small:float32:32", "raft_small:bfloat16:32",
    "raft_large:float32:32", "raft_large:bfloat16:32", "raft_large:bfloat16:1",
)  # fmt: skip
SAME = {  # what should give the same fields, beside TV-L1
    "tvl1-cuda:opencv-cuda": "tvl1-opencv-cuda",
    "farneback": "farneback-opencv",
    "farneback-cuda": "farneback-opencv",
    "farneback-opencv-cuda": "farneback-opencv",
}


@dataclass(frozen=True)
class Sample:
    """What methods compute, and what that is compared with.

    `frames` is uint8 (clips, FRAMES, H, W), `tvl1` OpenCV's fields of each clip's first pair,
    float32 (clips, H, W, 2) px, empty where this OpenCV has no TV-L1; `scenes` have two frames and
    the true field, by name.
    """

    frames: np.ndarray
    tvl1: np.ndarray
    scenes: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def sweeps(self, clips: int) -> list[list[Pair]]:
        """The pairs of at most so many clips, evenly chosen, in lists of two pairs of each of them.

        A frame of two pairs is one array.
        """
        step = max(1, len(self.frames) // clips)
        chosen = [list(clip) for clip in self.frames[::step][:clips]]
        return [
            [(clip[k], clip[k + 1]) for clip in chosen for k in (t, t + 1)]
            for t in range(0, self.frames.shape[1] - 2, 2)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=default_data())
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--methods", nargs="+", metavar="NAME[:PRESET]")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=len(PAIRS), help="timed, at most")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds of the whole")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sample", type=Path, metavar="FILE", help="write it, and measure nothing")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # where fields are left
    options = parser.parse_args()
    end = time.monotonic() + options.limit
    methods = options.methods or list(ON_GPU if options.gpu else ON_CPU)
    if options.child:
        measure_here(methods, options)
    elif options.sample:
        write_sample(options.sample, make_sample(options.data))
    else:
        if options.gpu:
            count_gpus()  # an error where there is none
        compare(methods, options, end)


# --- what is computed ---


def make_sample(data: Path) -> Sample:
    """Of the clips of the CPU's benchmark that are long enough, and of the scenes there are."""
    clips = [read_clip(found(data / clip), index) for _, clip, index in PAIRS]
    frames = np.array([clip for clip in clips if len(clip) == FRAMES])
    firsts = [(clip[0], clip[1]) for clip in frames]
    return Sample(
        frames,
        fields_of_tvl1(firsts),
        {
            scene: (*read_scene(data / "middlebury", scene), read_flo(folder / "flow10.flo"))
            for scene in SCENES
            if (folder := data / "middlebury" / scene).is_dir()
        },
    )


def read_clip(path: Path, index: int) -> list[np.ndarray]:
    """FRAMES gray frames of SIZE from `index` on, or as many as there are."""
    from flowkit._cv2 import cv2
    from flowkit.video.reading import open_video

    with open_video(path) as video:
        shown = list(islice(video.frames(), index, index + FRAMES))
    return [cv2.resize(to_gray(frame), SIZE[::-1]) for frame in shown]


def fields_of_tvl1(pairs: list[Pair]) -> np.ndarray:
    """The fields of OpenCV's TV-L1, a pair to a core."""
    from flowkit._cv2 import cv2

    if not hasattr(cv2, "optflow"):
        return np.empty(0, np.float32)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        fields = np.array(list(cores.map(lambda pair: opencv(*pair), pairs)))
    cv2.setNumThreads(threads)
    return fields


def write_sample(file: Path, sample: Sample) -> None:
    """As an .npz, from which `read_sample` reads it."""
    scenes = {
        f"{scene}/{part}": array
        for scene, arrays in sample.scenes.items()
        for part, array in zip(("first", "second", "truth"), arrays, strict=True)
    }
    np.savez_compressed(file, frames=sample.frames, tvl1=sample.tvl1, **scenes)


def read_sample(file: Path) -> Sample:
    with np.load(file) as arrays:
        scenes = [key.partition("/")[0] for key in arrays.files if key.endswith("/truth")]
        return Sample(
            arrays["frames"],
            arrays["tvl1"],
            {
                scene: tuple(arrays[f"{scene}/{part}"] for part in ("first", "second", "truth"))
                for scene in scenes
            },
        )


@dataclass(frozen=True)
class RandomRAFT:
    """A network of torchvision without training: good for its speed only."""

    net: str  # "raft_small" or "raft_large"
    dtype: str  # "float32", with what torch makes of it, or "bfloat16" by autocast
    batch: int

    @cached_property
    def network(self) -> Any:
        from torchvision.models import optical_flow

        return getattr(optical_flow, self.net)(weights=None).to(self.device).eval()

    @property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        import torch

        pairs = iter(pairs)
        while batch := list(islice(pairs, self.batch)):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                fields = raft._compute(self.network, batch, updates=12)
            yield from fields


def named(name: str) -> Any:
    """The method of a NAME[:PRESET], or the network of a NAME:DTYPE:BATCH."""
    name, _, rest = name.partition(":")
    if name in METHODS:
        return make_method(name, preset=rest or None)
    dtype, _, batch = rest.partition(":")
    return RandomRAFT(name, dtype, int(batch))


# --- a process that measures some methods ---


def measure_here(methods: list[str], options: argparse.Namespace) -> None:
    """Print what is known of each method, a JSON line of all of it whenever it is more.

    They take turns, so that whatever else the machine does meets all of them.
    """
    sample = read_sample(options.data)
    known: dict[str, dict[str, Any]] = {name: {"method": name} for name in methods}
    at_work = {name: measure(name, sample, options) for name in methods}
    while at_work:
        for name, more in list(at_work.items()):
            try:
                known[name].update(next(more))
            except StopIteration:
                del at_work[name]
            except Exception as error:  # of a GPU, a driver or a library: the others go on
                reason = str(error).strip().partition("\n")[0]
                known[name]["error"] = f"{type(error).__name__}: {reason[:300]}"
                del at_work[name]
            print(json.dumps(known[name]), flush=True)


def measure(name: str, sample: Sample, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A method's speed after every round, then its agreement with TV-L1, then its errors."""
    method, sweeps = named(name), sample.sweeps(options.clips)
    for _ in method.fields(sweeps[0][: WARM if options.gpu else 2]):
        pass
    clock = time.perf_counter if options.gpu else time.process_time
    rounds: list[float] = []
    for _ in range(options.rounds):
        rounds.append(rate(method, sweeps, options.seconds, clock))
        yield {"pairs_per_s": statistics.median(rounds), "rounds": rounds}
    if isinstance(method, RandomRAFT):
        return
    fields = np.array(list(method.fields([(clip[0], clip[1]) for clip in sample.frames])))
    np.save(options.child / f"{name}.npy", fields)
    if sample.tvl1.size:
        yield {"to_tvl1_px": difference(fields, sample.tvl1)}
    errors = {}
    for scene, (first, second, truth) in sample.scenes.items():
        [field] = method.fields([(first, second)])
        errors[scene] = round(float(np.nanmean(end_point_error(field, truth))), 4)
    yield {"ground_truth_px": errors}


def rate(
    method: Any, sweeps: list[list[Pair]], seconds: float, clock: Callable[[], float]
) -> float:
    """Pairs/s, from gray frames in memory to fields in memory, over whole sweeps."""
    start = clock()

    def supply() -> Iterator[Pair]:
        for sweep in cycle(sweeps):
            yield from sweep
            if clock() - start >= seconds:
                return

    count = sum(1 for _ in method.fields(supply()))
    return float(f"{count / (clock() - start):.4g}")


def difference(fields: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """End-point difference in px: the mean over the pairs, and that of the worst pair."""
    means = [float(end_point_error(*both).mean()) for both in zip(fields, wanted, strict=True)]
    return {"mean": round(statistics.mean(means), 5), "worst": round(max(means), 5)}


# --- the process that starts them ---


def compare(methods: list[str], options: argparse.Namespace, end: float) -> None:
    """Measure the methods, process by process, and write the report after each."""
    report: dict[str, Any] = {
        "flowkit": flowkit.__version__,
        "commit": commit(),
        "machine": gpu_name() if options.gpu else processor_name(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "cores": os.cpu_count(),
        "size": list(SIZE),
        "seconds": options.seconds,
        "methods": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = options.data
        if file.suffix != ".npz":
            file = Path(folder) / "sample.npz"
            write_sample(file, make_sample(options.data))
        sample = read_sample(file)
        report["clips"] = min(options.clips, len(sample.frames))
        for _, names in groupby(methods, process_of):
            report["methods"] += run_process(list(names), file, Path(folder), options, end)
            report["same"] = compare_fields(Path(folder), sample)
            if options.out:
                with replacing(options.out) as unfinished:
                    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report), file=sys.stderr)
    print(json.dumps(report))


def process_of(name: str) -> str:
    """What names of one process share; those of OpenCV on a GPU, which may crash, do not."""
    name = name.partition(":")[0]
    place = METHODS[name].runs_on if name in METHODS else "torch"
    return name if place == "opencv-cuda" else place


def run_process(
    names: list[str], file: Path, folder: Path, options: argparse.Namespace, end: float
) -> list[dict[str, Any]]:
    """What a process came to know of each method, with an "error" where that is not all."""
    left = end - time.monotonic()
    command = [sys.executable, __file__, str(file), "--child", str(folder), "--methods", *names]
    command += [f"--{name}={getattr(options, name)}" for name in ("seconds", "rounds", "clips")]
    command += ["--gpu"] if options.gpu else []
    project = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, (project, os.environ.get("PYTHONPATH"))))
    one_core = {} if options.gpu else CHILD_ENVIRONMENT
    said = folder / "stdout", folder / "stderr"
    with said[0].open("w") as stdout, said[1].open("w") as stderr:
        try:
            status = subprocess.run(
                command, stdout=stdout, stderr=stderr, timeout=max(left, 0.01),
                env={**os.environ, **one_core, "PYTHONPATH": paths},
            ).returncode  # fmt: skip
            problem = f"the process ended with status {status}"
        except subprocess.TimeoutExpired:
            problem = "no time was left"
    lines, words = (file.read_text().strip() for file in said)
    problem += f": {words.splitlines()[-1][:300]}" if words else ""
    known = {name: {"method": name, "error": problem} for name in names}
    for line in lines.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            known[row["method"]] = row
    return list(known.values())


def compare_fields(folder: Path, sample: Sample) -> dict[str, dict[str, float]]:
    """Differences in px of the methods that should give the same, of those that were measured."""
    fields = {file.stem: np.load(file) for file in folder.glob("*.npy")}
    firsts = [(clip[0], clip[1]) for clip in sample.frames]
    fields["farneback-opencv"] = np.array(list(OpenCVFarneback().fields(firsts)))
    return {
        f"{name} to {other}": difference(fields[name], fields[other])
        for name, other in SAME.items()
        if name in fields and other in fields
    }


def processor_name() -> str:
    """One core of the processor here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one core of {models[0] if models else 'an unnamed processor'}"


def gpu_name() -> str:
    """The GPU, by its driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no GPU that nvidia-smi names"
    name, _, driver = done.stdout.splitlines()[0].partition(", ")
    return f"{name}, driver {driver}"


def table(report: dict[str, Any]) -> str:
    """The report as Markdown, with speeds beside that of the first method."""
    first = report["methods"][0].get("pairs_per_s")
    lines = [
        "| method | pairs/s | times the first | to OpenCV's TV-L1, px | Middlebury, px |",
        "|---|---|---|---|---|",
    ]
    for row in report["methods"]:
        speed, away = row.get("pairs_per_s"), row.get("to_tvl1_px", {}).get("mean")
        errors = row.get("ground_truth_px", {}).values()
        cells = [
            f"`{row['method']}`",
            f"{speed:,.4g}" if speed else row.get("error", ""),
            f"{speed / first:,.3g}" if speed and first else "",
            "" if away is None else f"{away:.3f}",
            f"{statistics.mean(errors):.3f}" if errors else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark(main)
