"""`flowkit pack`: record folders to packs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flowkit.errors import FlowkitError, UsageError
from flowkit.stores.urls import Place, Url
from flowkit_cli import output
from flowkit_cli.store_options import PlacePath, store_options


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=PlacePath(path_type=Path),
    metavar="URL",
    help="Put the packs below this address of a store (s3://bucket/flow), and leave DIR as it is.",
)
@store_options
def pack(folder: Path, out: Place | None) -> None:
    """Turn record folders into packs, one stored zip per video.

    Every record folder at or below DIR becomes a .zip of the same files beside it, which flowkit
    opens the same way and any unzip reads; nothing is computed again. With --out it is put into a
    store, as packs of DIR are, where the same record is not there already.

    \b
    flowkit pack flow
    flowkit pack flow --out s3://bucket/flow
    """
    from flowkit.records.packing import pack_record
    from flowkit.records.reading import find_records

    if isinstance(out, Url):
        _put(folder, out)
        return
    if out is not None:
        raise UsageError(f"--out {out}: expected an address in a store, such as s3://bucket/flow")
    folders = [path for path in find_records(folder) if path.is_dir()]
    with output.ProgressBar(len(folders), "record") as progress:
        for path in folders:
            pack_record(path)
            progress.finished(failed=False)
    output.say(f"{output.count(len(folders), 'record')} packed below {folder}")


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
