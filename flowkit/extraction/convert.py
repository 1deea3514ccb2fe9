"""Flow records to records in another form, without computing flow again.

What comes out is, to the byte, what extraction with those options would have written, or it is
refused; `inexact` allows it, and then the sidecar says what the record was converted from.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from flowkit.documents import differences
from flowkit.errors import RecordError, UsageError
from flowkit.extraction.outcomes import Outcome, run_videos
from flowkit.records import formats
from flowkit.records.layout import FORMATS, LAYOUTS, Storage, record_folder
from flowkit.records.reading import (
    Record,
    find_records,
    open_record,
    read_sidecar,
)
from flowkit.records.remote import request_differences
from flowkit.records.sidecar import Checks, read_checks
from flowkit.records.verify import verify_record
from flowkit.records.writing import RecordWriter, standing_record
from flowkit.series import Series
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.sources import Source
from flowkit.workers.engine import Engine
from flowkit.workers.pool import run_pool

# Keys of a sidecar that the writer of a record fills in itself
WRITTEN = ("format", "version", "size", "frames", "images", "series", "checksums", "crc32")


@dataclass(frozen=True)
class Change:
    """What becomes other of how records are stored; None leaves it as it is.

    Floats have no bound: that of planes goes. `without_rgb` leaves the frames out. `inexact` allows
    what extraction would not have written: planes that are rounded or compressed once more, and
    decoded planes in a format that would have held more.
    """

    format: str | None = None
    quality: int | None = None
    bound: float | None = None
    layout: str | None = None
    pack: bool | None = None
    without_rgb: bool = False
    inexact: bool = False

    def apply(self, old: Storage) -> Storage:
        """How a record that is stored as `old` is to be stored; UsageError as of `Storage`."""
        named = ("format", "quality", "bound", "layout", "pack")
        asked = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        if self.format is not None and not FORMATS[self.format].is_planes:
            asked.setdefault("bound", None)
        return Storage(**{**asdict(old), **asked, "rgb": old.rgb and not self.without_rgb})


@dataclass(frozen=True)
class Converted:
    """What became of one record; `written` is False where its new form was there already."""

    frames: int
    fields: int
    damage: str | None
    written: bool


def find_sources(records: Path, out: Path, layout: str | None) -> list[Source]:
    """The records at or below `records`, each with its place below `out`, where it has a new form.

    UsageError where `out` is or lies in the folder of the records, or where two records would share
    a place in a `layout` without class folders. RecordError where there are none.
    """
    root, target = records.resolve(), out.resolve()
    paths = list(find_records(records))
    if not paths:
        raise RecordError(f"{records}: no flow records there: flowkit extract makes them")
    if paths != [records] and target.is_relative_to(root):
        raise UsageError(f"--out {out}: lies in {records}, which is read: choose another folder")
    above = records.parent if paths == [records] else records
    sources, names = [], dict[PurePosixPath, Path]()
    for path in paths:
        id = path.relative_to(above).as_posix()
        place = Path(os.path.abspath(path))
        source = Source(place, id if path.is_dir() else id[: -len(".zip")])
        new = record_folder(source.id, Storage(layout=layout or "flowkit", bound=1.0))
        if (twin := names.setdefault(new, path)) is not path:
            raise UsageError(
                f"{twin} and {path} would share the record {out / new}: layout {layout} has no "
                "class folders"
            )
        if root != target and target.is_relative_to(place):
            raise UsageError(f"--out {out}: lies in the record {path}: choose another folder")
        sources.append(source)
    return sources


def convert(
    sources: Sequence[Source],
    out: Path,
    change: Change,
    *,
    workers: int,
    overwrite: bool = False,
    max_frame_mpx: float = MAX_FRAME_MPX,
    engine: Engine = run_pool,
) -> Generator[Outcome[Converted]]:
    """Write the new form of records below `out` in worker processes; yields what became of each.

    One that cannot be read, is not as it was written, or cannot be had exactly costs itself only.
    """
    owner = secrets.token_hex(8)
    task = _Task(out, change, overwrite, max_frame_mpx, owner)
    yield from run_videos(task, sources, out, owner=owner, engine=engine, workers=workers)


@dataclass(frozen=True)
class _Task:
    """What a worker does with a record."""

    out: Path
    change: Change
    overwrite: bool
    max_frame_mpx: float
    owner: str

    def __call__(self, source: Source, report: Callable[[int], None]) -> Converted:
        return convert_record(
            source,
            self.out,
            self.change,
            overwrite=self.overwrite,
            max_frame_mpx=self.max_frame_mpx,
            report=report,
            owner=self.owner,
        )


def convert_record(
    source: Source,
    out: Path,
    change: Change,
    *,
    overwrite: bool = False,
    max_frame_mpx: float = MAX_FRAME_MPX,
    report: Callable[[int], None] = lambda frames: None,
    owner: str = "",
) -> Converted:
    """Write the new form of one record below `out`; every file is compared with its checksum.

    `report` is told the frames so far. RecordError where the record is damaged, where the new form
    would not be what extraction writes, and where another record stands in its place: nothing is
    left of it then.
    """
    path = Path(str(source.path))
    record = open_record(path, max_frame_mpx=max_frame_mpx)
    sidecar = record.sidecar
    checks = read_checks(sidecar)
    # Without checksums what is damaged shows when it is decoded
    verdict = verify_record(path, quick=checks is not None, max_frame_mpx=max_frame_mpx)
    if verdict.problems:
        raise RecordError(verdict.problems[0])
    old = _storage_of(record, sidecar["request"])
    new = change.apply(old)
    request = _new_request(sidecar["request"], old, new, inexact=change.inexact)
    id = PurePosixPath(source.id).name if LAYOUTS[old.layout].apart else source.id
    fields = sum(one.count for one in record.series)
    damage = sidecar.get("source", {}).get("damage")
    if not overwrite and _is_there(out / record_folder(id, new), request, sidecar, pack=new.pack):
        return Converted(record.frame_count, fields, damage, written=False)
    series = tuple(Series(one.direction, one.step) for one in record.series)
    with RecordWriter(out, id, new, series, owner=owner) as writer:
        for index in range(record.frame_count):
            image = b""
            if record.images is not None and new.rgb:
                [image] = _read(record, [record.images], index, checks)
            writer.add_image(image, record.size)
            _copy_fields(record, index, writer, old, checks)
            report(index + 1)
        kept = {key: value for key, value in sidecar.items() if key not in WRITTEN}
        written = writer.commit({**kept, "request": request}, overwrite=overwrite)
    return Converted(record.frame_count, fields, damage, written)


def _storage_of(record: Record, request: dict[str, Any]) -> Storage:
    """How a record is stored."""
    named = ("format", "quality", "bound", "rgb_quality", "layout")
    stored = {name: request[name] for name in named if name in request}
    return Storage(**stored, rgb=record.has_frames, pack=record.places is not None)


def _new_request(
    request: dict[str, Any], old: Storage, new: Storage, *, inexact: bool
) -> dict[str, Any]:
    """What the record is asked to be; RecordError where that cannot be had of it."""
    asked = {**request, **new.identity()}
    if "converted" in request and not _keeps_files(old, new):
        raise RecordError("was converted already: convert the record that it was made from")
    if not (reason := _loss(old, new)):
        return asked
    if not inexact:
        raise RecordError(
            f"{reason}: it would not be the record that flowkit extract makes; --inexact writes it "
            "and says so in its sidecar"
        )
    source = {name: getattr(old, name) for name in ("format", "quality", "bound")}
    return asked | {"converted": source}


def _keeps_files(old: Storage, new: Storage) -> bool:
    """Whether the files of fields stay as they are, whatever their names."""
    same_planes = (new.format, new.bound) == (old.format, old.bound)
    return same_planes and (new.format != "jpg" or new.quality == old.quality)


def _loss(old: Storage, new: Storage) -> str:
    """Why the new form is not to be had exactly; "" where it is."""
    if not old.is_planes:
        return ""
    if not new.is_planes:
        return f"its planes of 8 bits have lost what {new.format} would hold"
    if new.bound != old.bound:
        scale = "its own range" if old.bound is None else f"+-{old.bound:g} px"
        return f"its planes are rounded within {scale}, and would be rounded again"
    if FORMATS[old.format].values == "jpg" and (new.format, new.quality) != ("jpg", old.quality):
        into = f"JPEG of quality {new.quality}" if new.format == "jpg" else new.format
        return f"its planes are JPEG of quality {old.quality}, and have lost what {into} would hold"
    return ""


def _is_there(place: Path, request: dict[str, Any], sidecar: dict[str, Any], *, pack: bool) -> bool:
    """Whether the new form stands at `place`; RecordError where another record does."""
    standing = standing_record(place)
    if standing is None:
        return False
    theirs = read_sidecar(standing)
    found = request_differences(standing, theirs, request, pack=pack)
    ours, other = sidecar.get("source", {}), theirs.get("source", {})
    for key in ("name", "bytes", "sha256"):
        found += differences({f"source.{key}": other.get(key)}, {f"source.{key}": ours.get(key)})
    if found:
        raise RecordError(
            f"{standing}: is there, made otherwise: {'; '.join(found)}; --overwrite replaces it"
        )
    return True


def _copy_fields(
    record: Record,
    index: int,
    writer: RecordWriter,
    old: Storage,
    checks: dict[str, Checks] | None,
) -> None:
    """Field `index` of every series that has so many, as the writer stores it."""
    new = writer.storage
    for one in record.series:
        if index >= one.count:
            continue
        templates = list(one.files.values())
        files = _read(record, templates, index, checks)
        ranges = None if one.ranges is None else one.ranges[index]
        where = [f"{record.path}: {record.file_name(name, index)}" for name in templates]
        series, own = Series(one.direction, one.step), None if ranges is None else _pairs(ranges)
        if _keeps_files(old, new):
            writer.add_files(series, files, own)
        elif own is not None and new.is_planes and new.bound == old.bound:
            planes = formats.decode_planes(files, old.format, record.size, where=where)
            writer.add_planes(series, np.stack(planes), own)
        else:
            writer.add_field(
                series,
                formats.decode_field(files, old.format, record.size, ranges, where=where),
            )


def _pairs(ranges: np.ndarray) -> formats.Ranges:
    return [(lo, hi) for lo, hi in ranges.tolist()]


def _read(
    record: Record, templates: Sequence[str], index: int, checks: dict[str, Checks] | None
) -> list[bytes]:
    """The files `index` of templates; RecordError where one has changed since it was written."""
    files = [bytes(data) for data in record.read([(name, index) for name in templates])]
    for name, data in zip(templates, files, strict=True):
        if checks is not None and crc32(data) != checks[name].crc32[index]:
            raise RecordError(
                f"{record.path}: {record.file_name(name, index)}: damaged: its checksum does not "
                "agree"
            )
    return files
