"""`flowkit eval`: trained streams to scores of the test part and of held-out videos."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.errors import UsageError
from flowkit.stores.urls import Place
from flowkit_cli import output
from flowkit_cli.options import cores, json_option
from flowkit_cli.record_options import missing_option, record_folder, record_options
from flowkit_cli.scoring_options import own_nets, scoring_options, test_views
from flowkit_cli.store_options import PlacePath, cache_option, store_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flowkit.data.record_folders import RecordFolder
    from flowkit.data.splits import Split
    from flowkit.evaluation.scoring import Part, Scorer


@click.command()
@click.argument("runs_given", metavar="[RUN]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of the runs, where no RUN is given.",
)
@click.option(
    "--records",
    type=PlacePath(path_type=Path),
    default="flow",
    show_default=True,
    help="Folder of the records, here or in a store.",
)
@store_options
@cache_option
@record_options
@click.option(
    "--split",
    "split_file",
    type=click.Path(path_type=Path),
    help="Split whose parts are scored.  [default: the one that the run was trained on]",
)
@click.option(
    "--part",
    "parts",
    type=click.Choice(["test", "heldout"]),
    multiple=True,
    help="Which part; may be given twice.  [default: both, as far as the split has them]",
)
@missing_option
@click.option(
    "--cv",
    "folds",
    type=click.IntRange(2),
    metavar="K",
    help="Score the whole training part: train the run again K times, each without one fold of "
    "source groups, in RUN/cv.  [default: score what the run held out]",
)
@scoring_options
@click.option(
    "-j",
    "--workers",
    type=click.IntRange(1),
    help="Threads that read ahead, and loader processes of --cv.  [default: with a GPU all "
    "cores, else 1]",
)
@json_option
def eval(  # the command's name
    runs_given: tuple[Path, ...],
    runs: Path,
    records: Place,
    split_file: Path | None,
    parts: tuple[Part, ...],
    folds: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score the videos of a split by trained streams.

    RUN is a run's folder or a checkpoint in it; by default all runs. Classes, L, the form of the
    stack, the size of the input and the flow are the checkpoint's. A run that was stopped goes on
    where it was; finished scores that were made the same way are kept.

    \b
    flowkit eval                          -> runs/<stream>/scores-test.npz, scores-heldout.npz
    flowkit eval runs/temporal/last.json --part test --moments 5 --views center
    flowkit eval --cv 5                   -> held-out scores of the whole training part
    """
    from flowkit.evaluation.scoring import Scorer, score_part
    from flowkit.networks.checkpoints import read_checkpoint
    from flowkit.training.distributed import choose_device

    if folds is not None and parts == ("test",):
        raise UsageError("--cv makes the held-out scores: --part test leaves them out")
    folder = record_folder(records, options)
    device = choose_device(options["device"])
    readers = options["workers"] or (1 if device.type == "cpu" else cores())
    checkpoints = {run: read_checkpoint(run) for run in runs_given or _find_runs(runs)}
    own = own_nets(options["own_nets"], checkpoints)
    views_of = {  # of all runs, before the first is scored
        run: test_views(options, checkpoint) for run, checkpoint in checkpoints.items()
    }
    for run, views in views_of.items():
        size = options["pass_inputs"]
        scorer = Scorer(run, views=views, device=device, pass_inputs=size, own=own[run])
        place = scorer.path.parent
        asked: tuple[Part, ...] = parts or ("test", "heldout")
        split = _read_split(
            split_file, scorer, [part for part in asked if part != "heldout" or folds is None]
        )
        for part in asked:
            if part == "heldout" and folds is not None:
                is_new = _cross_validate(scorer, folder, folds, readers)
                _tell(run, part, place / "scores-heldout.npz", is_new=is_new, as_json=as_json)
                continue
            if not parts and not split.part(part):
                output.say(f"{run}: {split.name} has no {part} part")
                continue
            out = place / f"scores-{part}.npz"
            progress = score_part(
                scorer, split, folder, part, out, missing=options["missing"], readers=readers
            )
            is_new = _follow(str(out), progress)
            _tell(run, part, out, is_new=is_new, as_json=as_json)


