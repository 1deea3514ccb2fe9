"""Tests run in a fork of one process that has imported what is not flowkit's."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

TEST_S = 30.0  # for one test, and ten times what it took unmutated
MUTANT_S = 300.0  # for all tests of a mutant
Report = list[Any]


class Watched:
    """A plugin of pytest: the tests wanted, in their order; each one's start and end to a pipe."""

    def __init__(self, pipe: int, order: dict[str, int] | None, coverage: Any = None) -> None:
        self.pipe, self.order, self.coverage = pipe, order, coverage

    def tell(self, *what: object) -> None:
        os.write(self.pipe, (json.dumps(what) + "\n").encode())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order is not None:
            wanted = self.order
            items[:] = sorted(
                (item for item in items if item.nodeid in wanted), key=lambda i: wanted[i.nodeid]
            )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell("failed", f"{report.nodeid} (import)", last_line(report.longreprtext))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell("start", nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        if self.coverage is not None:
            defs = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
            ours = [d for found in defs.values() for d in found if d.baseid.startswith("tests")]
            self.tell("wide", item.nodeid, any(d.scope != "function" for d in ours))
            self.coverage.switch_context(f"{item.nodeid} (setup)")
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if self.coverage is not None:
            self.coverage.switch_context(f"{item.nodeid} (call)")
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell("failed", report.nodeid, last_line(report.longreprtext))
        self.tell("took", report.nodeid, report.duration, report.outcome)


def last_line(text: str) -> str:
    """The line of a traceback that says what went wrong."""
    said = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (said[0] if said else text.strip().splitlines()[-1] if text.strip() else "")[:200]


def run_tests(
    work: Path,
    files: Iterable[str],
    order: dict[str, int] | None,
    seconds: dict[str, float] | None = None,
    *,
    coverage: bool = False,
    stop: bool = True,
) -> list[Report]:
    """Fork, run tests in the fork, and give what it told; ("hung", test) where it took too long."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        run_in_fork(work, list(files), order, write, coverage, stop and not coverage)
    os.close(write)
    told = listen(read, seconds)
    os.close(read)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    end_orphans()
    if not any(what[0] in ("hung", "end") for what in told):
        told.append(["crashed", started(told), f"ended with status {status}"])
    return told


def run_in_fork(
    work: Path,
    files: list[str],
    order: dict[str, int] | None,
    pipe: int,
    coverage: bool,
    stop: bool,
) -> None:
    """Run pytest here, in its own group of processes; never returns."""
    try:
        os.setsid()
        tree = work / "tree"
        os.chdir(tree)
        sys.path[:0] = [str(tree), str(tree / "tests")]
        output = os.open(work / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        measure = None
        if not coverage:  # a mutant is not to be found compiled
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        else:
            from coverage import Coverage

            os.environ["COVERAGE_PROCESS_START"] = str(work / "coveragerc")
            measure = Coverage(config_file=str(work / "coveragerc"))
            measure.start()
        plugin = Watched(pipe, order, measure)
        arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short",
                     f"--basetemp={work / 'tmp'}", *["-x"] * stop]  # fmt: skip
        status = pytest.main([*arguments, *files], plugins=[plugin])
        if measure is not None:
            measure.stop()
            measure.save()
        plugin.tell("end", int(status))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def listen(pipe: int, seconds: dict[str, float] | None) -> list[Report]:
    """What a fork tells until it ends, or is too long at one test or at all of them."""
    told: list[Report] = []
    rest = b""
    end = time.monotonic() + (MUTANT_S if seconds is not None else 3600)
    limit = time.monotonic() + 90  # to import and to collect
    while True:
        wait = min(end, limit) - time.monotonic()
        if wait <= 0 or not select.select([pipe], [], [], wait)[0]:
            told.append(["hung" if limit < end else "unfinished", started(told), ""])
            return told
        got = os.read(pipe, 1 << 16)
        if not got:
            return told
        *lines, rest = (rest + got).split(b"\n")
        for what in map(json.loads, lines):
            told.append(what)
            took = 60.0 if seconds is None else seconds.get(what[1], 1.0)
            limit = time.monotonic() + TEST_S + 10 * took
            if what[0] == "end":
                return told


def started(told: list[Report]) -> str:
    return next((what[1] for what in reversed(told) if what[0] == "start"), "(import)")


def end_orphans() -> None:
    """End what a fork's tests left running: this process is the parent of all of it by now."""
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not children:
            return
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
