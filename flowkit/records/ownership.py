"""What on disk is flowkit's own: what carries a mark that can be read, and only what that names.

The mark of a record is its sidecar. A record in several folders has ``unfinished.json`` in its
place while they are replaced, with the sidecars of both. Names of files prove nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowkit.documents import listed, read_document, sync
from flowkit.errors import RecordError
from flowkit.records import zips
from flowkit.records.layout import first_number, range_table
from flowkit.records.reading import SIDECAR, read_sidecar
from flowkit.records.unfinished import WorkFolder

UNFINISHED = "unfinished.json"
UNFINISHED_FORMAT, UNFINISHED_VERSION = "flowkit unfinished record", 1
FILE_TEMPLATE = re.compile(r"((?:[^%/]|%%)*)%0[1-9]d((?:[^%/]|%%)*)")
# Files beside the record's folder
FOLDER_TEMPLATE = re.compile(r"\.\./\.\./([^/]+)/([^/]+)/([^/]+)")


@dataclass
class Claim:
    """What a mark names: folders, with the templates and numbers of their files, and files."""

    folders: dict[Path, list[tuple[str, range]]] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)

    def parts(self) -> list[Path]:
        """The claimed folders, that of the mark first, and the claimed files outside them."""
        return [*self.folders, *sorted(f for f in self.files if f.parent not in self.folders)]

    def strangers(self, parts: Iterable[Path]) -> list[Path]:
        """Of what stands at `parts`, folders or files, all that the mark does not name."""
        found = []
        for part in parts:
            if part in self.folders and part.is_dir():
                found += [one for one in sorted(part.iterdir()) if not self.names(one)]
            elif part.is_dir() and not part.is_symlink():
                found += sorted(part.iterdir())  # an empty folder is in nobody's way
            elif os.path.lexists(part) and part not in self.files:
                found.append(part)
        return found

    def names(self, file: Path) -> bool:
        """Whether the mark names a file."""
        return file in self.files or any(
            _is_numbered(file.name, *template) for template in self.folders.get(file.parent, ())
        )


def claim_of(place: Path) -> Claim:
    """What the mark at `place`, a record's folder or a pack, names; nothing where none is there.

    RecordError where the mark is not flowkit's, is damaged, or is of a later version.
    """
    if place.suffix == ".zip" and place.is_file():
        inside = _claimed_by(place, read_sidecar(place))
        odd = [name for name in zips.list_members(place) if not inside.names(place / name)]
        if odd:
            raise RecordError(f"{place}: holds what its sidecar does not name: {listed(odd)}")
        return Claim(files={place})
    sidecars = [read_sidecar(place)] if os.path.lexists(place / SIDECAR) else []
    if os.path.lexists(place / UNFINISHED):
        sidecars += _read_unfinished(place / UNFINISHED)
    claim = Claim()
    for sidecar in sidecars:
        one = _claimed_by(place, sidecar)
        claim.files |= one.files
        for folder, templates in one.folders.items():
            claim.folders.setdefault(folder, []).extend(templates)
    return claim


def readable_claim(place: Path) -> Claim:
    """`claim_of`, and nothing where the mark cannot be read: then nothing there is flowkit's."""
    try:
        return claim_of(place)
    except RecordError:
        return Claim()


def in_the_way(place: Path, parts: Iterable[Path]) -> list[Path]:
    """What stands where the `parts` of the record at `place` belong, and is not of that record."""
    claim = readable_claim(place)
    return claim.strangers(dict.fromkeys([*parts, *claim.parts()]))


def remove_record(path: Path) -> None:
    """Remove a record: out of sight first, then for good; a symbolic link goes as a link.

    RecordError, and all stays, where there is no mark of flowkit's or something else lies there.
    """
    if path.is_symlink():
        path.unlink()
        return
    claim = claim_of(path)
    if not claim.parts():
        raise RecordError(f"{path}: has no sidecar of flowkit's")
    if odd := claim.strangers(claim.parts()):
        names = listed(os.path.relpath(one, path.parent) for one in odd)
        raise RecordError(f"{path}: holds what is not flowkit's: {names}")
    with WorkFolder(path.parent) as work:
        if len(claim.folders) > 1:
            take_mark_away(path, work.path, [])
        move_away(reversed(claim.parts()), work.path)  # the part with the mark goes last
        sync(path.parent)


