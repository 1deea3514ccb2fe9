"""Packs from records' folders and back; what is replaced goes when its successor is safe."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

from flowkit.documents import listed, read_plain_file, sync, sync_all
from flowkit.errors import RecordError
from flowkit.records import zips
from flowkit.records.copies import scratch_folder
from flowkit.records.ownership import claim_of, move_away, one_at_a_time
from flowkit.records.reading import SIDECAR, Record, open_record, read_sidecar
from flowkit.records.unfinished import WorkFolder, remove_dead
from flowkit.stores.urls import Url


def pack_record(folder: Path) -> Path:
    """Turn a record's folder into a pack beside it, without recomputing; returns the pack's path.

    The folder goes when the pack is on the disk and has been read back. RecordError if a file is
    missing, or one is there that the sidecar does not name.
    """
    files = _checked_files(folder)
    pack = folder.with_name(folder.name + ".zip")
    remove_dead(folder.parent)
    with one_at_a_time(folder.parent), WorkFolder(folder.parent) as work:
        if not pack.exists():  # a pack that is there was stopped before its last step
            zips.write_pack(work.path / "pack", files)
            sync(work.path / "pack")
            _expect_alike(work.path / "pack", files)
            (work.path / "pack").rename(pack)
            sync(pack.parent)
        else:
            _expect_alike(pack, files)
        move_away([folder], work.path)
        sync(folder.parent)
    return pack


def put_record(path: Path, target: Url) -> bool:
    """Put a record of this machine, a folder or a pack, into a store as a pack; it stays here, too.

    Returns False where the same record is there already. RecordError as of `pack_record`, and where
    another record, or anything else, is there.
    """
    from flowkit.records.remote import put_pack

    with WorkFolder(scratch_folder(target.access)) as work:
        pack = path
        if path.is_dir():
            pack = work.path / "pack.zip"
            zips.write_pack(pack, _checked_files(path))
        return put_pack(pack, target, read_sidecar(path))


def unpack_record(pack: Path) -> Path:
    """Turn a pack into a folder of the same files beside it; returns the folder's path.

    The pack goes when the folder is on the disk and has been read back.
    """
    members = zips.list_members(pack)
    open_record(pack, max_frame_mpx=math.inf)
    if any(PurePosixPath(name).name != name for name in members):
        raise RecordError(f"{pack}: a member's name holds a folder; expected plain file names")
    claim_of(pack)
    folder = pack.with_suffix("")
    remove_dead(pack.parent)
    with one_at_a_time(pack.parent), WorkFolder(pack.parent) as work:
        if not folder.exists():  # a pack that is there was stopped before its last step
            part = work.path / "folder"
            part.mkdir()
            for name, place in members.items():
                [data] = zips.read_members(pack, [(name, place)])
                (part / name).write_bytes(data)
                work.beat()
            sync_all(part)
            _expect_alike(pack, [(name, part / name) for name in members])
            part.rename(folder)
            sync(folder.parent)
        else:
            _expect_alike(pack, [(entry.name, entry) for entry in folder.iterdir()])
        move_away([pack], work.path)
        sync(pack.parent)
    return folder


def _checked_files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a record's folder as a pack has them; RecordError if there are others."""
    record = open_record(folder, max_frame_mpx=math.inf)
    files = member_files(record)
    expected = {name for name, _ in files}
    if record.sidecar["request"].get("layout", "flowkit") != "flowkit":
        raise RecordError(f"{folder}: a record in another layout than flowkit's cannot be packed")
    found = set(os.listdir(folder))
    if found != expected:
        odd = listed(sorted(found ^ expected))
        raise RecordError(f"{folder}: files missing or not the record's own: {odd}")
    return files


def member_files(record: Record) -> list[tuple[str, Path]]:
    """The files of a record in the order of a pack: by time, as `RecordWriter` has it."""
    counts = {} if record.images is None else {record.images: record.frame_count}
    counts |= {template: one.count for one in record.series for template in one.files.values()}
    names = [
        record.file_name(template, index)
        for index in range(max(counts.values()))
        for template, count in counts.items()
        if index < count
    ]
    return [(name, Path(f"{record.path}/{name}")) for name in [*names, SIDECAR]]


def _expect_alike(pack: Path, files: list[tuple[str, Path]]) -> None:
    """RecordError unless a pack has these files, byte by byte, and no other ones."""
    members = zips.list_members(pack)
    if members.keys() != {name for name, _ in files}:
        raise RecordError(f"{pack}: is there already, with other files; move it away first")
    for name, file in files:
        [data] = zips.read_members(pack, [(name, members[name])])
        if data != read_plain_file(file, error=RecordError):
            raise RecordError(f"{pack}: is there already, with another {name}; move it away first")
