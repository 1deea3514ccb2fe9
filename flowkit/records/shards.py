"""Records as WebDataset: tar files of bounded size, with a pack and a sidecar for each video."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from flowkit.documents import make_folders, sync
from flowkit.errors import FlowkitError, RecordError, UsageError
from flowkit.records import zips
from flowkit.records.packing import member_files
from flowkit.records.reading import open_record, read_sidecar_bytes
from flowkit.records.unfinished import WorkFolder
from flowkit.records.verify import verify_record
from flowkit.video.image_folders import MAX_FRAME_MPX

SHARD = "flow-%06d.tar"  # numbered from 0, as {000000..000012} names them
HEADERS = 4 * tarfile.BLOCKSIZE  # bytes of a member besides its data, and of what a long name takes


def write_shards(
    records: Sequence[tuple[str, Path]],
    out: Path,
    *,
    most_bytes: int,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> Iterator[tuple[str, FlowkitError | None]]:
    """Write records, pairs of id and path, as WebDataset below `out`; yields what became of each.

    A sample is KEY.json, the sidecar, and KEY.zip, the record as a pack; the key is the id, with a
    _ for each point in its last part, where a key would end. The same records are the same bytes. A
    shard has at most `most_bytes`, or one record. A record that is not sound is left out. Nothing
    is in its place before all records are through. UsageError where shards are there already.
    """
    if there := next(iter(sorted(out.glob("flow-*.tar"))), None):
        raise UsageError(f"{there}: there already, and not replaced: choose another folder")
    make_folders(out)
    keys: dict[str, str] = {}
    with WorkFolder(out) as work, ExitStack() as stack:
        shards: list[Path] = []

        def begin() -> tarfile.TarFile:
            stack.close()
            shards.append(work.path / (SHARD % len(shards)))
            return stack.enter_context(tarfile.open(shards[-1], "w"))

        tar = begin()
        for id, path in records:
            try:
                parts = _sample(id, path, work.path, keys, max_frame_mpx)
            except FlowkitError as error:
                yield id, error
                continue
            need = sum(HEADERS + part.stat().st_size for _, part in parts)
            if tar.offset and tar.offset + need + tarfile.RECORDSIZE > most_bytes:
                tar = begin()
            for name, part in parts:
                member = tarfile.TarInfo(name)  # of no date and no owner
                member.size = part.stat().st_size
                with part.open("rb") as file:
                    tar.addfile(member, file)
            work.beat()
            yield id, None
        stack.close()
        for shard in shards:
            sync(shard)
            shard.rename(out / shard.name)
        sync(out)


def _sample(
    id: str, path: Path, work: Path, keys: dict[str, str], max_frame_mpx: float
) -> list[tuple[str, Path]]:
    """The members of a record's sample: their names and the files with their bytes."""
    folder, slash, name = id.rpartition("/")
    key = folder + slash + name.replace(".", "_")
    if keys.setdefault(key, id) != id:
        raise RecordError(f"{id}: has the same key in a WebDataset as {keys[key]}")
    verdict = verify_record(path, max_frame_mpx=max_frame_mpx)
    if verdict.problems:
        raise RecordError(verdict.problems[0])
    sidecar, pack = work / "sidecar", path
    sidecar.write_bytes(read_sidecar_bytes(path))
    if path.is_dir():
        record = open_record(path, max_frame_mpx=max_frame_mpx)
        if record.sidecar["request"].get("layout", "flowkit") != "flowkit":
            raise RecordError(
                f"{path}: a record in another layout than flowkit's cannot be packed: flowkit "
                "convert --layout flowkit"
            )
        pack = work / "pack"
        zips.write_pack(pack, member_files(record))
    return [(f"{key}.json", sidecar), (f"{key}.zip", pack)]
