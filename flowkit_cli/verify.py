"""`flowkit verify`: is every record as it was written?"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click

from flowkit_cli import output
from flowkit_cli.options import cores, json_option, max_frame_option, workers_option


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--delete-broken",
    is_flag=True,
    help="Delete what is broken, and what a run that is gone left; only what is flowkit's.",
)
@click.option("--quick", is_flag=True, help="Compare names and sizes only, and read no file.")
@max_frame_option
@workers_option
@json_option
def verify(
    folder: Path,
    delete_broken: bool,
    quick: bool,
    max_frame_mpx: float,
    workers: int | None,
    as_json: bool,
) -> None:
    """Check that every record below a folder is as it was written.

    Compares every file with its checksum and decodes it: a record is sound, or it is listed with
    what is wrong. A record from before checksums is at best complete. What a stopped run left
    behind is listed, too. Exit status 1 if anything is. --delete-broken leaves what has no readable
    sidecar of flowkit's, what holds other files, what could not be read just now, and the work of a
    run that may be alive; the same flowkit extract makes again what was deleted.
    """
    from flowkit.records.reading import find_records
    from flowkit.records.verify import delete_broken as delete
    from flowkit.records.verify import find_unfinished, verify_records

    paths = list(find_records(folder))
    verdicts = []
    with output.ProgressBar(len(paths)) as progress:
        for verdict in verify_records(
            paths, workers=workers or cores(), quick=quick, max_frame_mpx=max_frame_mpx
        ):
            progress.finished(failed=bool(verdict.problems))
            verdicts.append(verdict)
    verdicts += find_unfinished(folder)
    counts = Counter[str](verdict.kind for verdict in verdicts)
    for verdict in verdicts:
        if not verdict.problems:
            continue
        left = None
        if delete_broken and verdict.kind in ("broken", "unfinished"):
            left = delete(verdict)
            counts["deleted"] += not left
        if as_json:
            event = {"path": str(verdict.path), "kind": verdict.kind, "problems": verdict.problems}
            output.json_line(event | ({} if left is None else {"deleted": not left}))
            continue
        more = f" (and {len(verdict.problems) - 1} more)" if len(verdict.problems) > 1 else ""
        output.result(
            f"{verdict.path}: {verdict.problems[0].removeprefix(f'{verdict.path}: ')}{more}"
            + ("" if left is None else f"; not deleted: {left}" if left else "; deleted")
        )
    bad = sum(counts[kind] for kind in ("broken", "unfinished", "unreadable"))
    why = "by names and sizes" if quick else "not checksummed"
    output.say(
        f"{output.count(len(paths), 'record')}: "
        + ("" if quick else f"{counts['sound']:,} sound; ")
        + (f"{counts['complete']:,} complete, {why}; " if quick or counts["complete"] else "")
        + f"{counts['broken'] + counts['unfinished']:,} broken or unfinished"
        + (f", {counts['deleted']:,} deleted" if delete_broken and bad else "")
        + (f"; {counts['unreadable']:,} could not be read" if counts["unreadable"] else "")
        + (f"; {counts['in progress']:,} in progress" if counts["in progress"] else "")
    )
    if bad:
        sys.exit(1)
