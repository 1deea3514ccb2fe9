"""Track records: one .npz of columns a video, with all that says how it was made, and text."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.documents import make_folders, seal_zip, sync
from flowkit.errors import RecordError
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

    def column(self, name: str) -> np.ndarray:
        """A column of `track_dtype` by name, a row for each track; RecordError if it is damaged."""
        column = _read_member(self.path, name)
        if len(column) != self.count:
            raise RecordError(
                f"{self.path}: expected {self.count} tracks in {name}, got {len(column)}"
            )
        return column

    def tracks(self) -> np.ndarray:
        """All columns as rows of `track_dtype`, with the descriptors in the precision stored."""
        parameters = TrackParameters(**self.header["request"]["parameters"])
        precision = FLOAT32 if self.header["request"]["float32"] else FLOAT16
        rows = np.zeros(self.count, track_dtype(parameters, precision))
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
    meta = _read_member(path, META)
    try:
        header = json.loads(meta.item())
        found = (header["format"], header["version"])
        header["tracks"], header["frames"], header["size"], header["request"]["parameters"]
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{path}: is no track record ({error!r})") from error
    if found != (FORMAT, VERSION):
        raise RecordError(
            f"{path}: expected {FORMAT} of version {VERSION}, got {found[0]!r} of {found[1]!r}"
        )
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


def _read_member(path: Path, name: str) -> np.ndarray:
    try:
        # NumPy leaves a file of its own open where it is no archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive[name]
    except KeyError as error:
        raise RecordError(f"{path}: expected a track record, but it has no {name}") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{path}: cannot be read as a track record ({error})") from error
