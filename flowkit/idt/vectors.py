"""Track records to Fisher vectors on disk: the codebooks of a split, and a file per video."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.data.origins import Origin
from flowkit.data.splits import Split
from flowkit.documents import differences, short
from flowkit.errors import RecordError, UsageError
from flowkit.idt.fisher import Codebook, fit_codebook
from flowkit.idt.records import DESCRIPTORS, SUFFIX, TrackRecord, open_tracks
from flowkit.scores.npz import read_arrays, write_arrays
from flowkit.workers.engine import Done, Failed
from flowkit.workers.pool import run_pool

CODEBOOK_FORMAT, VECTOR_FORMAT, VERSION = "flowkit fisher codebook", "flowkit fisher vector", 1
CODEBOOK = "codebook.npz"  # the codebook's file in the folder of the vectors
PARTS = ("mean", "components", "weights", "means", "variances")

log = logging.getLogger("flowkit")


@dataclass(frozen=True, eq=False)
class Codebooks:
    """The codebook of each descriptor, and what they were fitted on.

    `videos` are ids, `groups` "class: source group" of those; `parameters` are the tracks'.
    """

    books: Mapping[str, Codebook]
    parameters: dict[str, Any]
    split: str
    videos: tuple[str, ...]
    groups: tuple[str, ...]
    gaussians: int
    sample: int
    seed: int

    @property
    def length(self) -> int:
        """The numbers of a vector."""
        return sum(2 * book.means.size for book in self.books.values())

    @property
    def origin(self) -> Origin:
        """The videos that it was fitted on, as weights of a network name theirs."""
        return origin_of_groups(self.groups)

    @property
    def about(self) -> str:
        """What a scores file says of the features."""
        return f"improved dense trajectories, Fisher vectors of {self.gaussians} Gaussians"

    @property
    def digest(self) -> str:
        """A number of what changes vectors."""
        digest = hashlib.sha256()
        for name, book in self.books.items():
            for part in PARTS:
                digest.update(name.encode() + np.ascontiguousarray(getattr(book, part)).tobytes())
        return digest.hexdigest()[:16]

    def encode(self, record: TrackRecord) -> np.ndarray:
        """The Fisher vector of a video: float32 (length,), zero where it has no tracks.

        Each descriptor's part is of length 1. RecordError for tracks of other parameters.
        """
        self.check(record)
        if not record.count:
            return np.zeros(self.length, np.float32)
        return np.concatenate(
            [book.encode(record.column(name)) for name, book in self.books.items()]
        )

    def check(self, record: TrackRecord) -> None:
        """Raise RecordError where the record's tracks are not what the codebooks are for."""
        found = differences(record.header["request"]["parameters"], self.parameters)
        if found:
            raise RecordError(
                f"{record.path}: its tracks are of other parameters than the codebook's: "
                f"{'; '.join(found)}"
            )


