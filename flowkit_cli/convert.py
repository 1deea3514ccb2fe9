"""`flowkit convert`: flow records in another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.errors import UsageError
from flowkit.records.layout import FORMATS, LAYOUTS, written_layouts
from flowkit_cli.options import (
    choices_text,
    cores,
    failures_option,
    json_option,
    max_frame_option,
    workers_option,
)
from flowkit_cli.video_runs import Totals, VideoRun, follow, tell_totals

if TYPE_CHECKING:
    from flowkit.extraction.convert import Converted
    from flowkit.extraction.outcomes import Outcome


@click.command()
@click.argument("records", metavar="RECORDS", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the new records.",
)
@click.option(
    "--format",
    type=click.Choice(tuple(FORMATS)),
    help=f"{choices_text(FORMATS)}  [default: as they are]",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help="JPEG quality of the planes.  [default: as they were asked for]",
)
@click.option(
    "--bound",
    type=click.FloatRange(0, min_open=True),
    metavar="PX",
    help="Clip displacements to +-PX, as extract --bound.  [default: as they are]",
)
@click.option(
    "--layout",
    type=click.Choice(written_layouts()),
    help=choices_text({name: LAYOUTS[name] for name in written_layouts()})
    + "  [default: as they are]",
)
@click.option(
    "--pack/--no-pack",
    default=None,
    help="One stored zip per video, or a folder.  [default: as they are]",
)
@click.option("--no-rgb", "without_rgb", is_flag=True, help="Leave the frames out.")
@click.option(
    "--inexact",
    is_flag=True,
    help="Convert also where flowkit extract would have written something else: decoded JPEG "
    "planes stored without further loss, planes rounded or compressed once more. The sidecar says "
    "what a record was converted from.",
)
@click.option("--overwrite", is_flag=True, help="Redo records that are there already.")
@max_frame_option
@workers_option
@failures_option
@json_option
def convert(
    records: Path,
    out: Path,
    overwrite: bool,
    max_frame_mpx: float,
    workers: int | None,
    failures: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Records in another format, layout or bound, without computing flow again.

    RECORDS is a folder of records, or one. The new records are, to the byte, those of flowkit
    extract with these options: floats become anything, lossless planes (png, lz4) JPEG and each
    other, and frames can be left out. A record of which that cannot be had fails, and says why. A
    rerun does only what is missing; every file that is read is compared with its checksum.

    \b
    flowkit convert flow --out flow-lz4 --format lz4          of floats or png
    flowkit convert flow --out flow-fast --format lz4 --inexact   of JPEG: quicker to read
    flowkit convert flow --out small --bound 20 --format jpg --no-rgb

    Exit status: 0 all done, 1 some records failed (the others are done), 2 usage, 75 stopped by
    SIGTERM, 130 interrupted.
    """
    from flowkit.extraction.convert import Change, find_sources
    from flowkit.extraction.convert import convert as run_conversion

    change = Change(**options)
    if change == Change(inexact=change.inexact):
        raise UsageError("expected what to change: --format, --bound, --layout, --no-rgb, ...")
    sources = find_sources(records, out, change.layout)
    workers = workers or cores()
    run = VideoRun((str(records),), out, overwrite=overwrite, as_json=as_json, failures=failures)
    totals = _Totals("field", skipped=0, todo=len(sources), workers=workers)
    outcomes = run_conversion(
        sources, out, change, workers=workers, overwrite=overwrite, max_frame_mpx=max_frame_mpx
    )
    follow(run, sources, outcomes, totals, figures=_figures)
    tell_totals(run, totals)


class _Totals(Totals):
    """Totals in which records that were there already are told by their results."""

    def add(self, outcome: Outcome[Converted]) -> None:
        """One more record is done, was there, or has failed."""
        if outcome.result is not None and not outcome.result.written:
            self.skipped += 1
            self.todo -= 1
        else:
            super().add(outcome)


def _figures(converted: Converted) -> dict[str, Any]:
    """What --json tells of a record that is done."""
    return {
        "frames": converted.frames,
        "fields": converted.fields,
        "damage": converted.damage,
        "written": converted.written,
    }
