"""Packs: the files of one flow record in a stored zip, read by offset."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
import zipfile
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from zlib_ng.zlib_ng import crc32  # 10 times as fast as zlib's: checking cost LZ4 a quarter

from flowkit.documents import (
    MOST_BYTES,
    ZIP_ERRORS,
    open_plain_file,
    raise_read_error,
    read_plain_file,
)
from flowkit.errors import RecordError
from flowkit.stores.urls import Place as StoredPlace
from flowkit.stores.urls import Url

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the local name and extra field
MOST_HEADER = LOCAL_HEADER.size + 2 * 0xFFFF  # bytes before a member's data
EPOCH = (1980, 1, 1, 0, 0, 0)  # one date for all members: the same record is the same bytes
ATTRIBUTES = 0o644 << 16  # a plain file's, of every member

Place = tuple[int, int, int, int]  # a member's first byte, end, size of its data, CRC-32


class PackWriter:
    """Writes a stored zip at `path`, a member at a time: one open file, its directory at the end.

    Before `finish` it is no zip that anything reads.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)  # a full disk is told of by the write itself
        self._members: list[tuple[str, int, int]] = []  # name, CRC-32, size in bytes
        self._size = 0

    def add(self, name: str, data: bytes) -> None:
        """Write the next member."""
        self._members.append((name, crc32(data), len(data)))
        self._write(_stored_member(*self._members[-1], self._size).FileHeader() + data)

    def finish(self) -> None:
        """Write the directory, and close the file."""
        self._write(_directory(self._members))
        self.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._size += len(data)


def write_pack(path: Path, files: Iterable[tuple[str, Path]]) -> None:
    """Write `files`, pairs of member name and file, into a stored zip at `path`, in their order."""
    with closing(PackWriter(path)) as pack:
        for name, file in files:
            pack.add(name, read_plain_file(file, error=RecordError))
        pack.finish()


def _stored_member(name: str, crc: int, size: int, place: int) -> zipfile.ZipInfo:
    """A member of `write_pack`, which begins at byte `place`."""
    member = zipfile.ZipInfo(name, EPOCH)
    member.external_attr, member.CRC = ATTRIBUTES, crc
    member.file_size = member.compress_size = size
    member.header_offset = place
    return member


def list_members(path: StoredPlace) -> dict[str, Place]:
    """Where each member of a pack lies; RecordError if it is no zip or a member is compressed."""
    try:
        with _open(path) as file:
            infos, directory = _read_directory(path, file)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such pack") from None
    infos = sorted(infos, key=lambda info: info.header_offset)
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED:
            raise RecordError(
                f"{path}: member {info.filename} is compressed; expected a stored zip "
                "(zip -0, or flowkit pack)"
            )
    places = [info.header_offset for info in infos] + [directory]
    if places[0] < 0 or places != sorted(places):
        raise RecordError(f"{path}: expected a stored zip (members outside of the file)")
    return {
        info.filename: (begin, end, info.file_size, info.CRC)
        for info, (begin, end) in zip(infos, pairwise(places), strict=True)
    }


def is_as_written(path: Path) -> bool:
    """Whether all of a pack but its members' data is, byte by byte, what `write_pack` writes.

    False where another tool wrote it, which no member's date and attributes tell of flowkit.
    RecordError where flowkit wrote it and it has changed since.
    """
    changed = RecordError(f"{path}: damaged: its zip headers are not as they were written")
    with open_plain_file(path, error=RecordError) as file:
        infos, _ = _read_directory(path, file)
        if not any((one.date_time, one.external_attr) == (EPOCH, ATTRIBUTES) for one in infos):
            return False
        place, members = 0, list[tuple[str, int, int]]()
        for info in infos:
            members.append((info.filename, info.CRC, info.file_size))
            header = _stored_member(*members[-1], place).FileHeader()
            file.seek(place)
            if file.read(len(header)) != header:
                raise changed
            place += len(header) + info.file_size
        file.seek(place)
        if file.read() != _directory(members):
            raise changed
    return True


def _open(path: StoredPlace) -> AbstractContextManager[BinaryIO]:
    if isinstance(path, Path):
        return open_plain_file(path, error=RecordError)
    from flowkit.stores.spans import open_object

    return open_object(path)


def _read_directory(path: StoredPlace, file: BinaryIO) -> tuple[list[zipfile.ZipInfo], int]:
    """The members of an open pack and the byte where its directory begins; RecordError if none."""
    try:
        with zipfile.ZipFile(file) as pack:
            return pack.infolist(), pack.start_dir
    except (*ZIP_ERRORS, OSError) as error:
        # EINVAL: a place before the start of the file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise RecordError(f"{path}: expected a stored zip ({error})") from error


def _directory(members: Iterable[tuple[str, int, int]]) -> bytes:
    """What `write_pack` writes behind the data of its members, (name, CRC-32, size in bytes)."""
    place = 0
    with tempfile.TemporaryFile() as file:  # a hole before the directory: it takes no room
        with zipfile.ZipFile(file, "w") as pack:
            for name, crc, size in members:
                pack.filelist.append(_stored_member(name, crc, size, place))
                place += len(pack.filelist[-1].FileHeader()) + size
            pack.start_dir = place
            pack.comment = b""  # a comment makes zipfile write an archive that nothing was added to
        file.seek(place)
        return file.read()


def read_members(
    path: StoredPlace, wanted: Sequence[tuple[str, Sequence[int]]], *, most: int = MOST_BYTES
) -> list[memoryview]:
    """The bytes of the `wanted` members, (name, place), by one open and one pread of neighbors.

    No handle is kept, so that it is safe from any thread and after any fork. CRC-32 is checked.
    RecordError for a member of more than `most` bytes, before it is read.
    """
    runs: list[list[int]] = []  # [first byte, end] of members that lie side by side
    for begin, end in sorted({(begin, end) for _, (begin, end, *_) in wanted}):
        if runs and runs[-1][1] == begin:
            runs[-1][1] = end
        else:
            runs.append([begin, end])
    if any(end - begin > most + MOST_HEADER for _, (begin, end, *_) in wanted):
        raise RecordError(f"{path}: expected members of at most {most:,} bytes")
    try:
        spans = _read_runs(path, runs)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such pack") from None
    except OSError as error:
        raise_read_error(str(path), error, RecordError)
    starts = [start for start, _ in runs]
    members = []
    for name, (begin, _, size, crc) in wanted:
        run = bisect_right(starts, begin) - 1
        members.append(
            _member(f"{path}: member {name}", spans[run], begin - starts[run], size, crc)
        )
    return members


def _read_runs(path: StoredPlace, runs: list[list[int]]) -> list[memoryview]:
    """The bytes of runs, each [first byte, end]."""
    if isinstance(path, Url):
        from flowkit.stores.spans import read_span

        return [read_span(path, start, end) for start, end in runs]
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [memoryview(os.pread(handle, end - start, start)) for start, end in runs]
    finally:
        os.close(handle)


def _member(where: str, span: memoryview, at: int, size: int, crc: int) -> memoryview:
    if len(span) < at + LOCAL_HEADER.size:
        raise RecordError(f"{where} lies outside the file: it is truncated")
    signature, name_length, extra_length = LOCAL_HEADER.unpack_from(span, at)
    begin = at + LOCAL_HEADER.size + name_length + extra_length
    data = span[begin : begin + size]
    if signature != b"PK\x03\x04" or len(data) != size or crc32(data) != crc:
        raise RecordError(f"{where} is damaged: its checksum does not agree")
    return data