def _cross_validate(scorer: Scorer, records: RecordFolder, folds: int, workers: int) -> bool:
    """Train and score every fold of a run, and write the scores of all; whether any were new."""
    from flowkit.data.splits import read_split
    from flowkit.evaluation.scoring import Scorer, score_part
    from flowkit.networks.checkpoints import LAST, read_checkpoint
    from flowkit.scores.files import write_scores
    from flowkit.training.cross_validation import fold_folder, fold_jobs, join_folds
    from flowkit.training.distributed import Ranks
    from flowkit.training.jobs import Machine
    from flowkit.training.loop import SPLIT_FILE, Start, train

    run = scorer.path.parent
    split = read_split(run / SPLIT_FILE)
    files = []
    is_new = False
    jobs = fold_jobs(run, scorer.checkpoint, records, folds, own=scorer.own)
    for number, job in enumerate(jobs):
        place = fold_folder(run, number, folds)
        start: Start = "resume"
        if (place / LAST).exists() and (found := job.differences(read_checkpoint(place / LAST))):
            output.say(f"{place}: is trained again, for {run} was since: {'; '.join(found)}")
            start = "overwrite"
        ranks, machine = Ranks(0, 1, scorer.device), Machine(workers=workers)
        for told in train(job, place, ranks, machine, start=start):
            if told.heldout_accuracy is not None:
                output.say(
                    f"{place}: step {told.step:,} of {told.steps:,}, held out "
                    f"{told.heldout_accuracy:.1%}"
                )
        files.append(place / "scores-heldout.npz")
        own = Scorer(
            place,
            views=scorer.views,
            device=scorer.device,
            pass_inputs=scorer.pass_inputs,
            own=scorer.own,
        )
        progress = score_part(
            own,
            job.tasks[0].split,
            records,
            "heldout",
            files[-1],
            missing=job.missing,
            readers=workers,
        )
        is_new = _follow(str(files[-1]), progress) or is_new
    joined = join_folds(files, split)
    if never := len(split.train) + len(split.heldout) - len(joined.videos):
        output.say(f"{output.count(never, 'training video')} in no fold: classes of one group")
    write_scores(run / "scores-heldout.npz", joined)
    return is_new


def _find_runs(runs: Path) -> list[Path]:
    found = sorted(path.parent for path in runs.glob("*/best.json"))
    if not found:
        raise UsageError(
            f"{runs}: no run there (a folder with best.json): flowkit train spatial and "
            "flowkit train temporal make them"
        )
    return found


def _read_split(file: Path | None, scorer: Scorer, parts: Sequence[Part]) -> Split:
    """The split to score; UsageError where the run was trained on what is to be scored."""
    from flowkit.data.splits import read_split
    from flowkit.documents import listed
    from flowkit.training.loop import SPLIT_FILE

    run = scorer.path.parent
    own = run / SPLIT_FILE
    if file is None and not own.exists():
        raise UsageError(f"{own}: no split there: name one (--split)")
    split = read_split(file or own)
    if seen := scorer.seen([video for part in parts for video in split.part(part)]):
        names = " and ".join({"test": "test", "heldout": "held-out"}[part] for part in parts)
        raise UsageError(
            f"{run} was trained on {len(seen)} of the {names} videos of {file or own}: "
            f"{listed(seen)} (or on others of their source)"
        )
    if scorer.unknown is not None:
        output.say(
            f"{scorer.unknown}: does not say what it was trained on; what is scored may be among it"
        )
    return split


def _follow(what: str, progress: Iterator[tuple[int, int]]) -> bool:
    """Say now and then how far it is; whether there was anything to do."""
    begin = last = time.monotonic()
    first = None
    for done, total in progress:
        now = time.monotonic()
        first = done if first is None else first
        if now - last >= output.QUIET_LINE_S and done > first:
            last = now
            rate = (done - first) / (now - begin)
            output.say(
                f"{what}: {done:,} of {output.count(total, 'video')}, {rate:.2f} videos/s, "
                f"{output.duration((total - done) / rate)} left"
            )
    return first is not None


def _tell(run: Path, part: str, out: Path, *, is_new: bool, as_json: bool) -> None:
    """The result: how many of a scores file are right."""
    from flowkit.report.figures import evaluate
    from flowkit.report.text import interval
    from flowkit.scores.files import read_scores

    scores = read_scores(out)
    method = evaluate({str(run): scores}).methods[str(run)]
    if as_json:
        output.json_line(
            {
                "run": str(run),
                "part": part,
                "out": str(out),
                "videos": len(scores.videos),
                "top1": method.top1.value,
                "interval": [method.top1.low, method.top1.high],
                "mean_class": method.mean_class.value,
                "about": method.about,
                "new": is_new,
            }
        )
        return
    kept = "" if is_new else "; was there already"
    output.result(
        f"{out}: top-1 {method.top1.value:.1%} {interval(method.top1)} of "
        f"{output.count(len(scores.videos), 'video')}; {method.about}{kept}"
    )
