"""flowkit's own documents: read and checked, written in one step; how texts list names."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIDECAR = "record.json"  # in the folder of a flow record, written last
RECORD_FORMAT = "flowkit flow record"  # what its sidecar says that it is
NAMED = 5  # names that an error lists; it counts the others


def is_record(folder: Path) -> bool:
    """Whether a folder holds the sidecar of a flow record, of any version, damaged or not.

    A file of the same name that is not flowkit's makes no record; one that cannot be read does.
    """
    sidecar = folder / SIDECAR
    try:
        return sidecar.is_file() and RECORD_FORMAT.encode() in sidecar.read_bytes()
    except OSError:
        return True


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


def make_folders(folder: Path) -> None:
    """Make a folder and those above it; waits until the names of new ones are on the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync(one.parent)


def listed(items: Iterable[object]) -> str:
    """The first few of `items`, and how many more."""
    names = [str(item) for item in items]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
