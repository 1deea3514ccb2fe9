"""Writes flow records: all files under a temporary name, then moved into place, sidecar last."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from pathlib import Path, PurePosixPath
from time import perf_counter
from typing import Any

import numpy as np

from flowkit.errors import RecordError
from flowkit.records import formats, zips
from flowkit.records.layout import Storage, field_templates, image_template, record_folder
from flowkit.records.reading import FORMAT, SIDECAR, VERSION, Record, open_record
from flowkit.series import Series

INCOMPLETE = ".incomplete"  # below the output folder: what is being written, by host and process


class RecordWriter:
    """Writes one record: frames and fields as they come, then `commit`; a context manager.

    Until `commit` nothing is in the record's place; leaving the context removes what was written.
    `seconds` adds up the time spent in "encode" and in "write".
    """

    def __init__(self, out: Path, id: str, storage: Storage, series: tuple[Series, ...]) -> None:
        self.out, self.storage, self.series = out, storage, series
        self.folder = record_folder(id, storage)
        self.images = image_template(self.folder, storage)
        self.templates = {
            one: field_templates(self.folder, storage, one, first_step=series[0].step)
            for one in series
        }
        self.ranges: dict[Series, list[formats.Ranges | None]] = {one: [] for one in series}
        self.frame_count = 0
        self.size: tuple[int, int] = (0, 0)
        self.seconds = {"encode": 0.0, "write": 0.0}

    def __enter__(self) -> RecordWriter:
        self.temporary = temporary_folder(self.out)
        for template in [
            self.images,
            *(t for files in self.templates.values() for t in files.values()),
        ]:
            self._path(template % 1).parent.mkdir(parents=True, exist_ok=True)
        self._path(SIDECAR).parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        remove_temporary(self.temporary)

    def add_frame(self, frame: np.ndarray) -> None:
        """Take the next frame, uint8 (H, W, 3) BGR; it is stored where the storage says so."""
        self.frame_count += 1
        self.size = (frame.shape[0], frame.shape[1])
        if self.storage.rgb:
            start = perf_counter()
            data = formats.encode_image(frame, "jpg", self.storage.rgb_quality)
            self.seconds["encode"] += perf_counter() - start
            self._write(self.images % self.frame_count, data)

    def add_field(self, one: Series, field: np.ndarray) -> None:
        """Take the next field of a series, float32 (H, W, 2) px."""
        start = perf_counter()
        files, ranges = formats.encode_field(
            field, self.storage.format, bound=self.storage.bound, quality=self.storage.quality
        )
        self.seconds["encode"] += perf_counter() - start
        self._add_files(one, files, ranges)

    def add_planes(self, one: Series, pair: np.ndarray, ranges: formats.Ranges) -> None:
        """Take the next field of a series as planes, uint8 (2, H, W), and the ranges of x and y.

        For storage of 8-bit planes; the ranges are those that its `bound` asks for.
        """
        start = perf_counter()
        files = formats.encode_planes(list(pair), self.storage.format, quality=self.storage.quality)
        self.seconds["encode"] += perf_counter() - start
        self._add_files(one, files, ranges)

    def _add_files(self, one: Series, files: list[bytes], ranges: formats.Ranges | None) -> None:
        self.ranges[one].append(ranges)
        for template, data in zip(self.templates[one].values(), files, strict=True):
            self._write(template % len(self.ranges[one]), data)

    def commit(self, description: dict[str, Any], *, overwrite: bool = False) -> bool:
        """Write the sidecar, with `description` in it, and move the record into its place.

        Returns False where another run has finished this record meanwhile: theirs stays.
        """
        start = perf_counter()
        sidecar = {
            "format": FORMAT,
            "version": VERSION,
            **description,
            "size": list(self.size),
            "frames": self.frame_count,
            "images": self.images if self.storage.rgb else None,
            "series": [self._describe(one) for one in self.series],
        }
        text = json.dumps(sidecar, indent=1) + "\n"
        self._path(SIDECAR).write_text(text, encoding="ascii")
        try:
            return self._move_all(overwrite)
        finally:
            self.seconds["write"] += perf_counter() - start

    def _describe(self, one: Series) -> dict[str, Any]:
        ranges = self.ranges[one]
        return {
            "direction": one.direction,
            "step": one.step,
            "fields": len(ranges),
            "files": self.templates[one],
            "ranges": ranges if self.storage.is_planes else None,
        }

    def _move_all(self, overwrite: bool) -> bool:
        """Move the parts of the record from the temporary folder to their places, sidecar last."""
        place = self.out / self.folder
        pack = place.with_name(place.name + ".zip")
        final = pack if self.storage.pack else place / SIDECAR
        if final.exists() and not overwrite:
            return False
        if self.storage.layout == "twostreamfusion":
            moves = [
                (self.temporary / part, self.out / part) for part in self._twostreamfusion_parts()
            ]
        elif self.storage.pack:
            packed = self.temporary / "pack"
            zips.write_pack(packed, _member_files(open_record(self.temporary / self.folder)))
            moves = [(packed, pack)]
        else:
            moves = [(self.temporary / self.folder, place)]
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _move(source, target, self.temporary, overwrite):
                return False
        other = place if self.storage.pack else pack
        if overwrite and other.exists():  # the same record in the other container
            other.rename(self.temporary / f"old-{secrets.token_hex(4)}")
        return True

    def _twostreamfusion_parts(self) -> list[str]:
        """The folders and range files that make up the record below `out`, its own folder last."""
        folders = [] if not self.storage.rgb else [self.images]
        parts = []
        for one in self.series:
            x, y = self.templates[one].values()
            folders += [x, y]
            table = f"{_parent(x)}.bin"  # min x, max x, min y, max y of each field
            np.array(self.ranges[one], "<f4").tofile(self.temporary / table)
            parts.append(table)
        return [_parent(template) for template in folders] + parts + [str(self.folder)]

    def _path(self, name: str) -> Path:
        """Where the file `name`, relative to the record's folder, is written for now."""
        return Path(os.path.normpath(self.temporary / self.folder / name))

    def _write(self, name: str, data: bytes) -> None:
        start = perf_counter()
        self._path(name).write_bytes(data)
        self.seconds["write"] += perf_counter() - start


