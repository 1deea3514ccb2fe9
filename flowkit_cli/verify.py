"""`flowkit verify`: is every record complete and undamaged?"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from flowkit_cli import output
from flowkit_cli.options import cores, json_option, workers_option


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True))
@click.option("--delete-broken", is_flag=True, help="Delete what is not complete and undamaged.")
@workers_option
@json_option
def verify(folder: Path, delete_broken: bool, workers: int | None, as_json: bool) -> None:
    """Check that every record below a folder is complete and undamaged.

    Decodes every file; lists what is broken, and what a stopped run left behind. Exit status 1 if
    there is any. After --delete-broken, the same flowkit extract makes anew what was deleted.
    """
    from flowkit.records.reading import find_records
    from flowkit.records.verify import find_unfinished, verify_records

    paths = list(find_records(folder))
    broken = []
    with output.Progress(len(paths)) as progress:
        for verdict in verify_records(paths, workers=workers or cores()):
            progress.finished(failed=bool(verdict.problems))
            if verdict.problems:
                broken.append(verdict)
    sound = len(paths) - len(broken)
    broken += find_unfinished(folder)
    for verdict in broken:
        if delete_broken:
            _delete(verdict.path)
        if as_json:
            output.json_line({"path": str(verdict.path), "problems": verdict.problems})
            continue
        more = f" (and {len(verdict.problems) - 1} more)" if len(verdict.problems) > 1 else ""
        output.result(f"{verdict.path}: {verdict.problems[0]}{more}")
    output.say(
        f"{output.count(len(paths), 'record')}: {sound:,} sound; {len(broken):,} broken or "
        "unfinished" + (", deleted" if delete_broken and broken else "")
    )
    if broken:
        sys.exit(1)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
