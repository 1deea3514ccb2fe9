"""How a program stops when a signal asks it to: one exception, raised where it can be handled."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = {  # status of a program that the signal stopped: 75 is EX_TEMPFAIL, "run it again"
    signal.SIGINT: 130,
    signal.SIGTERM: 75,
    signal.SIGHUP: 75,
}
DELAY_S = 30.0  # the longest that Stopped waits for a better moment
RETRY_S = 0.05  # seconds between two looks whether the moment is better

_lost: BaseException | None = None  # a Stopped that was raised, until its block ends
_held = False  # True where Stopped would lose a process that the main thread just started


class Stopped(BaseException):
    """A signal asked this program to stop; `status` is the exit status to end with."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = EXIT_STATUS[signal.Signals(signum)]


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into Stopped, and ignore all that follow.

    For the main thread of a program, around its heavy imports too::

        try:
            with stop_signals():
                ...
        except Stopped as stop:
            sys.exit(stop.status)  # 130 for SIGINT, 75 for the others

    A signal that is ignored already (SIGHUP under nohup) stays so. Stopped waits for the end of a
    running import, and is raised again at the end of the block if something in it swallowed it;
    long work asks `raise_if_stopped` now and then.
    The old handlers come back at the end, but not after a stop: a second Ctrl-C must not break
    what is left to do.
    """
    global _lost
    stopped: Stopped | None = None
    raised = False
    patience = 0.0

    def stop(signum: int, frame: FrameType | None) -> None:
        global _lost
        nonlocal stopped, raised, patience
        if stopped is None:
            stopped, patience = Stopped(signum), time.monotonic() + DELAY_S
        if raised:
            return
        if (_held or _is_importing(frame)) and time.monotonic() < patience:
            _send_later(signum)
        else:
            raised, _lost = True, stopped
            raise stopped

    handlers = {signum: signal.getsignal(signum) for signum in EXIT_STATUS}
    handlers = {s: handler for s, handler in handlers.items() if handler is not signal.SIG_IGN}
    for signum in handlers:
        signal.signal(signum, stop)
    try:
        try:
            yield
        except SystemExit:  # a command that ends
            if stopped is None:
                raise
        if stopped is not None:
            raise stopped
    finally:
        _lost = None
        for signum, handler in handlers.items():
            signal.signal(signum, signal.SIG_IGN if stopped is not None else handler)


def raise_if_stopped() -> None:
    """Raise a Stopped again that something swallowed: a finalizer, say, or a hook of the collector.

    To be asked in a loop of long work, never in what cleans up.
    """
    if _lost is not None:
        raise _lost


def _is_importing(frame: FrameType | None) -> bool:
    """Is the code in `frame` run by an import statement?

    An exception there can be swallowed by the importer's weak reference callbacks and by a bare
    `except`, or abort the process where C++ code imports: of 160 signals at random moments of
    `import torch` 7 were lost and 1 aborted.
    """
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _send_later(signum: int) -> None:
    main_thread = threading.main_thread().ident
    timer = threading.Timer(RETRY_S, signal.pthread_kill, (main_thread, signum))
    timer.daemon = True
    timer.start()


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals that stop a program until the block ends; a child starts with them held."""
    global _held
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        _held = True  # signals may come by way of another thread, which does not block them
        signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_STATUS)
        yield
    finally:
        _held = False
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