def origin_of_groups(said: Iterable[str]) -> Origin:
    """The origin of what was fitted on groups that are told as "class: source group"."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for one in said:
        class_name, _, group = one.partition(": ")
        found.setdefault(class_name, {})[group] = ()
    return Origin(found)


def fit_codebooks(
    split: Split,
    records: Mapping[str, Path],
    *,
    gaussians: int = 256,
    sample: int = 256_000,
    seed: int = 0,
    report: Callable[[str], None] = lambda done: None,
) -> Codebooks:
    """Fit to tracks of the training part of a split, `sample` of all, each as likely as another.

    `records` are the places of track records by the ids of training videos. `report` is told what
    is done. Nothing of the held-out and test parts is looked at.
    """
    train = [video for video in split.train if video.id in records]
    opened = [open_tracks(records[video.id]) for video in train]
    rows = _choose_rows([record.count for record in opened], sample, seed)
    with_tracks = [(record, own) for record, own in zip(opened, rows, strict=True) if len(own)]
    if not with_tracks:
        raise UsageError(f"{split.name}: no track in the {len(train)} videos of its training part")
    first = opened[0]
    parameters = first.header["request"]["parameters"]
    report(f"{sum(map(len, rows)):,} of {sum(one.count for one in opened):,} tracks chosen")
    found = Codebooks(
        {},
        parameters,
        split.name,
        tuple(video.id for video in train),
        tuple(sorted({f"{video.class_name}: {video.group}" for video in train})),
        gaussians,
        sample,
        seed,
    )
    books = {}
    for record in opened:
        found.check(record)
    for name in DESCRIPTORS:
        chosen = [record.column(name)[own].astype(np.float32) for record, own in with_tracks]
        books[name] = fit_codebook(np.concatenate(chosen), gaussians, seed=seed)
        report(f"{name}: {books[name].components.shape[1]} numbers, {gaussians} Gaussians")
    return Codebooks(**{**found.__dict__, "books": books})


def write_codebooks(path: Path, found: Codebooks) -> None:
    """Write codebooks to an .npz file; replaces what is there in one step."""
    arrays = {
        f"{name}_{part}": getattr(book, part)
        for name, book in found.books.items()
        for part in PARTS
    }
    names = ("parameters", "split", "gaussians", "sample", "seed")
    write_arrays(
        path,
        {**arrays, "videos": np.array(found.videos), "groups": np.array(found.groups)},
        {
            "format": CODEBOOK_FORMAT,
            "version": VERSION,
            "descriptors": list(found.books),
            **{name: getattr(found, name) for name in names},
        },
    )


def read_codebooks(path: Path) -> Codebooks:
    """Read what `write_codebooks` wrote; an error of one line if it is anything else."""
    wanted = {f"{name}_{part}": "numbers" for name in DESCRIPTORS for part in PARTS}
    arrays, meta = read_arrays(
        path,
        {**wanted, "videos": "text", "groups": "text"},
        optional={},
        maker="flowkit fisher fit",
    )
    told = {"parameters": dict, "split": str, "gaussians": int, "sample": int, "seed": int}
    check_told(path, meta, CODEBOOK_FORMAT, told)
    books = {name: Codebook(*(arrays[f"{name}_{part}"] for part in PARTS)) for name in DESCRIPTORS}
    for name, book in books.items():
        _check_book(path, name, book)
    return Codebooks(
        books,
        videos=tuple(arrays["videos"].ravel().tolist()),
        groups=tuple(arrays["groups"].ravel().tolist()),
        **{name: meta[name] for name in told},
    )


def check_told(path: Path, meta: Mapping[str, Any], format: str, told: Mapping[str, type]) -> None:
    """RecordError unless the `meta` of the file at `path` is of a format, and tells all of `told`.

    `told` are names, each with the type of what is told under it.
    """
    if (meta.get("format"), meta.get("version")) != (format, VERSION):
        raise RecordError(f"{path}: expected a {format} of version {VERSION}")
    for name, kind in told.items():
        if type(meta.get(name)) is not kind:
            raise RecordError(f"{path}: {name} of a {format} cannot be {short(meta.get(name))}")


def _check_book(path: Path, name: str, book: Codebook) -> None:
    """RecordError unless the arrays of a codebook fit each other and are finite."""
    gaussians, numbers = book.weights.shape[:1], book.components.shape[:1]
    wanted = {
        "mean": book.components.shape[1:2],
        "components": (*numbers, *book.mean.shape[:1]),
        "weights": gaussians,
        "means": (*gaussians, *numbers),
        "variances": (*gaussians, *numbers),
    }
    for part, shape in wanted.items():
        array = getattr(book, part)
        if array.shape != shape or not np.isfinite(array).all():
            raise RecordError(
                f"{path}: expected finite numbers {shape} in {name}_{part}, got {array.shape}"
            )


@dataclass(frozen=True)
class Encoded:
    """One event of `encode_records`: a video is done, of so many tracks, or failed for a reason."""

    id: str
    tracks: int = 0
    reason: str = ""


def plan_encoding(
    records: Mapping[str, Path], out: Path, found: Codebooks, *, overwrite: bool = False
) -> list[str]:
    """The ids whose vector is still to be made; UsageError where another is in its place."""
    digest, todo, other = found.digest, [], []
    for id in records:
        place = out / f"{id}{SUFFIX}"
        if not place.exists():
            todo.append(id)
            continue
        meta = read_vector(place)[1]
        try:
            alike = (meta["codebook"], meta["record"]) == (digest, _digest_record(records[id]))
        except RecordError:  # the worker says so, and other videos go on
            todo.append(id)
            continue
        if overwrite:
            todo.append(id)
        elif not alike:
            other.append(place)
    if other:
        raise UsageError(
            f"{len(other)} vectors are of another codebook or of other tracks, first {other[0]}: "
            "--overwrite makes them again, another --out keeps them"
        )
    return todo


def encode_records(
    ids: Sequence[str], records: Mapping[str, Path], out: Path, codebook: Path, *, workers: int
) -> Iterator[Encoded]:
    """Write the vector of each video below `out`, in worker processes; a failure costs itself."""
    task = _Task(out, codebook)
    items = ((id, records[id]) for id in ids)
    with closing(run_pool(task, items, workers=workers)) as events:
        for event in events:
            match event:
                case Done():
                    yield Encoded(ids[event.index], event.result)
                case Failed():
                    id = ids[event.index]
                    log.debug("%s: %s", id, event.traceback)
                    yield Encoded(id, reason=event.reason.removeprefix(f"{records[id]}: "))


def read_vector(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """A Fisher vector, float16 (length,), and what is told of it; RecordError if it is none."""
    arrays, meta = read_arrays(
        path, {"vector": "numbers"}, optional={}, maker="flowkit fisher encode"
    )
    check_told(path, meta, VECTOR_FORMAT, {"codebook": str, "record": str})
    vector = arrays["vector"]
    if vector.ndim != 1 or vector.dtype.kind != "f":
        raise RecordError(f"{path}: expected floats in a row, got {vector.dtype} {vector.shape}")
    return vector, meta


def find_vectors(root: Path) -> dict[str, Path]:
    """The place of every vector below a folder, by id; RecordError if there is none."""
    found = {
        place.relative_to(root).as_posix().removesuffix(SUFFIX): place
        for place in sorted(root.rglob(f"*{SUFFIX}"))
        if place != root / CODEBOOK
    }
    if not found:
        raise RecordError(
            f"{root}: no Fisher vectors there: flowkit fisher encode makes them",
            absent=not root.exists(),
        )
    return found


@dataclass(frozen=True)
class _Task:
    """What a worker does with one record: picklable."""

    out: Path
    codebook: Path

    def __call__(self, item: tuple[str, Path], report: Callable[[int], None]) -> int:
        id, place = item
        found = _read_once(self.codebook)
        record = open_tracks(place)
        meta = {
            "format": VECTOR_FORMAT,
            "version": VERSION,
            "codebook": found.digest,
            "record": _digest_record(place),
            "tracks": record.count,
        }
        vector = found.encode(record).astype(np.float16)
        write_arrays(self.out / f"{id}{SUFFIX}", {"vector": vector}, meta)
        return record.count


def _digest_record(place: Path) -> str:
    """A number of a track record's header, which tells of the video and of how it was tracked."""
    header = json.dumps(open_tracks(place).header, sort_keys=True)
    return hashlib.sha256(header.encode()).hexdigest()[:16]


# The latest one that this worker read: it encodes many videos
_latest: tuple[Path, Codebooks] | None = None


def _read_once(path: Path) -> Codebooks:
    global _latest
    if _latest is None or _latest[0] != path:
        _latest = (path, read_codebooks(path))
    return _latest[1]


def _choose_rows(counts: Sequence[int], sample: int, seed: int) -> list[np.ndarray]:
    """Which rows of each record are chosen, in order: `sample` of all, or all if they are fewer."""
    total = sum(counts)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(total, min(sample, total), replace=False))
    ends = np.cumsum(counts)
    return [
        chosen[(chosen >= end - count) & (chosen < end)] - (end - count)
        for count, end in zip(counts, ends, strict=True)
    ]