def pack_record(folder: Path) -> Path:
    """Turn a record's folder into a pack beside it, without recomputing; returns the pack's path.

    RecordError if a file is missing, or one is there that the sidecar does not name.
    """
    record = open_record(folder)
    files = _member_files(record)
    expected = {name for name, _ in files}
    if any(name.startswith("..") for name in expected):
        raise RecordError(f"{folder}: a record in another layout than flowkit's cannot be packed")
    found = set(os.listdir(folder))
    if found != expected:
        odd = ", ".join(sorted(found ^ expected)[:5])
        raise RecordError(f"{folder}: files missing or not the record's own: {odd}")
    pack = folder.with_name(folder.name + ".zip")
    if pack.exists():
        raise RecordError(f"{pack}: is there already; move it away first")
    temporary = temporary_folder(folder.parent)
    try:
        zips.write_pack(temporary / "pack", files)
        (temporary / "pack").rename(pack)
        folder.rename(temporary / "folder")
    finally:
        remove_temporary(temporary)
    return pack


def unpack_record(pack: Path) -> Path:
    """Turn a pack into a folder of the same files beside it; returns the folder's path."""
    members = zips.list_members(pack)
    open_record(pack)
    folder = pack.with_suffix("")
    if folder.exists():
        raise RecordError(f"{folder}: is there already; move it away first")
    if any(PurePosixPath(name).name != name for name in members):
        raise RecordError(f"{pack}: a member's name holds a folder; expected plain file names")
    temporary = temporary_folder(pack.parent)
    try:
        (temporary / "folder").mkdir()
        for name, place in members.items():
            [data] = zips.read_members(pack, [(name, place)])
            (temporary / "folder" / name).write_bytes(data)
        (temporary / "folder").rename(folder)
        pack.unlink()
    finally:
        remove_temporary(temporary)
    return folder


def remove_leftovers(out: Path) -> int:
    """Remove what processes of this host that are no more left unfinished; how many there were."""
    removed = 0
    for folder in (out / INCOMPLETE).glob(f"{os.uname().nodename}-*-*"):
        pid, _, began = folder.name.rsplit("-", 2)[1].partition(".")
        if pid.isdecimal() and began != _beginning(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    with contextlib.suppress(OSError):
        (out / INCOMPLETE).rmdir()
    return removed


def _member_files(record: Record) -> list[tuple[str, Path]]:
    """The files of a record in the order of a pack: frames, each series by time, the sidecar."""
    names = []
    if record.images is not None:
        names += [record.images % (index + 1) for index in range(record.frame_count)]
    for one in record.series:
        for index in range(one.count):
            names += [template % (index + 1) for template in one.files.values()]
    return [(name, record.path / name) for name in [*names, SIDECAR]]


def _move(source: Path, target: Path, trash: Path, overwrite: bool) -> bool:
    """Put `source` at `target`; False where a finished record that may not go is there."""
    if target.is_dir() and (overwrite or not (target / SIDECAR).exists()):
        target.rename(trash / f"old-{secrets.token_hex(4)}")
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def temporary_folder(out: Path) -> Path:
    """A new folder of this process below `out`, in which a record can be written."""
    owner = f"{os.uname().nodename}-{os.getpid()}.{_beginning(os.getpid())}"
    name = f"{owner}-{secrets.token_hex(4)}"
    folder = out / INCOMPLETE / name
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed INCOMPLETE
            folder.mkdir(parents=True)
            break
    return folder


def remove_temporary(folder: Path) -> None:
    """Remove what `temporary_folder` made, and all in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # where no other record is being written


def _beginning(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None if it is no more.

    Numbers of processes are used again, so a number alone does not tell the owner of a folder.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on: proc(5)
    return fields[19] if fields[0] != "Z" else None


def _parent(template: str) -> str:
    """The folder of a template, as a path below the output folder."""
    return str(PurePosixPath(template.replace("%%", "%")).parent).removeprefix("../../")
