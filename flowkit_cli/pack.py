"""`flowkit pack`: record folders to packs."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit_cli import output


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def pack(folder: Path) -> None:
    """Turn record folders into packs, one stored zip per video.

    Every record folder at or below DIR becomes a .zip of the same files beside it, which flowkit
    opens the same way and any unzip reads; nothing is computed again.
    """
    from flowkit.records.packing import pack_record
    from flowkit.records.reading import find_records

    folders = [path for path in find_records(folder) if path.is_dir()]
    with output.ProgressBar(len(folders), "record") as progress:
        for path in folders:
            pack_record(path)
            progress.finished(failed=False)
    output.say(f"{output.count(len(folders), 'record')} packed below {folder}")
