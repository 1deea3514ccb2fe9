"""The job that a run was made by, read back from its checkpoint and its splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from flowkit.data.augment import Augmentation
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import read_split
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import Checkpoint
from flowkit.networks.table import OwnNet
from flowkit.stores.urls import as_place
from flowkit.training.jobs import OPTIONS, Job
from flowkit.training.loop import SPLIT_FILE, split_file
from flowkit.training.recipes import Recipe, steps_of_passes
from flowkit.training.sampling import Task


def stored_job(
    run: Path,
    checkpoint: Checkpoint,
    records: RecordFolder | None = None,
    *,
    own: OwnNet | None = None,
) -> Job:
    """The job of a checkpoint of the folder `run`; `records` are those of its first task, if moved.

    A network of own code is given as `own`.

    UsageError where the run does not say where its records are, or lacks the split of another task
    or of added classes.
    """
    split, told = read_split(run / SPLIT_FILE), checkpoint.training
    [first, *others] = checkpoint.tasks
    has_added = set(checkpoint.tasks[first]) != set(split.classes)
    needed = others + [f"{first}+"] * has_added
    if missing := [name for name in needed if not (run / split_file(name)).exists()]:
        raise UsageError(
            f"{run}: was also trained on {', '.join(name.rstrip('+') for name in missing)} by a "
            "split that it does not keep: only a run of this version of flowkit is trained again"
        )
    if records is None:
        if "places" not in told:
            raise UsageError(f"{run}: does not say where its records are: name them (--records)")
        records = _folder(told["places"][first])
    beside = {
        name: (read_split(run / split_file(name)), _folder(told["places"][name])) for name in needed
    }
    added = beside.pop(f"{first}+", None)
    options: dict[str, Any] = {name: told[name] for name in OPTIONS if name in told}
    if isinstance(options.get("weights"), list):  # those of two towers
        options["weights"] = tuple(options["weights"])
    return Job(
        checkpoint.inputs,
        checkpoint.net,
        (Task(first, split, records, added), *(Task(name, *one) for name, one in beside.items())),
        Recipe(**{**told["recipe"], "drop_at": tuple(told["recipe"]["drop_at"])}),
        augmentation=Augmentation(**told["augmentation"]),
        towers=checkpoint.towers,
        own=own,
        **options,
    )


def prolong(job: Job, *, steps: int | None = None, passes: float | None = None) -> Job:
    """The same job with more steps, or passes over its training videos.

    The rate drops where it did; half a cosine is stretched. UsageError where there were more.
    """
    recipe = job.recipe
    if passes is not None:
        if steps is not None:
            raise UsageError("expected passes or steps: one of them says how long a training is")
        steps = steps_of_passes(passes, len(job.tasks[0].split.train), recipe.batch_size)
    if steps is None or steps < recipe.steps:
        raise UsageError(f"a training of {recipe.steps:,} steps cannot be cut to {steps or 0:,}")
    return replace(job, recipe=replace(recipe, steps=steps))


def _folder(place: dict[str, Any]) -> RecordFolder:
    return RecordFolder(**{**place, "root": as_place(place["root"])})
