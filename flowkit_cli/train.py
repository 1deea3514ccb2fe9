"""`flowkit train`: one stream of the two-stream network, from flow records to checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from flowkit.documents import read_plain_file
from flowkit.errors import UsageError
from flowkit.stores.urls import as_place
from flowkit_cli import output
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
    RECIPE_NUMBERS,
    data_options,
    machine_options,
    net_options,
    recipe_options,
)
from flowkit_cli.train_svm import svm
from flowkit_cli.train_towers import towers

if TYPE_CHECKING:
    from flowkit.data.record_folders import RecordFolder
    from flowkit.data.splits import Split
    from flowkit.data.stacks import StackForm
    from flowkit.training.distributed import Ranks
    from flowkit.training.jobs import Job, Machine
    from flowkit.training.log import StepReport
    from flowkit.training.loop import Start
    from flowkit.training.sampling import Task

# Options that a run goes on with whatever they were before; all others say what is trained.
OF_THE_MACHINE = {
    *("resume", "runs", "out", "records", "device", "workers", "micro_batch", "bf16"),
    *("channels_last", "compile", "checkpointing", "tensorboard", "dry_run"),
}
OF_THE_LENGTH = {"steps", "passes"}  # options that prolong a run
LINE_S = 30  # seconds between two lines of progress, but for those with held-out accuracy


@click.group()
def train() -> None:
    """Train a stream: spatial, on frames, or temporal, on stacks of flow; or join two.

    \b
    flowkit train temporal --L 10                    flow/ -> runs/temporal/
    flowkit train spatial --net resnet18 --weights IMAGENET1K_V1
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
@data_options
@net_options
@recipe_options
@machine_options
def spatial(images: Path | None, **options: Any) -> None:
    """Train the spatial stream, on single frames.

    Reads the frames in flow/, writes runs/spatial/: best.json and last.json with their weights,
    log.csv, curves.svg. SIGTERM saves and ends with exit status 75; --resume goes on.
    """
    if images is not None:
        if options["tasks"] or options["add_classes"] or options["layout"]:
            raise UsageError(
                "--images is a data set of its own: leave --task, --layout and --add-classes out"
            )
        runs = Path(f"{options['runs']}-images")
        from flowkit.data.record_folders import IMAGES

        options |= {"records": images, "layout": IMAGES, "runs": runs}
    _train("spatial", options)


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
    _train("temporal", options | {"form": form})


def _train(stream: Literal["spatial", "temporal"], options: dict[str, Any]) -> None:
    run_job(stream, options, lambda: _make_job(stream, options))


def run_job(name: str, options: dict[str, Any], make_job: Callable[[], Job]) -> None:
    """Train the job of a run called `name`, or rehearse it, on what the options say."""
    from flowkit.training.distributed import join_ranks
    from flowkit.training.jobs import Machine

    if options["resume"] and options["overwrite"]:
        raise UsageError("--resume goes on and --overwrite begins again: give one of them")
    folder = options["out"] or options["runs"] / name
    output.check_out_folder("--out", folder)
    with join_ranks(options["device"]) as ranks:
        stored = _resumed_job(folder, options) if options["resume"] else None
        job = stored or make_job()
        names = ("micro_batch", "bf16", "channels_last", "compile", "tensorboard", "checkpointing")
        machine = Machine(
            workers=_workers(options["workers"], ranks),
            **{name: options[name] for name in names if name in options},
        )
        if ranks.is_first:
            _say_job(job, None if stored else options["recipe"], ranks, machine)
        if options["dry_run"]:
            _rehearse(job, ranks, machine)
            return
        start: Start = "overwrite" if options["overwrite"] else "new"
        _run(job, folder, ranks, machine, "resume" if options["resume"] else start)


