"""Before any work: which videos still need their record, and what stands in the way."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from flowkit.documents import is_record, listed
from flowkit.errors import ReadError, RecordError, StoreError, UsageError
from flowkit.extraction.request import Request
from flowkit.records.layout import record_folder, record_parts
from flowkit.records.ownership import in_the_way
from flowkit.records.reading import find_records, read_sidecar
from flowkit.records.remote import request_differences
from flowkit.records.writing import standing_record
from flowkit.stores.urls import Place, Url
from flowkit.video.changes import source_change
from flowkit.video.sources import Source

Changed = Literal["redo", "keep", "fail"]
MOST_LOOKS = 100  # records that are looked up in a store one by one; more are listed
LOOKS_AT_ONCE = 16  # sidecars of a store that are read side by side
WAYS = "--changed redo makes it again, --changed keep takes it as it is"


def plan(
    sources: Sequence[Source],
    out: Place,
    request: Request,
    *,
    overwrite: bool = False,
    changed: Changed = "fail",
) -> list[Source]:
    """The sources whose record is still to be made: those finished as asked for are left out.

    A source that has changed since its record was made is among them, to be made again ("redo") or
    to fail by name ("fail"), or its record stays ("keep"). One whose record cannot be read fails.

    UsageError, before any work, where a record of other parameters, or a folder that holds
    anything else, stands in a record's place, where that place lies inside another record or
    around one, or where it is the source itself; and for a store unless the request is for packs.
    """
    if isinstance(out, Url):
        return _plan_in_store(sources, out, request, overwrite=overwrite, changed=changed)
    todo: list[Source] = []
    foreign: list[str] = []
    is_taken = cache(_is_taken)  # videos of a class share their folders
    different: dict[str, list[str]] = {}  # how they differ -> the records that do
    names: dict[str, Source] = {}
    for source in sources:
        place = out / record_folder(source.id, request.storage)
        twin = names.setdefault(str(place), source)
        if twin is not source:
            raise UsageError(f"{twin.path} and {source.path} would share the record {place}")
        _check_place(source, place, is_taken)
        try:
            existing = _existing(source, place, request)
        except (RecordError, ReadError) as error:  # one odd record stops no other
            if not overwrite:
                todo.append(replace(source, refusal=f"in the place of its record: {error}"))
                continue
            existing = ""
        if existing is None and place.is_dir() and (inner := next(find_records(place), None)):
            raise UsageError(
                f"{source.path}: the place of its record, {place}, holds other records, the first "
                f"{inner}: rename one, or choose another --out"
            )
        state = None if overwrite else existing
        if state is None:
            parts = record_parts(source.id, request.storage, request.series)
            strangers = in_the_way(out / parts[-1], [out / part for part in parts])
            foreign += map(str, strangers)
            todo.append(source)
        elif state:
            different.setdefault(state, []).append(str(place))
        else:
            recorded = read_sidecar(standing_record(place) or place).get("source", {})
            todo += _if_changed(source, place, recorded, changed)
    if foreign:
        raise UsageError(
            f"in the place of a record, but not written by flowkit as that record: "
            f"{listed(foreign)}; move them away, or choose another --out"
        )
    _refuse(different)
    return todo


def _check_place(source: Source, place: Path, is_taken: Callable[[Path], bool]) -> None:
    """UsageError where the record of `source` would lie in the source or in another record."""
    if _is_within(place.resolve(), source.path):
        raise UsageError(f"{source.path}: its record would be written into it; choose --out")
    if outer := next(filter(is_taken, Path(os.path.abspath(place)).parents), None):
        raise UsageError(
            f"{source.path}: its record, {place}, would lie inside the record {outer}: "
            "rename one, or choose another --out"
        )


def _refuse(different: Mapping[str, list[str]]) -> None:
    """UsageError where there are records that differ, by how they do, from what is asked for."""
    if different:
        ways = "; ".join(f"{how} ({_named(where)})" for how, where in list(different.items())[:3])
        raise UsageError(
            f"made from other parameters: {ways}; --overwrite redoes them, another --out keeps them"
        )


def _if_changed(
    source: Source, place: Place, recorded: Mapping[str, Any], changed: Changed
) -> list[Source]:
    """The source as it is to be redone or to fail, if it is another than was `recorded`."""
    if changed == "keep":
        return []
    try:
        change = source_change(source.path, recorded)
    except StoreError as error:  # it is gone, or the store does not show it
        return [replace(source, refusal=str(error).removeprefix(f"{source.path}: "))]
    if not change:
        return []
    if changed == "redo":
        return [replace(source, redo=True)]
    why = f"it has changed since {place} was made of it ({change}); {WAYS}"
    return [replace(source, refusal=why)]


def _is_within(place: Path, source: Place) -> bool:
    return place == source or source in place.parents


def _plan_in_store(
    sources: Sequence[Source], out: Url, request: Request, *, overwrite: bool, changed: Changed
) -> list[Source]:
    """`plan` for packs in a store: what stands there is listed, and looked at side by side."""
    from concurrent.futures import ThreadPoolExecutor

    from flowkit.stores.objects import is_object, list_objects

    if not request.storage.pack:
        raise UsageError(f"{out}: a store holds records as packs: --pack")
    names = {f"{record_folder(source.id, request.storage)}.zip": source for source in sources}
    standing: dict[str, Url] = {}
    if len(names) > MOST_LOOKS:
        for url in list_objects(out):
            name = str(url.relative_to(out))
            if name in names:
                standing[name] = url
    else:
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
            there = threads.map(lambda name: is_object(out / name), names)
            standing = {
                name: out / name for name, is_there in zip(names, there, strict=True) if is_there
            }
    todo: dict[str, Source] = {name: one for name, one in names.items() if name not in standing}
    different: dict[str, list[str]] = {}

    def look(name: str) -> tuple[str, dict[str, Any] | RecordError | ReadError]:
        try:
            return name, read_sidecar(standing[name])
        except (RecordError, ReadError) as error:  # one odd record stops no other
            return name, error

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as threads:
        for name, found in threads.map(look, standing):
            source, place = names[name], standing[name]
            if not isinstance(found, dict):
                todo[name] = replace(source, refusal=f"in the place of its record: {found}")
            elif overwrite:
                todo[name] = source
            elif ways := request_differences(place, found, request.identity(), pack=True):
                different.setdefault("; ".join(ways), []).append(str(place))
            else:
                for one in _if_changed(source, place, found.get("source", {}), changed):
                    todo[name] = one
    _refuse(different)
    return [todo[name] for name in names if name in todo]


def _is_taken(folder: Path) -> bool:
    """Whether a flow record is this folder, or a pack beside it that unpacks to it."""
    pack = Path(f"{folder}.zip")
    if not pack.is_file():
        return is_record(folder)
    try:
        read_sidecar(pack)
    except RecordError:
        return is_record(folder)
    return True


def take_shard(sources: Sequence[Source], index: int, count: int) -> list[Source]:
    """The `index`-th of `count` shares (from 1) of the sources, by a checksum of their ids.

    A video stays in its share whatever other videos come or go.
    """
    if not 1 <= index <= count:
        raise UsageError(f"expected a shard from 1/{count} to {count}/{count}, got {index}/{count}")
    return [
        one
        for one in sources
        if zlib.crc32(one.id.encode(errors="surrogateescape")) % count == index - 1
    ]


def slurm_shard(environ: Mapping[str, str], total: int | None = None) -> tuple[int, int]:
    """The share (index from 1, count) of this SLURM array task or, outside an array, srun task.

    Task t of an array does share t of `total`, share `total` where t is 0: so some tasks of an
    array, run again, do what they did before. Without a total the array's number of tasks is
    taken; UsageError if its numbers leave gaps, for then most of the work would be left undone.
    """
    try:
        if "SLURM_ARRAY_TASK_ID" not in environ:
            if total is not None:
                raise KeyError("SLURM_ARRAY_TASK_ID")
            return int(environ["SLURM_PROCID"]) + 1, int(environ["SLURM_NTASKS"])
        task, first, last, count = (
            int(environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
        )
        step = int(environ.get("SLURM_ARRAY_TASK_STEP", 1))
    except (KeyError, ValueError) as error:
        raise UsageError(
            "--shard slurm: expected SLURM_ARRAY_TASK_ID, _MIN, _MAX and _COUNT, or SLURM_PROCID "
            f"and SLURM_NTASKS, in the environment; {error} is missing or no number"
        ) from error
    if total is not None:
        if not total > 0 or last - first >= total:
            raise UsageError(
                f"--shard slurm/{total}: expected tasks of one array of {total}, got tasks from "
                f"{first} to {last}"
            )
        return (task - 1) % total + 1, total
    if (last - first) // step + 1 != count:
        raise UsageError(
            f"--shard slurm: expected an array of tasks without gaps, got {count} from {first} to "
            f"{last}: to run some tasks of an array of N again, give --shard slurm/N"
        )
    return ((task - 1) % count if step == 1 else (task - first) // step) + 1, count


def _existing(source: Source, place: Path, request: Request) -> str | None:
    """None: no record at `place`; "": the one asked for; else how it differs.

    RecordError where what stands there is none that this flowkit can read.
    """
    standing = standing_record(place)
    if standing is None:
        return None
    sidecar = read_sidecar(standing)
    try:
        found = request_differences(
            standing, sidecar, request.identity(), pack=request.storage.pack
        )
    except (KeyError, TypeError) as error:
        return f"unreadable ({error})"
    return "; ".join(found)


def _named(paths: list[str]) -> str:
    """A count of paths and the first of them: "53 records, first flow/jump/a"."""
    return paths[0] if len(paths) == 1 else f"{len(paths)} of them, the first {paths[0]}"
