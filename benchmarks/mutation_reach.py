"""Which tests reach which lines, and which of them are run on a mutant."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from mutation_edits import Mutant
from mutation_forks import run_tests

# Tests of other parts, long ones: they touch these lines, if at all, on their way.
ELSEWHERE = {"benchmarks", "compiled", "cuda", "doctor", "efficientnet", "farneback", "fields",
             "flow", "flow_processes", "fork", "gpu_check", "house", "house_counts", "idt_fisher",
             "idt_records", "idt_tracks", "lettering", "matching", "opencv_cuda", "pipeline",
             "pool", "quantize", "raft", "report_page", "sources", "streams", "synthetic", "timm",
             "tvl1", "videos", "visualize", "words"}  # fmt: skip
COVERAGE = """[run]
branch = False
parallel = True
data_file = {work}/coverage/data
include = {tree}/flowkit/*
context = ${{PYTEST_CURRENT_TEST-}}
patch = fork
    _exit
    subprocess
"""


def record(work: Path, file: str, known: set[str]) -> dict[str, Any]:
    """Each test of a file but the `known`: seconds, whether it passed, the lines it reached."""
    from coverage import CoverageData

    folder = work / "coverage"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (work / "coveragerc").write_text(COVERAGE.format(work=work, tree=work / "tree"))
    others = [f"--deselect={name}" for name in known]
    told = run_tests(work, [file, *others], None, coverage=True)
    failed = {what[1]: 0 for what in told if what[0] == "failed"}
    told += run_tests(work, [file], failed, None, stop=False) if failed else []
    tests: dict[str, Any] = {}
    for what in told:
        if what[0] == "wide":
            tests[what[1]] = {"seconds": 0.0, "ends": [], "wide": what[2], "lines": {}}
        elif what[0] == "took" and what[1] in tests:
            tests[what[1]]["seconds"] += what[2]
            tests[what[1]]["ends"].append(what[3])
    for test in tests.values():  # setup, call, teardown: the last run counts, without coverage
        test["passed"] = test["ends"][-3:] == ["passed"] * 3
    for name in [str(path) for path in folder.iterdir()]:
        data = CoverageData(name)
        data.read()
        for path in data.measured_files():
            for line, contexts in data.contexts_by_lineno(path).items():
                for context in contexts:
                    add_line(tests, context, os.path.relpath(path, work / "tree"), line)
    return tests


def add_line(tests: dict[str, Any], context: str, path: str, line: int) -> None:
    """A line to its test; one that a setup reached, to all tests of the file with wide fixtures."""
    match = re.fullmatch(r"(?:.*\|)?(tests/.*) \((setup|call|teardown)\)", context, re.DOTALL)
    if match is None or match[1] not in tests:
        return
    wide = match[2] == "setup" and tests[match[1]]["wide"]
    for name in [n for n, t in tests.items() if t["wide"]] if wide else [match[1]]:
        lines = tests[name]["lines"].setdefault(path, [])
        if line not in lines:
            lines.append(line)


def tests_of(work: Path) -> dict[str, Any]:
    """All tests of WORK's tree that pass; files that have changed are run first, and recorded."""
    tests: dict[str, Any] = {}
    (work / "reach").mkdir(exist_ok=True)
    files = sorted((work / "tree" / "tests").glob("test_*.py"))
    for path in [p for p in files if p.stem.removeprefix("test_") not in ELSEWHERE]:
        kept = work / "reach" / f"{path.stem}.json"
        text = path.read_text()
        found = json.loads(kept.read_text()) if kept.exists() else {"text": None, "tests": {}}
        if found["text"] != text:
            began = time.monotonic()
            new = record(work, f"tests/{path.name}", set(found["tests"]))
            found = {"text": text, "tests": found["tests"] | new}
            kept.write_text(json.dumps(found))
            failed = [name for name, test in new.items() if not test["passed"]]
            print(f"{path.name}: {len(new)} tests, {time.monotonic() - began:.0f} s;"
                  f" not used, as they do not pass: {failed or 'none'}", flush=True)  # fmt: skip
        tests |= {name: test for name, test in found["tests"].items() if test["passed"]}
    return tests


def choose(mutant: Mutant, tests: dict[str, Any], budget_s: float) -> list[str]:
    """The tests that reach a mutant, the fastest ones, file by file as files share fixtures.

    Where none is known to, as of compiled code, those that reach anything else of its file; for
    what runs when the file is imported, all of their files.
    """
    inside = {n: t for n, t in tests.items() if t["lines"].get(mutant.path)}
    lines = set(mutant.reach)
    found = [n for n, t in inside.items() if lines & set(t["lines"][mutant.path])] or list(inside)
    if not lines:
        near = {name.split("::")[0] for name in inside}
        found = [name for name in tests if name.split("::")[0] in near]
    found.sort(key=lambda name: tests[name]["seconds"])
    ends = list(itertools.accumulate(tests[name]["seconds"] for name in found))
    chosen = [name for name, end in zip(found, ends, strict=True) if end < budget_s] or found[:1]
    files: dict[str, list[str]] = {}
    for name in chosen:
        files.setdefault(name.split("::")[0], []).append(name)
    mean = {file: sum(tests[n]["seconds"] for n in own) / len(own) for file, own in files.items()}
    return [name for file in sorted(files, key=mean.__getitem__) for name in files[file]]
