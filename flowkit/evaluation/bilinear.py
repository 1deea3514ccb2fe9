"""The bilinear join of two towers: products of their maps, a linear SVM on them, scores.

Lin et al. 2015 (arXiv:1504.07889) as Feichtenhofer et al. 2016 use it: D D products summed over all
places and views of a video, their signed square roots, divided by their length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch

from flowkit.data.datasets import TestClips
from flowkit.data.splits import PARTS
from flowkit.evaluation.views import TestViews
from flowkit.idt.svm import decide, fit_sharpness
from flowkit.networks.checkpoints import Checkpoint
from flowkit.networks.towers import TowersNet
from flowkit.scores.files import PLACED, Scores
from flowkit.training.jobs import Job

BLOCK = 256  # videos whose features are multiplied at a time
BILINEAR_C = 100.0  # of the linear SVM


def score_bilinear(
    job: Job,
    temporal: Checkpoint,
    views: TestViews,
    device: torch.device,
    *,
    C: float = BILINEAR_C,
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
        part: job.clips_of(part, moments=views.moments, views=views.crops)
        for part in PARTS
        if task.split.part(part)
    }
    for one in clips.values():
        for record in one.records:
            temporal.check_record(record)
    products = _products(net, list(clips.values()), device, report)
    train, labels = len(clips["train"].videos), np.array(clips["train"].labels)
    margins = decide(products[:train], labels, products[train:], task.classes, C=C)
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


def _products(
    net: TowersNet,
    clips: Sequence[TestClips],
    device: torch.device,
    report: Callable[[int, int], None],
) -> np.ndarray:
    """Products of all videos' features with those of the first clips' videos, the training part's.

    Features are kept in a file meanwhile: they are D D floats per video.
    """
    places = [(one, place) for one in clips for place in range(len(one.videos))]
    with tempfile.TemporaryFile() as file:
        for done, (one, place) in enumerate(places, 1):
            file.write(_feature(net, one, place, device).data)
            report(done, len(places))
        file.flush()
        features = np.memmap(file, np.float32, "r").reshape(len(places), -1)
        train = features[: len(clips[0].videos)]
        tops = range(0, len(places), BLOCK)
        return np.concatenate([features[top : top + BLOCK] @ train.T for top in tops])


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