def _resumed_job(folder: Path, options: dict[str, Any]) -> Job | None:
    """The job of the run to go on with, maybe longer; None where there is none.

    None, too, where options say what is trained: their job is compared with the run's.
    """
    from flowkit.data.record_folders import RecordFolder
    from flowkit.networks.checkpoints import LAST, read_checkpoint
    from flowkit.training.stored_jobs import prolong, stored_job

    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    given = {name for name in context.params if context.get_parameter_source(name) is not default}
    if given - OF_THE_MACHINE - OF_THE_LENGTH or not (folder / LAST).exists():
        return None
    checkpoint = read_checkpoint(folder / LAST)
    moved = RecordFolder(options["records"]) if "records" in given else None
    job = stored_job(folder, checkpoint, moved)
    if given & OF_THE_LENGTH:
        job = prolong(job, steps=options["steps"], passes=options["passes"])
    output.say(f"{folder}: goes on at step {checkpoint.step:,} of {job.recipe.steps:,}")
    return job


def _run(job: Job, folder: Path, ranks: Ranks, machine: Machine, start: Start) -> None:
    """Train, tell how it goes, and say at the end where the result is."""
    from flowkit.networks.checkpoints import read_checkpoint
    from flowkit.training.loop import train as train_stream

    last_line = 0.0
    for progress in train_stream(job, folder, ranks, machine, start=start):
        is_asked = progress.heldout_accuracy is not None
        if ranks.is_first and (is_asked or time.monotonic() - last_line >= LINE_S):
            last_line = time.monotonic()
            output.say(_line(progress))
    if ranks.is_first:
        best = read_checkpoint(folder)
        text = f"{folder}: best at step {best.step:,}"
        if found := best.progress.get("best"):
            videos = output.count(len(job.tasks[0].split.heldout), "held-out video")
            text += f", {found['accuracy']:.1%} of {videos}"
        output.result(f"{text}; next: flowkit eval")


def _line(progress: StepReport) -> str:
    """How a training goes, as a line."""
    text = f"step {progress.step:,} of {progress.steps:,}: loss {progress.loss:.3f}, "
    accuracies = progress.accuracies
    if len(accuracies) == 1:
        text += f"accuracy {next(iter(accuracies.values())):.1%}"
    else:
        text += ", ".join(f"accuracy of {task} {value:.1%}" for task, value in accuracies.items())
    if progress.heldout_accuracy is not None:
        text += f", held out {progress.heldout_accuracy:.1%} (loss {progress.heldout_loss:.3f})"
    return text + (
        f"; rate {progress.learning_rate:g}, {progress.samples_per_s:.1f} clips/s, "
        f"{output.duration(progress.seconds_left)} left"
    )


def _rehearse(job: Job, ranks: Ranks, machine: Machine) -> None:
    from flowkit.training.loop import rehearse

    found = rehearse(job, ranks, machine)
    if not ranks.is_first:
        return
    where = "of the GPU's memory" if ranks.device.type == "cuda" else "of memory"
    output.result(f"{found.parameters:,} parameters, {found.learning:,} of them learn at first")
    output.result(
        f"passes of a step: {found.passes}, of at most {found.micro_batch} clips; "
        f"{found.bytes / 2**30:.2f} GB {where}"
    )
    output.result(
        f"{found.seconds_per_step:.2f} s per step, about {output.duration(found.seconds)} "
        f"({found.seconds / 3600:.2f} h) for {job.recipe.steps:,} steps; nothing was written"
    )


def _say_job(job: Job, recipe_name: str | None, ranks: Ranks, machine: Machine) -> None:
    """What will be trained on what, where: said at the start."""
    recipe = job.recipe
    for line in _net_lines(job, recipe_name):
        output.say(line)
    for task in job.tasks:
        output.say(
            f"{task.name}: {output.count(len(task.split.train), 'training video')}, "
            f"{len(task.split.heldout):,} held out, {len(task.classes):,} classes; "
            f"records {task.records.root}, split {task.split.name}"
        )
    fall = {
        "drops": f"x {recipe.drop_factor:g} at {', '.join(map(str, recipe.drop_at)) or 'no step'}",
        "cosine": "falling along half a cosine",
        "plateau": f"x {recipe.drop_factor:g} where {recipe.patience} held-out accuracies in a row "
        "are no higher",
    }[recipe.schedule]
    output.say(
        f"{recipe.steps:,} steps of {recipe.batch_size} videos"
        + (f" in {recipe.segments} segments" if recipe.segments > 1 else "")
        + f", rate {recipe.learning_rate:g} {fall}, momentum {recipe.momentum:g}, "
        f"weight decay {recipe.weight_decay:g}, dropout {recipe.dropout:g}, seed {job.seed}"
    )
    output.say(
        f"on {ranks.device}; processes: {ranks.size}, loader workers of each: {machine.workers}"
        + ("; bfloat16" if machine.bf16 else "")
    )


