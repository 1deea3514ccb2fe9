"""`flowkit train towers`: a spatial and a temporal run joined inside, as in the paper of 2016."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.errors import UsageError
from flowkit.networks.joining import JOINS, KEEPS, LOGITS, OVER_TIME, SEAMS, Towers
from flowkit.training.recipes import TOWER_MODES, TOWER_RECIPES
from flowkit_cli import output
from flowkit_cli.train_options import (
    machine_options,
    number_options,
    place_options,
    recipe_option,
    view_options,
)
from flowkit_cli.train_runs import heldout_of, read_numbers, run_job

if TYPE_CHECKING:
    from flowkit.training.jobs import Job
    from flowkit.training.tower_runs import TowerRuns

PATH = click.Path(path_type=Path)
# Options of a recipe that towers have no use for, and why.
NOT_OF_TOWERS = {
    "segments": "the moments of a sample do its work (--frames)",
    "first_phase_steps": "they learn in one phase",
    "top_blocks": "--mode top means all from the join up",
}


def _text(table: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {about}" for name, about in table.items()) + "."


@click.command()
@click.option(
    "--spatial", type=PATH, metavar="RUN", help="The spatial tower.  [default: RUNS/spatial]"
)
@click.option(
    "--temporal", type=PATH, metavar="RUN", help="The temporal tower.  [default: RUNS/temporal]"
)
@click.option(
    "--join",
    type=click.Choice(tuple(JOINS)),
    default="conv",
    show_default=True,
    help=_text(JOINS),
)
@click.option(
    "--at",
    "places",
    type=click.Choice((*SEAMS, LOGITS)),
    multiple=True,
    default=("relu5",),
    show_default=True,
    help=f"After which layer; {LOGITS} may be given beside one of the others.",
)
@click.option(
    "--frames",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Moments of a sample, T.",
)
@click.option(
    "--gap",
    metavar="A-B",
    default="1-10",
    show_default=True,
    help="Frames between two of them, drawn for each sample in training; 15 in tests.",
)
@click.option(
    "--over-time",
    type=click.Choice(tuple(OVER_TIME)),
    default="mean",
    show_default=True,
    help=_text(OVER_TIME),
)
@click.option(
    "--keep",
    type=click.Choice(tuple(KEEPS)),
    default="none",
    show_default=True,
    help=_text(KEEPS),
)
@click.option(
    "--mode",
    type=click.Choice(TOWER_MODES),
    default="top",
    show_default=True,
    help="What learns: all from the join up, or the towers below it, too.",
)
@place_options("the spatial run's", "RUNS/towers")
@view_options
@recipe_option(TOWER_RECIPES)
@number_options
@machine_options
@click.option(
    "--checkpointing",
    is_flag=True,
    help="With --mode fine-tune, save memory: compute what is below the join twice.",
)
def towers(
    spatial: Path | None,
    temporal: Path | None,
    join: str,
    places: tuple[str, ...],
    frames: int,
    gap: str,
    over_time: str,
    keep: str,
    **options: Any,
) -> None:
    """Join the networks of a spatial and a temporal run inside, and train what is above the join.

    Reads runs/spatial/ and runs/temporal/, writes runs/towers/. L, the stacks, sizes and classes
    are those of the runs, which must agree; without --split the split is the spatial run's. A
    bilinear join is no training: it fits an SVM and writes the scores.

    \b
    flowkit train towers --join conv --at relu5
    flowkit train towers --frames 5 --gap 1-10 --over-time conv3d --keep temporal
    """
    from flowkit.training.tower_runs import read_towers

    for name, reason in NOT_OF_TOWERS.items():
        if options[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} does not go with joined towers: {reason}")
    form = Towers(join, places, frames, _read_gap(gap), over_time, keep)

    def read_runs() -> TowerRuns:
        runs = read_towers(
            spatial or options["runs"] / "spatial", temporal or options["runs"] / "temporal"
        )
        if options["dry_run"]:
            _say_counts(runs)
        return runs

    if join == "bilinear":
        _fit_bilinear(read_runs(), form, options)
        return
    run_job("towers", options, lambda: _make_job(read_runs(), form, options))


def _make_job(runs: TowerRuns, towers: Towers, options: dict[str, Any]) -> Job:
    """The job that the options ask for."""
    from flowkit.data.augment import Augmentation
    from flowkit.data.record_folders import RecordFolder
    from flowkit.data.splits import read_split
    from flowkit.networks.joining import net_names, tower_seams
    from flowkit.training.jobs import Job
    from flowkit.training.loop import SPLIT_FILE
    from flowkit.training.recipes import make_tower_recipe
    from flowkit.training.sampling import Task

    tower_seams(runs.net, towers.seam)
    split = read_split(options["split_file"] or runs.folder / SPLIT_FILE)
    split = heldout_of(split, options["heldout"])
    runs.check_split(split)
    records = RecordFolder(options["records"], options["layout"], options["bound"], options["zero"])
    recipe = TOWER_RECIPES[options["recipe"]]
    one = runs.checkpoints[0]
    return Job(
        runs.inputs,
        runs.net,
        (Task(runs.task, split, records),),
        make_tower_recipe(
            options["recipe"],
            options["mode"],
            net_names(runs.net)[0],
            videos=len(split.train),
            passes=options["passes"],
            **read_numbers(options),
        ),
        augmentation=Augmentation(
            options["crops"] or recipe.crops,
            options["flip"],
            recipe.jitter if options["jitter"] is None else options["jitter"],
            crop=one.crop,
            short_side=one.short_side,
        ),
        weights=runs.sources,
        seed=options["seed"],
        eval_moments=options["eval_moments"],
        missing=options["missing"],
        towers=towers,
    )


def _fit_bilinear(runs: TowerRuns, towers: Towers, options: dict[str, Any]) -> None:
    """Fit the SVM of a bilinear join and write the scores of the test and held-out parts."""
    from flowkit.evaluation.bilinear import score_bilinear
    from flowkit.evaluation.views import TestViews
    from flowkit.scores.files import read_scores, write_scores
    from flowkit.training.distributed import choose_device

    job = _make_job(runs, towers, options)
    if options["dry_run"]:
        output.result("a bilinear join takes no steps: it fits an SVM; nothing was written")
        return
    out = options["out"] or options["runs"] / "towers"
    files = {part: out / f"scores-{part}.npz" for part in ("heldout", "test")}
    for file in files.values():
        if file.exists() and read_scores(file).meta.get("stream") != "towers":
            raise UsageError(f"{file}: holds the scores of another stream: choose another --out")
    views = TestViews(job.eval_moments, "flip", "logits")
    scores = score_bilinear(job, runs.checkpoints[1], views, choose_device(options["device"]))
    for part, found in scores.items():
        write_scores(files[part], found)
        right = (found.values.argmax(axis=1) == found.labels).mean()
        videos = output.count(len(found.videos), f"{part} video")
        output.result(f"{files[part]}: {right:.1%} of {videos} right")
    output.say("next: flowkit fuse, flowkit report")


def _read_gap(text: str) -> tuple[int, int]:
    """The range of "A-B", or of "A" alone."""
    least, dash, largest = text.partition("-")
    try:
        return int(least), int(largest if dash else least)
    except ValueError:
        raise UsageError(f"--gap: expected frames such as 1-10, got {text!r}") from None


def _say_counts(runs: TowerRuns) -> None:
    """Every published way to join these towers, with its parameters here and in the paper."""
    from flowkit.networks.towers import PUBLISHED_COUNTS, count_towers

    output.result(
        f"parameters of {runs.net.replace('+', ' and ')} for {len(runs.classes)} classes, and as "
        "the paper prints them (CNN-M-2048, 101 classes, both towers counted with 20 channels):"
    )
    for row in PUBLISHED_COUNTS:
        try:
            count = f"{count_towers(runs.net, runs.inputs, len(runs.classes), row.towers):,}"
        except UsageError:  # towers of two networks are joined at relu5 only
            count = "-"
        printed = "" if row.printed is None else f"{row.printed:.2f}M"
        output.result(f"  {row.row:<32}{count:>13}  {printed:>8}".rstrip())
