"""Tests and benchmarks that need an NVIDIA GPU, in one go and one report: `make gpu-check`.

    python benchmarks/gpu_check.py [DATA] [--seconds N] [--parts NAMES] [--out FILE]

Needs neither pip nor a network. Every part is a process of its own and goes into the report, FILE
or benchmarks/results/<chip>.json, as soon as it ends: with its figures, with the error that ended
it, or skipped, with what it lacks. A report that FILE has of this chip and this commit is gone on
with: NAMES (a,b) are the parts to do now, all of them unless given. No part is begun after N
seconds, and none goes on for longer.
Status 0: no part failed and no bar that was measured was missed; 1: not so, the report says what;
2: there is no GPU to use here, and nothing was written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clips import default_data

import flowkit
from flowkit.documents import replacing
from flowkit.errors import FlowkitError
from flowkit.flow.cuda.device import count_gpus

PROJECT = Path(__file__).resolve().parents[1]
SECONDS = 900
CORES = len(os.sched_getaffinity(0))
TRAINING = ("training.py", "--device", "cuda", "--workers", str(CORES), "--bf16")
BARS = {
    "tvl1.pairs_per_s": 3000,
    "tvl1.fast_pairs_per_s": 6000,
    "tvl1.eps0_pairs_per_s": 150,
    "farneback.pairs_per_s": 2000,
    "extract.frames_per_s": 2000,
    "training_jpg.share_of_network": 0.9,
    "training_lz4.share_of_network": 0.9,
}
LACKS = re.compile(r"No module named '?([\w.]+)|\bpip install (\S+)")


@dataclass(frozen=True)
class Part:
    """A script beside this one (or pytest), its options, and several times what it should take."""

    name: str
    command: tuple[str, ...]
    seconds: float


def parts(data: Path) -> list[Part]:
    """All parts, in the order in which a short time should be spent."""
    fewer = ",".join(str(number) for number in (2, 4, 8) if number < CORES)
    flow = [
        Part(name, ("tvl1_gpu.py", str(data), "--part", name), seconds)
        for name, seconds in (("tvl1", 120), ("farneback", 60), ("batch", 60), ("sizes", 90),
                              ("parity", 180), ("start", 60))
    ]  # fmt: skip
    whole = ("extract_gpu.py", str(data), "--frames")
    return [
        Part("tests", ("-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "tests"), 240),
        *flow[:1],
        Part("extract", (*whole, "12000", "--cores", str(CORES)), 180),
        *flow[1:],
        Part("training_jpg", (*TRAINING, "--channels-last", "--steps", "10"), 120),
        Part(
            "training_lz4",
            (*TRAINING, "--channels-last", "--steps", "10", "--format", "lz4"),
            120,
        ),
        Part("stacks", ("stacks.py", "--device", "cuda"), 60),
        Part("jpeg", ("jpeg_gpu.py", "--device", "cuda"), 60),
        *([Part("extract_by_cores", (*whole, "10000", "--cores", fewer), 300)] if fewer else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=default_data())
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", help="names of parts, with commas between them")
    options = parser.parse_args()
    todo = chosen(parts(options.data.absolute()), options.parts)
    try:
        count_gpus()
    except FlowkitError as error:
        print(f"gpu-check needs an NVIDIA GPU; nothing was run: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    end = time.monotonic() + options.seconds
    chip = run_part(Part("chip", ("tvl1_gpu.py", "--part", "chip"), 60), end)
    name = slug(chip.get("name", "gpu"))
    file = options.out or PROJECT / "benchmarks" / "results" / f"{name}.json"
    head = {"flowkit": flowkit.__version__, "commit": commit(), "cores": CORES, "chip": chip}
    failed = check(todo, file, end, head)
    print(f"wrote {file}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def chosen(every: list[Part], names: str | None) -> list[Part]:
    """The parts with these names, in their order; a usage error names one that is none."""
    wanted = [part.name for part in every] if names is None else names.split(",")
    if unknown := set(wanted) - {part.name for part in every}:
        known = ", ".join(part.name for part in every)
        print(f"--parts: expected names of {known}, got {sorted(unknown)}", file=sys.stderr)
        raise SystemExit(2)
    return [part for part in every if part.name in wanted]


def begun(file: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The report in `file`, if it is of the same chip, cores and commit; else one that begins."""
    if file.exists():
        report = json.loads(file.read_text())
        same = ("flowkit", "commit", "cores")
        chips = [one.get("chip", {}).get("name") for one in (report, head)]
        if chips[0] == chips[1] and all(report.get(key) == head.get(key) for key in same):
            return report
    return {**head, "bars": {}}