def _net_lines(job: Job, recipe_name: str | None) -> Iterator[str]:
    """The network, what it starts from and sees, and how to train that of the paper.

    A run that goes on has no `recipe_name`, only the numbers.
    """
    import torch

    from flowkit.networks.streams import count_parameters
    from flowkit.networks.towers import make_net

    heads = {task.name: len(task.classes) for task in job.tasks}
    with torch.device("meta"):
        parameters = count_parameters(make_net(job.net, job.inputs, heads, job.towers))
    shapes = " and ".join(f"{c} channels of {h}x{w} px" for *_, c, h, w in job.shapes)
    forms = [f"; {form}" for form in map(_form_text, job.inputs.values()) if form]
    weights = f"weights {' and '.join(job.sources)}" if job.sources else "fresh weights"
    stream = f"{' and '.join(job.inputs)} stream"
    if job.towers is not None:
        stream = f"towers, {job.towers.about}"
    yield (
        f"{stream}, {f'recipe {recipe_name}' if recipe_name else 'as it was begun'}: {job.net}, "
        f"{parameters:,} parameters, {weights}, mode {job.recipe.mode}"
    )
    yield f"its input: {shapes}{''.join(forms)}"
    if recipe_name not in ("paper", None) and job.towers is None:
        of_paper = job.tasks[0].split.name.startswith(("ucf101-", "hmdb51-"))
        yield "the 2014 paper's network and schedule: --recipe paper" + (
            ", and only they compare with its published figures" if of_paper else ""
        )


def _form_text(form: StackForm | None) -> str:
    if form is None:
        return ""
    direction = "bi-directional, " if form.bidirectional else ""
    mean = "mean subtracted" if form.mean_subtract else "mean kept"
    return f"L = {form.length}, {form.mode} stacking, {direction}{mean}"


def _make_job(stream: Literal["spatial", "temporal"], options: dict[str, Any]) -> Job:
    """The job that the options ask for."""
    from flowkit.data.augment import Augmentation
    from flowkit.networks.table import net_facts
    from flowkit.training.jobs import Job
    from flowkit.training.recipes import make_recipe, recipe_facts

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
    weights = options["weights"] or (None if mode == "scratch" else setup.weights)
    tasks = _tasks(options)
    videos = len(tasks[0].split.train)
    return Job(
        {stream: options.get("form")},
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


def heldout_of(split: Split, wanted: bool) -> Split:
    """The split with a held-out part in its training part, or without one."""
    from dataclasses import replace

    from flowkit.data.splits import hold_out

    if not wanted:
        return replace(split, train=split.train + split.heldout, heldout=())
    return split if split.heldout else hold_out(split)


def read_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a recipe that were given."""
    numbers = {name: options[name] for name in RECIPE_NUMBERS if options[name] is not None}
    match numbers.get("drop_at"):
        case None:
            pass
        case "plateau":
            numbers |= {"schedule": "plateau", "drop_at": ()}
        case text:
            numbers["drop_at"] = _read_steps(text)
    return numbers


def _read_steps(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--drop-at: expected steps such as 50000,70000, got {text!r}") from None


def _workers(given: int | None, ranks: Ranks) -> int:
    """Loader processes of each process: the cores of this machine, shared by those on it."""
    from flowkit_cli.options import cores

    if given is not None:
        return given
    if ranks.device.type == "cpu":
        return 1  # the network itself takes the cores
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks.size > 1 else 1
    return max(1, cores() // here)
