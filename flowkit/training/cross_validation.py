"""Held-out scores of a whole training part: the job of a run trained again without each fold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, hold_out
from flowkit.documents import listed
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import BEST, Checkpoint, checkpoint_path
from flowkit.networks.table import OwnNet
from flowkit.scores.files import Scores, read_scores
from flowkit.training.jobs import Job
from flowkit.training.stored_jobs import stored_job

log = logging.getLogger(__name__)


def fold_jobs(
    run: Path,
    checkpoint: Checkpoint,
    records: RecordFolder,
    folds: int,
    *,
    own: OwnNet | None = None,
) -> list[Job]:
    """The job that a run was made by, with each fold of its first task's groups held out in turn.

    `records` are those of the first task; other tasks and added classes train as they did, by what
    the run says of them. The held-out part is dealt to the folds with the rest. UsageError where
    the run does not say it, or where a fold would be held out of this training and not of the
    weights or data sets that it takes beside. A network of own code is given as `own`.
    """
    job = stored_job(run, checkpoint, records, own=own)
    first, *others = job.tasks
    jobs = []
    for fold in range(folds):
        held = hold_out(first.split, folds=folds, fold=fold)
        weights = _fold_weights(job.weights, fold, folds)
        jobs.append(replace(job, tasks=(replace(first, split=held), *others), weights=weights))
        _refuse_seen(run, jobs[-1], fold)
    return jobs


def _fold_weights(
    weights: str | tuple[str, str] | None, fold: int, folds: int
) -> str | tuple[str, str] | None:
    """Of joined towers, those that were trained without the same fold; else the same weights."""
    if not isinstance(weights, tuple):
        return weights
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
    return found[0], found[1]


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
