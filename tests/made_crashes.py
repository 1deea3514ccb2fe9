"""What a power cut or a kill leaves of what some code writes, at every one of its system calls.

The model: names change in the order of the calls (as the journals of ext4, XFS and Btrfs have it),
up to any of them that no sync has followed; the bytes of a file are there if they were synced, and
otherwise it is empty. After a kill alone all bytes are there.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SYNCS = ("flowkit.records.writing.sync_all", "flowkit.records.packing.sync_all")
_listening: list["Crashes"] = []  # a hook for audit events can never be taken off again


def _audit(event: str, arguments: tuple) -> None:
    for one in _listening:
        one.hear(event, arguments)


sys.addaudithook(_audit)


class Crashes:
    """Watches the code in its context that writes below `root`, in this thread; then `states`.

    Syncs are noted and not done: what is tested is the order of the calls.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.patch = root, pytest.MonkeyPatch()
        self.names: dict[str, int | None] = {}  # path -> number of the file, None for a folder
        self.bytes: dict[int, bytes] = {}  # of files, as they were last synced
        self.written: dict[int, bytes] = {}  # as they are
        self.moments: list[tuple[dict, dict, dict, bool]] = []
        self._deaf = False

    def __enter__(self) -> "Crashes":
        for path in sorted(self.root.rglob("*")):
            self._add(str(path))
        self._sync_all()

        def watched_fsync(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if path in self.names and self.names[path] is not None:
                self.bytes[self.names[path]] = Path(path).read_bytes()
            self._note(synced=True)

        self.patch.setattr(os, "fsync", watched_fsync)
        for name in SYNCS:
            self.patch.setattr(name, lambda folder: self._sync_all())
        self._note(synced=True)
        _listening.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _listening.remove(self)
        self._note()
        self.patch.undo()

    def states(self, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
        """Every state, by name; the call makes it in `folder`, instead of what was there."""
        for number, (names, synced, written, _) in enumerate(self.moments):
            for how, data in (("power cut", synced), ("kill", written)):
                yield (
                    f"{how} after call {number} of {len(self.moments)}",
                    lambda names=names, data=data: self._make(folder, names, data),
                )

    def make_last(self, folder: Path) -> None:
        """The state after a power cut when all is done: no name that no sync has followed."""
        names, data = next((m[0], m[1]) for m in reversed(self.moments) if m[3])
        self._make(folder, names, data)

    def hear(self, event: str, arguments: tuple) -> None:
        """An audit event: it comes just before the call."""
        if self._deaf or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        self._deaf = True
        try:
            self._hear(event, arguments)
        finally:
            self._deaf = False

    def _hear(self, event: str, arguments: tuple) -> None:
        first = arguments[0]
        if not isinstance(first, str | os.PathLike):
            return
        if event == "open":
            path = os.path.abspath(first)
            if arguments[2] & os.O_CREAT and path not in self.names and self._is_below(path):
                self._note()
                self._add(path)
            return
        handles = {"os.rename": arguments[2:4], "os.mkdir": arguments[2:3]}.get(
            event, arguments[1:2]
        )
        path = self._absolute(first, handles[0])
        if not self._is_below(path):
            return
        self._note()
        if event == "os.mkdir":
            if not os.path.lexists(path):
                self.names[path] = None
        elif event == "os.rename":
            self._rename(path, self._absolute(arguments[1], handles[1]))
        elif os.path.lexists(path) and (event == "os.remove" or not os.listdir(path)):
            self.names.pop(path, None)

    def _rename(self, source: str, target: str) -> None:
        if source not in self.names:  # written by a library that tells no audit hook
            self._add(source)
        for path in [p for p in self.names if p == target or p.startswith(f"{target}/")]:
            del self.names[path]
        for path in [p for p in self.names if p == source or p.startswith(f"{source}/")]:
            self.names[target + path.removeprefix(source)] = self.names.pop(path)

    def _add(self, path: str) -> None:
        if os.path.isdir(path):
            self.names[path] = None
        else:
            number = len(self.bytes)
            self.names[path], self.bytes[number], self.written[number] = number, b"", b""

    def _sync_all(self) -> None:
        self._look()
        self.bytes.update(self.written)
        self._note(synced=True)

    def _look(self) -> None:
        """See what is written in all files by now."""
        for path, number in self.names.items():
            if number is not None and os.path.isfile(path):
                self.written[number] = Path(path).read_bytes()

    def _note(self, *, synced: bool = False) -> None:
        deaf, self._deaf = self._deaf, True
        self._look()
        self._deaf = deaf
        self.moments.append((dict(self.names), dict(self.bytes), dict(self.written), synced))

    def _absolute(self, path: str | os.PathLike, handle: int) -> str:
        above = os.getcwd() if handle < 0 else os.readlink(f"/proc/self/fd/{handle}")
        return os.path.normpath(os.path.join(above, path))

    def _is_below(self, path: str) -> bool:
        return path.startswith(f"{self.root}/")

    def _make(self, folder: Path, names: dict[str, int | None], data: dict[int, bytes]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, number in sorted(names.items()):
            place = folder / Path(path).relative_to(self.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            if number is None:
                place.mkdir(exist_ok=True)
            else:
                place.write_bytes(data[number])
