"""What many records hold together: counts, lengths, motion, and those that are worth a look.

All of it comes from the sidecars, which say the range of each field; pixels are read on request.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import joblib
import numpy as np

from flowkit.documents import SIDECAR
from flowkit.errors import FlowkitError
from flowkit.records.reading import open_record, read_sidecar
from flowkit.records.sidecar import read_checks
from flowkit.video.image_folders import MAX_FRAME_MPX

STILL_PX = 0.5  # a video whose median field moves nothing further than this is still
FROZEN = 0.25  # share of fields in which nothing moves at all, from which frames look repeated
WILD = 0.25  # of the longer side: a median field that moves something further is suspicious
USUAL_LENGTH = 10  # fields of a stack
BINS_PER_PX, MOST_PX = 16, 256  # of the histogram of displacements
LOST = 0.01  # share of displacements that the bound which is asked for may clip
BOUNDS = (5, 10, 15, 20, 30, 40)  # px: what each would clip is told


class Pixels(NamedTuple):
    """What reading the forward fields adds: how their components are spread.

    `histogram` is int64, of |component| in bins of 1/16 px; `clipped` of them are at the `bound`,
    px, which is None for records without one.
    """

    histogram: np.ndarray
    clipped: int
    bound: float | None


@dataclass(frozen=True)
class RecordFacts:
    """What is known of one record.

    `motion` is the median over the forward fields of their largest |component|, in px, and
    `still_fields` the share of them in which nothing moves; None where ranges do not say it, which
    a fixed bound or a format of floats has none of. `bytes` and `inodes` are of the files that the
    sidecar names. `pixels` is None unless they were read.
    """

    id: str
    frames: int
    fields: int
    fps: float | None
    size: tuple[int, int]
    method: str
    stored: str
    bytes: int | None
    inodes: int
    motion: float | None
    still_fields: float | None
    damage: str | None
    pixels: Pixels | None = None

    @property
    def class_name(self) -> str:
        """The folder that the record lies in; "" where it lies in none."""
        return PurePosixPath(self.id).parent.name

    def oddities(self) -> list[str]:
        """Why the record is worth a look, in words."""
        found = []
        if self.damage:
            found.append(f"its source is damaged: {self.damage}")
        if self.fields < USUAL_LENGTH:
            found.append(f"{self.fields} fields, fewer than a stack of {USUAL_LENGTH}")
        if self.motion is not None and self.motion < STILL_PX:
            found.append(f"still: the median field moves at most {self.motion:.2g} px")
        elif self.still_fields is not None and self.still_fields >= FROZEN:
            found.append(f"nothing moves in {self.still_fields:.0%} of its fields")
        if self.motion is not None and self.motion > WILD * max(self.size):
            found.append(f"the median field moves up to {self.motion:.0f} px")
        return found


def record_facts(
    path: Path, id: str, *, pixels: bool = False, max_frame_mpx: float = MAX_FRAME_MPX
) -> RecordFacts:
    """The facts of the record at `path`; RecordError where it cannot be read.

    With `pixels` also where its fields have more than `max_frame_mpx` megapixels.
    """
    sidecar = read_sidecar(path)
    request, series = sidecar["request"], sidecar["series"]
    forward = next((one for one in series if one["direction"] == "forward"), series[0])
    bound = request.get("bound")
    largest, read = _read_pixels(path, bound, max_frame_mpx) if pixels else (None, None)
    if read is None and bound is None and forward.get("ranges"):
        largest = np.abs(forward["ranges"]).max((1, 2))  # (F, 2, 2) -> (F,)
    packed = not path.is_dir()
    files = sum(one["fields"] * len(one["files"]) for one in series)
    files += sidecar["frames"] if sidecar.get("images") is not None else 0
    scale = "" if bound is None else f", +-{bound:g} px"
    return RecordFacts(
        id=id,
        frames=sidecar["frames"],
        fields=forward["fields"],
        fps=sidecar["fps"],
        size=(sidecar["size"][0], sidecar["size"][1]),
        method=request.get("method", {"name": "unknown"})["name"]
        + (", stabilized" if "stabilize" in request else ""),
        stored=f"{request['format']}{scale}" + (", packed" if packed else ""),
        bytes=_bytes(path, sidecar),
        inodes=1 if packed else files + 2,  # the sidecar and the folder
        motion=None if largest is None else float(np.median(largest)),
        still_fields=None if largest is None else float((largest == 0).mean()),
        damage=sidecar.get("source", {}).get("damage"),
        pixels=read,
    )


def _bytes(path: Path, sidecar: dict[str, Any]) -> int | None:
    """The bytes of a record's files; None where a sidecar is too old to say the sizes."""
    if not path.is_dir():
        return path.stat().st_size
    checks = read_checks(sidecar)
    if checks is None:
        return None
    return sum(sum(one.size) for one in checks.values()) + (path / SIDECAR).stat().st_size