def take_mark_away(place: Path, work: Path, coming: list[dict[str, Any]]) -> None:
    """Turn a record in several folders into an unfinished one, before any of them is moved.

    From here on nobody takes it for a record, and the files of it and of the sidecars that are
    `coming` are known as flowkit's. The new mark is written in the folder `work` first.
    """
    sidecars = [*coming]
    if (place / SIDECAR).exists():
        sidecars.append(read_sidecar(place))
    if (place / UNFINISHED).exists():
        sidecars += _read_unfinished(place / UNFINISHED)
    document = {
        "format": UNFINISHED_FORMAT,
        "version": UNFINISHED_VERSION,
        "sidecars": [_without_ranges(one) for one in sidecars],
    }
    mark = work / UNFINISHED
    mark.write_text(json.dumps(document) + "\n", encoding="ascii")
    sync(mark)
    mark.rename(place / UNFINISHED)
    (place / SIDECAR).unlink(missing_ok=True)
    sync(place)


def move_away(parts: Iterable[Path], trash: Path) -> None:
    """Rename what stands at `parts` into `trash`, a folder of the same file system."""
    for part in parts:
        if os.path.lexists(part):
            part.rename(trash / f"old-{secrets.token_hex(4)}")


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for the right to change which records stand in `folder`; other processes wait, too.

    Where the file system has no locks of folders the renames, each atomic, have to do.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_numbered(name: str, template: str, numbers: range) -> bool:
    """Whether `name` is one of a printf template's files of these numbers; counts none out."""
    head, tail = FILE_TEMPLATE.fullmatch(template).group(1, 2)  # type: ignore[union-attr]
    head, tail = head.replace("%%", "%"), tail.replace("%%", "%")
    number = name[len(head) : len(name) - len(tail)]
    if not (number.isascii() and number.isdecimal()):
        return False
    return int(number) in numbers and template % int(number) == name


def _claimed_by(place: Path, sidecar: dict[str, Any]) -> Claim:
    """What a sidecar names; RecordError where no layout of flowkit's has such names."""
    claim = Claim({place: []}, {place / SIDECAR, place / UNFINISHED})
    try:
        layout = sidecar.get("request", {}).get("layout", "flowkit")
        counts = [
            (template, one["fields"])
            for one in sidecar["series"]
            for template in one["files"].values()
        ]
        if sidecar["images"] is not None:
            counts.append((sidecar["images"], sidecar["frames"]))
        for template, count in counts:
            folder, name = place, template
            if match := FOLDER_TEMPLATE.fullmatch(template):
                folder, name = place.parent.parent / match[1] / place.name, match[3]
                if match[1] in (".", "..") or match[2].replace("%%", "%") != place.name:
                    raise ValueError(template)
                if match[1].startswith("u"):
                    claim.files.add(range_table(folder))
            if type(count) is not int or not FILE_TEMPLATE.fullmatch(name):
                raise ValueError(template)
            first = first_number(template, layout)
            numbers = range(first, first + count)
            claim.folders.setdefault(folder, []).append((name, numbers))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{place}: {SIDECAR} names what no record has ({error!r})") from error
    return claim


def _without_ranges(sidecar: dict[str, Any]) -> dict[str, Any]:
    """A sidecar less what is long and names no file."""
    return {
        "series": [{key: one[key] for key in ("fields", "files")} for one in sidecar["series"]],
        "images": sidecar["images"],
        "frames": sidecar["frames"],
        "request": {"layout": sidecar.get("request", {}).get("layout", "flowkit")},
    }


def _read_unfinished(file: Path) -> list[dict[str, Any]]:
    document = read_document(
        file, UNFINISHED_FORMAT, UNFINISHED_VERSION, error=RecordError, maker="flowkit extract"
    )
    if not isinstance(document.get("sidecars"), list):
        raise RecordError(
            f"{file}: expected a {UNFINISHED_FORMAT} with sidecars, which are missing"
        )
    return document["sidecars"]
