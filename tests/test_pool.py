"""The pool under crashes, hangs and signals: what is lost, what is said, what is left behind."""

import errno
import functools
import importlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path

import pool_tasks
import pytest

from flowkit._cv2 import cv2
from flowkit.errors import FlowkitError, UsageError
from flowkit.workers import children
from flowkit.workers.engine import Done, Failed, Progress
from flowkit.workers.pool import run_pool
from flowkit.workers.signals import Stopped, raise_if_stopped, stop_signals

MARK = "FLOWKIT_TEST_MARK"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def default_handlers():
    """Handlers as at the prompt, also where the tests run with signals ignored; put back after."""
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


OTHERS: set[int] = set()  # children that tests of other files have left


@pytest.fixture(autouse=True)
def no_process_left(monkeypatch):
    """Every process started in a test is gone after it, and reaped if it was started here."""
    mark = uuid.uuid4().hex
    OTHERS.clear()
    OTHERS.update(started(mark))
    monkeypatch.setenv(MARK, mark)
    yield
    assert started(mark) == []


@pytest.fixture(params=["fork", "spawn"])
def way(request, monkeypatch):
    """Workers are forked, whatever threads the tests have, or fresh interpreters."""
    monkeypatch.setattr(children, "may_fork", lambda: request.param == "fork")
    monkeypatch.setattr(children, "_count_threads", lambda: 1)
    return request.param


