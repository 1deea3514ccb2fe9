"""Checks finished records file by file: everything there, undamaged, and all counts agree."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import joblib
import numpy as np
from zlib_ng.zlib_ng import crc32

from flowkit.documents import SIDECAR, is_sealed, read_plain_file
from flowkit.errors import FlowkitError, ReadError, RecordError
from flowkit.records import formats, zips
from flowkit.records.copies import local_copy
from flowkit.records.ownership import UNFINISHED, claim_of, one_at_a_time, remove_record
from flowkit.records.reading import Record, check_frame_size, open_record, read_sidecar_bytes
from flowkit.records.sidecar import Checks, read_checks
from flowkit.records.unfinished import INCOMPLETE, find_work, remove_if_dead
from flowkit.stores.urls import Place, Url
from flowkit.video.image_folders import MAX_FRAME_MPX

MOST_MISSING = 1000  # files of one kind that are counted

Kind = Literal["sound", "complete", "broken", "unfinished", "in progress", "unreadable", "foreign"]
STATES = {  # states of unfinished work, in words
    "in progress": "in progress: a run is at work on it",
    "young": "unfinished: its run stopped less than 10 minutes ago, or is at work elsewhere",
    "dead": "left by a run that was stopped",
    "foreign": "not flowkit's, in the folder of its unfinished work",
}
KINDS: dict[str, Kind] = {
    "in progress": "in progress", "young": "unfinished", "dead": "unfinished", "foreign": "foreign"
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What is wrong with what lies at `path`; nothing, for an empty tuple.

    "sound": every byte is as it was written; "complete": everything is there, but not all of it was
    compared with a checksum; "broken": only doing it again can help; "unfinished": left behind half
    way; "unreadable": the disk or the system did not give it, and it may be sound; "foreign": not
    flowkit's, where its unfinished work lies.
    """

    path: Place
    problems: tuple[str, ...]
    kind: Kind = "sound"


