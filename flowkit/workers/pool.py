"""A call over many items in worker processes: a crash, a hang or a signal costs one item.

Each worker is a child process (`flowkit.workers.children`) with a socket to it and has one item at
a time, so its death names the item. It computes in one thread, ignores the signals that stop its
parent, dies with its parent, and ends by SIGKILL: a task writes under a temporary name and renames
at the end. Processes that a task itself starts are left to the task.
"""

from __future__ import annotations

import itertools
import math
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from flowkit.errors import FlowkitError, UsageError
from flowkit.workers.children import (
    Process,
    anonymous_bytes,
    dump_for_child,
    end_child,
    how_it_died,
    live_for,
    load_from_parent,
    one_line,
    refuse_script_import,
    start_child,
    unpickle,
)
from flowkit.workers.engine import Done, Event, Failed, Progress, Task
from flowkit.workers.signals import raise_if_stopped, signals_held

REPORT_S = 0.2  # least time between two Progress of a worker
WAIT_S = 0.5  # longest wait: a signal that comes just before it does not end it
WATCH_S = 0.1  # longest wait where memory is watched: a core fills some 0.3 GB in it
LOAD_S = 300.0  # a task is imported within this, from a cold network disk too


@dataclass(frozen=True)
class _Loaded:
    """A worker has the task, or says why it cannot have it."""

    problem: str = ""


@dataclass(frozen=True)
class Limits:
    """What one item may take: seconds of wall clock, and bytes of its worker's memory.

    UsageError for what is not above 0, and for a limit of memory where it cannot be watched.
    """

    timeout_s: float = math.inf
    memory_bytes: float = math.inf

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UsageError(f"expected a timeout of more than 0 s, got {self.timeout_s:g}")
        if not self.memory_bytes > 0:
            raise UsageError(f"expected more than 0 bytes of memory, got {self.memory_bytes:g}")
        if self.memory_bytes < math.inf and sys.platform != "linux":
            raise UsageError("a limit of memory needs Linux, which tells what a process has")


Job = tuple[int, bytes]  # index and pickled item


def run_pool(
    task: Task,
    items: Iterable[Any],
    *,
    workers: int,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
) -> Generator[Event]:
    """An `Engine`: call ``task(item, report)`` for every item in `workers` processes.

    Yields a Done or a Failed for each item as it ends, not in the order of the items, and a
    Progress for what the task hands to ``report``, at most five a second for each worker. Items
    are taken one by one as workers become free. A worker is used again, but replaced if it died or
    ran out of memory. An item that takes more than `timeout_s` seconds of wall clock is stopped,
    and so is one whose worker has more than `memory_bytes` of memory that is not of files, looked
    at every 0.1 s, on Linux only.

    Closing the iterator kills and reaps all workers. A loop left by an exception closes it only
    when the traceback is freed, so write ``with closing(run_pool(...)) as outcomes``. Iterate in
    one thread, because workers die with the thread that starts them.

    Workers are forked, and have at once what this process has imported, where it runs on Linux, has
    one thread and has imported neither torch nor CUDA's driver; else they are fresh interpreters.

    `task`, items and results are pickled. Fresh workers import a script only if the task or an item
    is defined in it; such a script starts its work under ``if __name__ == "__main__":``.

    Raises UsageError for numbers that make no sense and a task that workers cannot load, and
    FlowkitError where no worker can start or an item cannot be pickled.
    """
    if workers < 1:
        raise UsageError(f"expected at least 1 worker, got {workers}")
    limits = make_limits(timeout_s, memory_bytes)
    refuse_script_import()
    return run_pickled(pickled_task(task), pickled_items(items), workers=workers, limits=limits)


def make_limits(timeout_s: float | None, memory_bytes: float | None) -> Limits:
    """The limits that an engine is called with, where None is none; UsageError as of `Limits`."""
    return Limits(
        math.inf if timeout_s is None else timeout_s,
        math.inf if memory_bytes is None else memory_bytes,
    )


def pickled_task(task: Task) -> bytes:
    """A task as a worker loads it; UsageError where it cannot be pickled."""
    try:
        return dump_for_child(task)
    except Exception as error:
        raise UsageError(
            f"the task cannot be pickled ({one_line(error)}): expected a function, or an instance "
            "of a class, that is defined at the top level of a module"
        ) from error


def run_pickled(
    load: bytes,
    jobs: Iterator[Job],
    *,
    workers: int,
    limits: Limits,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Event]:
    """As `run_pool`, of a task and items that are pickled; ends early once `stopped`."""
    running: list[_Worker] = []  # a worker without an item is ended
    loaded = False  # True once a worker has loaded the task
    longest_s = WAIT_S if limits.memory_bytes == math.inf else WATCH_S

    def start(job: Job) -> None:
        with signals_held():  # the worker begins with them held, and none is started but not listed
            running.append(_Worker(load, job, limits))

    try:
        for job in itertools.islice(jobs, workers):
            start(job)
        while running and not stopped():
            raise_if_stopped()
            left_s = min(worker.deadline for worker in running) - time.monotonic()
            wait([worker.socket for worker in running], max(0.0, min(left_s, longest_s)))
            for worker in tuple(running):
                message = worker.receive()
                if isinstance(message, _Loaded):
                    if message.problem:
                        raise UsageError(f"a worker cannot load the task: {message.problem}")
                    loaded = True
                    worker.begin(worker.job)
                elif isinstance(message, Progress):
                    yield message
                elif message is not None:
                    if isinstance(message, Failed) and not loaded:
                        raise FlowkitError(f"no worker could start: {message.reason}")
                    yield message  # first, for it would be lost if taking the next item failed
                    next_job = next(jobs, None)
                    if next_job is not None and worker.usable and worker.process.poll() is None:
                        worker.begin(next_job)
                        continue
                    worker.end()
                    running.remove(worker)
                    if next_job is not None:
                        start(next_job)
    finally:
        with signals_held():
            for worker in running:
                worker.process.kill()  # all of them before the first wait
            for worker in running:
                worker.end()