def started(mark: str) -> list[int]:
    """The processes with `mark` in their environment, but this one, and this one's children.

    Not those of OTHERS. Children that are dead and not reaped included; a forked one has the
    environment that this process began with.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (process / "environ").read_bytes() if parent != os.getpid() else b""
        except OSError:
            continue
        if parent == os.getpid() or f"{MARK}={mark}".encode() in environment.split(b"\0"):
            found.append(int(process.name))
    return [process for process in found if process not in {os.getpid(), *OTHERS}]


def outcomes_of(items, **options):
    """What became of the items, in their order."""
    outcomes = run_pool(pool_tasks.mishap, items, **{"workers": 1, **options})
    return sorted(outcomes, key=lambda outcome: outcome.index)


def test_mishaps_cost_their_items_and_no_other(way):
    items = list(range(40))
    items[3], items[10], items[11], items[20] = -signal.SIGSEGV, -signal.SIGKILL, "error", "hang"
    outcomes = outcomes_of(items, workers=2, timeout_s=2)
    assert [outcome.index for outcome in outcomes] == list(range(40))
    done = {each.index: each.result[0] for each in outcomes if isinstance(each, Done)}
    assert done == {index: index for index in range(40) if index not in (3, 10, 11, 20)}
    failed = {each.index: each for each in outcomes if isinstance(each, Failed)}
    for index, kind, words in (
        (3, "crash", "died by SIGSEGV (signal 11)"),
        (10, "crash", "died by SIGKILL (signal 9), as the out-of-memory killer does"),
        (11, "error", "ValueError: wrong item"),
        (20, "timeout", "after 2 s"),
    ):
        assert failed[index].kind == kind and words in failed[index].reason
    assert outcomes[20].seconds >= 2


REASONS = {
    "refusal": ("error", "expected a record, got none"),
    "memory": ("error", "MemoryError"),
    "exit": ("crash", "worker ended with exit status 3"),
    "sys.exit": ("crash", "worker ended with exit status 4"),
    "die before a child": ("crash", "worker ended with exit status 5"),
    -40: ("crash", "worker died by a real-time signal (signal 40)"),
    "unreadable": ("error", "what it sent cannot be read: ValueError: made elsewhere"),
}


def test_reason_of_a_failure(way):
    outcomes = outcomes_of([*REASONS, "next"], timeout_s=2)
    after = outcomes.pop()
    assert [(one.kind, one.reason) for one in outcomes] == list(REASONS.values())
    assert after.result[0] == "next"


@pytest.mark.slow
def test_result_that_waited_for_the_caller_is_not_late(way):
    outcomes = run_pool(pool_tasks.rest, range(3), workers=3, timeout_s=1)
    kinds = []
    for outcome in outcomes:
        if not isinstance(outcome, Progress):
            kinds.append(type(outcome))
            if len(kinds) < 3:
                time.sleep(1.1)
    assert kinds == [Done] * 3


def test_unpicklable_result_is_an_error(way):
    failed, after = outcomes_of(["lambda", "next"])
    assert failed.kind == "error"
    assert failed.reason.startswith("the result cannot be pickled: ")
    assert isinstance(after, Done)


def test_error_keeps_type_errno_and_traceback(way):
    (failed,) = outcomes_of(["full disk"])
    assert (failed.exception, failed.errno) == ("OSError", errno.ENOSPC)
    assert "in mishap\n    raise OSError(errno.ENOSPC" in failed.traceback


def test_item_that_takes_too_much_memory_is_stopped_alone(way):
    most = 200_000_000 + (children.anonymous_bytes(os.getpid()) if way == "fork" else 0)
    before, fill, after = outcomes_of(["a", "fill", "b"], memory_bytes=most, timeout_s=60)
    assert (before.result[0], after.result[0]) == ("a", "b")
    assert (fill.kind, fill.seconds < 30) == ("memory", True)
    assert re.fullmatch(r"stopped at (\S+) GB of memory \(max-memory \S+ GB\)", fill.reason)


def test_memory_of_files_does_not_count(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000_000))
    task = functools.partial(pool_tasks.map_file, path=tmp_path / "file")
    [before, after] = [outcome.result for outcome in run_pool(task, [False, True], workers=1)]
    assert after - before < 10_000_000


def test_worker_is_reused_after_an_error_and_replaced_after_memory_ran_out(way):
    outcomes = outcomes_of(["a", "error", "b", "memory", "c"])
    first, after_error, after_memory = (outcomes[index].result[1] for index in (0, 2, 4))
    assert first == after_error != after_memory


def test_items_are_taken_as_workers_become_free(way):
    taken = []
    items = (taken.append(item) or item for item in itertools.count())
    with closing(run_pool(pool_tasks.square, items, workers=2)) as outcomes:
        assert taken == []
        for finished, outcome in enumerate(outcomes, start=1):
            assert outcome.result == outcome.index**2
            assert len(taken) <= finished + 1
            if finished == 10:
                break


def test_no_items_start_no_worker(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert list(run_pool(pool_tasks.square, [], workers=2)) == []


def test_failing_items_end_the_run_after_what_was_finished():
    def items():
        yield 3
        raise OSError("the list of items broke off")

    outcomes = run_pool(pool_tasks.square, items(), workers=1)
    assert next(outcomes).result == 9
    with pytest.raises(OSError, match="broke off"):
        next(outcomes)


def test_progress_arrives_thinned_out_and_in_order(way):
    *progress, done = run_pool(pool_tasks.count, ["item"], workers=1)
    values = [each.value for each in progress if isinstance(each, Progress)]
    assert values[0] == 0
    assert values == sorted(set(values))
    assert 2 <= len(values) == len(progress) <= 1 + done.seconds / 0.2
    assert done.result > values[-1]


def test_worker_computes_in_one_thread(way, monkeypatch):
    """Also where the parent has imported a library for more of them."""
    for name in children.CHILD_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.import_module("numba.np.ufunc.parallel"), "NUM_THREADS", 2)
    cv2.setNumThreads(2)
    (outcome,) = run_pool(pool_tasks.threads, ["item"], workers=1)
    cv2.setNumThreads(1)
    assert outcome.result == (1, 1, 1)


def test_closing_early_leaves_no_process(way):
    outcomes = run_pool(pool_tasks.hang, itertools.count(), workers=2)
    assert isinstance(next(outcomes), Progress)
    assert len(started(os.environ[MARK])) == 2
    outcomes.close()
    assert started(os.environ[MARK]) == []


def test_keyboard_interrupt_leaves_no_process(way):
    with (
        pytest.raises(KeyboardInterrupt),
        closing(run_pool(pool_tasks.interrupt_parent, range(2), workers=2)) as outcomes,
    ):
        list(outcomes)
    assert started(os.environ[MARK]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "expected at least 1 worker, got 0"),
        ({"workers": 1, "timeout_s": 0}, "expected a timeout of more than 0 s, got 0"),
        ({"workers": 1, "memory_bytes": 0}, "expected more than 0 bytes of memory, got 0"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        run_pool(pool_tasks.square, [], **options)


def test_unpicklable_task_is_refused():
    with pytest.raises(UsageError, match=r"the task cannot be pickled \(.*lambda.*top level"):
        run_pool(lambda item, report: None, [], workers=1)


def test_unpicklable_item_is_refused():
    with pytest.raises(FlowkitError, match=r"item 1 cannot be pickled: .*lambda"):
        list(run_pool(pool_tasks.square, [1, lambda: None], workers=1))


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere/python", "a worker process cannot be started: .*No such file"),
        ("/bin/false", "worker ended with exit status 1"),
    ],
)
def test_workers_that_cannot_start_end_the_run(monkeypatch, python, message):
    monkeypatch.setattr(children, "may_fork", lambda: False)
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(FlowkitError, match=message):
        list(run_pool(pool_tasks.square, itertools.count(), workers=2))


def test_a_process_that_has_cudas_driver_is_not_forked(tmp_path):
    """Whatever loaded it; what a fork of it asks of a GPU fails."""
    library = tmp_path / "libcuda.so.1"
    library.write_bytes(bytes(4096))
    code = (
        "import mmap, sys\nfrom flowkit.workers.children import may_fork\n"
        "before = may_fork()\nwith open(sys.argv[1], 'r+b') as file:\n"
        "    there = mmap.mmap(file.fileno(), 0)\nprint(before, may_fork())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, library], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"


def test_worker_leaves_the_signals_that_stop_its_parent_alone(way):
    outcomes = run_pool(pool_tasks.shrug, STOP_SIGNALS, workers=1)
    assert [outcome.result for outcome in outcomes] == ["alive"] * 3


def test_worker_starts_with_the_signals_held(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "may_fork", lambda: False)
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import signal\n"
        f"with open({str(tmp_path / 'held')!r}, 'w') as file:\n"
        "    print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())), file=file)\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(FlowkitError):
        list(run_pool(pool_tasks.square, [1], workers=1))
    held = set(map(int, (tmp_path / "held").read_text().split()))
    assert held >= set(STOP_SIGNALS)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


# Where the program that uses the pool comes from.

OWN_TASK = """
    from flowkit.workers.pool import run_pool
    class Number:
        def __init__(self, value): self.value = value
    def double(number, report): return Number(2 * number.value)
    def main():
        for outcome in run_pool(double, [Number(4)], workers=1): print(outcome.result.value)
