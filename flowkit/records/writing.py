"""Writes flow records: all files out of sight and onto the disk, then into their place."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from flowkit.documents import listed, make_folders, sync, sync_all
from flowkit.errors import RecordError
from flowkit.records import formats, zips
from flowkit.records.copies import work_folder
from flowkit.records.layout import (
    LAYOUTS,
    Storage,
    field_templates,
    first_number,
    image_template,
    range_table,
    record_folder,
    record_parts,
)
from flowkit.records.ownership import (
    UNFINISHED,
    in_the_way,
    move_away,
    one_at_a_time,
    readable_claim,
    take_mark_away,
)
from flowkit.records.reading import SIDECAR, read_sidecar
from flowkit.records.remote import expect_same, put_pack
from flowkit.records.sidecar import Checks, sidecar_bytes
from flowkit.records.unfinished import WorkFolder
from flowkit.series import Series
from flowkit.stores.urls import Place, Url


class RecordWriter:
    """Writes one record: frames and fields as they come, then `commit`; a context manager.

    Until `commit` nothing is in the record's place; leaving the context removes what was written.
    `seconds` adds up the time spent in "encode" and in "write", `creating_s` what of the latter
    goes into the names of new files. `owner`: see `WorkFolder`.

    A pack is written as it comes, into one file: frame i, then field i of each series, whatever the
    order in which these are given; what comes too soon waits in memory. `out` may be an address in
    a store: the pack is then made in the folder of scratch, and put there by `commit`.
    """

    def __init__(
        self, out: Place, id: str, storage: Storage, series: tuple[Series, ...], *, owner: str = ""
    ) -> None:
        self.store = out if isinstance(out, Url) else None
        self.out, self.storage, self.series = work_folder(out), storage, series
        self.folder = record_folder(id, storage)
        self.parts = record_parts(id, storage, series)
        self.images = image_template(self.folder, storage)
        self.templates = {
            one: field_templates(self.folder, storage, one, first_step=series[0].step)
            for one in series
        }
        self.ranges: dict[Series, list[formats.Ranges | None]] = {one: [] for one in series}
        self.checks = {
            template: Checks([], [])
            for files in self.templates.values()
            for template in files.values()
        } | ({self.images: Checks([], [])} if storage.rgb else {})
        self.frame_count = 0
        self.size: tuple[int, int] = (0, 0)
        self.seconds = {"encode": 0.0, "write": 0.0}
        self.creating_s = 0.0
        self.work = WorkFolder(self.out, owner)
        self.temporary = self.work.path / "out"  # its files lie in it as they will below `out`
        self._root = os.fspath(self.temporary / self.folder)
        self.packed = self.temporary / self.parts[-1]
        self.pack: zips.PackWriter | None = None
        self.turn = 0  # of what a pack has next: a frame, or a field of a series
        self.waiting: dict[int, list[tuple[str, bytes]]] = {}

    def __enter__(self) -> RecordWriter:
        self.work.__enter__()
        files = [self._path(self._file(name, 0)) for name in self._counts()] + [self._path(SIDECAR)]
        for file in [self.packed] if self.storage.pack else files:
            file.parent.mkdir(parents=True, exist_ok=True)
        if self.storage.pack:
            self.pack = zips.PackWriter(self.packed)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.pack is not None:
            self.pack.close()
        self.work.__exit__(*exc)

    def add_frame(self, frame: np.ndarray) -> None:
        """Take the next frame, uint8 (H, W, 3) BGR; it is stored where the storage says so."""
        data = b""
        if self.storage.rgb:
            start = perf_counter()
            data = formats.encode_image(frame, "jpg", self.storage.rgb_quality)
            self.seconds["encode"] += perf_counter() - start
        self.add_image(data, (frame.shape[0], frame.shape[1]))

    def add_image(self, data: bytes, size: tuple[int, int]) -> None:
        """Take the next frame as the bytes of its file, and its size (H, W).

        The bytes are written where the storage says so.
        """
        self.frame_count += 1
        self.size = size
        if self.storage.rgb:
            self.checks[self.images].add(data)
            index = self.frame_count - 1
            self._write([(self._file(self.images, index), data)], index, 0)

    def add_field(self, one: Series, field: np.ndarray) -> None:
        """Take the next field of a series, float32 (H, W, 2) px."""
        start = perf_counter()
        files, ranges = formats.encode_field(
            field, self.storage.format, bound=self.storage.bound, quality=self.storage.quality
        )
        self.seconds["encode"] += perf_counter() - start
        self.add_files(one, files, ranges)

    def add_planes(self, one: Series, pair: np.ndarray, ranges: formats.Ranges) -> None:
        """Take the next field of a series as planes, uint8 (2, H, W), and the ranges of x and y.

        For storage of 8-bit planes; the ranges are those that its `bound` asks for.
        """
        start = perf_counter()
        files = formats.encode_planes(list(pair), self.storage.format, quality=self.storage.quality)
        self.seconds["encode"] += perf_counter() - start
        self.add_files(one, files, ranges)

    def add_files(self, one: Series, files: Sequence[bytes], ranges: formats.Ranges | None) -> None:
        """Take the next field of a series as the bytes of its files, and its ranges.

        Both are as `formats.encode_field` gives them for this storage.
        """
        index = len(self.ranges[one])
        self.ranges[one].append(ranges)
        named = []
        for template, data in zip(self.templates[one].values(), files, strict=True):
            self.checks[template].add(data)
            named.append((self._file(template, index), data))
        self._write(named, index, self.storage.rgb + self.series.index(one))

    def commit(self, description: dict[str, Any], *, overwrite: bool = False) -> bool:
        """Write the sidecar, with `description` in it, and move the record into its place.

        Data and sidecar are on the disk before that, the names afterwards. Returns False where
        another run has finished the same record meanwhile: theirs stays. RecordError where theirs
        was asked for otherwise, where anything else stands in the place, or files have vanished.
        """
        start = perf_counter()
        sidecar = {
            **description,
            "size": list(self.size),
            "frames": self.frame_count,
            "images": self.images if self.storage.rgb else None,
            "series": [self._describe(one) for one in self.series],
        }
        try:
            self._finish_files(sidecar_bytes(sidecar, self.checks))
            if self.store is not None:
                target = self.store / self.parts[-1]
                return put_pack(self.packed, target, sidecar, overwrite=overwrite)
            place = self.out / self.folder
            make_folders(place.parent)
            with one_at_a_time(place.parent):
                if not overwrite and self._is_there(place, sidecar):
                    return False
                self._move(place, sidecar)
            return True
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

    def _finish_files(self, sidecar: bytes) -> None:
        """Count the files, write the sidecar and tables of ranges, and sync all."""
        if self.pack is not None:
            self._finish_pack(self.pack, sidecar)
            return
        self._path(SIDECAR).write_bytes(sidecar)
        names = [self._file(t, k) for t, count in self._counts().items() for k in range(count)]
        files = set(map(self._place, names))
        there = {
            os.path.join(folder, name)
            for folder in set(map(os.path.dirname, files))
            for name in os.listdir(folder)
        }
        if lost := files - there:
            raise RecordError(f"files vanished while they were written: {listed(sorted(lost))}")
        if LAYOUTS[self.storage.layout].ranges:
            for one in self.series:
                x = self._path(self._file(self.templates[one]["x"], 0)).parent
                np.array(self.ranges[one], "<f4").tofile(range_table(x))
        sync_all(self.temporary)

    def _finish_pack(self, pack: zips.PackWriter, sidecar: bytes) -> None:
        for _, files in sorted(self.waiting.items()):
            for name, data in files:
                pack.add(name, data)
        pack.add(SIDECAR, sidecar)
        pack.finish()
        if not self.packed.exists():
            raise RecordError(f"files vanished while they were written: {self.packed}")
        sync(self.packed)

    def _is_there(self, place: Path, sidecar: dict[str, Any]) -> bool:
        """Whether the record stands there; RecordError where one of another request does."""
        standing = standing_record(place)
        if standing is None:
            return False
        expect_same(standing, read_sidecar(standing), sidecar, pack=self.storage.pack)
        return True

    def _move(self, place: Path, sidecar: dict[str, Any]) -> None:
        """Move the record into its place, and away what of flowkit's stands there."""
        target, pack = self.out / self.parts[-1], place.with_name(place.name + ".zip")
        parts = [self.out / part for part in self.parts]
        strangers = in_the_way(target, parts) + in_the_way(place if target == pack else pack, [])
        if strangers:
            raise RecordError(f"not written by flowkit, or not for this: {listed(strangers)}")
        old = [*readable_claim(place).parts(), *readable_claim(pack).parts()]
        if len(parts) > 1:
            self._move_parts(place, parts[:-1], [part for part in old if part != place], sidecar)
        else:
            move_away([one for one in old if one != target or one.is_dir()], self.work.path)
            (self.temporary / self.parts[-1]).rename(target)
        sync(place.parent)

    def _move_parts(
        self, place: Path, parts: list[Path], old: list[Path], sidecar: dict[str, Any]
    ) -> None:
        """Replace a record in many folders: its mark goes first and comes last."""
        make_folders(place)
        take_mark_away(place, self.work.path, [sidecar])
        move_away(old, self.work.path)
        for part in parts:
            make_folders(part.parent)
            (self.temporary / part.relative_to(self.out)).rename(part)
        for folder in {part.parent for part in parts}:
            sync(folder)
        self._path(SIDECAR).rename(place / SIDECAR)
        sync(place)
        (place / UNFINISHED).unlink()

    def _counts(self) -> dict[str, int]:
        """The templates of all files but the sidecar, and how many of each are written."""
        counts = {
            template: len(self.ranges[one])
            for one, files in self.templates.items()
            for template in files.values()
        }
        return counts | ({self.images: self.frame_count} if self.storage.rgb else {})

    def _file(self, template: str, index: int) -> str:
        """The name of file `index`, from 0, of a template."""
        return template % (index + first_number(template, self.storage.layout))

    def _path(self, name: str) -> Path:
        """Where the file `name`, relative to the record's folder, is written for now."""
        return Path(self._place(name))

    def _place(self, name: str) -> str:
        """`_path` as a text, which is made in an eighth of the time: three times per frame."""
        return os.path.normpath(f"{self._root}/{name}")

    def _write(self, files: list[tuple[str, bytes]], index: int, kind: int) -> None:
        """Write the files of frame or field `index`; `kind` counts frames and series from 0."""
        start = perf_counter()
        if self.pack is None:
            for name, data in files:
                self._write_file(self._place(name), data)
        else:
            self.waiting[index * (self.storage.rgb + len(self.series)) + kind] = files
            while self.turn in self.waiting:
                for name, data in self.waiting.pop(self.turn):
                    self.pack.add(name, data)
                self.turn += 1
        self.work.beat()
        self.seconds["write"] += perf_counter() - start

    def _write_file(self, path: str, data: bytes) -> None:
        """Write a new file, without the system calls of a buffer."""
        start = perf_counter()
        with io.FileIO(path, "w") as file:
            self.creating_s += perf_counter() - start
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]


def standing_record(place: Path) -> Path | None:
    """The finished record at `place`: the folder, or the pack beside it; None without either.

    A zip that cannot be read may be a pack, and counts; one of something else does not.
    """
    pack = place.with_name(place.name + ".zip")
    if (place / SIDECAR).exists():
        return place
    return pack if pack.is_file() and zips.may_be_pack(pack) else None
