"""The flow record: where its files lie, its sidecar, and the reader that gives pixels back.

A record is all that is stored of one video: a folder (or a pack, a stored zip of the same files)
whose ``record.json``, the sidecar, is written last and so marks it as finished.
docs/formats.md specifies every file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from flowkit.documents import (
    MOST_BYTES,
    SIDECAR,
    differences,
    is_record,
    read_plain_file,
    read_start,
)
from flowkit.errors import RecordError
from flowkit.records import formats, zips
from flowkit.records.layout import FORMATS, first_number
from flowkit.records.sidecar import parse_sidecar
from flowkit.series import Direction
from flowkit.stores.urls import Place, Url, as_place
from flowkit.video.image_folders import MAX_FRAME_MPX

KEYS = {"format", "version", "size", "frames", "fps", "request", "series"}  # keys of every sidecar
# Most bytes per px of a record's file: floats have 8, colors as JPEG 6 at most
MOST_BYTES_PER_PX = 16
MOST_HEADER = 1 << 16  # bytes of a file before its pixels


@dataclass(frozen=True)
class StoredSeries:
    """One series of fields in a record, as its sidecar describes it."""

    direction: Direction
    step: int
    count: int
    files: dict[str, str]  # component -> printf template of the file's path from the sidecar
    ranges: np.ndarray | None  # float64 (count, 2, 2): lo and hi in px of x and of y


@dataclass(frozen=True)
class Record:
    """A finished flow record, open for reading; light, picklable, safe in forked workers.

    No file stays open. `size` is (H, W) of fields and frames, `fps` that of the video (None where
    it is unknown), `frame_count` the frames of the video, whether stored or not. Fields are read as
    float32 (length, H, W, 2) in px, frames as uint8 (H, W, 3).
    """

    path: Place
    size: tuple[int, int]
    fps: float | None
    frame_count: int
    format: str
    series: tuple[StoredSeries, ...]
    images: str | None  # printf template of the frames' files, None where they are not stored
    places: dict[str, np.ndarray] | None = field(repr=False, default=None, compare=False)
    # In a pack: template -> int64 (files, 4), a zips.Place a row; 20 times smaller than a ZipFile.
    numbers: dict[str, int] = field(repr=False, default_factory=dict, compare=False)
    # Template -> number of file 0, where that is not 1

    def __repr__(self) -> str:
        height, width = self.size
        series = ", ".join(f"{one.count} {one.direction} step {one.step}" for one in self.series)
        frames = f"{self.frame_count} frames {width}x{height}"
        return f"Record({str(self.path)!r}, {frames}, fields: {series}, {self.format})"

    @property
    def name(self) -> str:
        """The last part of the record's place, without ``.zip``."""
        return self.path.stem if self.places is not None else self.path.name

    @property
    def sidecar(self) -> dict[str, Any]:
        """``record.json`` as it is on disk, read again."""
        return read_sidecar(self.path)

    @property
    def has_frames(self) -> bool:
        """Whether the frames are stored beside the fields."""
        return self.images is not None

    @property
    def directions(self) -> tuple[Direction, ...]:
        """("forward",) or ("forward", "backward")."""
        return tuple(dict.fromkeys(one.direction for one in self.series))

    @property
    def steps(self) -> tuple[int, ...]:
        """The frame steps that fields were computed over, the first one asked for first."""
        return tuple(dict.fromkeys(one.step for one in self.series))

    def find_series(
        self, direction: Direction = "forward", step: int | None = None
    ) -> StoredSeries:
        """The stored series of a direction and step (None: the record's first step).

        RecordError, which says what there is, where it is not stored.
        """
        step = self.steps[0] if step is None else step
        for one in self.series:
            if (one.direction, one.step) == (direction, step):
                return one
        there = ", ".join(f"{one.direction} step {one.step}" for one in self.series)
        wanted = sorted({*self.steps, step})
        steps = "" if wanted == [1] else "".join(f" --step {one}" for one in wanted)
        backward = " --backward" if direction == "backward" else ""
        raise RecordError(
            f"{self.path}: holds no {direction} fields of step {step}; it has: {there}: "
            f"flowkit extract{backward}{steps} makes them"
        )

    def field_count(self, direction: Direction = "forward", step: int | None = None) -> int:
        """How many fields a series has, the frames less the step; RecordError if it has none."""
        return self.find_series(direction, step).count

    def fields(
        self,
        start: int,
        length: int,
        *,
        direction: Direction = "forward",
        step: int | None = None,
    ) -> np.ndarray:
        """Fields `start` to `start + length - 1` of a series: float32 (length, H, W, 2) in px.

        Forward field i moves frame i to frame i + step, backward field i frame i + step to frame i.
        RecordError where the series is not stored, ends too soon, or a file is damaged.
        """
        series = self.find_series(direction, step)
        if length < 1 or start < 0 or start + length > series.count:
            raise RecordError(
                f"{self.path}: expected fields within 0..{series.count - 1}, "
                f"asked for {length} from {start}"
            )
        files = self.read_fields(series, list(range(start, start + length)))
        fields = np.empty((length, *self.size, 2), np.float32)
        for k, (data, where) in enumerate(files):
            ranges = None if series.ranges is None else series.ranges[start + k]
            fields[k] = formats.decode_field(data, self.format, self.size, ranges, where=where)
        return fields

    def read_fields(
        self, series: StoredSeries, indices: Sequence[int]
    ) -> list[tuple[Sequence[formats.Data], list[str]]]:
        """The bytes of the files of each field of a series, and how errors name each file."""
        templates = tuple(series.files.values())
        wanted = [(template, index) for index in indices for template in templates]
        files = self.read(wanted)
        names = [f"{self.path}: {self.file_name(*one)}" for one in wanted]
        of_each = len(templates)
        return [
            (files[k : k + of_each], names[k : k + of_each]) for k in range(0, len(wanted), of_each)
        ]

    def frame(self, index: int) -> np.ndarray:
        """Frame `index` (from 0) as it is stored: uint8 (H, W, 3) BGR; errors as of `frames`."""
        return self.frames([index])[0]

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The frames `indices` (from 0) as they are stored, each uint8 (H, W, 3) BGR.

        RecordError where frames are not stored, there is none of a number, or a file is damaged.
        """
        images = self.images
        if images is None:
            raise RecordError(f"{self.path}: holds no frames: flowkit extract --rgb stores them")
        for index in indices:
            if not 0 <= index < self.frame_count:
                raise RecordError(
                    f"{self.path}: expected a frame within 0..{self.frame_count - 1}, "
                    f"asked for {index}"
                )
        files = self.read([(images, index) for index in indices])
        names = [f"{self.path}: {self.file_name(images, index)}" for index in indices]
        return [
            formats.decode_picture(data, self.size, where=where)
            for data, where in zip(files, names, strict=True)
        ]

    def file_name(self, template: str, index: int) -> str:
        """The name of file `index`, from 0, of a template."""
        return template % (index + self.numbers.get(template, 1))

    def read(self, wanted: Sequence[tuple[str, int]]) -> Sequence[formats.Data]:
        """The bytes of files, each named by its template and its index from 0.

        Those of a pack come by one read of all that are neighbors; their checksums are compared.
        """
        most = MOST_BYTES_PER_PX * self.size[0] * self.size[1] + MOST_HEADER
        if self.places is None:
            return [_read_file(f"{self.path}/{self.file_name(*one)}", most) for one in wanted]
        places = [self.places[template][index].tolist() for template, index in wanted]
        names = [self.file_name(*one) for one in wanted]
        return zips.read_members(self.path, list(zip(names, places, strict=True)), most=most)


def open_record(
    path: str | os.PathLike[str] | Url, *, max_frame_mpx: float = MAX_FRAME_MPX
) -> Record:
    """Open the record at `path`: a folder with its sidecar, or a pack (``.zip`` may be left out).

    An address in a store is that of a pack, of which ranges are read.

    RecordError if there is none, it is not finished, a later version of flowkit wrote it, or its
    fields have more than `max_frame_mpx` megapixels.
    """
    path = as_place(path)
    if not _is_dir(path) and path.suffix != ".zip":
        path = path.with_name(path.name + ".zip")
    if isinstance(path, Path) and not path.exists():
        raise RecordError(f"{path}: no flow record there: flowkit extract makes one", absent=True)
    members = None if _is_dir(path) else zips.list_members(path)
    sidecar = parse_sidecar(_sidecar_bytes(path, members), path)
    size = (sidecar["size"][0], sidecar["size"][1])
    check_frame_size(f"{path}: {SIDECAR}", size, max_frame_mpx)
    series = tuple(
        StoredSeries(
            direction=one["direction"],
            step=one["step"],
            count=one["fields"],
            files=one["files"],
            ranges=None if one.get("ranges") is None else np.array(one["ranges"], np.float64),
        )
        for one in sidecar["series"]
    )
    counts = {template: one.count for one in series for template in one.files.values()}
    if sidecar["images"] is not None:
        counts[sidecar["images"]] = sidecar["frames"]
    return Record(
        path=path,
        size=size,
        fps=sidecar["fps"],
        frame_count=sidecar["frames"],
        format=sidecar["request"]["format"],
        series=series,
        images=sidecar["images"],
        places=None if members is None else _places(path, members, counts),
        numbers={
            template: number
            for template in counts
            if (number := first_number(template, sidecar["request"].get("layout", "flowkit"))) != 1
        },
    )


def _is_dir(path: Place) -> bool:
    return isinstance(path, Path) and path.is_dir()


def read_sidecar(path: Place) -> dict[str, Any]:
    """The sidecar of the record at `path`, a folder or pack; RecordError if it is unfinished."""
    return parse_sidecar(read_sidecar_bytes(path), path)


def read_sidecar_bytes(path: Place) -> bytes:
    """The bytes of the sidecar of the record at `path`, whatever they are."""
    return _sidecar_bytes(path, None if _is_dir(path) else zips.list_members(path))


def check_frame_size(where: str, size: tuple[int, int], max_frame_mpx: float) -> None:
    """RecordError if frames of `size` (H, W) have more than `max_frame_mpx` megapixels."""
    if size[0] * size[1] > max_frame_mpx * 1e6:
        raise RecordError(
            f"{where}: declares frames of {size[1]}x{size[0]} px, more than {max_frame_mpx:g} "
            "megapixels (--max-frame-mpx)"
        )


@overload
def find_records(folder: str | os.PathLike[str]) -> Iterator[Path]: ...
@overload
def find_records(folder: Place) -> Iterator[Path] | Iterator[Url]: ...
def find_records(folder: str | os.PathLike[str] | Url) -> Iterator[Path] | Iterator[Url]:
    """The paths of all records, folders and packs, at or below `folder`, in the order of names.

    Steps over what is plainly not flowkit's, as other zips are. What cannot be told is among them,
    and below an address in a store every zip, as the store lists them.
    RecordError where `folder` is not there, or neither a folder nor a pack.
    """
    place = as_place(folder)
    return _find_packs(place) if isinstance(place, Url) else _find_at(place)


def _find_packs(folder: Url) -> Iterator[Url]:
    from flowkit.stores.objects import list_objects

    if folder.suffix == ".zip":
        yield folder
        return
    for url in list_objects(folder):
        hidden = any(part.startswith(".") for part in url.relative_to(folder).parts)
        if url.suffix == ".zip" and not hidden:
            yield url


def _find_at(folder: Path) -> Iterator[Path]:
    if not folder.exists():
        raise RecordError(
            f"{folder}: no such folder of flow records: flowkit extract makes one", absent=True
        )
    if not folder.is_dir() and folder.suffix != ".zip":
        raise RecordError(f"{folder}: expected a folder of flow records or a pack (.zip)")
    if os.path.lexists(folder / SIDECAR):  # whatever it is: this folder was asked for
        yield folder
        return
    yield from _find_records(folder, frozenset())


def _find_records(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """`above` holds the real paths of the folders on the way here: a link may lead back to one."""
    if _may_be_record(folder) or (folder.suffix == ".zip" and folder.is_file()):
        yield folder
        return
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # whatever it holds: who reads it says why it cannot be read
        yield folder
        return
    for path in (folder / name for name in names):  # links to themselves are neither
        if path.suffix == ".zip" and path.is_file() and zips.may_be_pack(path):
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from _find_records(path, above | {here})


def _may_be_record(folder: Path) -> bool:
    """Whether a folder has a sidecar, however damaged: all but another program's JSON."""
    sidecar = folder / SIDECAR
    if is_record(folder) or sidecar.is_dir() or not os.path.lexists(sidecar):
        return not sidecar.is_dir() and os.path.lexists(sidecar)
    try:
        document = json.loads(read_start(sidecar)) if sidecar.is_file() else None
    except (ValueError, OSError, RecursionError):
        return True
    return not isinstance(document, dict) or len(KEYS & document.keys()) > len(KEYS) // 2