def find_unfinished(folder: Path) -> Iterator[Verdict]:
    """What flowkit has begun below `folder` and not finished, or not yet."""
    for parent, folders, files in os.walk(folder):
        for path, state in find_work(Path(parent)) if INCOMPLETE in folders else ():
            yield Verdict(path, (STATES[state],), KINDS[state])
        if SIDECAR in files:
            folders.clear()
        elif UNFINISHED in files:
            yield _verdict_on_moved(Path(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def delete_broken(verdict: Verdict) -> str:
    """Delete what a verdict calls broken or unfinished; "" if it is gone, else why it was left.

    Looks at it once more, while no run can finish it, and leaves what is not all flowkit's.
    """
    path = verdict.path
    if isinstance(path, Url):
        return _delete_object(path)
    if path.parent.name == INCOMPLETE:
        return "" if remove_if_dead(path) else "left alone"
    try:
        with one_at_a_time(path.parent):
            again = verify_record(path)
            if again.kind == "broken":
                remove_record(path)
            elif again.problems:
                return again.problems[0]
        return ""
    except RecordError as error:
        return str(error).removeprefix(f"{path}: ")


def _delete_object(url: Url) -> str:
    """As `delete_broken`, of a pack in a store."""
    from flowkit.stores.objects import remove_object

    try:
        with local_copy(url) as copy:
            again = verify_record(copy.path)
            if again.kind != "broken":
                return again.problems[0] if again.problems else ""
            claim_of(copy.path)
        remove_object(url)
        return ""
    except (RecordError, ReadError) as error:
        return str(error).removeprefix(f"{url}: ")


def verify_record(
    path: Place, *, quick: bool = False, max_frame_mpx: float = MAX_FRAME_MPX
) -> Verdict:
    """Compare every file of the record at `path` with its checksum, and decode it.

    `quick` reads none of them: it compares names and sizes. A record from before checksums is
    decoded, and at best "complete"; so is a pack that another tool zipped. One of more
    than `max_frame_mpx` megapixels is not read. One in a store is read through a local copy.
    """
    if isinstance(path, Url) and not quick:
        return _verify_copy(path, max_frame_mpx)
    try:
        record = open_record(path, max_frame_mpx=math.inf)
        try:
            check_frame_size(str(path), record.size, max_frame_mpx)
        except RecordError as error:
            # A file that cannot be read may be as it was asked for
            return Verdict(path, (str(error),), "unreadable")
        sidecar = read_sidecar_bytes(path)
        checks = read_checks(record.sidecar)
        problems = list(_misfits(record, checks))
        if (checks is not None or b'"crc32"' in sidecar) and not is_sealed(sidecar):
            problems.append(f"{path}: {SIDECAR} has changed since it was written, by its checksum")
        compared = checks is not None and not quick
        if not quick and not problems:
            if record.places is not None:
                compared = zips.is_as_written(Path(str(path))) and compared
            problems = [*_wrong_tables(record), *_damage(record, checks)]
    except OSError as error:
        text = str(error) if isinstance(error, ReadError) else f"could not be read: {error}"
        return Verdict(path, (text,), "unreadable")
    except MemoryError:
        return Verdict(path, (f"{path}: could not be read: not enough memory",), "unreadable")
    except FlowkitError as error:
        return Verdict(path, (str(error),), "broken")
    if problems:
        return Verdict(path, tuple(problems), "broken")
    return Verdict(path, (), "sound" if compared else "complete")


def _verify_copy(url: Url, max_frame_mpx: float) -> Verdict:
    try:
        with local_copy(url) as copy:
            found = verify_record(copy.path, max_frame_mpx=max_frame_mpx)
    except OSError as error:
        return Verdict(url, (str(error),), "unreadable")
    problems = tuple(text.replace(str(copy.path), str(url)) for text in found.problems)
    return Verdict(url, problems, found.kind)


def verify_records(
    paths: Iterable[Place],
    *,
    workers: int = 1,
    quick: bool = False,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> Iterator[Verdict]:
    """A verdict on each record, in their order; `workers` threads (decoders let others run)."""
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator", prefer="threads")
    check = partial(verify_record, quick=quick, max_frame_mpx=max_frame_mpx)
    yield from parallel(joblib.delayed(check)(path) for path in paths)


def _verdict_on_moved(place: Path) -> Verdict:
    """Of a record in several folders without its sidecar: a run is just moving them, or was."""
    with one_at_a_time(place.parent):
        moved = not (place / SIDECAR).exists()
    text = "unfinished: a run was stopped while it replaced its folders"
    return Verdict(place, (text,), "unfinished") if moved else Verdict(place, ())


def _misfits(record: Record, checks: dict[str, Checks] | None) -> Iterator[str]:
    """Files that are missing, or have another size than when they were written."""
    counts = {template: one.count for one in record.series for template in one.files.values()}
    if record.images is not None:
        counts[record.images] = record.frame_count
    for template, count in counts.items():
        sizes = _file_sizes(record, template, count)
        missing = [index for index, size in enumerate(sizes) if size is None]
        if missing:
            more = len(missing) - 1 + count - len(sizes)
            yield f"{record.path}: {record.file_name(template, missing[0])}: file is missing" + (
                f", and {more:,} more of {count:,}" if more else ""
            )
        for index, size in enumerate(sizes):
            written = size if checks is None else checks[template].size[index]
            if size not in (None, written):
                name = record.file_name(template, index)
                yield (
                    f"{record.path}: {name}: damaged or truncated: {size:,} bytes, was written "
                    f"with {written:,}"
                )


def _file_sizes(record: Record, template: str, count: int) -> list[int | None]:
    """The size of each file of a template; None for a missing one, MOST_MISSING at most."""
    if record.places is not None:
        return record.places[template][:, 2].tolist()
    sizes: list[int | None] = []
    missing = 0
    for index in range(count):
        file = os.path.normpath(f"{record.path}/{record.file_name(template, index)}")
        try:
            sizes.append(os.stat(file).st_size)
        except FileNotFoundError:
            sizes.append(None)
            missing += 1
        if missing == MOST_MISSING:
            break
    return sizes


def _wrong_tables(record: Record) -> Iterator[str]:
    """Files of ranges, of layout twostreamfusion, that do not say what the sidecar says."""
    for one in record.series:
        x = one.files.get("x", "")
        if one.ranges is None or not x.startswith("../../u"):
            continue
        folder = Path(os.path.normpath(f"{record.path}/{record.file_name(x, 0)}")).parent
        table = folder.with_name(folder.name + ".bin")
        try:
            found = read_plain_file(table, error=RecordError)
        except FileNotFoundError:
            yield f"{table}: file is missing"
            continue
        if found != one.ranges.astype("<f4").tobytes():
            yield f"{table}: other ranges than in {SIDECAR}"


def _damage(record: Record, checks: dict[str, Checks] | None) -> Iterator[str]:
    """Files that differ from their checksums or do not decode."""
    for one in record.series:
        templates = list(one.files.values())
        for index in range(one.count):
            try:
                [(files, where)] = record.read_fields(one, [index])
                _compare(files, templates, index, checks, where)
                ranges = None if one.ranges is None else one.ranges[index]
                field = formats.decode_field(files, record.format, record.size, ranges, where=where)
                if not np.isfinite(field).all():
                    yield f"{where[0]}: NaN or infinity in a field"
            except (RecordError, ValueError) as error:
                yield str(error)
    for index in range(record.frame_count if record.images else 0):
        assert record.images is not None
        where = [f"{record.path}: {record.file_name(record.images, index)}"]
        try:
            files = record.read([(record.images, index)])
            _compare(files, [record.images], index, checks, where)
            formats.decode_picture(files[0], record.size, where=where[0])
        except RecordError as error:
            yield str(error)


def _compare(
    files: Sequence[formats.Data],
    templates: Sequence[str],
    index: int,
    checks: dict[str, Checks] | None,
    where: Sequence[str],
) -> None:
    """RecordError where the bytes of a file differ from its checksum."""
    for data, template, name in zip(files, templates, where, strict=True):
        if checks is not None and crc32(data) != checks[template].crc32[index]:
            raise RecordError(f"{name}: damaged: its checksum does not agree")
