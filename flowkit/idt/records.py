"""Track records: one .npz of columns a video, with all that says how it was made, and text."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.documents import (
    NPY_ERRORS,
    ZIP_ERRORS,
    make_folders,
    open_plain_file,
    parse_document,
    seal_zip,
    short,
    sync,
)
from flowkit.errors import RecordError, UsageError
from flowkit.idt.parameters import TrackParameters
from flowkit.idt.tracking import FLOAT16, FLOAT32, track_dtype
from flowkit.records.unfinished import WorkFolder

FORMAT, VERSION = "flowkit tracks", 1
SUFFIX, TEXT_SUFFIX = ".npz", ".txt"
META = "meta"  # the member that holds the header, as JSON
DESCRIPTORS = ("trajectory", "hog", "hof", "mbhx", "mbhy")
LAST_PART = np.float32(0.999)  # largest relative position in the authors' text
TEXT_LINE_BYTES = 1 << 20  # more than any line has
TEXT_ROWS = 1024  # rows of text that are formatted at once
MOST_NUMBERS = 1 << 20  # of all descriptors of a track, which have 426 by default


def record_path(out: Path, id: str) -> Path:
    """Where the record of a source lies below `out`."""
    return out / f"{id}{SUFFIX}"


class TrackWriter:
    """Writes one record: tracks as they come, then `commit`; a context manager.

    Until `commit` nothing is in the record's place; leaving the context removes what was written.
    The rows wait in a file, so that a long video needs no memory. `owner`: see `WorkFolder`.
    """

    def __init__(
        self,
        out: Path,
        id: str,
        parameters: TrackParameters,
        *,
        float32: bool,
        text: bool,
        owner: str = "",
    ) -> None:
        self.work = WorkFolder(out, owner)
        self.temporary = self.work.path
        self.out, self.id, self.text = out, id, text
        self.dtype = track_dtype(parameters, FLOAT32 if float32 else FLOAT16)
        self.exact = track_dtype(parameters)
        self.count = 0

    def __enter__(self) -> TrackWriter:
        self.work.__enter__()
        self.files = [(self.temporary / "rows").open("wb")]
        if self.text:
            self.files.append((self.temporary / "exact").open("wb"))
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self.files:
            file.close()
        self.work.__exit__(*exc)

    def add(self, tracks: np.ndarray) -> None:
        """Take more tracks, rows of `track_dtype` in float32."""
        self.count += len(tracks)
        for file, dtype in zip(self.files, (self.dtype, self.exact), strict=False):
            file.write(tracks.astype(dtype).tobytes())
        self.work.beat()

    def commit(self, header: dict[str, Any], *, overwrite: bool = False) -> bool:
        """Write the columns and the header, whose "size" (H, W) and "frames" the text needs.

        Returns False where another run has finished this record meanwhile: theirs stays.
        """
        for file in self.files:
            file.close()
        header = {"format": FORMAT, "version": VERSION, **header, "tracks": self.count}
        place = record_path(self.out, self.id)
        rows = _rows(self.temporary / "rows", self.dtype)
        columns = {name: rows[name] for name in rows.dtype.names or ()}
        meta = np.array(json.dumps(header, allow_nan=False))
        with (self.temporary / "record").open("wb") as file:
            np.savez(file, allow_pickle=False, **columns, **{META: meta})  # type: ignore[arg-type]
        seal_zip(self.temporary / "record")
        if place.exists() and not overwrite:
            return False
        make_folders(place.parent)
        if self.text:
            with (self.temporary / "text").open("w", encoding="ascii") as text:
                exact = _rows(self.temporary / "exact", self.exact)
                text.writelines(text_lines(exact, header["size"], header["frames"]))
            _move(self.temporary / "text", place.with_suffix(TEXT_SUFFIX))
        _move(self.temporary / "record", place)
        return True


@dataclass(frozen=True)
class TrackRecord:
    """A record on disk: its header, and its columns as they are asked for."""

    path: Path
    header: dict[str, Any]

    @property
    def count(self) -> int:
        """The tracks in it."""
        return self.header["tracks"]

    @property
    def dtype(self) -> np.dtype:
        """A track as a row, with the descriptors in the precision stored."""
        request = self.header["request"]
        parameters = TrackParameters(**request["parameters"])
        return track_dtype(parameters, FLOAT32 if request["float32"] else FLOAT16)

    def column(self, name: str) -> np.ndarray:
        """A column of `track_dtype` by name, a row for each track; RecordError if it is damaged."""
        column, (kind, shape) = _read_member(self.path, name), _kind_and_shape(self.dtype[name])
        if (column.dtype, column.shape) != (kind, (self.count, *shape)):
            raise RecordError(
                f"{self.path}: expected {kind} {(self.count, *shape)} in {name}, "
                f"got {column.dtype} {column.shape}"
            )
        return column

    def tracks(self) -> np.ndarray:
        """All columns as rows of `track_dtype`, with the descriptors in the precision stored."""
        rows = np.zeros(self.count, self.dtype)
        for name in rows.dtype.names or ():
            rows[name] = self.column(name)
        return rows


def open_tracks(path: str | os.PathLike[str]) -> TrackRecord:
    """Open the record at `path`; RecordError, a line that says what is wrong, if it is none."""
    path = Path(path)
    if not path.is_file():
        raise RecordError(
            f"{path}: no track record there: flowkit trajectories makes them", absent=True
        )
    text = _read_member(path, META)
    if text.dtype.kind != "U" or text.shape != ():
        raise RecordError(f"{path}: expected a header in one text, got {text.dtype} {text.shape}")
    header = parse_document(
        text.item().encode(errors="replace"),
        FORMAT,
        VERSION,
        where=str(path),
        error=RecordError,
        maker="flowkit trajectories",
    )
    _check_header(path, header)
    return TrackRecord(path, header)


def find_tracks(root: Path) -> dict[str, Path]:
    """The place of every record below a folder, by id, in the order of ids; RecordError if none."""
    found = {
        place.relative_to(root).as_posix().removesuffix(SUFFIX): place
        for place in sorted(root.rglob(f"*{SUFFIX}"))
        if not any(part.startswith(".") for part in place.relative_to(root).parts)
    }
    if not found:
        raise RecordError(
            f"{root}: no track records there: flowkit trajectories makes them",
            absent=not root.exists(),
        )
    return found


def text_lines(tracks: np.ndarray, size: tuple[int, int], frames: int) -> Iterator[str]:
    """The lines that the authors' program prints for tracks, rows of `track_dtype` in float32.

    `size` is (H, W) of the video, `frames` their number. A line is 10 numbers (frame, mean x and y,
    deviation x and y, length, scale, and the place along x, y and time from 0 to 0.999), then the
    trajectory and the descriptors, each number followed by a tab.
    """
    if not len(tracks):
        return
    height, width = size
    numbers = sum(tracks.dtype[name].shape[0] for name in DESCRIPTORS[1:])
    steps = tracks.dtype["trajectory"].shape[0] // 2
    line = "%d\t" + "%f\t" * (9 + 2 * steps) + "%.7f\t" * numbers + "\n"
    for first in range(0, len(tracks), TEXT_ROWS):
        rows = tracks[first : first + TEXT_ROWS]
        middle = (rows["frame"] - steps / 2) / frames
        places = np.column_stack([rows["mean"] / np.array([width, height], np.float32), middle])
        table = np.column_stack(
            [
                rows["frame"],
                rows["mean"],
                rows["deviation"],
                rows["length"],
                rows["scale"],
                places.astype(np.float32).clip(0, LAST_PART),
                *(rows[name] for name in DESCRIPTORS),
            ]
        )
        yield from (line % tuple(row) for row in table.tolist())


def is_text(path: Path, parameters: TrackParameters) -> bool:
    """Whether nothing is at `path`, or a file whose first line `text_lines` may have written."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        line = file.readline(TEXT_LINE_BYTES)
    columns = 10 + sum(parameters.widths.values())
    return not line or (line.count(b"\t") == columns and not line.strip(b"0123456789.-\t\n"))