"""
GUARDED = (
    OWN_TASK
    + """
    if __name__ == "__main__": main()
"""
)
BARE = (
    OWN_TASK
    + """
    main()
"""
)
TASK_OF_A_MODULE = """
    import pool_tasks
    from flowkit.workers.pool import run_pool
    for outcome in run_pool(pool_tasks.square, [4], workers=1): print(outcome.result)
"""


WITH_A_THREAD = """\
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


def run_python(tmp_path, source, how, *, thread=False):
    """Run `source` as a "file", a "module" (python -m) or on "stdin", beside a `thread`."""
    source = WITH_A_THREAD * thread + textwrap.dedent(source)
    (tmp_path / "program.py").write_text(source)
    command = {"file": ["program.py"], "module": ["-m", "program"], "stdin": ["-"]}[how]
    return subprocess.run(
        [sys.executable, *command],
        input=source if how == "stdin" else "",
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("source", "how"),
    [
        (GUARDED, "file"),
        (GUARDED, "module"),
        (TASK_OF_A_MODULE, "file"),  # not imported by the workers, so no guard is needed
        (TASK_OF_A_MODULE, "module"),
        (TASK_OF_A_MODULE, "stdin"),
    ],
)
@pytest.mark.parametrize("thread", [False, True])
def test_pool_runs_from_any_kind_of_program(tmp_path, source, how, thread):
    run = run_python(tmp_path, source, how, thread=thread)
    assert (run.stdout, run.stderr) == ("16\n" if source == TASK_OF_A_MODULE else "8\n", "")


@pytest.mark.parametrize("thread", [False, True])
def test_what_a_task_prints_is_not_lost_nor_doubled(tmp_path, thread):
    source = "print('first')\n" + textwrap.dedent(TASK_OF_A_MODULE).replace("square", "say")
    assert run_python(tmp_path, source, "file", thread=thread).stdout == "first\n4\nNone\n"


@pytest.mark.parametrize(
    ("source", "how", "message"),
    [
        (BARE, "file", 'put the start under `if __name__ == "__main__":`\n'),
        (GUARDED, "stdin", "cannot be found by a worker: put it in a file\n"),
    ],
)
def test_program_that_fresh_workers_cannot_import_is_told_so_once(tmp_path, source, how, message):
    run = run_python(tmp_path, source, how, thread=True)
    assert run.stderr.endswith(message)
    assert run.stderr.count("Traceback") == 1
    assert run.stdout == ""


def test_forked_workers_need_no_import_of_the_program(tmp_path):
    for source, how in ((BARE, "file"), (GUARDED, "stdin")):
        run = run_python(tmp_path, source, how)
        assert (run.stdout, run.stderr) == ("8\n", "")


