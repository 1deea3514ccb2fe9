"""Flow records to C2 vectors on disk: the prototypes of a split, and a file per video."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowkit.data.origins import Origin
from flowkit.data.splits import Split
from flowkit.documents import differences
from flowkit.errors import FlowkitError, RecordError, UsageError
from flowkit.hmax.stages import (
    SIDES,
    SPEEDS,
    Patches,
    c1,
    c2_of_fields,
    c3,
    least_side,
    make_patches,
    s1,
    s3,
    select_features,
    sequences,
)
from flowkit.idt.svm import ReadVector
from flowkit.idt.vectors import check_told, origin_of_groups
from flowkit.records.reading import Record, flow_of, open_record
from flowkit.scores.npz import read_arrays, write_arrays
from flowkit.stores.urls import Place

PROTOTYPES_FORMAT, C2_FORMAT, VERSION = "flowkit hmax prototypes", "flowkit hmax c2", 1
PROTOTYPES = "prototypes.npz"  # the prototypes' file in the folder of the vectors
SEQUENCES = 300  # prototypes of S3
SELECTION_FIELDS = 2  # of each training video, by which prototypes are selected
TRIES = 1000  # draws of a patch until one has motion in it
BATCH = 16  # fields that go through the stages at once
MAKER = "flowkit train svm --features hmax"


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What S2 matches, by side, and what it was cut from.

    `videos` are ids, `groups` "class: source group" of those; `flow` is the records' (`flow_of`),
    every `every`-th field of which is looked at. `selected` says that they were chosen by what
    tells the classes of the training part apart.
    """

    patches: tuple[Patches, ...]
    flow: dict[str, Any]
    every: int
    split: str
    videos: tuple[str, ...]
    groups: tuple[str, ...]
    seed: int
    selected: bool

    @property
    def count(self) -> int:
        """How many there are: the numbers of a C2 vector."""
        return sum(len(one.values) for one in self.patches)

    @property
    def about(self) -> str:
        """What a scores file says of the features."""
        return f"HMAX, {self.count} prototypes"

    @property
    def origin(self) -> Origin:
        """The videos that they were cut from, as weights of a network name theirs."""
        return origin_of_groups(self.groups)

    @property
    def digest(self) -> str:
        """A number of what changes C2 vectors."""
        digest = hashlib.sha256(str(self.every).encode())
        for patches in self.patches:
            digest.update(patches.values.numpy().tobytes() + patches.speeds.numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, record: Record) -> np.ndarray:
        """The C2 vectors of a record's forward fields, every `every`-th: float32 (F, P).

        RecordError for flow of another kind, and for fields too small for a prototype.
        """
        if found := differences(flow_of(record), self.flow):
            raise RecordError(
                f"{record.path}: its flow is not that of the prototypes: {'; '.join(found)}"
            )
        _check_size(record)
        places = range(0, record.field_count(), self.every)
        rows = []
        for first in range(0, len(places), BATCH):
            fields = [record.fields(place, 1) for place in places[first : first + BATCH]]
            rows.append(c2_of_fields(torch.from_numpy(np.concatenate(fields)), self.patches))
        return torch.cat(rows).numpy()


def _check_size(record: Record) -> None:
    if min(record.size) < least_side():
        raise RecordError(
            f"{record.path}: expected fields of at least {least_side()} px a side, got "
            f"{record.size[1]}x{record.size[0]}"
        )


