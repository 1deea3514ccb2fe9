"""flowkit's own documents: read and checked, written in one step; how texts list names."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import secrets
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from zlib_ng.zlib_ng import crc32  # 10 times as fast as zlib's

from flowkit.errors import FlowkitError, ReadError

SIDECAR = "record.json"  # the file of a flow record that is written last
RECORD_FORMAT = "flowkit flow record"  # what its sidecar says that it is
NAMED = 5  # names that an error lists; it counts the others
MOST_BYTES = 256 << 20  # bytes of a document: the ranges of two million fields
MOST_NESTED = 16  # objects and lists inside each other: flowkit's documents have 4
SEAL = b',\n "crc32": "????????"\n}\n'  # the end of a document
CRC_BLOCK = 1 << 20  # bytes
ZIP_SEAL, DIGITS = b"crc32 ", 8  # the comment of a zip: this, and so many hexadecimal digits
SHORT = 60  # letters of a value that an error shows
MADE_BY = "made by flowkit"  # in pictures, films and pages: by it they are told from the user's own
LONG = 300  # letters of a name that an error lists: a path is shown whole
# What Python's reader of zips and NumPy's of .npy headers raise where the file is damaged
ZIP_ERRORS = (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError,
              struct.error, zlib.error)  # fmt: skip
NPY_ERRORS = (ValueError, EOFError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


def is_record(folder: Path) -> bool:
    """Whether a folder holds the sidecar of a flow record, of any version, damaged or not.

    A file of the same name that is not flowkit's makes no record; one that cannot be read does.
    """
    sidecar = folder / SIDECAR
    try:
        return sidecar.is_file() and RECORD_FORMAT.encode() in read_start(sidecar)
    except OSError:
        return True


def read_start(path: Path, most: int = MOST_BYTES) -> bytes:
    """The first bytes of a file, `most` at most."""
    with path.open("rb") as file:
        return file.read(most)


def differences(existing: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two requests: "name: 20 on disk, 15 asked for", nested names dotted.

    Of two methods only the names: the parameters of one say nothing of the other.
    """
    found = []
    for key in dict.fromkeys([*existing, *wanted]):
        one, other = existing.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if one.get("name") == other.get("name"):
                found += differences(one, other, f"{prefix}{key}.")
                continue
            one, other = one.get("name"), other.get("name")
        if one != other:
            one, other = (
                value.get("name", value) if isinstance(value, dict) else value
                for value in (one, other)
            )
            found.append(f"{prefix}{key}: {json.dumps(one)} on disk, {json.dumps(other)} asked for")
    return found


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Hand out a new name beside `path` to write to; at the end that file takes the place of it.

    The folders above `path` are made. The file is on the disk before it is renamed and the folder
    after that, so that neither a kill nor a power cut leaves half of it: there is the old file or
    the new one. After an exception the old one stays. FileExistsError where `path` is no plain
    file, such as a folder or a device, before anything is written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "expected a plain file to replace", str(path))
    make_folders(path.parent)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # folders on some network disks
            raise
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Wait until all files below a folder are on the disk, with their names.

    By one call for the whole file system: 900 small files take 0.05 s, one by one 6 s.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:  # only Linux has it
        for parent, _, files in os.walk(folder):
            for name in files:
                sync(Path(parent, name))
            sync(Path(parent))
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(handle) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(handle)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it; waits until the names of new ones are on the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync(one.parent)


def listed(items: Iterable[object]) -> str:
    """The first few of `items`, and how many more; in one line of bounded length."""
    names = list(items)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(_one_line(str(name)) for name in names[:NAMED]) + more


def _one_line(name: str) -> str:
    name = name.replace("\n", "\\n")
    return name if len(name) <= LONG else name[:LONG] + "..."


def seal(text: str) -> bytes:
    """A document of several lines, in JSON and ASCII, with the checksum of its bytes at its end."""
    body = text.rstrip().removesuffix("\n}").encode("ascii")
    return body + SEAL.replace(b"????????", f"{crc32(body):08x}".encode("ascii"))


