"""Parts of objects: read by ranges, and kept on a disk of this machine in a cache of fixed size."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

from flowkit.stores.objects import object_state, read_range
from flowkit.stores.retries import Truncated, call
from flowkit.stores.urls import State, Url

TAIL = 96 << 10  # bytes at the end of a pack: its directory and, mostly, the sidecar before that
TAILS = 4  # objects whose ends are kept in memory
BLOCK = 64 << 10  # bytes of an object that the cache keeps together
DIGEST = 32  # bytes of a block's name, which its file begins with


def read_span(url: Url, start: int, end: int) -> memoryview:
    """The bytes of an object from `start` to before `end`, or to its end where that comes first.

    From the cache where `url.access` has one; what is missing there comes by one read of neighbors.
    """
    if url.access.cache_bytes >= BLOCK + DIGEST:
        return _from_blocks(url, start, end)
    if url.state is not None and start >= url.state.size - TAIL:
        at, tail = _tail(url, url.state)
        return memoryview(tail)[start - at : end - at]
    return memoryview(read_range(url, start, end))


@contextmanager
def open_object(url: Url) -> Iterator[BinaryIO]:
    """An object as a file open for reading, whose end, where a zip has its directory, is one read.

    NoObjectError where there is none.
    """
    state = url.state or object_state(url)
    known = Url(url.text, url.access, state)
    with io.BufferedReader(_Object(known, state.size), 1 << 16) as file:
        yield cast(BinaryIO, file)


class _Object(io.RawIOBase):
    """The raw reads of `open_object`."""

    def __init__(self, url: Url, size: int) -> None:
        self.url, self.size, self.place = url, size, 0
        self.tail_start = max(0, size - TAIL)
        self.tail = read_span(url, self.tail_start, size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(22, "a place before the start of the object")  # as a file has it
        self.place = base + offset
        return self.place

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        end = min(self.place + len(buffer), self.size)
        if end <= self.place:
            return 0
        if self.place >= self.tail_start:
            data = self.tail[self.place - self.tail_start : end - self.tail_start]
        else:
            data = read_span(self.url, self.place, end)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


@lru_cache(maxsize=TAILS)
def _tail(url: Url, state: State) -> tuple[int, bytes]:
    """The end of an object in that state, and the byte where it begins."""
    start = max(0, state.size - TAIL)
    return start, _read_whole(url, start, state.size) if state.size else b""


def _read_whole(url: Url, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end`, asked for again where the store gives fewer."""

    def read() -> bytes:
        data = read_range(url, start, end)
        if len(data) != end - start:
            raise Truncated(f"{len(data)} bytes of {end - start}")
        return data

    return call(url, read)


def _from_blocks(url: Url, start: int, end: int) -> memoryview:
    numbers = range(start // BLOCK, -(-end // BLOCK))
    blocks = {number: _kept(url, number) for number in numbers}
    for first, last in _runs([number for number, data in blocks.items() if data is None]):
        data = read_range(url, first * BLOCK, (last + 1) * BLOCK)
        for number in range(first, last + 1):
            at = (number - first) * BLOCK
            blocks[number] = data[at : at + BLOCK]
            _keep(url, number, data[at : at + BLOCK])
    joined = b"".join(data or b"" for data in blocks.values())
    at = numbers.start * BLOCK
    return memoryview(joined)[start - at : end - at]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """The first and last of each run of neighbors."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _slot(url: Url, number: int) -> tuple[bytes, Path]:
    """The name of a block and the one file that may hold it: so the cache has a fixed size."""
    etag = url.state.etag if url.state else ""
    digest = hashlib.sha256(f"{url}\n{etag}\n{number}".encode(errors="surrogateescape")).digest()
    slots = url.access.cache_bytes // (BLOCK + DIGEST)
    return digest, Path(url.access.cache, f"{int.from_bytes(digest[:8]) % slots:08x}")


def _kept(url: Url, number: int) -> bytes | None:
    digest, file = _slot(url, number)
    try:
        data = file.read_bytes()
    except OSError:
        return None
    return data[DIGEST:] if data.startswith(digest) else None


def _keep(url: Url, number: int, data: bytes) -> None:
    digest, file = _slot(url, number)
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with suppress(OSError):  # a full disk: then it is read again
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(digest + data)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
