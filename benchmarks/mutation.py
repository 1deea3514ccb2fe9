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
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import ctypes
import importlib.util
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "training": ["training/*.py"],
    "scoring": ["evaluation/scoring.py"],
    "stacks": [f"data/{name}.py" for name in (
        "stacks", "clips", "inputs", "trajectories", "augment", "datasets", "plane_batches")],
    "fusion": ["scores/*.py"],
    "records": ["records/*.py"],
}  # fmt: skip
# Imported once, before the forks: whatever takes long and is not flowkit's.
HEAVY = ("numpy", "scipy.io", "scipy.optimize", "torch", "torch.utils.data", "torch.distributed",
         "torchvision", "sklearn.svm", "cv2", "av", "numba", "PIL.Image", "lz4.frame", "click",
         "jinja2", "tqdm", "safetensors.torch", "hypothesis", "anyascii", "threadpoolctl",
         "joblib")  # fmt: skip
# Tests of other parts, long ones: they touch these lines, if at all, on their way.
ELSEWHERE = {"benchmarks", "compiled", "cuda", "doctor", "efficientnet", "farneback", "fields",
             "flow", "flow_processes", "fork", "gpu_check", "house", "house_counts", "idt_fisher",
             "idt_records", "idt_tracks", "lettering", "matching", "opencv_cuda", "pipeline",
             "pool", "quantize", "raft", "report_page", "sources", "streams", "synthetic", "timm",
             "tvl1", "videos", "visualize", "words"}  # fmt: skip
TEST_S = 30.0  # for one test, and ten times what it took unmutated
MUTANT_S = 300.0  # for all tests of a mutant
EQUIVALENT = Path(__file__).with_name("mutation_equivalent.json")

ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
              ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
              ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
              ast.RShift: ast.LShift}  # fmt: skip
COMPARISON = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
              ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
              ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
              ast.NotIn: (ast.In,)}  # fmt: skip
SHOWN = ("part", "path", "line", "column", "operator", "old", "text")  # of a mutant, in its row
Edit = tuple[str, ast.AST, ast.AST]  # operator, node, what takes its place


@dataclass(frozen=True)
class Mutant:
    """One edit of one file: bytes `begin` to `end` become `text`."""

    part: str
    path: str
    line: int
    column: int
    operator: str
    old: str
    text: str
    begin: int
    end: int
    reach: tuple[int, ...]  # lines whose tests may see it; empty: all lines of the file

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.operator}: {self.text}"


# The edits