class _Worker:
    """A worker process and its item: it loads the task first, and has the item from `begin` on."""

    def __init__(self, load: bytes, job: Job, limits: Limits) -> None:
        self.job, self.limits = job, limits
        self.usable = True  # True while it may have a further item
        self.started = time.monotonic()
        self.deadline = self.started + LOAD_S
        self.process, self.socket = start_child("flowkit.workers.pool:work")
        self._send(load)

    def begin(self, job: Job) -> None:
        """Hand out an item: its time starts now."""
        self.job = job
        self.started = time.monotonic()
        self.deadline = self.started + self.limits.timeout_s
        self._send(pickle.dumps(job))

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # the worker is dead, and `receive` will tell
            self.socket.send_bytes(message)

    def receive(self) -> Event | _Loaded | None:
        """What the worker sent, or how it died, or that its time is up; None for nothing yet."""
        if self.socket.poll():
            try:
                message = self.socket.recv_bytes()
            except (EOFError, OSError):
                return self._failed("crash", _death(self.process))
            try:
                outcome = pickle.loads(message)
            except Exception as error:
                return self._failed("error", f"what it sent cannot be read: {one_line(error)}")
            # the name, because it fits the children of MemoryError and torch.OutOfMemoryError
            if isinstance(outcome, Failed) and outcome.exception.endswith("MemoryError"):
                self.usable = False
            return outcome
        if self.process.poll() is not None:  # a child of a dead worker may keep the socket open
            return self._failed("crash", _death(self.process))
        most = self.limits.memory_bytes
        if most < math.inf and (taken := anonymous_bytes(self.process.pid)) > most:
            return self._failed(
                "memory",
                f"stopped at {taken / 1e9:.3g} GB of memory (max-memory {most / 1e9:g} GB)",
            )
        if time.monotonic() < self.deadline:
            return None
        limit_s = self.deadline - self.started
        return self._failed("timeout", f"stopped after {limit_s:.6g} s (timeout)")

    def _failed(self, kind: str, reason: str) -> Failed:
        self.usable = False
        return Failed(self.job[0], reason, kind, time.monotonic() - self.started)

    def end(self) -> None:
        """Kill and reap the process; does nothing the second time."""
        end_child(self.process)
        self.socket.close()


def _death(process: Process) -> str:
    how = how_it_died(process)
    hint = ", as the out-of-memory killer does: try fewer workers" if "SIGKILL" in how else ""
    return f"worker {how}{hint}"


def pickled_items(items: Iterable[Any]) -> Iterator[Job]:
    """The items with their numbers, pickled one by one; FlowkitError where one cannot be."""
    for index, item in enumerate(items):
        try:
            payload = pickle.dumps(item)
        except Exception as error:
            raise FlowkitError(f"item {index} cannot be pickled: {one_line(error)}") from error
        yield index, payload


# What follows runs in the worker.


def work(handle: int, parent: int) -> None:
    """The life of a worker: `parent` is the process at the other end of the socket `handle`."""
    if not live_for(parent):
        return
    # Errors mean that there is no parent
    with suppress(EOFError, OSError), Connection(handle) as socket:
        message = socket.recv_bytes()
        try:
            task, script = load_from_parent(message)
        except Exception as error:
            socket.send_bytes(pickle.dumps(_Loaded(one_line(error))))
            return
        socket.send_bytes(pickle.dumps(_Loaded()))
        while True:
            job = pickle.loads(socket.recv_bytes())
            socket.send_bytes(_call(task, job, script, socket))


def _call(task: Task, job: Job, script: dict[str, str], socket: Connection) -> bytes:
    """The pickled Done or Failed of one item."""
    index, payload = job
    started = time.monotonic()
    reported = -math.inf

    def report(value: Any) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported >= REPORT_S:
            reported = now
            socket.send_bytes(pickle.dumps(Progress(index, value)))

    def failed(reason: str, error: Exception) -> bytes:
        seconds, errno = time.monotonic() - started, getattr(error, "errno", None)
        details = (type(error).__name__, errno, traceback.format_exc())
        retries = getattr(error, "retries", 0)
        return pickle.dumps(Failed(index, reason, "error", seconds, *details, retries=retries))

    try:
        result = task(unpickle(payload, script), report)
    except Exception as error:
        return failed(one_line(error), error)
    try:
        return pickle.dumps(Done(index, result, time.monotonic() - started))
    except Exception as error:
        return failed(f"the result cannot be pickled: {one_line(error)}", error)
