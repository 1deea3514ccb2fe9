"""`flowkit report`: scores to accuracies, tables, and a page with pictures."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit.errors import UsageError
from flowkit_cli import output
from flowkit_cli.options import json_option, max_frame_option, scored_runs_option


@click.command()
@click.argument("scores", metavar="[SCORES]...", nargs=-1, type=click.Path(path_type=Path))
@scored_runs_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the page goes to.  [default: RUNS/report.html]",
)
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the flow records, for pictures of mistakes.  [default: flow, if it is there]",
)
@click.option(
    "--method",
    metavar="NAME",
    help="The stream or fusion whose confusions and mistakes are shown.  "
    "[default: the one of the highest top-1]",
)
@click.option(
    "--methods",
    metavar="NAME,...",
    help="The streams and fusions to report, in this order.  [default: all, fusions last]",
)
@click.option(
    "--most",
    type=click.IntRange(1),
    help="Report at most as many of them: those of the highest top-1.",
)
@click.option(
    "--mistakes",
    type=click.IntRange(0),
    default=12,
    show_default=True,
    help="How many of the most confident mistakes the page shows.",
)
@max_frame_option
@json_option
def report(
    scores: tuple[Path, ...],
    runs: Path,
    out: Path | None,
    records: Path | None,
    method: str | None,
    methods: str | None,
    most: int | None,
    mistakes: int,
    max_frame_mpx: float,
    as_json: bool,
) -> None:
    """Report how well streams and fusions do, as text here and as a page with pictures.

    SCORES are scores files, run folders or folders of runs; by default all runs. Those of several
    splits get a report each, and one table of the means. The page stands alone: no script, no
    network.

    \b
    flowkit report                                   -> runs/report.html
    flowkit report split1 split2 split3 --out ucf101.html
    flowkit report --methods spatial,temporal,fused --method fused
    """
    from flowkit.report.extras import read_curves, read_pictures
    from flowkit.report.figures import evaluate_files
    from flowkit.report.figures import mistakes as find_mistakes
    from flowkit.report.html import Extras, page, write_page
    from flowkit.report.text import as_json as report_json
    from flowkit.report.text import as_text
    from flowkit.scores.files import find_scores

    files = find_scores(scores or [runs])
    out = out or runs / "report.html"
    output.check_out("--out", out, "a page (.html)", files)
    chosen = [name.strip() for name in methods.split(",")] if methods else ()
    reports = evaluate_files(files, method=method, chosen=chosen, most=most)
    if records is None and Path("flow").is_dir():
        records = Path("flow")
    elif records is not None and not records.exists():
        raise UsageError(f"--records {records}: no such folder of flow records")
    shown = dict.fromkeys(m.video for one in reports for m in find_mistakes(one)[:mistakes])
    pictures, missing = (
        read_pictures(records, shown, max_frame_mpx) if records and shown else ({}, {})
    )
    extras = Extras(
        curves={str(path.parent): read_curves(path.parent) for path in files},
        pictures=pictures,
        missing=missing,
        mistakes=mistakes,
        sources=[str(path) for path in files],
    )
    write_page(out, page(reports, extras))
    if as_json:
        output.json_line({**report_json(reports), "page": str(out)})
    else:
        output.result_lines(as_text(reports))
    pictured = f", pictures of {len(pictures)} mistakes from {records}" if pictures else ""
    output.say(f"read {', '.join(map(str, files))}{pictured}")
    output.say(f"wrote {out}")
