"""Trains one stream: steps, held-out accuracy, checkpoints, and going on where it was stopped.

Everything random is a function of the seed and the step: the clips and their changes by their draw
number (`training.sampling`), dropout by the step and the process. So the step number in a
checkpoint is the state of the sampler and of all random numbers, and a training that was killed and
resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch

from flowkit.data.splits import read_split, write_split
from flowkit.documents import listed
from flowkit.errors import FlowkitError, UsageError
from flowkit.networks.checkpoints import BEST, LAST, read_checkpoint
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Job, Machine
from flowkit.training.loading import Given
from flowkit.training.log import CSV_FILE, CURVES_FILE, StepReport, TrainingLog, draw_log
from flowkit.training.sampling import Task, task_counts
from flowkit.training.trainer import Training, prepare
from flowkit.workers.signals import EXIT_STATUS, Stopped

STOPPED_FILE = "stopped"  # there where a signal stopped the run: torchrun's exit status tells not
SPLIT_FILE = "split.json"  # the split that a run was trained on, in its folder
log = logging.getLogger(__name__)

LOG_STEPS = 20  # most steps between two rows of the log
LOG_S = 10.0  # seconds between two rows where steps are slow
SAVE_S = 60.0  # seconds between two checkpoints, where no held-out part asks for them


def split_file(name: str) -> str:
    """The split of an auxiliary task in a run's folder; "TASK+": of the classes added to a task."""
    return f"split-{name}.json"


Start = Literal["new", "resume", "overwrite"]


def train(
    job: Job, folder: Path, ranks: Ranks, machine: Machine, *, start: Start = "new"
) -> Iterator[StepReport]:
    """Train, and yield how it goes; checkpoints, the split, the log and its picture go to `folder`.

    `start`: "new" refuses a folder that holds a training, "resume" goes on with it (or begins, if
    there is none), "overwrite" begins again. Every `eval_every` steps the held-out part is
    evaluated and ``last.json`` written, and ``best.json`` where the accuracy there is the highest
    yet (of equal ones the lower loss counts). Without a held-out part the last step is the best,
    and ``last.json`` is written every `SAVE_S` seconds. A thread writes them while steps go on.
    SIGTERM, SIGHUP and SIGINT let the step end, save, leave a file ``stopped``, and raise Stopped.
    TrainingError where the loss is NaN.
    """
    resume = _where_to_start(folder, start)
    with closing(prepare(job, ranks, machine, resume=resume)) as training:
        yield from _train(training, folder)


def _train(training: Training, folder: Path) -> Iterator[StepReport]:
    job, ranks, machine = training.job, training.ranks, training.machine
    if ranks.is_first:
        _write_splits(folder, job.tasks)
        _warn_of_seen(training)
        (folder / STOPPED_FILE).unlink(missing_ok=True)
    with (
        torch.random.fork_rng(),
        _stop_requests() as asked,
        TrainingLog(folder, training.step, tensorboard=machine.tensorboard)
        if ranks.is_first
        else nullcontext() as training_log,
        training.loader() as batches,
    ):
        try:
            for progress in _take_steps(training, folder, batches, asked):
                if training_log is not None:
                    training_log.add(progress)
                yield progress
        finally:
            training.saving.finish()
    if ranks.is_first:
        draw_log(folder)


def _take_steps(
    training: Training, folder: Path, batches: Iterator[Given], asked: Callable[[], int | None]
) -> Iterator[StepReport]:
    """Take the steps that are left; how it goes, now and then and wherever a checkpoint is due.

    That is told, and so in the log, before the checkpoint is written: a training that goes on from
    there takes rows of later steps away, and lacks none of earlier ones.
    """
    recipe = training.job.recipe
    window, saved_at = _Window(training.job, training.step), time.monotonic()
    rate = training.rate
    while True:
        training.saving.check()
        if _is_due(training, saved_at) and (found := _ask(training, asked)) is not None:
            if window.steps or found.heldout:
                yield window.tell(training.step, rate, found.heldout)
            window, saved_at = _Window(training.job, training.step), time.monotonic()
            training.progress["saved"] = training.step
            training.save(folder, *found.names)
        if signum := int(training.ranks.most(asked() or 0)):
            if window.steps:
                yield window.tell(training.step, rate)
            _save_and_stop(training, folder, signum)
        if training.step == recipe.steps:
            training.finish_saving()
            return
        rate = training.rate
        window.add(*training.take_step(batches))
        is_asked = training.heldout is not None and _is_asked(training)
        if window.is_long and not is_asked:
            yield window.tell(training.step, rate)
            window = _Window(training.job, training.step)