def is_sealed(data: bytes) -> bool | None:
    """Whether the checksum at the end of a document agrees with its bytes; None: it has none.

    An end that is one byte away from that of `seal` is a checksum, too, and does not agree.
    """
    start = len(data) - len(SEAL)
    if start < 0:
        return None
    end = data[start:]
    odd = sum(one != other for one, other in zip(end, SEAL, strict=True) if other != ord("?"))
    if odd > 1:
        return None
    body = data[:start]
    return end == SEAL.replace(b"????????", f"{crc32(body):08x}".encode("ascii"))


def file_crc32(path: Path, *, but_last: int = 0) -> int:
    """The checksum of a file's bytes but the last few; the memory it takes is a block's."""
    found, left = 0, path.stat().st_size - but_last
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(CRC_BLOCK, left))):
            found, left = crc32(block, found), left - len(block)
    return found


def seal_zip(path: Path) -> None:
    """End a zip with the checksum of all its other bytes: its comment is "crc32 " and 8 digits."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = ZIP_SEAL + bytes(DIGITS)
    digits = f"{file_crc32(path, but_last=DIGITS):08x}".encode("ascii")
    with path.open("r+b") as file:
        file.seek(-DIGITS, os.SEEK_END)
        file.write(digits)


def is_sealed_zip(path: Path) -> bool | None:
    """Whether the checksum that `seal_zip` wrote agrees; None: the zip has no comment.

    zipfile.BadZipFile where it is no zip.
    """
    with zipfile.ZipFile(path) as archive:
        if not archive.comment:
            return None
    with path.open("rb") as file:
        file.seek(-(len(ZIP_SEAL) + DIGITS), os.SEEK_END)
        written = file.read()
    return written == ZIP_SEAL + f"{file_crc32(path, but_last=DIGITS):08x}".encode("ascii")


def read_document(
    path: str | os.PathLike[str],
    format: str,
    version: int,
    *,
    error: type[FlowkitError],
    maker: str,
) -> dict[str, Any]:
    """The JSON document at `path`, which is of that `format` and of a version from 1 to `version`.

    `maker` is the command that writes it. `error` where there is none, or anything else, or its
    checksum, which it need not have, does not agree; ReadError where the disk or the system does
    not give it.
    """
    try:
        data = read_plain_file(path, error=error)
    except FileNotFoundError:
        raise error(f"{path}: no {format} there: {maker} writes one", absent=True) from None
    if is_sealed(data) is False:
        raise error(
            f"{path}: damaged, or changed by hand: its checksum does not agree; if the change is "
            'wanted, set "crc32" at its end to ""'
        )
    return parse_document(data, format, version, where=str(path), error=error, maker=maker)


def parse_document(
    data: bytes,
    format: str,
    version: int,
    *,
    where: str,
    error: type[FlowkitError],
    maker: str,
    shaped: Collection[str] = (),
) -> dict[str, Any]:
    """What `read_document` gives, out of the bytes of the file called `where`."""
    document = parse_json(data, where=where, what=format, error=error, shaped=shaped)
    check_version(document, format, version, where=where, error=error, maker=maker)
    return document


def check_version(
    document: dict[str, Any],
    format: str,
    version: int,
    *,
    where: str,
    error: type[FlowkitError],
    maker: str,
) -> None:
    """`error` unless the document says that it is of that `format` and of 1 to `version`."""
    if document.get("format") != format:
        raise error(f"{where}: expected a {format}, which {maker} writes")
    found = document.get("version")
    if type(found) is not int or not 1 <= found <= version:
        versions = "version 1" if version == 1 else f"versions 1 to {version}"
        later = type(found) is int and found > version
        raise error(
            f"{where}: expected a {format} of {versions}, got version {short(found)}"
            + (": a later flowkit wrote it, update this one" if later else "")
        )


def parse_json(
    data: bytes | str,
    *,
    where: str,
    what: str,
    error: type[FlowkitError],
    shaped: Collection[str] = (),
) -> dict[str, Any]:
    """The JSON object in the `data` of a file called `where`, with finite numbers only.

    `error` for anything else, and for what is nested too deep for those who read it. The values of
    the keys `shaped` may be large: the caller holds them to their shape itself.
    """

    def refuse(reason: str) -> NoReturn:
        raise error(f"{where}: expected a {what}, in JSON ({reason})") from None

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        document = json.loads(text, parse_constant=refuse_constant)
    except UnicodeDecodeError as wrong:
        refuse(f"byte {wrong.start} is no UTF-8")
    except ValueError as wrong:
        refuse(str(wrong))
    except RecursionError:
        refuse("nested too deep")
    if not isinstance(document, dict):
        refuse(f"got {type(document).__name__}")
    if not _is_tame([value for key, value in document.items() if key not in shaped]):
        refuse("nested too deep, or numbers beyond floats")
    return document


def _is_tame(value: Any, depth: int = 0) -> bool:
    """Whether a JSON value has finite numbers only and is nested no deeper than MOST_NESTED."""
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth < MOST_NESTED and all(_is_tame(one, depth + 1) for one in inner)


def read_plain_file(
    path: str | os.PathLike[str], *, most: int = MOST_BYTES, error: type[FlowkitError]
) -> bytes:
    """The bytes of a plain file of at most `most` bytes; raises what `open_plain_file` does."""
    try:
        handle, size = _open_plain(path, most, error)
        try:
            return os.read(handle, size)  # one call per file: a clip of a record is 20 files
        finally:
            os.close(handle)
    except OSError as wrong:
        raise_read_error(path, wrong, error)


@contextmanager
def open_plain_file(
    path: str | os.PathLike[str], *, most: int | None = None, error: type[FlowkitError]
) -> Iterator[BinaryIO]:
    """A plain file, of at most `most` bytes, open for reading.

    FileNotFoundError if there is none; `error` for a pipe, a device, a folder or more bytes, before
    anything is read; ReadError where the disk or the system does not give it.
    """
    try:
        handle, _ = _open_plain(path, most, error)
        with os.fdopen(handle, "rb") as file:
            yield file
    except OSError as wrong:
        raise_read_error(path, wrong, error)


def _open_plain(
    path: str | os.PathLike[str], most: int | None, error: type[FlowkitError]
) -> tuple[int, int]:
    """The handle of a plain file and its size in bytes."""
    # Without O_NONBLOCK opening a pipe that nobody writes to would wait for ever.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and (most is None or status.st_size <= most):
        return handle, status.st_size
    os.close(handle)
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path}: expected a plain file, got {kind_of_file(status.st_mode)}")
    raise error(f"{path}: expected at most {most:,} bytes, the file has {status.st_size:,}")


def raise_read_error(
    path: str | os.PathLike[str], wrong: OSError, error: type[FlowkitError]
) -> NoReturn:
    """Raise what the OSError `wrong` means for the file at `path`.

    FileNotFoundError: it is not there. `error`: it can never be read. ReadError: it could not be
    read now, and may be sound: a disk or a network failed, a right or a handle was missing.
    """
    if isinstance(wrong, ReadError):
        raise wrong
    if isinstance(wrong, FileNotFoundError | NotADirectoryError):
        raise FileNotFoundError(wrong.errno, wrong.strerror, str(path)) from wrong
    if wrong.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO):
        raise error(f"{path}: expected a plain file ({wrong.strerror})") from wrong
    raise ReadError(f"{path}: could not be read: {wrong.strerror or wrong}") from wrong


def kind_of_file(mode: int) -> str:
    """In words, what is no plain file, by its `st_mode`."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def short(value: object) -> str:
    """A value for an error's line: its first letters, in one line."""
    text = repr(value)
    return text if len(text) <= SHORT else text[:SHORT] + "..."
