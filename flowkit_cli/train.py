"""`flowkit train`: one stream of the two-stream network, from flow records to checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.data.frames import FRAME_INPUTS
from flowkit.documents import read_plain_file
from flowkit.errors import UsageError
from flowkit.own_code import is_own
from flowkit.stores.urls import as_place
from flowkit_cli import output
from flowkit_cli.options import choices_text
from flowkit_cli.record_options import (
    bidirectional_option,
    length_option,
    mean_subtract_option,
    record_folder,
    stacking_option,
    step_option,
)
from flowkit_cli.store_options import store_access
from flowkit_cli.train_options import (
    data_options,
    machine_options,
    net_options,
    recipe_options,
)
from flowkit_cli.train_runs import heldout_of, read_numbers, run_job
from flowkit_cli.train_svm import svm
from flowkit_cli.train_towers import towers

if TYPE_CHECKING:
    from flowkit.data.clips import Stream
    from flowkit.data.record_folders import RecordFolder
    from flowkit.data.splits import Split
    from flowkit.training.jobs import Job
    from flowkit.training.sampling import Task


@click.group()
def train() -> None:
    """Train a stream: spatial, on frames, or temporal, on stacks of flow; or join two.

    \b
    flowkit train temporal --L 10                    flow/ -> runs/temporal/
    flowkit train spatial --net resnet18 --weights IMAGENET1K_V1
    flowkit train spatial --input rgb-diff           flow/ -> runs/rgb-diff/
    flowkit train temporal --recipe paper --bf16 --workers 16
    torchrun --nproc-per-node 4 -m flowkit_cli train temporal --recipe paper
    flowkit train towers --join conv --at relu5      runs/spatial, runs/temporal -> runs/towers/
    flowkit train svm                                fisher/ -> runs/idt/
    """


train.add_command(svm)
train.add_command(towers)


@train.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Train on images instead (FOLDER/CLASS/IMAGE.jpg, no flow), to start other trainings from "
    "(--weights); the run goes to RUNS-images/spatial.",
)
@click.option(
    "--input",
    "kind",
    type=click.Choice(tuple(FRAME_INPUTS)),
    default=next(iter(FRAME_INPUTS)),
    show_default=True,
    help="What is seen of the frames. " + choices_text(FRAME_INPUTS),
)
@click.option(
    "--stack",
    "count",
    type=click.IntRange(1),
    metavar="N",
    help="Frames or differences of an input, for 3N channels.  [default: "
    + ", ".join(f"{one.count} of {name}" for name, one in FRAME_INPUTS.items())
    + "]",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="K",
    help="Of a stack, each frame is K frames behind the one before it.",
)
@data_options
@net_options
@recipe_options
@machine_options
def spatial(images: Path | None, kind: str, count: int | None, every: int, **options: Any) -> None:
    """Train the spatial stream, on single frames, stacks of frames or differences of frames.

    Reads the frames in flow/, writes runs/spatial/, of stacks runs/frames/ and of differences
    runs/rgb-diff/: best.json and last.json with their weights, log.csv, curves.svg. SIGTERM saves
    and ends with exit status 75; --resume goes on.
    """
    from flowkit.data.frames import FrameForm

    if images is not None:
        if options["tasks"] or options["add_classes"] or options["layout"]:
            raise UsageError(
                "--images is a data set of its own: leave --task, --layout and --add-classes out"
            )
        runs = Path(f"{options['runs']}-images")
        from flowkit.data.record_folders import IMAGES

        options |= {"records": images, "layout": IMAGES, "runs": runs}
    form = FrameForm(count or FRAME_INPUTS[kind].count, every, kind)
    if not form.is_single and options["first_layer"] is None:
        options["first_layer"] = FRAME_INPUTS[kind].first_layer
    _train(form.name, "spatial", options | {"form": form})


@train.command()
@length_option
@stacking_option
@bidirectional_option
@mean_subtract_option
@step_option
@data_options
@net_options
@recipe_options
@machine_options
def temporal(
    length: int,
    stacking: str,
    bidirectional: bool,
    mean_subtract: bool,
    step: int,
    **options: Any,
) -> None:
    """Train the temporal stream, on stacks of L displacement fields.

    Reads flow/, writes runs/temporal/: best.json and last.json with their weights, log.csv,
    curves.svg. SIGTERM saves and ends with exit status 75; --resume goes on.
    """
    from flowkit.data.stacks import StackForm

    form = StackForm(length, stacking, bidirectional, mean_subtract, step)
    _train("temporal", "temporal", options | {"form": form})


def _train(name: str, stream: Stream, options: dict[str, Any]) -> None:
    source = click.get_current_context().get_parameter_source("recipe")
    if source is click.core.ParameterSource.DEFAULT and is_own(options["net"] or ""):
        options["recipe"] = "short"  # not that of weights of ImageNet
    run_job(name, options, lambda: _make_job(stream, options))


def _make_job(stream: Stream, options: dict[str, Any]) -> Job:
    """The job that the options ask for."""
    from flowkit.data.augment import Augmentation
    from flowkit.networks.table import net_facts
    from flowkit.training.jobs import Job
    from flowkit.training.recipes import make_recipe, recipe_facts

    own = options["net"] if is_own(options["net"] or "") else None
    setup = recipe_facts(options["recipe"])
    net = options["net"] or setup.net
    numbers = read_numbers(options)
    short_side, crop = setup.sizes[stream]
    if net != setup.net:  # its sizes and dropout, not those of the recipe's network
        facts = net_facts(net)
        short_side, crop = facts.size
        if facts.dropout is not None:
            numbers.setdefault("dropout", facts.dropout)
    mode: Any = options["mode"] or ("fine-tune" if options["weights"] else setup.mode)
    weights = options["weights"]
    if mode != "scratch" and own is None:  # whose function brings its weights, if it has some
        weights = weights or setup.weights
    tasks = _tasks(options)
    videos = len(tasks[0].split.train)
    return Job(
        {stream: options["form"]},
        net,
        tasks,
        make_recipe(options["recipe"], mode, videos=videos, passes=options["passes"], **numbers),
        augmentation=Augmentation(
            options["crops"] or setup.crops,
            options["flip"],
            setup.jitter if options["jitter"] is None else options["jitter"],
            crop=options["crop"] or crop,
            short_side=options["short_side"] or short_side,
        ),
        weights=weights,
        first_layer=options["first_layer"] or setup.first_layer,
        seed=options["seed"],
        eval_moments=options["eval_moments"],
        missing=options["missing"],
        hidden=options["hidden"],
        own=own,
    )


def _tasks(options: dict[str, Any]) -> tuple[Task, ...]:
    """The data sets, the first with its held-out part, all videos of the others."""
    from flowkit.data.splits import choose_classes, train_on_all
    from flowkit.training.loop import SPLIT_FILE
    from flowkit.training.sampling import Task

    runs, added = options["runs"], options["add_classes"]
    if options["tasks"] and options["split_file"]:
        raise UsageError("--task names its split itself, NAME=RECORDS,SPLIT: leave --split out")
    named = []
    for given in options["tasks"] or [f"main={options['records']}"]:
        name, equals, place = given.partition("=")
        if not (name and equals and place):
            raise UsageError(f"--task: expected NAME=RECORDS or NAME=RECORDS,SPLIT, got {given!r}")
        default = f"split-{name}.json" if options["tasks"] else SPLIT_FILE
        file = None if options["tasks"] else options["split_file"]
        named.append((name, *_read_place(place, options, file, runs / default)))
    if len({name for name, _, _ in named}) < len(named):
        raise UsageError("--task: expected a name for each data set, got one twice")
    other = None
    if added is not None:
        place, names = _cut_names(added)
        records, split = _read_place(place, options, None, runs / "split-added.json")
        other = (split if names is None else choose_classes(split, names), records)
    return tuple(
        Task(name, heldout_of(split, options["heldout"]), records, added=other)
        if place == 0
        else Task(name, train_on_all(split), records)
        for place, (name, records, split) in enumerate(named)
    )


def _cut_names(added: str) -> tuple[str, list[str] | None]:
    """RECORDS,SPLIT and the names in the file, a class a line, of RECORDS,SPLIT,NAMES.txt."""
    parts = added.split(",")
    if len(parts) < 3:
        return added, None
    path = Path(",".join(parts[2:]))
    try:
        lines = read_plain_file(path, error=UsageError).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--add-classes: expected a file of class names, one a line, at {path} ({error})"
        ) from None
    return ",".join(parts[:2]), [line.strip() for line in lines if line.strip()]


def _read_place(
    place: str, options: dict[str, Any], split_file: Path | None, default: Path
) -> tuple[RecordFolder, Split]:
    """The records and the split of "RECORDS" or "RECORDS,SPLIT"; makes the default split."""
    from flowkit.data.record_folders import IMAGES, folder_ids
    from flowkit.data.splits import folder_split, hold_out, read_split, train_on_all, write_split

    root, comma, file = place.partition(",")
    access = store_access(click.get_current_context())
    records = record_folder(as_place(root, access), options)
    path = Path(file) if comma else split_file
    if path is None and not default.exists():
        ids = folder_ids(records)
        are_images = records.layout == IMAGES  # all images train, but for the held-out part
        made = train_on_all(folder_split(ids, by_video=True)) if are_images else folder_split(ids)
        if options["heldout"]:
            made = hold_out(made)
        if not options["dry_run"]:
            write_split(default, made)
            output.say(f"{default}: written, a split of the class folders of {root}")
        return records, made
    return records, read_split(path or default)
