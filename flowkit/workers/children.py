"""Child processes: fresh interpreters with a socket to their parent, that die with it."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import spawn
from typing import Any

from flowkit.errors import FlowkitError, UsageError
from flowkit.workers.signals import EXIT_STATUS

CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",  # cv2 does not look at OMP_NUM_THREADS
    "PYTHONUNBUFFERED": "1",  # SIGKILL flushes nothing, so what a task prints must be out by then
}
PR_SET_PDEATHSIG = 1  # prctl(2): the signal to get when the parent dies
REAP_S = 10.0  # SIGKILL acts at once, but not on a process stuck in the kernel (a dead NFS server)

_importing_script = False  # in a child: it runs the parent's script for what that defines


def start_child(
    entry: str, handle: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A new interpreter that calls `entry`, "module:function", with `handle` and this process's id.

    `handle` is its end of a socket. It has one thread a library, and `environment` over this one's.
    Start it where signals are held (`stopping.signals_held`): it begins with them held.
    """
    path = [str(each) for each in sys.path]
    module, function = entry.split(":")
    command = (
        f"import sys; sys.path[:] = {path!r}; "
        f"from {module} import {function}; {function}({handle}, {os.getpid()})"
    )
    try:
        return subprocess.Popen(
            [sys.executable, "-c", command],
            env={**os.environ, **CHILD_ENVIRONMENT, **(environment or {})},
            stdin=subprocess.DEVNULL,
            pass_fds=[handle],
        )
    except OSError as error:
        raise FlowkitError(f"a worker process cannot be started: {error}") from error


def end_child(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap a child; does nothing the second time."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(REAP_S)


def how_it_died(process: subprocess.Popen[bytes]) -> str:
    """In words, how a process ended that closed its socket: "died by SIGSEGV (signal 11)"."""
    try:
        status = process.wait(REAP_S)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name if -status in list(signal.Signals) else "a real-time signal"
    return f"died by {name} (signal {-status})"


def live_for(parent: int) -> bool:
    """In a child: ignore the signals that stop its parent, but die with it; False if it is dead."""
    for signum in EXIT_STATUS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_STATUS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent  # else it died before prctl


def one_line(error: BaseException) -> str:
    """The first line of a FlowkitError's text; of another error's, after the name of its type."""
    lines = str(error).strip().splitlines()
    if isinstance(error, FlowkitError) and lines:
        return lines[0]
    return ": ".join([type(error).__name__, *lines[:1]])


# --- values for a child that the parent's script may define ---


def refuse_script_import() -> None:
    """UsageError in a child that imports the parent's script, if that starts its work again."""
    if _importing_script:
        raise UsageError(
            "the script starts its work again in the worker that imports it: "
            'put the start under `if __name__ == "__main__":`'
        )


def dump_for_child(value: Any) -> bytes:
    """`value` pickled, with where this process has its ``__main__`` from."""
    return pickle.dumps((pickle.dumps(value), _script()))


def load_from_parent(message: bytes) -> tuple[Any, dict[str, str]]:
    """What `dump_for_child` made, and where the parent has its ``__main__`` from."""
    payload, script = pickle.loads(message)
    return unpickle(payload, script), script


def unpickle(payload: bytes, script: dict[str, str]) -> Any:
    """Unpickle; import the parent's script before that if `payload` may name what it defines."""
    global _importing_script
    if b"__main__" in payload:
        if not script:
            raise UsageError(
                "what is defined at the prompt or on standard input cannot be found by a worker: "
                "put it in a file"
            )
        _importing_script = True
        spawn.prepare(script)  # as __mp_main__, once
        _importing_script = False
    return pickle.loads(payload)


def _script() -> dict[str, str]:
    """Where this process has its ``__main__`` from, as multiprocessing's `prepare` takes it."""
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:  # python -m
        return {"init_main_from_name": spec.name}
    if path is not None and os.path.exists(path):
        return {"init_main_from_path": os.path.abspath(path)}
    return {}  # a session at the prompt, or standard input
