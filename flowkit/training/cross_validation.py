"""Held-out scores of a whole training part: the job of a run trained again without each fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.data.augment import Augmentation
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, hold_out
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import Checkpoint
from flowkit.scores.files import Scores, read_scores
from flowkit.training.jobs import Job
from flowkit.training.recipes import Recipe
from flowkit.training.sampling import Task


def fold_jobs(checkpoint: Checkpoint, split: Split, records: RecordFolder, folds: int) -> list[Job]:
    """The job that a checkpoint was made by, with each fold of source groups held out in turn.

    `split` is the one it was trained on; its held-out part is dealt to the folds with the rest.
    UsageError where it was trained on more than this one data set.
    """
    [task, *others] = checkpoint.tasks
    if others or set(checkpoint.tasks[task]) != set(split.classes):
        raise UsageError(
            "cross-validation trains anew what was trained on one data set: this run was trained "
            f"on {', '.join(checkpoint.tasks)} with {len(checkpoint.tasks[task])} classes, and "
            f"{split.name} has {len(split.classes)}"
        )
    told = checkpoint.training
    recipe = Recipe(**{**told["recipe"], "drop_at": tuple(told["recipe"]["drop_at"])})
    given: dict[str, Any] = {
        name: told[name] for name in ("weights", "first_layer", "seed", "eval_moments", "missing")
    }
    return [
        Job(
            checkpoint.inputs,
            checkpoint.net,
            (Task(task, hold_out(split, folds=folds, fold=fold), records),),
            recipe,
            augmentation=Augmentation(**told["augmentation"]),
            **given,
        )
        for fold in range(folds)
    ]


def join_folds(files: Sequence[Path], split: Split) -> Scores:
    """The held-out scores of all folds as one, in the order of the split's training videos.

    A class of one source group is never held out, so its videos have none.
    """
    rows: dict[str, tuple[np.ndarray, int]] = {}
    for file in files:
        scores = read_scores(file)
        labels = scores.labels.tolist()
        rows |= dict(zip(scores.videos, zip(scores.values, labels, strict=True), strict=True))
    videos = [video.id for video in (*split.train, *split.heldout) if video.id in rows]
    shared = {key: value for key, value in scores.meta.items() if key not in ("checkpoint", "data")}
    return Scores(
        tuple(videos),
        scores.classes,
        np.stack([rows[video][0] for video in videos]),
        np.array([rows[video][1] for video in videos]),
        shared
        | {"about": f"{scores.meta['about']}, {len(files)} folds", "cross_validation": len(files)},
    )