def _read_pixels(
    path: Path, bound: float | None, max_frame_mpx: float
) -> tuple[np.ndarray, Pixels]:
    """The largest |component| of each forward field, and the spread of all.

    Clipped is what lies within half a code of the bound.
    """
    record = open_record(path, max_frame_mpx=max_frame_mpx)
    histogram = np.zeros(MOST_PX * BINS_PER_PX, np.int64)
    limit = math.inf if bound is None else bound * (1 - 0.5 / 127)
    largest, clipped = [], 0
    for index in range(record.field_count()):
        size = np.abs(record.fields(index, 1))
        bins = np.minimum((size * BINS_PER_PX).astype(np.int64), len(histogram) - 1)
        histogram += np.bincount(bins.ravel(), minlength=len(histogram))
        largest.append(float(size.max()))
        clipped += int((size >= limit).sum())
    return np.array(largest), Pixels(histogram, clipped, bound)


def gather_facts(
    records: Sequence[tuple[str, Path]],
    *,
    workers: int = 1,
    pixels: bool = False,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> Iterator[tuple[str, RecordFacts | FlowkitError]]:
    """The facts of records, pairs of id and path, in order, or what is wrong with one."""
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size="auto")
    look = partial(_try_facts, pixels=pixels, max_frame_mpx=max_frame_mpx)
    yield from parallel(joblib.delayed(look)(id, path) for id, path in records)


def _try_facts(id: str, path: Path, **options: Any) -> tuple[str, RecordFacts | FlowkitError]:
    try:
        return id, record_facts(path, id, **options)
    except FlowkitError as error:
        return id, error


def summarize(facts: Iterable[RecordFacts]) -> dict[str, Any]:
    """All records together; JSON values, each None where nothing says it.

    Motion is in px per frame step, of the median record; `lost` is the share of displacements that
    are at the bound, `bound_1_percent` the smallest bound in px that would clip at most 1% of them,
    and `clipped_by_bound` the share that each of some bounds in px would. What a bound has clipped
    already says nothing of larger ones.
    """
    facts = list(facts)
    lengths = np.array([one.frames for one in facts])
    sizes = [one.bytes for one in facts if one.bytes is not None]
    timed = [one.frames / one.fps for one in facts if one.fps]
    read = [one.pixels for one in facts if one.pixels is not None]
    summary: dict[str, Any] = {
        "videos": len(facts),
        "frames": int(lengths.sum()),
        "fields": sum(one.fields for one in facts),
        "seconds": sum(timed) if timed else None,
        "bytes": sum(sizes) if sizes else None,
        "videos_of_unknown_bytes": len(facts) - len(sizes),
        "inodes": sum(one.inodes for one in facts),
        "methods": _counted(one.method for one in facts),
        "stored": _counted(one.stored for one in facts),
        "sizes": _counted(f"{one.size[1]}x{one.size[0]}" for one in facts),
        "lengths": {
            "shortest": int(lengths.min()),
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
        },
        "motion": _median(one.motion for one in facts),
        "classes": [
            {
                "class": name,
                "videos": len(some),
                "frames": sum(one.frames for one in some),
                "motion": _median(one.motion for one in some),
            }
            for name, some in _by_class(facts).items()
        ],
        "odd": {one.id: reasons for one in facts if (reasons := one.oddities())},
    }
    return summary | _saturation(read)


def _saturation(read: Sequence[Pixels]) -> dict[str, Any]:
    """What is at the bound, and what bounds would clip, where that is not clipped already."""
    bounded = [one for one in read if one.bound is not None]
    lost = None
    if bounded:
        total = sum(int(one.histogram.sum()) for one in bounded)
        lost = sum(one.clipped for one in bounded) / total
    if not read:
        return {"lost": lost, "bound_1_percent": None, "clipped_by_bound": {}}
    known = min((one.bound for one in bounded if one.bound), default=math.inf)  # px
    histogram = np.sum([one.histogram for one in read], axis=0)
    beyond = 1 - np.cumsum(histogram) / histogram.sum()  # share above the end of each bin
    smallest = (int((beyond <= LOST).argmax()) + 1) / BINS_PER_PX
    return {
        "lost": lost,
        "bound_1_percent": smallest if smallest < known else None,
        "clipped_by_bound": {
            str(bound): float(beyond[bound * BINS_PER_PX - 1]) for bound in BOUNDS if bound < known
        },
    }


def _by_class(facts: Iterable[RecordFacts]) -> dict[str, list[RecordFacts]]:
    found: dict[str, list[RecordFacts]] = {}
    for one in facts:
        found.setdefault(one.class_name, []).append(one)
    return dict(sorted(found.items()))


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
