"""`flowkit pack`: record folders to packs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from flowkit.errors import FlowkitError, RecordError, UsageError
from flowkit.stores.urls import Place, Url
from flowkit_cli import output
from flowkit_cli.options import max_frame_option, read_bytes
from flowkit_cli.store_options import PlacePath, store_options


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=PlacePath(path_type=Path),
    metavar="URL",
    help="Put the packs below this address of a store (s3://bucket/flow), and leave DIR as it is.",
)
@click.option(
    "--webdataset",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the records as WebDataset into this folder, and leave DIR as it is: tar files with "
    "the pack (.zip) and the sidecar (.json) of each video.",
)
@click.option(
    "--shard-size",
    "most_bytes",
    metavar="SIZE",
    callback=read_bytes,
    default="1GB",
    show_default=True,
    help="With --webdataset, the size of a tar file at most.",
)
@max_frame_option
@store_options
def pack(
    folder: Path,
    out: Place | None,
    webdataset: Path | None,
    most_bytes: int,
    max_frame_mpx: float,
) -> None:
    """Turn record folders into packs, one stored zip per video.

    Every record folder at or below DIR becomes a .zip of the same files beside it, which flowkit
    opens the same way and any unzip reads; nothing is computed again. With --out it is put into a
    store, as packs of DIR are, where the same record is not there already.

    \b
    flowkit pack flow
    flowkit pack flow --out s3://bucket/flow
    flowkit pack flow --webdataset shards     -> shards/flow-000000.tar, ...
    """
    from flowkit.records.packing import pack_record
    from flowkit.records.reading import find_records

    if webdataset is not None:
        if out is not None:
            raise UsageError("--out and --webdataset both say where records go: give one")
        _write_shards(folder, webdataset, most_bytes, max_frame_mpx)
        return
    if isinstance(out, Url):
        _put(folder, out)
        return
    if out is not None:
        raise UsageError(f"--out {out}: expected an address in a store, such as s3://bucket/flow")
    folders = [path for path in find_records(folder) if path.is_dir()]
    convert_all(folders, pack_record, f"packed below {folder}")


def convert_all(paths: Sequence[Path], convert: Callable[[Path], Path], what: str) -> None:
    """Convert records one by one; one that cannot be is said and costs itself, then status 1."""
    failed = 0
    with output.ProgressBar(len(paths), "record") as progress:
        for path in paths:
            try:
                convert(path)
            except FlowkitError as error:
                failed += 1
                output.error(f"failed: {error}")
            progress.finished(failed=False)
    output.say(
        f"{output.count(len(paths) - failed, 'record')} {what}"
        + (f", {failed:,} failed" if failed else "")
    )
    if failed:
        sys.exit(1)


def _write_shards(folder: Path, out: Path, most_bytes: int, max_frame_mpx: float) -> None:
    """Write every record at or below a folder as WebDataset; one that fails stops no other."""
    from flowkit.records.reading import find_records
    from flowkit.records.shards import write_shards

    records = []
    for path in find_records(folder):
        id = path.name if path == folder else path.relative_to(folder).as_posix()
        records.append((id if path.is_dir() else id.removesuffix(".zip"), path))
    if not records:
        raise RecordError(f"{folder}: no flow records there: flowkit extract makes them")
    output.check_out_folder("--webdataset", out)
    failed = 0
    with output.ProgressBar(len(records), "record") as progress:
        for id, error in write_shards(
            records, out, most_bytes=most_bytes, max_frame_mpx=max_frame_mpx
        ):
            progress.finished(failed=error is not None)
            if error is not None:
                failed += 1
                output.error(f"failed: {id}: {error}")
    shards = len(list(out.glob("flow-*.tar")))
    done = output.count(len(records) - failed, "record")
    output.say(f"wrote {done} into {output.count(shards, 'tar file')} in {out}")
    if failed:
        sys.exit(1)


def _put(folder: Path, out: Url) -> None:
    """Put every record at or below a folder into a store; one that fails stops no other."""
    from flowkit.records.packing import put_record
    from flowkit.records.reading import find_records

    paths = list(find_records(folder))
    counts = {True: 0, False: 0}
    with output.ProgressBar(len(paths), "record") as progress:
        for path in paths:
            id = path.name if path == folder else path.relative_to(folder).as_posix()
            try:
                counts[put_record(path, out / f"{id.removesuffix('.zip')}.zip")] += 1
                progress.finished(failed=False)
            except (FlowkitError, OSError) as error:
                progress.finished(failed=True)
                output.error(f"flowkit: error: {error}")
    output.say(f"{counts[True]:,} put, {counts[False]:,} there already, below {out}")
    if sum(counts.values()) < len(paths):
        sys.exit(1)
