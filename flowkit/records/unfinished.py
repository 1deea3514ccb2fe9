"""Unfinished work below an output folder: where it is written, whether it is alive, its removal.

Whether its owner is alive is told by a lock that dies with the process and by a heartbeat, the
file's time of modification. Numbers of processes tell nothing: another container counts its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

INCOMPLETE = ".incomplete"  # the folder in an output folder that holds a folder for each work
LOCK = "lock"  # the file in each that its owner has locked, and touches now and then
MARK = b"flowkit: unfinished work\n"  # what that file says
# Seconds without a heartbeat: longer than any network disk hangs, and any field takes
DEAD_S = 600.0
BEAT_S = 10.0  # seconds between two heartbeats

State = Literal["in progress", "young", "dead", "foreign"]


class WorkFolder:
    """A folder of one's own, out of sight below `out`, until the end of a context.

    `owner` begins its name, for `remove_of`; by default nobody else knows it.
    """

    def __init__(self, out: Path, owner: str = "") -> None:
        self.path = out / INCOMPLETE / f"{owner or secrets.token_hex(4)}-{secrets.token_hex(4)}"

    def __enter__(self) -> WorkFolder:
        for _ in range(100):
            with contextlib.suppress(FileNotFoundError):  # another has just removed INCOMPLETE
                self.path.mkdir(parents=True)
                break
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: the heartbeat has to do
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, MARK)
        self._beaten = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        _remove(self.path)
        os.close(self._lock)

    def beat(self) -> None:
        """Say that the owner is alive; costs nothing between two heartbeats."""
        if time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            os.utime(self._lock)


def find_work(out: Path) -> Iterator[tuple[Path, State]]:
    """What lies in the INCOMPLETE folder of `out`, in the order of names, and how it is."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted((out / INCOMPLETE).iterdir()):
            with contextlib.suppress(FileNotFoundError):  # work that is finished meanwhile
                yield entry, _state(entry)


def remove_dead(out: Path) -> int:
    """Remove the work whose owners are dead; how much there was."""
    work = [folder for folder, _ in find_work(out)]
    return sum(remove_if_dead(folder) for folder in work)


def remove_if_dead(folder: Path) -> bool:
    """Remove one piece of work if its owner is dead; whether it is gone."""
    with contextlib.suppress(FileNotFoundError):
        if _state(folder) == "dead":
            _remove(folder)
    return not folder.exists()


def remove_of(out: Path, owner: str) -> None:
    """Remove the work of one's own processes, which have ended."""
    for folder in (out / INCOMPLETE).glob(f"{owner}-*"):
        _remove(folder)


def _state(folder: Path) -> State:
    """Whether its owner lives: "in progress" while the lock is taken, then "young", then "dead".

    Where the file system knows no locks the heartbeat alone tells, and young work is in progress.
    """
    lock = folder / LOCK
    if folder.is_symlink() or not folder.is_dir():
        return "foreign"
    try:
        age_s = time.time() - lock.stat().st_mtime
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # its owner is about to write it, or has just removed it
        if os.listdir(folder):
            return "foreign"
        return "dead" if time.time() - folder.stat().st_mtime > DEAD_S else "in progress"
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return "foreign"
        if os.read(handle, len(MARK)) not in (MARK, b""):
            return "foreign"
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "in progress"
    except OSError:
        return "dead" if age_s > DEAD_S else "in progress"
    finally:
        os.close(handle)
    return "dead" if age_s > DEAD_S else "young"


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            # The lock stays last: it marks what is left, should this be killed
            elif entry.name != LOCK:
                os.unlink(entry.path)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # only where no other work is under way