def _move(made: Path, place: Path) -> None:
    """Put a finished file in its place in one step, on the disk before and after."""
    sync(made)
    made.replace(place)
    sync(place.parent)


def _rows(path: Path, dtype: np.dtype) -> np.ndarray:
    """The rows in a file, left there; none, too, which no memory map can be of."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def _check_header(path: Path, header: dict[str, Any]) -> None:
    """RecordError unless a header has what readers take from it, of its type and size."""

    def expect(what: str, fits: bool, value: object) -> None:
        if not fits:
            raise RecordError(f"{path}: {what} of a track record cannot be {short(value)}")

    for name in ("tracks", "frames"):
        value = header.get(name)
        expect(name, type(value) is int and 0 <= value < 1 << 40, value)
    size, fps, request = (header.get(name) for name in ("size", "fps", "request"))
    sides = size if isinstance(size, list) else ()
    expect("size", len(sides) == 2 and all(type(s) is int and 0 < s < 1 << 20 for s in sides), size)
    expect("fps", fps is None or (type(fps) in (int, float) and 0 < fps < 1e9), fps)
    expect("source", isinstance(header.get("source", {}), dict), header.get("source"))
    expect("request", isinstance(request, dict), request)
    assert isinstance(request, dict)
    parameters, float32 = request.get("parameters"), request.get("float32")
    expect("float32", type(float32) is bool, float32)
    expect("keep_damaged", type(request.get("keep_damaged", False)) is bool, request)
    expect("parameters", isinstance(parameters, dict), parameters)
    try:
        widths = TrackParameters(**(parameters or {})).widths
    except (UsageError, TypeError) as error:
        raise RecordError(f"{path}: no parameters of a track record ({error})") from error
    expect("parameters", sum(widths.values()) <= MOST_NUMBERS, parameters)


def _kind_and_shape(dtype: np.dtype) -> tuple[np.dtype, tuple[int, ...]]:
    return dtype.subdtype or (dtype, ())


def _read_member(path: Path, name: str) -> np.ndarray:
    """A member of the .npz file, which is stored as it is: no more is read than the file has."""
    try:
        with open_plain_file(path, error=RecordError) as file, zipfile.ZipFile(file) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its members are compressed")
            with archive.open(member) as data:
                return np.lib.format.read_array(data, allow_pickle=False)
    except KeyError as error:
        raise RecordError(f"{path}: expected a track record, but it has no {name}") from error
    except FileNotFoundError:
        raise RecordError(f"{path}: file is missing") from None
    except RecordError:
        raise
    except (*ZIP_ERRORS, *NPY_ERRORS) as error:
        reason = str(error).partition("\n")[0]
        raise RecordError(f"{path}: cannot be read as a track record ({reason})") from error
