"""Faults planted in flowkit's own source: how many of them the tests see.

usage: python benchmarks/mutation.py WORK [--seed 1] [--count 220] [--resume] [--write FILE]

A seeded draw, dealt in turn over the operators and the parts of flowkit. The sources are copied to
WORK once; each mutant is one edit of one file there, and the tests that reach its lines, as
coverage saw it, run on it until one fails: the fastest ones, for --budget seconds. A test that
hangs counts as failed, one that fails without the mutant, too, does not. What was seen is added to
WORK/mutants.jsonl line by line. --resume goes on, and tries mutants that survived again: with a
larger --budget, or after --tests has copied files of tests that have more of them by now. --write
makes the table. Linux; `pip install coverage`. A mutant may end or delete what it should not:

    unshare --pid --fork --mount-proc --kill-child python benchmarks/mutation.py /tmp/work

Own edits of the syntax tree and not cosmic-ray or mutmut: the first starts a Python for each mutant
(4 s of imports before the first test) and removes no statements; the second puts a trampoline in
the place of each function, which Numba cannot compile and module-level code does not have. Here one
process has imported torch and what else is not flowkit's, and is forked for each mutant.

The edits are made in mutation_edits.py, tests run in mutation_forks.py, chosen in
mutation_reach.py; the table is of mutation_page.py.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutation_edits import Mutant, draw, mutated
from mutation_forks import Report, run_tests
from mutation_page import EQUIVALENT, results_in, table
from mutation_reach import choose, tests_of

ROOT = Path(__file__).resolve().parents[1]
# Imported once, before the forks: whatever takes long and is not flowkit's.
HEAVY = ("numpy", "scipy.io", "scipy.optimize", "torch", "torch.utils.data", "torch.distributed",
         "torchvision", "sklearn.svm", "cv2", "av", "numba", "PIL.Image", "lz4.frame", "click",
         "jinja2", "tqdm", "safetensors.torch", "hypothesis", "anyascii", "threadpoolctl",
         "joblib")  # fmt: skip
SHOWN = ("part", "path", "line", "column", "operator", "old", "text")  # of a mutant, in its row


def judge(work: Path, mutant: Mutant, tests: dict[str, Any], budget_s: float) -> dict[str, Any]:
    """Run a mutant's tests until one fails; that one must pass on the sources as they are."""
    unsure: list[str] = []
    began = time.monotonic()
    chosen = choose(mutant, tests, budget_s)
    while True:
        names = [name for name in chosen if name not in unsure]
        seconds = {name: tests[name]["seconds"] for name in names}
        with in_place(work / "tree", mutant):
            told = fork_for(work, names, seconds) if names else []
        ran = sum(what[0] == "start" for what in told)
        bad = next((w for w in told if w[0] in ("failed", "hung", "crashed")), None)
        result = {"killed": bad is not None, "by": bad[1] if bad else None,
                  "how": bad[0] if bad else None, "said": bad[2] if bad else "",
                  "tests": len(chosen), "ran": ran, "unsure": unsure,
                  "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
        if bad is None:
            return result
        file = bad[1].split("::")[0].removesuffix(" (import)")  # which may have failed to
        one = (
            bad[1]
            if bad[1] in seconds
            else next((n for n in names if n.startswith(file)), names[0])
        )
        if tests[one].get("sure"):
            return result
        again = fork_for(work, [one], seconds)
        if not any(w[0] in ("failed", "hung", "crashed", "unfinished") for w in again):
            tests[one]["sure"] = True  # for the mutants to come
            return result
        unsure.append(one)


def fork_for(work: Path, names: list[str], seconds: dict[str, float]) -> list[Report]:
    files = dict.fromkeys(name.split("::")[0] for name in names)
    return run_tests(work, files, {name: at for at, name in enumerate(names)}, seconds)


@contextlib.contextmanager
def in_place(tree: Path, mutant: Mutant) -> Iterator[None]:
    """The mutant in its file; the file as it was afterwards, its time of change, too."""
    path = tree / mutant.path
    source, times = path.read_bytes(), path.stat()
    text = mutated(tree, mutant)
    compiled = taken(path)
    path.write_bytes(text)
    try:
        yield
    finally:
        taken(path)
        path.write_bytes(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for file, kept in compiled.items():
            file.write_bytes(kept)


def taken(path: Path) -> dict[Path, bytes]:
    """What Python and Numba have compiled of a file, taken away from it."""
    found = list((path.parent / "__pycache__").glob(f"{path.stem}.*"))
    kept = {file: file.read_bytes() for file in found}
    for file in found:
        file.unlink()
    return kept


def copy_sources(work: Path, again: list[Path]) -> None:
    """What git knows of the project to WORK/tree, once; then only the files of `again`."""
    tree, git = work / "tree", ["git", "-C", str(ROOT)]
    names = [str(path.resolve().relative_to(ROOT)) for path in again]
    if not tree.exists():
        names = subprocess.check_output([*git, "ls-files", "-z"], text=True).split("\0")
        (work / "commit.txt").write_bytes(subprocess.check_output([*git, "rev-parse", "HEAD"]))
    if again:
        with (work / "added.txt").open("a") as file:
            file.writelines(f"{name}\n" for name in names)
    for name in filter(None, names):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


def run(work: Path, seed: int, count: int, jobs: int, budget_s: float) -> None:
    """Judge the mutants that have no result and those that survived, in `jobs` processes."""
    tests = tests_of(work)
    results, proven = results_in(work), json.loads(EQUIVALENT.read_text())
    waiting = [
        mutant
        for mutant in draw(work / "tree", seed, count)
        if mutant.name not in proven and not results.get(mutant.name, {}).get("killed")
    ]
    pids = []
    for job in range(jobs):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                place = work / f"job{job}"
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(work / "tree", place / "tree", symlinks=True)
                own_tree(place)
                for mutant in waiting[job::jobs]:
                    found = judge(place, mutant, tests, budget_s)
                    keep(work, mutant, results.get(mutant.name), found)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)


def keep(work: Path, mutant: Mutant, before: dict[str, Any] | None, found: dict[str, Any]) -> None:
    """Add a result to the others, and print it."""
    is_old = before is not None and (work / "added.txt").exists()
    first = before["first"] if is_old else found["killed"]
    shown = {key: getattr(mutant, key) for key in SHOWN}
    with (work / "mutants.jsonl").open("a") as file:
        file.write(json.dumps({"name": mutant.name, "first": first, **found, **shown}) + "\n")
    print(f"{'killed  ' if found['killed'] else 'SURVIVED'} {found['seconds']:5.1f} s "
          f"{found['ran']}/{found['tests']} {mutant.name} [{found['by']}]", flush=True)  # fmt: skip


def own_tree(place: Path) -> None:
    """Have this process and what it starts import the sources of `place`; it reaps orphans."""
    paths = os.pathsep.join(filter(None, [str(place / "tree"), os.environ.get("PYTHONPATH")]))
    os.environ |= {"PYTHONPATH": paths, "FLOWKIT_DATA": str(place / "none"),
                   "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for a copy of the sources and the results")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=220)
    parser.add_argument("--resume", action="store_true", help="go on in a WORK that has results")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=40.0, help="s of tests per mutant")
    parser.add_argument("--tests", type=Path, nargs="*", default=[], help="files to copy again")
    parser.add_argument("--write", type=Path, help="the table, as Markdown")
    args = parser.parse_args()
    if importlib.util.find_spec("coverage") is None:
        parser.error("needs coverage, which tells what each test reaches: pip install coverage")
    work = args.work.resolve()
    if (work / "mutants.jsonl").exists() and not args.resume:
        parser.error(f"{work} holds results: --resume goes on, another WORK starts again")
    work.mkdir(parents=True, exist_ok=True)
    copy_sources(work, args.tests)
    own_tree(work)
    for name in HEAVY:
        importlib.import_module(name)
    run(work, args.seed, args.count, args.jobs, args.budget)
    drawn = draw(work / "tree", args.seed, args.count)
    text = table(work, drawn)
    print(text.split("\n\n")[1])
    if args.write:
        args.write.write_text(text)


if __name__ == "__main__":
    main()