def changed(node: ast.AST, **fields: object) -> Any:
    """A copy of a node with other fields."""
    other = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def expression_edits(node: ast.AST) -> Iterator[Edit]:
    """Edits of operators, conditions, constants and calls."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            texts = (ast.JoinedStr, ast.Constant)  # the / of a path and the + of texts always fail
            if not any(isinstance(side, texts) and not is_number(side) for side in (left, right)):
                yield "arithmetic", node, changed(node, op=ARITHMETIC[type(op)]())
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "arithmetic", node, operand
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "boolean", node, operand
        case ast.Compare(ops=ops):
            for at, op in enumerate(ops):
                for other in COMPARISON[type(op)]:
                    yield (
                        "comparison",
                        node,
                        changed(node, ops=[*ops[:at], other(), *ops[at + 1 :]]),
                    )
        case ast.BoolOp(op=op):
            yield (
                "boolean",
                node,
                changed(node, op=ast.And() if isinstance(op, ast.Or) else ast.Or()),
            )
        case ast.IfExp(test=test):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.comprehension(ifs=[test, *_]):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool(value)):
            yield "constant", node, ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", node, ast.Constant(value + 1)
            if value not in (0, 1):
                yield (
                    "constant",
                    node,
                    ast.Constant(value - 1 if isinstance(value, int) else -value),
                )
        case ast.Constant(value=str(value)) if " " not in value:
            yield "text", node, ast.Constant(f"{value}_" if value else "_")
        case ast.Call(args=args, keywords=keywords):
            for at in range(len(args) - 1):
                pair = [args[at + 1], args[at]]
                if not any(isinstance(arg, ast.Starred) for arg in pair):
                    swapped = [*args[:at], *pair, *args[at + 2 :]]
                    yield "argument swap", node, changed(node, args=swapped)
            for at, keyword in enumerate(keywords):
                if keyword.arg:
                    rest = [*keywords[:at], *keywords[at + 1 :]]
                    yield "argument dropped", node, changed(node, keywords=rest)
        case ast.Slice(lower=lower, upper=upper, step=step):
            for name, bound in (("lower", lower), ("upper", upper), ("step", step)):
                if bound is not None:
                    yield "slice", node, changed(node, **{name: None})


def statement_edits(node: ast.AST) -> Iterator[Edit]:
    """Edits of whole statements."""
    match node:
        case ast.If(test=test) | ast.While(test=test):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.Return(value=value) if value is not None and ast.unparse(value) != "None":
            yield "return", value, ast.Constant(None)
        case ast.Expr(value=ast.Constant()):
            pass
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Delete() | ast.Continue():
            yield "removal", node, ast.Pass()
        case ast.Break() | ast.Assert():
            yield "removal", node, ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "removal", node, ast.Pass()
        case ast.For(iter=over):
            yield "loop", over, ast.Tuple([], ast.Load())
        case ast.ExceptHandler(body=[first, *_]) if not isinstance(first, ast.Raise):
            yield "handler", first, ast.Raise()
        case ast.With(items=[ast.withitem(context_expr=context, optional_vars=None)]):
            nothing = ast.parse("__import__('contextlib').nullcontext()", mode="eval").body
            yield "context", context, nothing


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def walk(node: ast.AST, above: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.AST, ...]]:
    """Every node that runs, the last of a tuple that begins with the module.

    Left out: annotations and what is for people to read: raised messages, f-strings, help, logs.
    """
    path = (*above, node)
    yield path
    for name, field in ast.iter_fields(node):
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and not for_readers(node, name, child):
                yield from walk(child, path)


def for_readers(node: ast.AST, field: str, child: ast.AST) -> bool:
    """Whether a child is an annotation, a name of types only, or text."""
    if field in ("annotation", "returns") or isinstance(child, ast.JoinedStr):
        return True
    if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "metadata"):
        return True
    if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
        return True
    if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "__all__":
        return True
    return isinstance(node, ast.Expr) and re.match(r"(log|logging|warnings)\.", ast.unparse(child))


def find_mutants(part: str, path: Path) -> Iterator[Mutant]:
    """All mutants of one file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for nodes in walk(ast.parse(source)):
        for operator, old, new in (*expression_edits(nodes[-1]), *statement_edits(nodes[-1])):
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(new))
            if isinstance(new, ast.expr) and not isinstance(nodes[-1], ast.Slice):
                text = f"({text})"
            yield Mutant(part, str(path.relative_to(path.parents[2])), old.lineno, old.col_offset,
                         operator, source[begin:end].decode(), text, begin, end,
                         reach(nodes))  # fmt: skip


def reach(nodes: tuple[ast.AST, ...]) -> tuple[int, ...]:
    """The lines of the statement of a node; of the function for its defaults; () outside of one."""
    at = max(at for at, node in enumerate(nodes) if isinstance(node, ast.stmt | ast.Module))
    statement = nodes[at]
    inside = any(isinstance(node, ast.FunctionDef) for node in nodes[:at])
    if isinstance(statement, ast.FunctionDef):
        return tuple(range(statement.body[0].lineno, statement.end_lineno + 1))
    if not inside or isinstance(statement, ast.Module):
        return ()
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return tuple(range(statement.lineno, max(statement.lineno, last) + 1))