def check(todo: list[Part], file: Path, end: float, head: dict[str, Any]) -> list[str]:
    """Run the parts until the monotonic time `end`; the names of what failed or was missed."""
    report = begun(file, head)
    file.parent.mkdir(parents=True, exist_ok=True)
    for part in todo:
        found = run_part(part, end)
        report[part.name] = found
        report["bars"] = reached(report)
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{part.name}: {in_short(found)}", file=sys.stderr)
    print(json.dumps(report["bars"], indent=1))
    failed = [part.name for part in todo if "error" in report[part.name]]
    return failed + [key for key, bar in report["bars"].items() if bar["reached"] < bar["wanted"]]


def reached(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The bars whose figure is in the report, beside it."""
    figures = {key: report.get(key.split(".")[0], {}).get(key.split(".")[1]) for key in BARS}
    return {
        key: {"wanted": BARS[key], "reached": figure}
        for key, figure in figures.items()
        if figure is not None
    }


def run_part(part: Part, end: float) -> dict[str, Any]:
    """The figures of a part, or under "error" or "skipped" why there are none."""
    left = min(part.seconds, end - time.monotonic())
    if left <= 0:
        return {"skipped": "no time was left"}
    script, *options = part.command
    program = [script] if script.startswith("-") else [str(Path(__file__).with_name(script))]
    start = time.monotonic()
    paths = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, *program, *options], cwd=PROJECT, capture_output=True, text=True,
            timeout=left, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {left:.0f} s"}
    found = read_tests(done) if "pytest" in options else read_figures(done)
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def read_figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object at the end of what a script printed, or what it lacks, or why it ended."""
    if done.returncode == 0:
        text = done.stdout
        return json.loads(text[0 if text.startswith("{") else text.rindex("\n{") + 1 :])
    return without_figures(done)


def without_figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    words = done.stderr.strip() or done.stdout.strip() or "no word"
    if lack := LACKS.search(words.splitlines()[-1]):
        return {"skipped": f"{lack[1] or lack[2]} is not installed"}
    return {"error": f"status {done.returncode}: {words[-1500:]}"}


def read_tests(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """How many tests passed, failed and were skipped; one that is skipped has not passed."""
    lines = done.stdout.strip().splitlines() or [""]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1])}
    if not counts:
        return without_figures(done)
    found: dict[str, Any] = {
        word: counts.get(word, 0) for word in ("passed", "failed", "errors", "skipped")
    }
    found["skipped_because"] = [line for line in lines if line.startswith("SKIPPED")]
    if done.returncode:
        found["error"] = done.stdout[-4000:]
    return found


def in_short(found: dict[str, Any]) -> str:
    """A part of the report in one line."""
    if "skipped" in found and isinstance(found["skipped"], str):
        return f"skipped: {found['skipped']}"
    if "error" in found:
        return f"failed: {found['error'].splitlines()[-1][:200]}"
    plain = {key: one for key, one in found.items() if isinstance(one, int | float)}
    return ", ".join(f"{key} {one:,}" for key, one in plain.items())


def commit() -> str | None:
    """The commit that is checked out, where git tells."""
    command = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def slug(name: str) -> str:
    """A chip's name as that of a file: NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
