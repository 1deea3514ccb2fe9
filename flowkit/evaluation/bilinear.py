"""The bilinear join of two towers: products of their maps, a linear SVM on them, scores.

Lin et al. 2015 (arXiv:1504.07889) as Feichtenhofer et al. 2016 use it: D D products summed over all
places and views of a video, their signed square roots, divided by their length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from flowkit.data.datasets import TestClips
from flowkit.data.record_folders import Missing, RecordFolder
from flowkit.data.splits import PARTS, Split
from flowkit.evaluation.views import TestViews
from flowkit.idt.svm import decide, fit_sharpness
from flowkit.networks.checkpoints import Checkpoint
from flowkit.networks.towers import TowersNet
from flowkit.scores.files import PLACED, Scores
from flowkit.training.jobs import Job

BLOCK = 256  # videos whose features are multiplied at a time


def score_bilinear(
    job: Job,
    temporal: Checkpoint,
    views: TestViews,
    device: torch.device,
    *,
    C: float = 100.0,
    report: Callable[[int, int], None] = lambda done, videos: None,
) -> dict[str, Scores]:
    """Scores of the "test" part and, where there is one, of the "heldout" part: scaled margins.

    `job` says which towers and which data set; one SVM of each class against the rest is fitted on
    its training part, and the scale on the held-out part (`idt.svm.fit_sharpness`). Records must be
    those that the `temporal` tower was trained on: RecordError. `report` is told the videos done.
    """
    [task] = job.tasks
    net = job.build().eval().to(device)
    assert isinstance(net, TowersNet)
    clips = {
        part: _clips(job, task.split, task.records, part, views, job.missing)
        for part in PARTS
        if task.split.part(part)
    }
    for one in clips.values():
        for record in one.records:
            temporal.check_record(record)
    total = sum(len(one.videos) for one in clips.values())
    with tempfile.TemporaryDirectory() as folder:
        features, done = None, 0
        for one in clips.values():
            for place in range(len(one.videos)):
                row = _feature(net, one, place, device)
                if features is None:
                    file = Path(folder) / "features.npy"
                    features = np.memmap(file, np.float32, "w+", shape=(total, len(row)))
                features[done] = row
                done += 1
                report(done, total)
        assert features is not None
        train = len(clips["train"].videos)
        products = np.concatenate(
            [features[top : top + BLOCK] @ features[:train].T for top in range(0, total, BLOCK)]
        )
    labels = np.array(clips["train"].labels)
    margins = decide(products[:train], labels, products[train:], len(task.classes), C=C)
    rows, first = {}, 0
    for part in [part for part in clips if part != "train"]:
        last = first + len(clips[part].videos)
        rows[part], first = margins[first:last], last
    sharpness = 1.0
    if "heldout" in rows:
        sharpness = fit_sharpness(rows["heldout"], np.array(clips["heldout"].labels))
    assert job.towers is not None
    meta = {
        "kind": "logits",
        "sharpness": sharpness,
        "stream": "towers",
        "about": f"{job.net}, {job.towers.about}, SVM of C = {C:g}, {views.moments} moments",
        "split": task.split.name,
        "views": {"moments": views.moments, "crops": views.crops, "placed": PLACED},
    }
    return {
        part: Scores(
            tuple(video.id for video in clips[part].videos),
            task.split.classes,
            values * np.float32(sharpness),
            np.array(clips[part].labels),
            {**meta, "part": part},
        )
        for part, values in rows.items()
    }


def normalize_products(products: np.ndarray) -> np.ndarray:
    """Signed square roots of products (D D,), divided by their Euclidean length."""
    roots = np.sign(products) * np.sqrt(np.abs(products))
    return roots / max(float(np.linalg.norm(roots)), np.finfo(np.float32).tiny)


@torch.inference_mode()
def _feature(net: TowersNet, clips: TestClips, place: int, device: torch.device) -> np.ndarray:
    """The feature of a video: float32 (D D,)."""
    total: torch.Tensor | None = None
    for moment in range(clips.moments):
        sample = clips[place * clips.moments + moment]
        products = net(*(sample[stream].to(device) for stream in clips.inputs)).sum(0)
        total = products if total is None else total + products
    assert total is not None
    return normalize_products(total.cpu().numpy())


def _clips(
    job: Job, split: Split, records: RecordFolder, part: str, views: TestViews, missing: Missing
) -> TestClips:
    return TestClips(
        split,
        records,
        inputs=job.inputs,
        part=part,
        moments=views.moments,
        views=views.crops,
        crop=job.augmentation.crop,
        short_side=job.augmentation.short_side,
        several=job.several,
        missing=missing,
    )