def fit_prototypes(
    split: Split,
    records: Mapping[str, Place],
    *,
    count: int = 500,
    candidates: int | None = None,
    every: int = 1,
    seed: int = 0,
    report: Callable[[str], None] = lambda done: None,
) -> Prototypes:
    """Cut `count` prototypes at random from the C1 of the training part, as many of each side.

    `records` are the places of flow records by the ids of videos; what cannot be read is passed
    over. With more `candidates`, so many are cut, and those kept that tell the training videos'
    classes apart (`select_features`, by two fields of each). `report` is told what is done. Nothing
    of the held-out and test parts is looked at. UsageError for numbers that are not multiples of 4,
    the sides, and where nothing moves; RecordError where no record can be read.
    """
    total = count if candidates is None else candidates
    if count < len(SIDES) or count % len(SIDES) or total % len(SIDES) or total < count:
        raise UsageError(
            f"expected prototypes and candidates as multiples of {len(SIDES)}, and no fewer "
            f"candidates than prototypes, got {count} and {total}"
        )
    readable = {}
    for video in split.train:
        if video.id in records:
            with suppress(RecordError):
                readable[video] = open_record(records[video.id])
    train, opened = list(readable), list(readable.values())
    if not train:
        raise RecordError(f"{split.name}: no record of its training part that can be read")
    rng = np.random.default_rng(seed)
    patches = []
    for side in SIDES:
        cut, speeds = zip(
            *(_cut_patch(opened, side, rng) for _ in range(total // len(SIDES))), strict=True
        )
        patches.append(make_patches(cut, speeds))
        report(f"{len(cut)} prototypes of {side}x{side} cut from {len(opened)} training videos")
    found = Prototypes(
        tuple(patches),
        flow_of(opened[0]),
        every,
        split.name,
        tuple(video.id for video in train),
        tuple(sorted({f"{video.class_name}: {video.group}" for video in train})),
        seed,
        selected=total > count,
    )
    if total == count:
        return found
    rows, labels = [], []
    for record, label in zip(opened, split.labels(train), strict=True):
        for place in rng.integers(record.field_count(), size=SELECTION_FIELDS):
            with suppress(RecordError):
                rows.append(c2_of_fields(torch.from_numpy(record.fields(int(place), 1)), patches))
                labels.append(label)
    kept = select_features(torch.cat(rows).numpy(), np.array(labels), count)
    report(f"{count} of {total} prototypes selected by {len(labels)} fields")
    return Prototypes(**{**found.__dict__, "patches": tuple(_keep(patches, kept))})


def _cut_patch(
    opened: Sequence[Record], side: int, rng: np.random.Generator
) -> tuple[torch.Tensor, int]:
    """A patch of C1, (4, side, side), that is not zero throughout, and the place of its speed."""
    for _ in range(TRIES):
        record = opened[int(rng.integers(len(opened)))]
        _check_size(record)
        try:
            field = record.fields(int(rng.integers(record.field_count())), 1)
        except RecordError:  # the video is named when it is encoded
            continue
        [maps] = c1(s1(torch.from_numpy(field)))
        speed = int(rng.integers(len(SPEEDS)))
        y, x = (int(rng.integers(length - side + 1)) for length in maps.shape[2:])
        patch = maps[speed, :, y : y + side, x : x + side]
        if patch.any():
            return patch, speed
    raise UsageError(
        f"nothing moves, or can be read, in {TRIES} fields drawn from the training videos"
    )


def _keep(patches: Sequence[Patches], kept: np.ndarray) -> Iterator[Patches]:
    """Those prototypes that are at the places `kept` of all, in order."""
    first = 0
    for one in patches:
        own = torch.from_numpy(kept[(kept >= first) & (kept < first + len(one.values))] - first)
        first += len(one.values)
        if len(own):
            yield Patches(one.values[own], one.speeds[own])


def write_prototypes(path: Path, found: Prototypes) -> None:
    """Write prototypes to an .npz file; replaces what is there in one step."""
    arrays: dict[str, np.ndarray] = {}
    for one in found.patches:
        side = one.values.shape[-1]
        arrays |= {f"values_{side}": one.values.numpy(), f"speeds_{side}": one.speeds.numpy()}
    names = ("flow", "every", "split", "seed", "selected")
    write_arrays(
        path,
        {**arrays, "videos": np.array(found.videos), "groups": np.array(found.groups)},
        {
            "format": PROTOTYPES_FORMAT,
            "version": VERSION,
            **{name: getattr(found, name) for name in names},
        },
    )


def read_prototypes(path: Path) -> Prototypes:
    """Read what `write_prototypes` wrote; an error of one line if it is anything else."""
    optional = {f"{name}_{side}": "numbers" for side in SIDES for name in ("values", "speeds")}
    arrays, meta = read_arrays(
        path, {"videos": "text", "groups": "text"}, optional=optional, maker=MAKER
    )
    told = {"flow": dict, "every": int, "split": str, "seed": int, "selected": bool}
    check_told(path, meta, PROTOTYPES_FORMAT, told)
    patches = []
    for side in SIDES:
        values, speeds = (arrays.get(f"{name}_{side}") for name in ("values", "speeds"))
        if values is None or speeds is None:
            continue
        fits = values.shape == (len(speeds), 4, side, side) and np.isfinite(values).all()
        if not fits or not np.isin(speeds, range(len(SPEEDS))).all():
            raise RecordError(f"{path}: expected finite prototypes of {side}x{side} and speeds")
        patches.append(
            Patches(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(speeds))
        )
    if not patches:
        raise RecordError(f"{path}: it has no prototypes")
    return Prototypes(
        tuple(patches),
        videos=tuple(arrays["videos"].ravel().tolist()),
        groups=tuple(arrays["groups"].ravel().tolist()),
        **{name: meta[name] for name in told},
    )


def c2_path(out: Path, id: str) -> Path:
    """Where the C2 vectors of a video lie."""
    return out / f"{id}.npz"


def plan_c2(
    records: Mapping[str, Place], out: Path, found: Prototypes, *, overwrite: bool = False
) -> list[str]:
    """The ids whose vectors are still to be made; UsageError where others are in their place."""
    digest, todo, other = found.digest, [], []
    for id, record in records.items():
        place = c2_path(out, id)
        if not place.exists():
            todo.append(id)
            continue
        meta = read_c2(place)[1]
        if overwrite:
            todo.append(id)
        elif (meta["codebook"], meta["record"]) != (digest, _digest_record(open_record(record))):
            other.append(place)
    if other:
        raise UsageError(
            f"{len(other)} files of vectors are of other prototypes or of other flow, first "
            f"{other[0]}: --overwrite makes them again, another --vectors keeps them"
        )
    return todo


def encode_c2(
    ids: Sequence[str], records: Mapping[str, Place], out: Path, found: Prototypes
) -> Iterator[tuple[str, str]]:
    """Write the C2 vectors of each video below `out`; yields its id and why it failed, or ""."""
    digest = found.digest
    for id in ids:
        try:
            record = open_record(records[id])
            meta = {
                "format": C2_FORMAT,
                "version": VERSION,
                "codebook": digest,
                "record": _digest_record(record),
            }
            vectors = found.encode(record).astype(np.float16)
            write_arrays(c2_path(out, id), {"c2": vectors}, meta)
            yield id, ""
        except FlowkitError as error:
            yield id, str(error)


def _digest_record(record: Record) -> str:
    """A number of a record's sidecar, which tells of the video, its flow and its files."""
    text = json.dumps(record.sidecar, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_c2(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The C2 vectors of a video, float16 (F, P), and what is told; RecordError if it is none."""
    arrays, meta = read_arrays(path, {"c2": "numbers"}, optional={}, maker=MAKER)
    check_told(path, meta, C2_FORMAT, {"codebook": str, "record": str})
    vectors = arrays["c2"]
    if vectors.ndim != 2 or not len(vectors) or vectors.dtype.kind != "f":
        raise RecordError(f"{path}: expected vectors of frames, got {vectors.shape}")
    return vectors, meta


def read_mean_c2(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The mean of a video's C2 vectors, float32 (P,), and what is told of them.

    The margin of a linear SVM on it is the mean of the margins on its frames: their vote.
    """
    vectors, meta = read_c2(path)
    return vectors.astype(np.float32).mean(axis=0), meta


def draw_sequences(places: Sequence[Path], *, count: int = SEQUENCES, seed: int = 0) -> np.ndarray:
    """Prototypes of S3: runs of frames, float32 (count, 7 P), drawn from training videos' files."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(places), size=count)
    found = []
    for number in drawn:
        runs = sequences(read_c2(places[int(number)])[0].astype(np.float32))
        found.append(runs[int(rng.integers(len(runs)))])
    return np.stack(found)


def reader_of(features: str, train: Sequence[Path], seed: int) -> ReadVector:
    """What gives the vector of a video for "hmax" or "hmax-c3", from its file.

    `train` are the files of training videos, from which the prototypes of S3 are drawn.
    """
    if features == "hmax":
        return read_mean_c2
    return partial(read_c3, prototypes=draw_sequences(train, seed=seed))


def read_c3(path: Path, prototypes: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The C3 vector of a video by prototypes of S3, float32 (Q,), and what is told of its C2."""
    vectors, meta = read_c2(path)
    return c3(s3(vectors.astype(np.float32), prototypes)), meta
