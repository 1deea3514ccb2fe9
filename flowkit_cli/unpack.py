"""`flowkit unpack`: packs back to record folders."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit_cli.pack import convert_all


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
    convert_all(packs, unpack_record, f"unpacked below {folder}")
