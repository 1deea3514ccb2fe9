"""What an iterator yields, computed in a child process, whose crash costs it alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from flowkit.errors import FlowkitError
from flowkit.workers.children import (
    THREAD_COUNTS,
    Process,
    dump_for_child,
    end_child,
    how_it_died,
    live_for,
    load_from_parent,
    one_line,
    start_child,
)
from flowkit.workers.signals import raise_if_stopped, signals_held

WAIT_S = 0.5  # longest wait: a signal that comes just before it does not end it


@dataclass(frozen=True)
class _End:
    """The iterator has ended, or failed with an error."""

    error: FlowkitError | None = None


def stream_from_child(
    function: Callable[..., Iterable[Any]],
    *arguments: Any,
    threads: int = 1,
) -> Generator[Any]:
    """Yield what ``function(*arguments)`` yields in a child process of so many `threads`.

    The child waits with a value until the one before it is taken, or little more. What it raises
    comes as it is if it is a FlowkitError, else as one that names it; FlowkitError too where it
    dies. Closing the iterator kills and reaps it: write ``with closing(stream_from_child(...))``.
    """
    counts = dict.fromkeys(THREAD_COUNTS, str(threads))
    with signals_held():
        process, socket = start_child("flowkit.workers.streamed:work", counts)
    try:
        with suppress(OSError):  # it is dead, and `_receive` will tell
            socket.send_bytes(dump_for_child((function, arguments)))
        while not isinstance(message := _receive(process, socket), _End):
            yield message
        if message.error is not None:
            raise message.error
    finally:
        with signals_held():
            end_child(process)
            socket.close()


def _receive(process: Process, socket: Connection) -> Any:
    while not socket.poll(WAIT_S):
        raise_if_stopped()
        if process.poll() is not None:  # what it started may keep the socket open
            break
    try:
        return pickle.loads(socket.recv_bytes())
    except (EOFError, OSError) as error:
        raise FlowkitError(f"worker {how_it_died(process)}") from error


def work(handle: int, parent: int) -> None:
    """The life of the child: `parent` is the process at the other end of the socket `handle`."""
    if not live_for(parent):
        return
    with suppress(EOFError, OSError), Connection(handle) as socket:  # there is no parent
        try:
            (function, arguments), _ = load_from_parent(socket.recv_bytes())
            for value in function(*arguments):
                socket.send_bytes(pickle.dumps(value))
            end = _End()
        except FlowkitError as error:
            end = _End(error)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            end = _End(FlowkitError(one_line(error)))
        socket.send_bytes(pickle.dumps(end))
