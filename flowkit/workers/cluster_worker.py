"""What runs inside a worker of a Dask cluster: one item at a time, in a child process of its own.

A crash, a hang or too much memory ends the child and costs its item; the worker lives on. The child
stays for the next item of the run, as in the pool, and ends after a while without one.
"""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import flowkit
from flowkit.errors import FlowkitError, UsageError
from flowkit.workers.engine import Done, Event, Failed, Progress
from flowkit.workers.pool import Job, Limits, run_pickled

TOPIC = "flowkit"  # of the messages by which workers tell their progress
TELL_S = 1.0  # least time between two of a thread: all of a cluster's come by its one scheduler
IDLE_S = 30.0  # a child without an item lives this long
TRIES = 2  # an item is begun so often: it is lost with its worker each time, or it ends


@dataclass(frozen=True)
class ClusterRun:
    """What all items of a run have in common; `name` is no other run's."""

    name: str
    version: str  # of the flowkit that asks
    load: bytes  # the pickled task
    limits: Limits


def facts_of_process() -> dict[str, str]:
    """The versions that all machines of a cluster should have the same: flowkit's first."""
    python = ".".join(map(str, sys.version_info[:2]))
    spoken = {name: version(name) for name in ("distributed", "msgpack", "cloudpickle")}
    return {"flowkit": flowkit.__version__, "Python": python, **spoken}


class _Child:
    """A pool of one worker, which has item after item from the thread that made it."""

    def __init__(self, run: ClusterRun, stopped: Callable[[], bool]) -> None:
        self._events = run_pickled(
            run.load, self._jobs(), workers=1, limits=run.limits, stopped=stopped
        )
        self._timer: threading.Timer | None = None

    def _jobs(self) -> Iterator[Job]:
        while True:
            yield self._job

    def events(self, job: Job) -> Iterator[Event]:
        """Those of one item, to its end; none further once the run is stopped."""
        if self._timer is not None:
            self._timer.cancel()
        self._job = job
        for event in self._events:
            yield event
            if not isinstance(event, Progress):
                return

    def close_after(self, seconds: float, close: Callable[[], None]) -> None:
        """Call `close` by then, unless a further item comes."""
        self._timer = threading.Timer(seconds, close)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """End the process, which has no item."""
        if self._timer is not None:
            self._timer.cancel()
        self._events.close()


_idle: dict[tuple[str, int], _Child] = {}  # by run and thread; whoever takes one out has it
_ended: set[str] = set()  # runs of which nothing more is begun here


def run_item(run: ClusterRun, job: Job, slot: int) -> Done | Failed:
    """The task of a run on one of its items: what the scheduler hands to a worker's thread.

    `slot` is a number that no other item of the run has meanwhile: the scheduler keeps under it how
    often the item was begun, for a lost worker cannot tell. UsageError where this worker has
    another flowkit than the one that asks.
    """
    from distributed import get_worker

    worker = get_worker()
    here = f"worker {worker.address} on {socket.gethostname()}"
    if flowkit.__version__ != run.version:
        raise UsageError(
            f"{here} has flowkit {flowkit.__version__}, expected {run.version} as here: "
            "install one version everywhere"
        )
    lost = _begin(worker, [f"flowkit-{run.name}", slot], job[0], here)
    if len(lost) >= TRIES:
        lost_with = " and ".join(lost)
        return Failed(
            job[0], f"poison: it was lost with {lost_with}; not tried again", "crash", 0.0
        )
    told = -math.inf
    with closing(_watched(run, job, here)) as events:
        for event in events:
            if not isinstance(event, Progress):
                return event
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                worker.log_event(TOPIC, {"run": run.name, "of": event.index, "value": event.value})
    return Failed(job[0], "stopped", "crash", 0.0)


def _begin(worker: Any, place: list[Any], index: int, here: str) -> list[str]:
    """Where an item was begun before, by the scheduler's account, which has this one, too, now."""
    from distributed.utils import sync

    scheduler = worker.scheduler
    owner, begun = sync(worker.loop, scheduler.get_metadata, keys=place, default=(None, ()))
    before = list(begun) if owner == index else []
    sync(worker.loop, scheduler.set_metadata, keys=place, value=(index, [*before, here]))
    return before


def _watched(run: ClusterRun, job: Job, here: str) -> Generator[Event]:
    """The events of an item in this thread's child, which stays unless the item failed."""
    place = (run.name, threading.get_ident())

    def close_idle() -> None:
        if (idle := _idle.pop(place, None)) is not None:
            idle.close()

    child = _idle.pop(place, None) or _Child(run, lambda: run.name in _ended)
    keep = False
    try:
        for event in child.events(job):
            keep = isinstance(event, Done)
            yield event
    except FlowkitError as error:
        raise type(error)(f"{here}: {error}") from error
    finally:
        if keep and run.name not in _ended:
            _idle[place] = child
            child.close_after(IDLE_S, close_idle)
        else:
            child.close()


def end_run(name: str) -> None:
    """Stop what a run does in this process, and begin nothing more of it; from any thread."""
    _ended.add(name)
    for place in [place for place in _idle if place[0] == name]:
        if (child := _idle.pop(place, None)) is not None:
            child.close()