def draw(tree: Path, seed: int, count: int) -> list[Mutant]:
    """Mutants dealt in turn over operators and parts; a larger count begins with the smaller."""
    cells: dict[str, dict[str, list[Mutant]]] = {}
    for part, patterns in PARTS.items():
        for path in sorted(p for pattern in patterns for p in (tree / "flowkit").glob(pattern)):
            for mutant in find_mutants(part, path):
                cells.setdefault(mutant.operator, {}).setdefault(part, []).append(mutant)
    rng = random.Random(seed)
    decks = {operator: dealt(parts, rng) for operator, parts in sorted(cells.items())}
    drawn = dealt(decks, None)[:count]
    for mutant in drawn:
        compile(mutated(tree, mutant), mutant.path, "exec")
    return drawn


def dealt(decks: dict[str, list[Mutant]], rng: random.Random | None) -> list[Mutant]:
    """One of each deck in turn, each shuffled first where there is a generator."""
    hands = []
    for deck in decks.values():
        hands.append((deck if rng is None else rng.sample(deck, len(deck)))[::-1])
    out = []
    while any(hands):
        out += [hand.pop() for hand in hands if hand]
    return out


def mutated(tree: Path, mutant: Mutant) -> bytes:
    source = (tree / mutant.path).read_bytes()
    return source[: mutant.begin] + mutant.text.encode() + source[mutant.end :]


# The tests, in a fork of one process that has imported what is not flowkit's


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


Report = list[Any]


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


# Which tests reach which lines

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


# The run


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


def results_in(work: Path) -> dict[str, dict[str, Any]]:
    """The last result of each mutant, by its name."""
    path = work / "mutants.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


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


# The table


def table(work: Path, drawn: list[Mutant]) -> str:
    """What was seen of the mutants drawn, as Markdown: in all, by part and operator, and each."""
    results, proven = results_in(work), json.loads(EQUIVALENT.read_text())
    rows = [results[mutant.name] for mutant in drawn if mutant.name in results]
    counted = [row for row in rows if row["name"] not in proven]
    first = sum(row["first"] for row in counted)
    lines = [
        "# Mutants of training, scoring, stacks, fusion and records",
        "",
        f"Written by `python benchmarks/mutation.py`: {len(rows)} mutants of the sources at "
        f"{(work / 'commit.txt').read_text()[:7]}, {len(rows) - len(counted)} of them proven "
        f"equivalent. Killed: **{summary(counted)}**, {first} of them in the first run, by the "
        "fastest tests, before tests were added for those that survived it; "
        f"{sum(row['how'] == 'hung' for row in counted)} by the time limit.",
        "",
        "| | killed |",
        "|---|---|",
    ]
    for field in ("part", "operator"):
        for value in sorted({row[field] for row in counted}):
            lines.append(f"| {value} | {summary([r for r in counted if r[field] == value])} |")
    lines += ["", "Killed by: the first test that failed, the fastest tests first.", ""]
    lines += ["| place | operator | was | became | killed by |", "|---|---|---|---|---|"]
    for row in sorted(counted, key=lambda row: (row["path"], row["line"], row["column"])):
        by = row["by"] or f"**survived** {row['ran']} tests"
        cells = f"`{cell(row['old'])}` | `{cell(row['text'])}` | {cell(by.removeprefix('tests/'))}"
        how = {"hung": " (time limit)", "crashed": " (crash)"}.get(row["how"], "")
        place = row["path"].removeprefix("flowkit/")
        lines.append(f"| {place}:{row['line']} | {row['operator']} | {cells}{how} |")
    lines += ["", "## Equivalent", "", "Nothing that runs can tell these from the original.", ""]
    for row in rows:
        if row["name"] in proven:
            what = f"`{cell(row['old'])}` became `{cell(row['text'])}`"
            lines.append(f"* {row['path']}:{row['line']}, {what}: {proven[row['name']]}")
    return "\n".join(lines) + "\n"


def summary(rows: list[dict[str, Any]]) -> str:
    killed = sum(row["killed"] for row in rows)
    return f"{killed} of {len(rows)} ({100 * killed / max(len(rows), 1):.1f}%)"


def cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return text if len(text) <= 60 else text[:57] + "..."


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
