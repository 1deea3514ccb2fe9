"""`flowkit unpack`: packs back to record folders."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit_cli import output


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def unpack(folder: Path) -> None:
    """Turn packs back into record folders.

    Every pack at or below DIR becomes a folder of the same files beside it; nothing is computed
    again.
    """
    from flowkit.records.packing import unpack_record
    from flowkit.records.reading import find_records

    packs = [path for path in find_records(folder) if path.is_file()]
    with output.ProgressBar(len(packs), "record") as progress:
        for path in packs:
            unpack_record(path)
            progress.finished(failed=False)
    output.say(f"{output.count(len(packs), 'record')} unpacked below {folder}")