def _sidecar_bytes(path: Place, members: dict[str, zips.Place] | None) -> bytes:
    if members is None:
        return _read_file(f"{path}/{SIDECAR}", MOST_BYTES)
    if SIDECAR not in members:
        raise RecordError(f"{path}: expected a pack with {SIDECAR}, which is missing")
    [data] = zips.read_members(path, [(SIDECAR, members[SIDECAR])])
    return bytes(data)


def _places(
    path: Place, members: dict[str, zips.Place], counts: dict[str, int]
) -> dict[str, np.ndarray]:
    places = {}
    for template, count in counts.items():
        if count > len(members):
            raise RecordError(f"{path}: expected {count} of {template}, got {len(members)} members")
        names = [template % (index + 1) for index in range(count)]
        missing = [name for name in names if name not in members]
        if missing:
            raise RecordError(
                f"{path}: {len(missing)} members are missing, the first is {missing[0]}"
            )
        places[template] = np.array([members[name] for name in names], np.int64).reshape(count, 4)
    return places


def _read_file(path: str, most: int) -> bytes:
    """The bytes of a plain file of at most `most`."""
    if "/../" in path:  # "../u/VIDEO" of a VIDEO that is no folder
        path = os.path.normpath(path)
    try:
        return read_plain_file(path, most=most, error=RecordError)
    except FileNotFoundError:
        raise RecordError(f"{path}: file is missing") from None


