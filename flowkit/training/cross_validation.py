"""Held-out scores of a whole training part: the job of a run trained again without each fold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.data.augment import Augmentation
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, hold_out, read_split
from flowkit.documents import listed
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import BEST, Checkpoint, checkpoint_path
from flowkit.scores.files import Scores, read_scores
from flowkit.training.jobs import OPTIONS, Job
from flowkit.training.loop import SPLIT_FILE, split_file
from flowkit.training.recipes import Recipe
from flowkit.training.sampling import Task

log = logging.getLogger(__name__)


def fold_jobs(run: Path, checkpoint: Checkpoint, records: RecordFolder, folds: int) -> list[Job]:
    """The job that a run was made by, with each fold of its first task's groups held out in turn.

    `records` are those of the first task; other tasks and added classes train as they did, by what
    the run says of them. The held-out part is dealt to the folds with the rest. UsageError where
    the run does not say it, or where a fold would be held out of this training and not of the
    weights or data sets that it takes beside.
    """
    split = read_split(run / SPLIT_FILE)
    told = checkpoint.training
    [first, *others] = checkpoint.tasks
    has_added = set(checkpoint.tasks[first]) != set(split.classes)
    needed = others + [f"{first}+"] * has_added
    if missing := [name for name in needed if not (run / split_file(name)).exists()]:
        raise UsageError(
            f"{run}: was also trained on {', '.join(name.rstrip('+') for name in missing)} by a "
            "split that it does not keep: --cv needs a run of this version of flowkit"
        )
    beside = {
        name: (read_split(run / split_file(name)), _folder(told["places"][name])) for name in needed
    }
    added = beside.pop(f"{first}+", None)
    recipe = Recipe(**{**told["recipe"], "drop_at": tuple(told["recipe"]["drop_at"])})
    given: dict[str, Any] = {name: told[name] for name in OPTIONS if name in told}
    jobs = []
    for fold in range(folds):
        held = hold_out(split, folds=folds, fold=fold)
        tasks = [Task(first, held, records, added)]
        tasks += [Task(name, *other) for name, other in beside.items()]
        augmentation = Augmentation(**told["augmentation"])
        job = Job(
            checkpoint.inputs,
            checkpoint.net,
            tuple(tasks),
            recipe,
            augmentation=augmentation,
            towers=checkpoint.towers,
            **(given | _fold_weights(given.get("weights"), fold, folds)),
        )
        _refuse_seen(run, job, fold)
        jobs.append(job)
    return jobs


def _fold_weights(weights: Any, fold: int, folds: int) -> dict[str, Any]:
    """Of joined towers, those that were trained without the same fold; nothing of others."""
    if not isinstance(weights, list):
        return {}
    found = []
    for source in weights:
        run = checkpoint_path(source).parent
        place = fold_folder(run, fold, folds)
        if not (place / BEST).exists():
            raise UsageError(
                f"{run}: towers without a fold are joined from runs without it, and {place} is not "
                f"there: flowkit eval {run} --cv {folds}"
            )
        found.append(str(place))
    return {"weights": tuple(found)}


def fold_folder(run: Path, fold: int, folds: int) -> Path:
    """Where a run is trained again without fold number `fold`, from 0."""
    return run / "cv" / f"fold-{fold + 1}of{folds}"


def _refuse_seen(run: Path, job: Job, fold: int) -> None:
    split, origin = job.tasks[0].split, job.origin()
    if seen := origin.seen(split.heldout):
        raise UsageError(
            f"{run}: {len(seen)} of {len(split.heldout)} videos of fold {fold + 1} would be "
            "trained on all the same, by the weights that it starts from or by another data set: "
            f"{listed(seen)}"
        )
    if fold == 0 and origin.unknown:
        log.warning(
            "%s: starts from %s, which does not say what it was trained on: folds may be among it",
            *(run, listed(origin.unknown)),
        )


def _folder(place: dict[str, Any]) -> RecordFolder:
    return RecordFolder(**{**place, "root": Path(place["root"])})


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
