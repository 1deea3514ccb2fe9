"""Tests and benchmarks that need an NVIDIA card, in one go and one report: `make gpu-check`.

    python benchmarks/gpu_check.py [DATA]

Writes benchmarks/results/<chip>.json. Status 0: all tests passed and all bars were reached; 1: not
so, the report says what; 2: there is no card to use here, and nothing was written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import extract_gpu
import tvl1_gpu
from clips import default_data

import flowkit
from flowkit.errors import FlowkitError
from flowkit.flow.cuda import device as cuda_device
from flowkit.flow.cuda import tvl1 as cuda_tvl1

PROJECT = Path(__file__).parents[1]
TEST_SECONDS = 180  # several times what they should take
SCRIPT_SECONDS = 90
SHARE_BAR = 0.9  # of the rate with a batch that lies on the card, which the real loader keeps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=default_data())
    options = parser.parse_args()
    try:
        card = cuda_device.open_card(cuda_tvl1.SOURCE)
    except FlowkitError as error:
        print(f"gpu-check needs an NVIDIA card; nothing was run: {error}", file=sys.stderr)
        raise SystemExit(2) from None

    start = time.perf_counter()
    tests = run_tests()
    print(f"tests: {tests['summary']}", file=sys.stderr)
    report = {"flowkit": flowkit.__version__, "tests": tests, **tvl1_gpu.measure(options.data)}
    report["extract"] = extract_gpu.measure(options.data)
    report["bars"] |= report["extract"].pop("bars")
    report |= learning("cuda")
    for name in ("training_jpg", "training_lz4"):
        reached = report[name].get("share_of_network", 0)
        report["bars"][name] = {"reached": reached, "wanted": SHARE_BAR}
    report["seconds"] = round(time.perf_counter() - start)

    file = PROJECT / "benchmarks" / "results" / f"{slug(card.name)}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
    missed = [key for key, bar in report["bars"].items() if bar["reached"] < bar["wanted"]]
    print(json.dumps(report["bars"], indent=1))
    print(f"wrote {file}")
    if missed or not tests["passed"]:
        print(f"failed: {', '.join(missed) or 'tests'}", file=sys.stderr)
        raise SystemExit(1)


def run_tests() -> dict[str, Any]:
    """The gpu tests in a process of their own; a test that is skipped has not passed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "tests"]
    try:
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=TEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": f"not finished after {TEST_SECONDS} s", "output": ""}
    lines = done.stdout.strip().splitlines()
    return {
        "passed": done.returncode == 0,
        "summary": lines[-1] if lines else done.stderr.strip()[-200:],
        "output": "" if done.returncode == 0 else done.stdout[-4000:],
    }


def learning(device: str) -> dict[str, dict[str, Any]]:
    """Stacks, decoding and training on a device: what each script says of itself."""
    train = ("--workers", str(os.cpu_count()), "--bf16", "--channels-last", "--steps", "10")
    return {
        "stacks": run_script("stacks.py", "--device", device),
        "jpeg": run_script("jpeg_gpu.py", "--device", device),
        "training_jpg": run_script("training.py", "--device", device, *train),
        "training_lz4": run_script("training.py", "--device", device, *train, "--format", "lz4"),
    }


def run_script(script: str, *options: str) -> dict[str, Any]:
    """The JSON that a benchmark beside this one writes, or why it wrote none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, str(Path(__file__).with_name(script)), *options]
        try:
            done = subprocess.run(
                [*command, "--out", str(out)], capture_output=True, text=True,
                timeout=SCRIPT_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"not finished after {SCRIPT_SECONDS} s"}
        if done.returncode != 0:
            return {"error": done.stderr.strip()[-500:]}
        return json.loads(out.read_text())


def slug(name: str) -> str:
    """A chip's name as that of a file: NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