def _is_due(training: Training, saved_at: float) -> bool:
    """Whether this step has a checkpoint: the last, each that is asked about, or one a minute."""
    step = training.step
    if not step or training.progress.get("saved") == step:
        return False
    if training.heldout is not None or step == training.job.recipe.steps:
        return _is_asked(training)
    return bool(training.ranks.most(time.monotonic() - saved_at >= SAVE_S))


def _is_asked(training: Training) -> bool:
    """Whether the held-out part, if there is one, is asked after this step."""
    recipe, step = training.job.recipe, training.step
    return step % recipe.eval_every == 0 or step == recipe.steps


def _save_and_stop(training: Training, folder: Path, signum: int) -> NoReturn:
    training.save(folder, LAST)
    training.finish_saving()
    stopped = Stopped(signum)
    if training.ranks.is_first:
        (folder / STOPPED_FILE).write_text(f"{stopped} after step {training.step}\n")
    raise stopped


@dataclass(frozen=True)
class Rehearsal:
    """What two steps of a training showed; `bytes` is the most memory in use, on the device."""

    parameters: int
    learning: int
    micro_batch: int
    passes: int
    bytes: int
    seconds_per_step: float
    seconds: float  # seconds of the whole training, held-out part included


def rehearse(job: Job, ranks: Ranks, machine: Machine) -> Rehearsal:
    """Take two steps and ask some held-out clips, on real data; nothing is written."""
    with (
        closing(prepare(job, ranks, machine)) as training,
        torch.random.fork_rng(),
        training.loader() as batches,
    ):
        training.take_step(batches)
        begin = time.monotonic()
        training.take_step(batches)
        per_step = time.monotonic() - begin
    seconds = per_step * job.recipe.steps
    if training.heldout is not None:  # a pass forward is a third of one forward and back
        asked = len(training.heldout) * (job.recipe.steps // job.recipe.eval_every)
        seconds += asked * per_step / job.recipe.batch_size / 3
    parameters = list(training.net.parameters())
    return Rehearsal(
        parameters=sum(p.numel() for p in parameters),
        learning=sum(p.numel() for p in parameters if p.requires_grad),
        micro_batch=training.micro_batch,
        passes=training.passes,
        bytes=_peak_bytes(ranks.device),
        seconds_per_step=per_step,
        seconds=seconds,
    )


class _Window:
    """What was seen since the last row of the log."""

    def __init__(self, job: Job, step: int) -> None:
        self.job, self.first, self.steps = job, step, 0
        self.begin = time.monotonic()
        self.losses = np.zeros(len(job.tasks))
        self.right = np.zeros(len(job.tasks))
        self.counts = np.zeros(len(job.tasks))

    @property
    def is_long(self) -> bool:
        return self.steps >= LOG_STEPS or time.monotonic() - self.begin >= LOG_S

    def add(self, losses: list[float], right: list[int]) -> None:
        batch_size = self.job.recipe.batch_size
        self.counts += task_counts(self.first + self.steps, batch_size, len(self.job.tasks))
        self.losses += losses
        self.right += right
        self.steps += 1
        self.end = time.monotonic()

    def tell(self, step: int, rate: float, found: tuple[float, float] | None = None) -> StepReport:
        recipe, names = self.job.recipe, [task.name for task in self.job.tasks]
        nan = [math.nan] * len(names)
        steps_per_s = self.steps / max(self.end - self.begin, 1e-9) if self.steps else math.nan
        losses = self.losses / self.steps if self.steps else nan
        accuracies = self.right / self.counts if self.steps else nan
        return StepReport(
            step=step,
            steps=recipe.steps,
            losses=dict(zip(names, map(float, losses), strict=True)),
            accuracies=dict(zip(names, map(float, accuracies), strict=True)),
            learning_rate=rate,
            samples_per_s=steps_per_s * recipe.batch_size * recipe.segments,
            seconds_left=(recipe.steps - step) / steps_per_s,
            heldout_loss=None if found is None else found[0],
            heldout_accuracy=None if found is None else found[1],
        )


class _Found(NamedTuple):
    """What the held-out part says of a step, loss and accuracy, and how its checkpoint is named."""

    heldout: tuple[float, float] | None
    names: list[str]


def _ask(training: Training, asked: Callable[[], int | None]) -> _Found | None:
    """Ask the held-out part, if there is one; None where a signal came, to ask again later."""
    if training.heldout is None:
        is_last = training.step == training.job.recipe.steps
        return _Found(None, [LAST, BEST] if is_last else [LAST])
    found = training.ask_heldout(asked)
    if found is None:
        return None
    loss, accuracy = found
    names, best = [LAST], training.progress.get("best")
    if best is None or (accuracy, -loss) > (best["accuracy"], -best["loss"]):
        best = {"step": training.step, "accuracy": accuracy, "loss": loss}
        names.append(BEST)
    progress = {"best": best, "heldout": {"accuracy": accuracy, "loss": loss}}
    if training.job.recipe.schedule == "plateau":
        progress |= _on_plateau(training, accuracy)
    training.progress = progress
    return _Found(found, names)


def _on_plateau(training: Training, accuracy: float) -> dict[str, Any]:
    """How often the rate has dropped, and for how many held-out accuracies none was the highest."""
    told = training.progress
    highest, waited = told.get("highest", -1.0), told.get("waited", 0) + 1
    drops = told.get("drops", 0)
    if accuracy > highest:
        highest, waited = accuracy, 0
    elif waited == training.job.recipe.patience:
        drops, waited = drops + 1, 0
    return {"highest": highest, "waited": waited, "drops": drops}


def _write_splits(folder: Path, tasks: Sequence[Task]) -> None:
    """Write the split of the first task, and of others and added classes, into a run's folder."""
    for place, task in enumerate(tasks):
        write_split(folder / (split_file(task.name) if place else SPLIT_FILE), task.split)
        if task.added:
            write_split(folder / split_file(f"{task.name}+"), task.added[0])


def _warn_of_seen(training: Training) -> None:
    """Say so where weights have seen, or will see, videos that are to be chosen by or tested on."""
    split = training.job.tasks[0].split
    for part in ("heldout", "test"):
        if seen := training.trained_on.seen(split.part(part)):
            log.warning(
                "%s: %d of %d %s videos are trained on, by other data sets or by the weights it "
                "starts from (or others of the same source): flowkit eval will refuse them: %s",
                *(split.name, len(seen), len(split.part(part)), part, listed(seen)),
            )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], int | None]]:
    """Note the first signal that asks to stop, instead of stopping at once; a call says which."""
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)

    is_main = threading.current_thread() is threading.main_thread()
    handlers = {signum: signal.getsignal(signum) for signum in EXIT_STATUS} if is_main else {}
    handlers = {s: handler for s, handler in handlers.items() if handler is not signal.SIG_IGN}
    for signum in handlers:
        signal.signal(signum, note)
    try:
        yield lambda: noted[0] if noted else None
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _where_to_start(folder: Path, start: Start) -> Path | None:
    """The checkpoint to resume; UsageError where a new training would overwrite one.

    Or files of something else: a folder is a run's if a split or a checkpoint of flowkit's says so.
    """
    last = folder / LAST
    if not any(map(_is_runs, (folder / SPLIT_FILE, last, folder / BEST))):
        names = (SPLIT_FILE, LAST, BEST, CSV_FILE, CURVES_FILE)
        if others := [name for name in names if os.path.lexists(folder / name)]:
            raise UsageError(
                f"{folder}: holds files of another program where a training writes its own: "
                f"{listed(others)}; move them away, or choose another --out"
            )
    if not last.exists() and not (folder / BEST).exists():
        return None
    match start:
        case "resume" if last.exists():
            return last
        case "overwrite":
            for file in (folder / BEST, last):
                file.unlink(missing_ok=True)
            return None
    if not last.exists():
        raise UsageError(
            f"{folder}: holds weights that were trained elsewhere: --weights {folder} starts from "
            "them, --out writes elsewhere, --overwrite begins again here"
        )
    raise UsageError(
        f"{folder}: holds a training at step {read_checkpoint(last).step}: --resume goes on with "
        "it, --overwrite begins again, --out writes elsewhere"
    )


def _is_runs(file: Path) -> bool:
    """Whether a file is a split or a checkpoint that flowkit wrote."""
    try:
        read_split(file) if file.name == SPLIT_FILE else read_checkpoint(file)
    except FlowkitError:
        return False
    return True


def _peak_bytes(device: torch.device) -> int:
    """The most memory that was in use: on a CUDA device by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
