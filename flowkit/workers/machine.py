"""The machine as a process sees it: the cores, memory and disk that a container leaves it."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
MEMORY = Path("/proc/meminfo")
LINUX = hasattr(os, "sched_getaffinity")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of two settings of glibc's mallopt
KEPT_BYTES = 2**31 - 1  # the most that mallopt takes


@dataclass(frozen=True)
class Hardware:
    """Cores and bytes; `usable_cores` is how many worker processes are worth starting."""

    system: str
    cores: int  # cores of the machine
    allowed_cores: int  # cores that this process may run on (affinity)
    quota_cores: float | None  # cores whose time its control group grants; None: no limit
    usable_cores: int
    memory_bytes: int  # the control group's, where that is less
    free_bytes: int
    shared_bytes: int | None  # size of /dev/shm, by which loaders hand over batches


@dataclass(frozen=True)
class Disk:
    """Room for output: `path`, or the nearest folder above it that exists."""

    path: str
    free_bytes: int
    free_files: int | None  # inodes; None where the file system does not count them
    writable: bool


def usable_cores() -> int:
    """The worker processes worth starting: by affinity and by what control groups grant."""
    allowed = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
    return min(allowed, max(1, math.ceil(quota_cores(group_folders("cpu")) or allowed)))


def free_bytes() -> int | None:
    """Memory that this machine or a control group can still give, in bytes; None: not known."""
    if not MEMORY.exists():
        return None
    return memory_bytes(MEMORY.read_text(encoding="ascii"), group_folders("memory"))[1]


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that are freed for the next that are asked for.

    A network on the CPU frees its activations layer by layer. By default glibc hands each back to
    the kernel, which clears the pages of the next: of a forward pass of 50 views of
    EfficientNet-Lite0, half the time. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if LINUX else None
    if mallopt:
        mallopt(MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)


def examine_machine() -> Hardware:
    """What this process may use of the machine it runs on (Linux)."""
    allowed = len(os.sched_getaffinity(0))
    quota = quota_cores(group_folders("cpu"))
    total, free = memory_bytes(MEMORY.read_text(encoding="ascii"), group_folders("memory"))
    shared = os.statvfs(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or allowed,
        allowed_cores=allowed,
        quota_cores=quota,
        usable_cores=usable_cores(),
        memory_bytes=total,
        free_bytes=free,
        shared_bytes=shared.f_frsize * shared.f_blocks if shared else None,
    )


def examine_disk(out: Path) -> Disk:
    """The room on the file system that `out` is, or would be, on."""
    ways = (out.absolute(), *out.absolute().parents)
    place = next(folder for folder in ways if os.path.isdir(folder))
    stats = os.statvfs(place)
    return Disk(
        path=str(place),
        free_bytes=stats.f_frsize * stats.f_bavail,
        free_files=stats.f_favail if stats.f_files else None,
        writable=os.access(place, os.W_OK | os.X_OK) and not any(map(os.path.isfile, ways)),
    )


def group_folders(
    controller: str, *, groups: Path = GROUPS, own_group: Path = OWN_GROUP
) -> Iterator[Path]:
    """The folders of the process's control groups, innermost first, of version 2 and of version 1.

    In a container the path may name folders that only its host sees: those are left out.
    """
    lines = own_group.read_text(encoding="utf-8").splitlines() if own_group.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = groups / controller if controllers else groups
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top) and folder.is_dir():
                yield folder


def quota_cores(folders: Iterator[Path]) -> float | None:
    """The least number of cores whose time the control groups grant; None: no limit."""
    found = []
    for folder in folders:
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0] not in ("max", "-1"):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_bytes(meminfo: str, folders: Iterator[Path]) -> tuple[int, int]:
    """Memory in all and free, in bytes, as /proc/meminfo tells it or a control group limits it."""
    told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.splitlines()}
    total, free = told["MemTotal"], told["MemAvailable"]
    for folder in folders:
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0] != "max":
            total = min(total, int(limit[0]))
            free = min(free, max(0, int(limit[0]) - int(used[0])))
    return total, free


def _words(file: Path) -> list[str]:
    return file.read_text(encoding="ascii").split() if file.is_file() else []
