"""`flowkit verify`: is every record, and every other file of flowkit's, as it was written?"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowkit.errors import UsageError
from flowkit.stores.urls import Place, Url
from flowkit_cli import output
from flowkit_cli.options import cores, json_option, max_frame_option
from flowkit_cli.store_options import PlacePath, store_options

if TYPE_CHECKING:
    from flowkit.records.verify import Verdict


@click.command()
@click.argument(
    "paths",
    metavar="PATH...",
    nargs=-1,
    required=True,
    type=PlacePath(path_type=Path),
)
@click.option(
    "--delete-broken",
    is_flag=True,
    help="Delete broken records and what a run that is gone left; only what is flowkit's.",
)
@click.option("--quick", is_flag=True, help="Compare names and sizes only, and read no file.")
@max_frame_option
@click.option(
    "-j",
    "--workers",
    type=click.IntRange(1),
    help="Threads that read records.  [default: all cores this process may use]",
)
@json_option
@store_options
def verify(
    paths: tuple[Place, ...],
    delete_broken: bool,
    quick: bool,
    max_frame_mpx: float,
    workers: int | None,
    as_json: bool,
) -> None:
    """Check that every record below a folder, and every other file of flowkit's, is as written.

    PATH is a folder (of records, of runs, of features), a pack, or a file: a checkpoint's JSON, a
    split, an .npz of scores, a fusion, tracks or vectors; or it is a folder or pack in a store,
    each of whose packs is read through a local copy.

    Compares every file with its checksum and decodes those of records: each is sound, or it is
    listed with what is wrong. A file from before checksums is at best complete. What a stopped run
    left behind is listed, too. Exit status 1 if anything is. --delete-broken leaves what has no
    readable sidecar of flowkit's, what holds other files, what could not be read just now, and the
    work of a run that may be alive; the same flowkit extract makes again what was deleted.

    \b
    flowkit verify flow
    flowkit verify runs runs/temporal/scores-test.npz
    """
    from flowkit.evaluation.soundness import find_files, verify_file
    from flowkit.records.reading import find_records
    from flowkit.records.verify import delete_broken as delete
    from flowkit.records.verify import find_unfinished, verify_records

    here = [path for path in paths if isinstance(path, Path)]
    files = [file for path in here for file in find_files(path)]
    places = [path for path in here if path not in files]
    if odd := [path for path in places if not path.is_dir() and path.suffix != ".zip"]:
        raise UsageError(f"{odd[0]}: expected a folder, a pack (.zip), a .json or an .npz file")
    stored = [path for path in paths if isinstance(path, Url)]
    records: list[Place] = [record for path in places for record in find_records(path)]
    records += [record for path in stored for record in find_records(path)]
    verdicts = []
    with output.ProgressBar(len(records) + len(files), "record" if records else "file") as progress:
        checked = verify_records(
            records, workers=workers or cores(), quick=quick, max_frame_mpx=max_frame_mpx
        )
        for verdict in chain(checked, (verify_file(file, quick=quick) for file in files)):
            progress.finished(failed=bool(verdict.problems))
            verdicts.append(verdict)
    for path in places:
        verdicts += find_unfinished(path)
    counts = Counter[str](verdict.kind for verdict in verdicts)
    for verdict in verdicts:
        if not verdict.problems:
            continue
        left = None
        if delete_broken and verdict.path not in files and verdict.kind in ("broken", "unfinished"):
            left = delete(verdict)
            counts["deleted"] += not left
        _tell(verdict, left, as_json)
    bad = sum(counts[kind] for kind in ("broken", "unfinished", "unreadable"))
    totals = _totals(counts, quick=quick, deleting=delete_broken and bad > 0)
    output.say(f"{_what(len(records), len(files))}: {totals}")
    if bad:
        sys.exit(1)


def _tell(verdict: Verdict, left: str | None, as_json: bool) -> None:
    """One line of what is wrong; `left` says why it was not deleted: "" if it was, None untried."""
    path, (first, *others) = verdict.path, verdict.problems
    if as_json:
        event = {"path": str(path), "kind": verdict.kind, "problems": verdict.problems}
        output.json_line(event | ({} if left is None else {"deleted": not left}))
        return
    more = f" (and {len(others)} more)" if others else ""
    done = "" if left is None else f"; not deleted: {left}" if left else "; deleted"
    output.result(f"{path}: {first.removeprefix(f'{path}: ')}{more}{done}")


def _totals(counts: Counter[str], *, quick: bool, deleting: bool) -> str:
    """How many are of each kind, in words."""
    why = "by names and sizes" if quick else "not checksummed"
    return (
        ("" if quick else f"{counts['sound']:,} sound; ")
        + (f"{counts['complete']:,} complete, {why}; " if quick or counts["complete"] else "")
        + f"{counts['broken'] + counts['unfinished']:,} broken or unfinished"
        + (f", {counts['deleted']:,} deleted" if deleting else "")
        + (f"; {counts['unreadable']:,} could not be read" if counts["unreadable"] else "")
        + (f"; {counts['in progress']:,} in progress" if counts["in progress"] else "")
    )


def _what(records: int, files: int) -> str:
    """What was looked at, in words."""
    counts = [output.count(records, "record")] if records or not files else []
    return ", ".join([*counts, *([output.count(files, "file")] if files else [])])
