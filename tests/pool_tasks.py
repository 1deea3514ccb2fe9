"""Tasks for the tests of the pool, in a module that workers can import."""

import errno
import faulthandler
import mmap
import os
import signal
import sys
import time

from flowkit.errors import RecordError, VideoError
from flowkit.workers.children import anonymous_bytes


def square(item, report):
    return item * item


def rest(item, report):
    time.sleep(0.05)
    report(item)
    return item


def hang(item, report):
    report("begun")
    time.sleep(1000)


def hang_with_mark(item, report, *, folder):
    """Leave a file with the number of this process, and hang."""
    (folder / str(os.getpid())).touch()
    report("begun")
    time.sleep(1000)


def count(item, report):
    """Report 0, 1, 2, ... for half a second, far more often than is passed on; return the last."""
    end, value = time.monotonic() + 0.5, 0
    while time.monotonic() < end:
        report(value)
        value += 1
        time.sleep(0.001)
    return value


def interrupt_parent(item, report):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(1000)


def shrug(item, report):
    os.kill(os.getpid(), item)
    return "alive"


def say(item, report):
    print(item)


def map_file(item, report, *, path):
    """The memory of this process, after it has read a mapped file if `item`."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if item:
            sum(mapped[at] for at in range(0, len(mapped), mmap.PAGESIZE))
        return anonymous_bytes(os.getpid())


def threads(item, report):
    """How many threads libraries say that they use, and how many this process has after work."""
    import numba
    import numpy as np

    from flowkit._cv2 import cv2

    image = np.ones((500, 500), np.float32)
    cv2.GaussianBlur(image @ image, (31, 31), 0)
    return cv2.getNumThreads(), numba.get_num_threads(), len(os.listdir("/proc/self/task"))


def mishap(item, report):
    """Do to the worker what `item` says, else return the item and the worker's process id."""
    match item:
        case "error":
            raise ValueError("wrong item\nand more lines")
        case "refusal":
            raise RecordError("expected a record, got none")
        case "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "memory":
            raise MemoryError
        case "fill":
            held = [b"x" * 50_000_000 for _ in range(20)]  # 1 GB
            time.sleep(1000)
            return len(held)
        case "kill parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
        case "hang":
            time.sleep(1000)
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(4)
        case "die before a child":
            if os.fork() == 0:  # without the mark by which the test finds what is left behind
                os.execve("/bin/sleep", ["sleep", "4"], {})
            os._exit(5)
        case "lambda":
            return lambda: None
        case "unreadable":
            return Unreadable()
        case int(signum) if signum < 0:
            faulthandler.disable()  # pytest's would print the crash, which is meant
            os.kill(os.getpid(), -signum)
            time.sleep(1000)
    return item, os.getpid()


class Unreadable:
    """What can be pickled, but unpickled in the process that made it only."""

    def __reduce__(self):
        return read_in, (os.getpid(),)


def read_in(process):
    if process != os.getpid():
        raise ValueError("made elsewhere")
    return Unreadable()


def count_forever(path):
    """Values of 1 MB; the file says how many were asked for."""
    for number in range(1000):
        path.write_text(str(number))
        yield bytes(1 << 20)


def die(count):
    yield from range(count)
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    yield 1 // 0


def raise_absent():
    yield 1
    raise VideoError("gone", absent=True)


class CrashingLooks:
    """What a decoder does with a video that it cannot take."""

    @property
    def request(self):
        os.kill(os.getpid(), signal.SIGKILL)