# Keys of a record's request that tell what its flow is
FLOW_KEYS = ("method", "resize", "bound", "format", "quality")


def flow_of(record: Record) -> dict[str, Any]:
    """What of a record's making changes the values of its fields; JSON values."""
    sidecar = record.sidecar
    if "foreign" in sidecar:
        return {"foreign": sidecar["foreign"]}
    flow = {key: sidecar["request"].get(key) for key in FLOW_KEYS}
    if (source := sidecar["request"].get("converted")) is not None:
        if is_lossless(flow, source):
            flow |= source
        else:
            flow["converted"] = source
    if flow["format"] in FORMATS:
        flow["format"] = FORMATS[flow["format"]].values
    if flow["format"] != "jpg":
        flow["quality"] = None
    sampling = sidecar["request"].get("sampling", {})
    interval = {key: sampling[key] for key in ("every", "fps") if key in sampling}
    camera = sidecar["request"].get("stabilize")
    return flow | (
        ({"sampling": interval} if interval else {}) | ({"stabilize": camera} if camera else {})
    )


def is_lossless(stored: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    """Whether what was `stored` decodes to the values of the record that it was converted from.

    Both have "format" and "bound"; the record that was converted holds planes.
    """
    into = FORMATS[stored["format"]].values
    return into == "floats" or (into == "lossless planes" and stored["bound"] == source["bound"])


def common_flow(records: Sequence[Record]) -> dict[str, Any]:
    """The `flow_of` of all records; RecordError if they differ."""
    first = flow_of(records[0])
    for record in records[1:]:
        if found := differences(flow_of(record), first):
            raise RecordError(
                f"{record.path}: its flow is not that of {records[0].path}: "
                + "; ".join(text.replace("asked for", "there") for text in found)
            )
    return first
