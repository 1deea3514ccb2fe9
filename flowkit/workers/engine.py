"""The seam between work and where it is done: an engine calls a task over items, and tells events.

`flowkit.workers.pool.run_pool` is the engine of this machine's cores. Any other (a cluster's) is a
function of the same form; who has work to do takes it as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Done:
    """Item number `index` is finished; `seconds` is the time in the task."""

    index: int
    result: Any
    seconds: float


@dataclass(frozen=True)
class Failed:
    """Item number `index` gave no result, for a `reason` of one line.

    `kind` is "crash" (the worker died), "timeout", "memory" (it was stopped for taking too much of
    either), or "error": the task raised `exception` (the name of a type), with that `errno` if it
    has one and that `traceback` (a text).
    """

    index: int
    reason: str
    kind: str
    seconds: float
    exception: str = ""
    errno: int | None = None
    traceback: str = field(default="", repr=False)
    retries: int = 0  # how often the task asked a store again, where the exception tells it


@dataclass(frozen=True)
class Progress:
    """Item number `index` is running, and its task reported `value`."""

    index: int
    value: Any


Event = Done | Failed | Progress
Task = Callable[[Any, Callable[[Any], None]], Any]  # (item, report) -> result; picklable


class Engine(Protocol):
    """Where a task is called."""

    def __call__(
        self,
        task: Task,
        items: Iterable[Any],
        *,
        workers: int,
        timeout_s: float | None = None,
        memory_bytes: int | None = None,
    ) -> Generator[Event]:
        """Call ``task(item, report)`` for every item, at most `workers` at a time.

        Yields a Done or a Failed for each item that was begun, as it ends, and Progress with what
        the task hands to ``report``. Items are taken one by one as workers become free, so that
        `items` can stop what has not begun by ending. An item that takes more than `timeout_s`
        seconds or `memory_bytes` of memory is stopped, and one that crashes costs itself only.
        Closing the iterator stops everything.
        """
