"""Packs: the files of one flow record in a stored zip, read by offset."""

from __future__ import annotations

import os
import struct
import tempfile
import zipfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from zlib_ng.zlib_ng import crc32  # 10 times as fast as zlib's: checking cost LZ4 a quarter

from flowkit.documents import (
    MOST_BYTES,
    SIDECAR,
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
EPOCH_WORDS = 0, 1 << 5 | 1  # its time and date as a directory has them
ATTRIBUTES = 0o644 << 16  # a plain file's, of every member

# The end of a zip (APPNOTE.TXT 6.3.10, sections 4.3.12 to 4.3.16)
ENTRY = struct.Struct("<4s4x4H3L3H4x2L")
END, LOCATOR64, END64 = (struct.Struct(one) for one in ("<4s4H2LH", "<4sLQL", "<4sQ2H2L4Q"))
MOST_END = END.size + 0xFFFF + LOCATOR64.size  # bytes, with the longest comment
FULL = 0xFFFFFFFF  # in place of a number that the extra field has, in 64 bits
ZIP64_FIELD = 1
UTF8_FLAG = 1 << 11
MOST_MEMBERS = 2_000_000  # 7 hours of frames and flow; a directory of them is read in seconds

Place = tuple[int, int, int, int]  # a member's first byte, end, size of its data, CRC-32


class Entry(NamedTuple):
    """What a zip's directory says of a member; `is_ours` where time and attributes are a pack's."""

    name: str
    begin: int
    size: int
    crc: int
    method: int
    is_ours: bool


class PackWriter:
    """Writes a stored zip at `path`, a member at a time: one open file, its directory at the end.

    Before `finish` it is no zip that anything reads.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)  # a full disk is told of by the write itself
        self._members: list[tuple[str, int, int]] = []  # name, CRC-32, size in bytes
        self._size = 0

    def add(self, name: str, data: bytes) -> None:
        """Write the next member; RecordError for more than a pack may have."""
        if len(self._members) == MOST_MEMBERS:
            raise RecordError(
                f"expected at most {MOST_MEMBERS:,} files in a pack: leave --pack out, or --rgb"
            )
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
            count, directory, listing = _directory_bytes(path, file)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such pack") from None
    if not _may_tell_of(SIDECAR, listing):
        raise RecordError(f"{path}: expected a pack with {SIDECAR}, which is missing")
    entries = sorted(_entries(path, listing, count), key=lambda entry: entry.begin)
    for entry in entries:
        if entry.method != zipfile.ZIP_STORED:
            raise RecordError(
                f"{path}: member {entry.name} is compressed; expected a stored zip "
                "(zip -0, or flowkit pack)"
            )
    if len({entry.name for entry in entries}) < len(entries):
        raise RecordError(f"{path}: expected a stored zip (two members have one name)")
    places = [entry.begin for entry in entries] + [directory]
    if places != sorted(places):
        raise RecordError(f"{path}: expected a stored zip (members outside of the file)")
    return {
        entry.name: (begin, end, entry.size, entry.crc)
        for entry, (begin, end) in zip(entries, pairwise(places), strict=True)
    }


def is_as_written(path: Path) -> bool:
    """Whether all of a pack but its members' data is, byte by byte, what `write_pack` writes.

    False where another tool wrote it, which no member's date and attributes tell of flowkit.
    RecordError where flowkit wrote it and it has changed since.
    """
    changed = RecordError(f"{path}: damaged: its zip headers are not as they were written")
    with open_plain_file(path, error=RecordError) as file:
        count, _, listing = _directory_bytes(path, file)
        entries = _entries(path, listing, count)
        if not any(entry.is_ours for entry in entries):
            return False
        place, members = 0, list[tuple[str, int, int]]()
        for entry in entries:
            members.append((entry.name, entry.crc, entry.size))
            header = _stored_member(*members[-1], place).FileHeader()
            file.seek(place)
            if file.read(len(header)) != header:
                raise changed
            place += len(header) + entry.size
        file.seek(place)
        if file.read() != _directory(members):
            raise changed
    return True


def _open(path: StoredPlace) -> AbstractContextManager[BinaryIO]:
    if isinstance(path, Path):
        return open_plain_file(path, error=RecordError)
    from flowkit.stores.spans import open_object

    return open_object(path)


def may_be_pack(path: Path) -> bool:
    """Whether a zip has a sidecar, one bit of whose name may be wrong, or cannot be read."""
    try:
        with open_plain_file(path, error=RecordError) as file:
            file.seek(-min(path.stat().st_size, len(SIDECAR) + END.size), os.SEEK_END)
            if file.read().startswith(SIDECAR.encode()):
                return True
            count, _, directory = _directory_bytes(path, file)
            return _may_tell_of(SIDECAR, directory) and any(
                _differ_by(entry.name, SIDECAR) <= 1 for entry in _entries(path, directory, count)
            )
    except (OSError, RecordError):
        return True


def _may_tell_of(name: str, directory: bytes) -> bool:
    """Whether half of a name stands somewhere: a look at the bytes, long before all are read."""
    middle = len(name) // 2
    return any(half.encode() in directory for half in (name[:middle], name[middle:]))


def _differ_by(one: str, other: str) -> int:
    """The number of letters that differ, all of them where the lengths do."""
    if len(one) != len(other):
        return max(len(one), len(other))
    return sum(a != b for a, b in zip(one, other, strict=True))


def _directory_bytes(path: StoredPlace, file: BinaryIO) -> tuple[int, int, bytes]:
    """How many members an open zip says it has, where its directory begins, and its bytes.

    RecordError where it is none or has too many. Not by zipfile, which has no limits and takes ten
    times as long for many members.
    """
    with _no_zip(path):
        return _checked_directory(file)


@contextmanager
def _no_zip(path: StoredPlace) -> Iterator[None]:
    try:
        yield
    except (ValueError, struct.error) as error:
        raise RecordError(f"{path}: expected a stored zip ({error})") from error


def _checked_directory(file: BinaryIO) -> tuple[int, int, bytes]:
    total = file.seek(0, os.SEEK_END)
    before = max(0, total - MOST_END)
    file.seek(before)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("it does not end as a zip does")
    *_, count, length, start, comment = END.unpack_from(tail, at)
    end, locator = before + at, at - LOCATOR64.size
    if at + END.size + comment != len(tail):
        raise ValueError("bytes after its end")
    if locator >= 0 and tail[locator:].startswith(b"PK\6\7"):
        end = LOCATOR64.unpack_from(tail, locator)[2]
        file.seek(min(end, total))
        signature, *_, count, length, start = END64.unpack(file.read(END64.size))
        if signature != b"PK\6\6":
            raise ValueError("its end in 64 bits is missing")
    if count > MOST_MEMBERS:
        raise ValueError(f"it has {count:,} members, expected at most {MOST_MEMBERS:,}")
    if start + length != end or length < count * ENTRY.size:
        raise ValueError(f"no room for {count:,} members where its end says that they are told of")
    file.seek(start)
    return count, start, file.read(length)


def _entries(path: StoredPlace, directory: bytes, count: int) -> list[Entry]:
    """What a zip's directory says of `count` members; RecordError where it is of others."""
    with _no_zip(path):
        return [*_read_entries(directory, count)]


def _read_entries(directory: bytes, count: int) -> Iterator[Entry]:
    at = 0
    for _ in range(count):
        (signature, flags, method, clock, day, crc, packed, size, name_length, extra_length,
         comment_length, attributes, begin) = ENTRY.unpack_from(directory, at)  # fmt: skip
        if signature != b"PK\1\2":
            raise ValueError("its directory is damaged")
        at += ENTRY.size
        name = directory[at : at + name_length].decode("utf-8" if flags & UTF8_FLAG else "cp437")
        at += name_length
        if FULL in (size, packed, begin):
            size, begin = _in_64_bits(directory[at : at + extra_length], size, packed, begin)
        at += extra_length + comment_length
        is_ours = attributes == ATTRIBUTES and (clock, day) == EPOCH_WORDS
        yield Entry(name, begin, size, crc, method, is_ours)
    if at != len(directory):
        raise ValueError(f"its directory is of other members than the {count:,} that it counts")


def _in_64_bits(extra: bytes, size: int, packed: int, begin: int) -> tuple[int, int]:
    """The size of a member and its first byte, of which some stand in its extra field."""
    while extra:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == ZIP64_FIELD:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            size, _, begin = (
                next(values, FULL) if one == FULL else one for one in (size, packed, begin)
            )
            break
        extra = extra[4 + length :]
    return size, begin


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
