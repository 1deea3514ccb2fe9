"""Child processes with a socket to their parent, that die with it: forked, or fresh interpreters.

A forked child has at once what its parent has imported; a fresh one imports it again (0.3 s). A
fork copies one thread only: what the others hold locked stays locked in the child for ever, and
CUDA does not work in it. So a process is forked only where its one thread is the only one.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from multiprocessing import spawn
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

from threadpoolctl import threadpool_limits

from flowkit.errors import FlowkitError, UsageError
from flowkit.workers.signals import EXIT_STATUS

THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",  # cv2 does not look at OMP_NUM_THREADS
)
CHILD_ENVIRONMENT = {
    **dict.fromkeys(THREAD_COUNTS, "1"),
    "PYTHONUNBUFFERED": "1",  # SIGKILL flushes nothing, so what a task prints must be out by then
}
PR_SET_PDEATHSIG = 1  # prctl(2): the signal to get when the parent dies
REAP_S = 10.0  # SIGKILL acts at once, but not on a process stuck in the kernel (a dead NFS server)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
POLL_S = 0.002  # seconds between two looks whether a forked child has ended
UNFORKABLE = ("torch", "cuda.bindings.driver")  # modules after whose import CUDA may be in use

_importing_script = False  # True in a child that runs the parent's script for what that defines
_forked = False  # True in a child that is a copy of its parent, script and all
_sockets: weakref.WeakSet[Connection] = weakref.WeakSet()  # the ends of this process's children


class ForkedProcess:
    """A forked child, with those attributes of `subprocess.Popen` that are used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or the negative number of the signal that ended it; None: it lives."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """As `poll`, once it has ended; subprocess.TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(POLL_S)
        return status

    def kill(self) -> None:
        """SIGKILL, unless it has been reaped."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


Process = ForkedProcess | subprocess.Popen[bytes]


def start_child(
    entry: str, environment: Mapping[str, str] | None = None
) -> tuple[Process, Connection]:
    """A child process that calls `entry`, and this process's end of a socket to it.

    `entry` is "module:function", called with the handle of the child's end and this process's id.
    Libraries have one thread in the child, and `environment` is over this one's. Start it where
    signals are held (`signals.signals_held`): it begins with them held. FlowkitError where the
    system gives no process.
    """
    socket, other_end = Pipe()
    _sockets.add(socket)
    with other_end:
        settings = {**CHILD_ENVIRONMENT, **(environment or {})}
        try:
            process = _fork(entry, other_end, settings) if may_fork() else None
            return process or _spawn(entry, other_end.fileno(), settings), socket
        except OSError as error:
            socket.close()
            raise FlowkitError(f"a worker process cannot be started: {error}") from error


def may_fork() -> bool:
    """Whether nothing is known that makes a fork unsafe: another system, a thread, or CUDA."""
    return (
        sys.platform == "linux"
        and threading.active_count() == 1
        and not any(name in sys.modules for name in UNFORKABLE)
        and "/libcuda.so" not in Path("/proc/self/maps").read_text()  # an OpenCV with CUDA loads it
    )


def _fork(entry: str, other_end: Connection, settings: dict[str, str]) -> ForkedProcess | None:
    """A copy of this process; None where threads that Python does not know of would be missing.

    They are counted after the fork, before which OpenBLAS and OpenCV end theirs. The end of the
    limit has OpenBLAS start them again, in this process only.
    """
    parent = os.getpid()
    module, function = entry.split(":")
    call = getattr(import_module(module), function)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # None, or closed
            stream.flush()  # what waits there would be written by the child, too
    with threadpool_limits(1), warnings.catch_warnings(action="ignore"):  # Python 3.12 counts, too
        pid = os.fork()
        if pid == 0:
            _live_as_copy(call, other_end, parent, settings)
        process = ForkedProcess(pid)
        if _count_threads() == 1:
            return process
    end_child(process)
    return None


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _live_as_copy(
    call: Any, other_end: Connection, parent: int, settings: dict[str, str]
) -> NoReturn:
    """The life of a forked child; never returns into the parent's frames."""
    global _forked
    status = 1
    try:
        _forked = True
        for socket in _sockets:
            socket.close()  # a copy would hide the end of the process at the other end
        os.environ.update(settings)
        if numba := sys.modules.get("numba.np.ufunc.parallel"):
            numba.NUM_THREADS = 1  # type: ignore[attr-defined]  # read from the environment before
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        with suppress(OSError):  # closed
            sys.stdout, sys.stderr = _unbuffered(1), _unbuffered(2)
        call(other_end.fileno(), parent)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status & 0xFF)


def _unbuffered(handle: int) -> io.TextIOWrapper:
    """A text stream to a handle: SIGKILL flushes nothing."""
    raw = io.FileIO(handle, "w", closefd=False)
    return io.TextIOWrapper(raw, errors="backslashreplace", write_through=True)  # type: ignore[type-var]


def _spawn(entry: str, handle: int, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """A fresh interpreter."""
    path = [str(each) for each in sys.path]
    module, function = entry.split(":")
    command = (
        f"import sys; sys.path[:] = {path!r}; "
        f"from {module} import {function}; {function}({handle}, {os.getpid()})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", command],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        pass_fds=[handle],
    )


def end_child(process: Process) -> None:
    """Kill and reap a child; does nothing the second time."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(REAP_S)


def how_it_died(process: Process) -> str:
    """In words, how a process ended that closed its socket: "died by SIGSEGV (signal 11)"."""
    try:
        status = process.wait(REAP_S)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name if -status in list(signal.Signals) else "a real-time signal"
    return f"died by {name} (signal {-status})"


def anonymous_bytes(pid: int) -> int:
    """The memory of a process that is not of files, in bytes; 0 where there is none any more."""
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE_BYTES


def live_for(parent: int) -> bool:
    """In a child: ignore the signals that stop its parent, but die with it; False if it is dead."""
    for signum in EXIT_STATUS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_STATUS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent  # a parent that died before prctl is another one now


def one_line(error: BaseException) -> str:
    """The text of a FlowkitError; the first line of another error's, after the name of its type.

    A FlowkitError has one line, but for what stands in the name of a file.
    """
    if isinstance(error, FlowkitError) and str(error).strip():
        return str(error).strip()
    lines = str(error).strip().splitlines()
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
    if b"__main__" in payload and not _forked:
        if not script:
            raise UsageError(
                "what is defined at the prompt or on standard input cannot be found by a worker: "
                "put it in a file"
            )
        _importing_script = True
        spawn.prepare(script)  # imports the script, once, as __mp_main__
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
