"""`flowkit stats`: what all records of a data set hold together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flowkit_cli import output
from flowkit_cli.options import cores, json_option, max_frame_option

SHOWN = 20  # odd videos that are listed; --json lists all


@click.command()
@click.argument("records", metavar="RECORDS", type=click.Path(path_type=Path), default="flow")
@click.option(
    "--pixels",
    is_flag=True,
    help="Read all forward fields, too: motion of records with a bound, how much lies at it, and "
    "which bound would clip 1%.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write one page that stands alone: charts, and pictures of videos that are worth a look.",
)
@click.option(
    "-j",
    "--workers",
    type=click.IntRange(1),
    help="Processes that read records.  [default: all cores this process may use]",
)
@max_frame_option
@json_option
def stats(
    records: Path,
    pixels: bool,
    page: Path | None,
    workers: int | None,
    max_frame_mpx: float,
    as_json: bool,
) -> None:
    """Videos, frames, bytes, inodes, methods, lengths and motion of all records below a folder.

    RECORDS is flow/ unless it is named. By the sidecars alone, unless --pixels asks for more. The
    motion of a video is the median, over its fields, of the largest |x| or |y| in px, which records
    without --bound state. Listed are videos that stand still, are shorter than a stack, repeat
    frames, move wildly or have a damaged source.

    \b
    flowkit stats
    flowkit stats flow --pixels
    flowkit stats flow --html stats.html
    flowkit stats flow --json | jq .classes

    Exit status: 0 all read, 1 some records could not be read, 2 usage.
    """
    from flowkit.errors import FlowkitError, RecordError
    from flowkit.records.reading import find_records
    from flowkit.records.statistics import gather_facts, summarize

    if page is not None:
        output.check_out("--html", page, "a page (.html)")
    places = {
        path.relative_to(records).as_posix().removesuffix(".zip"): path
        for path in find_records(records)
    }
    found, failed = [], {}
    with output.ProgressBar(len(places)) as bar:
        facts = gather_facts(
            list(places.items()),
            workers=workers or cores(),
            pixels=pixels,
            max_frame_mpx=max_frame_mpx,
        )
        for id, one in facts:
            bar.finished(failed=isinstance(one, FlowkitError))
            if isinstance(one, FlowkitError):
                failed[id] = str(one)
                output.error(f"failed: {id}: {one}")
            else:
                found.append(one)
    if not found:
        raise RecordError(f"{records}: no flow records there: flowkit extract makes them")
    summary = summarize(found)
    if as_json:
        output.json_line(summary)
    else:
        _tell(summary)
    if page is not None:
        from flowkit.report.html import write_page
        from flowkit.report.records_page import odd_pictures, records_page

        pictures = odd_pictures(found, places, max_frame_mpx=max_frame_mpx)
        write_page(page, records_page(str(records), found, summary, pictures, failed))
        output.say(f"wrote {page}")
    if failed:
        sys.exit(1)


def _tell(summary: Mapping[str, Any]) -> None:
    """The summary as text."""
    time = summary["seconds"]
    shown = "" if time is None else f" ({output.duration(time)} of video)"
    output.result(
        f"{output.count(summary['videos'], 'video')} of "
        f"{len(summary['classes']):,} classes, {output.count(summary['frames'], 'frame')}{shown}, "
        f"{output.count(summary['fields'], 'forward field')}"
    )
    size = summary["bytes"]
    unknown = summary["videos_of_unknown_bytes"]
    output.result(
        (
            "bytes unknown"
            if size is None
            else f"{size / 1e9:.3g} GB"
            if size >= 1e9
            else f"{size / 1e6:.3g} MB"
        )
        + (f" without {output.count(unknown, 'older record')}" if size and unknown else "")
        + f" in {output.count(summary['inodes'], 'inode')}"
    )
    for title, key in (("method", "methods"), ("stored as", "stored"), ("size", "sizes")):
        output.result(f"{title}: " + ", ".join(f"{k} {n:,}" for k, n in summary[key].items()))
    lengths = summary["lengths"]
    output.result(
        f"lengths: {lengths['shortest']:,} to {lengths['longest']:,} frames, median "
        f"{lengths['median']:g}"
    )
    if summary["lost"] is not None:
        output.result(f"at the bound: {summary['lost']:.2%} of the displacements")
    if summary["bound_1_percent"] is not None:
        output.result(f"a bound of {summary['bound_1_percent']:.2f} px would clip 1%")
    output.result(f"motion: {_px(summary['motion'])}")
    width = max(len(one["class"]) for one in summary["classes"])
    for one in summary["classes"]:
        output.result(
            f"  {one['class']:{width}}  {output.count(one['videos'], 'video')}, "
            f"{output.count(one['frames'], 'frame')}, motion {_px(one['motion'])}"
        )
    odd = summary["odd"]
    output.result(f"worth a look: {output.count(len(odd), 'video')}")
    for id, reasons in list(odd.items())[:SHOWN]:
        output.result(f"  {id}: {'; '.join(reasons)}")
    if len(odd) > SHOWN:
        output.result(f"  and {len(odd) - SHOWN:,} more (--json lists all)")


def _px(motion: float | None) -> str:
    return "unknown (--pixels reads it)" if motion is None else f"{motion:.2f} px"