# Signals to a program of its own process group.

PROGRAM = """
import sys
from contextlib import closing
from flowkit.workers.signals import Stopped, stop_signals
try:
    with stop_signals():
        print("armed", flush=True)
        import pool_tasks
        from flowkit.workers.pool import run_pool
        with closing(run_pool(pool_tasks.rest, range(1000), workers=2)) as outcomes:
            for outcome in outcomes:
                print(outcome, flush=True)
except Stopped as stop:
    sys.exit(stop.status)
"""


@pytest.fixture(params=[False, True], ids=["fork", "spawn"])
def beside(request):
    """The beginning of a program whose workers are forked, or, beside a thread, are not."""
    return WITH_A_THREAD * request.param


def start_program(source=PROGRAM, *, beside=""):
    """Start it and wait for its first line."""
    program = subprocess.Popen(
        [sys.executable, "-c", beside + source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        start_new_session=True,
    )
    assert program.stdout.readline() == "armed\n"
    return program


@pytest.mark.parametrize(
    ("signum", "status", "send"),
    [
        (signal.SIGINT, 130, os.killpg),
        (signal.SIGTERM, 75, os.kill),
        (signal.SIGHUP, 75, os.killpg),
        pytest.param(signal.SIGINT, 130, os.kill, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 75, os.killpg, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 75, os.kill, marks=pytest.mark.slow),
    ],
)
def test_signal_at_any_moment_stops_the_program_in_silence(signum, status, send, beside):
    moments = random.Random(f"{signum} {send.__name__}")
    for moment in (moments.uniform(0.0, 0.15), moments.uniform(0.15, 0.4)):
        program = start_program(beside=beside)
        time.sleep(moment)
        send(program.pid, signum)
        output, errors = program.communicate()
        assert (program.returncode, errors) == (status, ""), f"after {moment} s"
        assert "Failed" not in output


def test_second_interrupt_changes_nothing(beside):
    for pause in (0.0, 0.01):
        program = start_program(beside=beside)
        program.stdout.readline()
        for _ in range(3):
            os.killpg(program.pid, signal.SIGINT)
            time.sleep(pause)
        errors = program.communicate()[1]
        assert (program.returncode, errors) == (130, "")


def test_killed_program_leaves_no_worker(beside):
    hanging = PROGRAM.replace("pool_tasks.rest", "pool_tasks.hang")
    with start_program(hanging, beside=beside) as program:
        assert program.stdout.readline().startswith("Progress")
        program.kill()
    deadline = time.monotonic() + 10
    while started(os.environ[MARK]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started(os.environ[MARK]) == []


def test_stop_waits_for_a_running_import(tmp_path):
    (tmp_path / "slow_module.py").write_text(
        "import time\n"
        "print('armed', flush=True)\n"
        "try: time.sleep(0.3)\n"
        "except: print('swallowed')\n"
        "print('imported')\n"
    )
    source = f"import sys; sys.path.append({str(tmp_path)!r})\n" + PROGRAM.replace(
        'print("armed", flush=True)', "import slow_module; import time; time.sleep(1000)"
    )
    program = start_program(source)
    program.terminate()
    assert program.communicate() == ("imported\n", "")
    assert program.returncode == 75


def test_swallowed_stop_comes_back_at_the_end_of_the_block():
    with pytest.raises(Stopped, match="stopped by SIGTERM") as caught, stop_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped:
            passed_on = False
    assert not passed_on
    assert caught.value.status == 75


@pytest.mark.parametrize("end", [None, SystemExit(0)])
def test_swallowed_stop_is_raised_by_who_asks_and_before_a_good_end(end):
    raise_if_stopped()
    asked = []
    with pytest.raises(Stopped, match="SIGTERM") as caught, stop_signals():
        with suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with suppress(Stopped):
            asked.append(raise_if_stopped())
        if end is not None:
            raise end
    assert caught.value.status == 75 and not asked
    raise_if_stopped()


def test_second_signal_does_not_break_the_clean_up():
    cleaned_up = False
    with pytest.raises(Stopped, match="SIGINT"), stop_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleaned_up = True
    assert cleaned_up


def test_handlers_come_back_without_a_stop_and_not_after_one():
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with stop_signals():
        pass
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before
    with pytest.raises(Stopped), stop_signals():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == [signal.SIG_IGN] * 3


def test_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signals():
        signal.raise_signal(signal.SIGHUP)
