"""What all trainings of the command line share: a job's run, what is said of it, its numbers."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.errors import UsageError
from flowkit_cli import output
from flowkit_cli.train_options import RECIPE_NUMBERS

if TYPE_CHECKING:
    from flowkit.data.splits import Split
    from flowkit.training.distributed import Ranks
    from flowkit.training.jobs import Job, Machine
    from flowkit.training.log import StepReport
    from flowkit.training.loop import Start

# Options that a run goes on with whatever they were before; all others say what is trained.
OF_THE_MACHINE = {
    *("resume", "runs", "out", "records", "device", "workers", "micro_batch", "bf16"),
    *("channels_last", "compile", "checkpointing", "tensorboard", "dry_run"),
}
OF_THE_LENGTH = {"steps", "passes"}  # options that prolong a run
OF_THE_INPUT = {"kind", "count", "every"}  # options that say which run of frames is meant
LINE_S = 30  # seconds between two lines of progress, but for those with held-out accuracy


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
    from flowkit.networks.table import check_own
    from flowkit.own_code import is_own
    from flowkit.training.stored_jobs import prolong, stored_job

    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    given = {name for name in context.params if context.get_parameter_source(name) is not default}
    own = options["net"] if "net" in given and is_own(options["net"]) else None
    others = given - OF_THE_MACHINE - OF_THE_LENGTH - OF_THE_INPUT - ({"net"} if own else set())
    if others or not (folder / LAST).exists():
        return None
    checkpoint = read_checkpoint(folder / LAST)
    check_own(checkpoint.net, own, where=folder / LAST)
    if given & OF_THE_INPUT and checkpoint.inputs != {"spatial": options["form"]}:
        return None
    moved = RecordFolder(options["records"]) if "records" in given else None
    job = stored_job(folder, checkpoint, moved, own=own)
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
        words = [] if folder.parent == Path("runs") else [str(folder)]
        words += [] if job.own is None else ["--net", job.net]
        output.result(f"{text}; next: {shlex.join(['flowkit', 'eval', *words])}")


def _line(progress: StepReport) -> str:
    """How a training goes, as a line."""
    is_new = not math.isnan(progress.loss)  # NaN: no step since the training went on
    told = []
    if is_new:
        told.append(f"loss {progress.loss:.3f}")
        of_tasks = progress.accuracies
        told += [
            f"accuracy{f' of {task}' if len(of_tasks) > 1 else ''} {value:.1%}"
            for task, value in of_tasks.items()
        ]
    if progress.heldout_accuracy is not None:
        told.append(f"held out {progress.heldout_accuracy:.1%} (loss {progress.heldout_loss:.3f})")
    text = f"step {progress.step:,} of {progress.steps:,}: {', '.join(told)}"
    if is_new:
        text += (
            f"; rate {progress.learning_rate:g}, {progress.samples_per_s:.1f} clips/s, "
            f"{output.duration(progress.seconds_left)} left"
        )
    return text


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
        + f", {recipe.optimizer}, rate {recipe.learning_rate:g} {fall}, "
        + (f"then {recipe.second_rate:g} in the second phase, " if recipe.second_rate else "")
        + f"momentum {recipe.momentum:g}, "
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

    from flowkit.data.frames import FrameForm
    from flowkit.data.inputs import stream_name
    from flowkit.networks.streams import count_parameters

    with torch.device("meta") if job.own is None else nullcontext():  # own code computes
        parameters = count_parameters(job.fresh_net())
    shapes = " and ".join(f"{c} channels of {h}x{w} px" for *_, c, h, w in job.shapes)
    forms = [f"; {form.about}" for form in job.inputs.values() if form != FrameForm()]
    fresh = "fresh weights" if job.own is None else "weights as its function gives them"
    weights = f"weights {' and '.join(job.sources)}" if job.sources else fresh
    stream = f"{stream_name(job.inputs)} stream"
    if job.towers is not None:
        stream = f"towers, {job.towers.about}"
    yield (
        f"{stream}, {f'recipe {recipe_name}' if recipe_name else 'as it was begun'}: {job.net}, "
        + (f"hidden layer of {job.hidden:,}, " if job.hidden else "")
        + f"{parameters:,} parameters, {weights}, mode {job.recipe.mode}"
    )
    yield f"its input: {shapes}{''.join(forms)}"
    if recipe_name not in ("paper", None) and job.towers is None:
        of_paper = job.tasks[0].split.name.startswith(("ucf101-", "hmdb51-"))
        yield "the 2014 paper's network and schedule: --recipe paper" + (
            ", and only they compare with its published figures" if of_paper else ""
        )


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
