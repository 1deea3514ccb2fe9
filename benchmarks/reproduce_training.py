"""How a row of reproduce.py is trained: its last layer, its top above a join, or the whole."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from clips import write_json
from reproduce_cells import FOLDS, MOMENTS, Profile
from torch import nn

from flowkit.data.record_folders import RecordFolder, match_records
from flowkit.data.splits import Split, hold_out
from flowkit.data.stacks import StackForm
from flowkit.evaluation.bilinear import BILINEAR_C, normalize_products
from flowkit.evaluation.scoring import Part, Scorer, TestViews, score_part
from flowkit.hmax.vectors import (
    PROTOTYPES,
    c2_path,
    encode_c2,
    fit_prototypes,
    plan_c2,
    read_prototypes,
    reader_of,
    write_prototypes,
)
from flowkit.idt.svm import decide, train_svms
from flowkit.networks.checkpoints import BEST, Checkpoint, write_checkpoint
from flowkit.networks.streams import StreamNet
from flowkit.networks.towers import BilinearJoin, Net, TowersNet
from flowkit.records.reading import flow_of
from flowkit.scores.files import Scores, read_scores
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Job
from flowkit.training.loop import train
from flowkit.training.recipes import Recipe
from flowkit.training.sampling import Task

BATCH_CLIPS = 32  # of a pass for features
TRAINED = "trained.json"  # in a run: where it was trained, and in how many seconds


def run_last_layer(
    job: Job, folder: Path, device: torch.device, features_file: Path, *, keeps_folds: bool
) -> Scores:
    """Train the last layer on the whole training part; its held-out scores, fold by fold.

    With `keeps_folds` the run of each fold stays in `fold_folder`, for towers to be joined of.
    """
    (task,) = job.tasks
    split, net = task.split, job.build()
    assert isinstance(net, StreamNet)
    features = trunk_features(job, net, features_file, device)
    labels = np.array(split.labels(split.train))
    record = task.records.open(next(iter(task.records.find().values())))
    has_flow = isinstance(next(iter(job.inputs.values())), StackForm)
    flow = flow_of(record) if has_flow else None
    values = np.full((len(labels), len(split.classes)), np.nan, np.float32)
    for fold, (part, own, other) in enumerate(folds_of(split)):
        head = train_head(features[own], labels[own], len(split.classes), job.recipe)
        values[other] = head_scores(head, features[other])
        if keeps_folds:
            net.heads["main"].load_state_dict(head.state_dict())
            without = replace(job, tasks=(Task("main", part, task.records),))
            write_run(without, net, fold_folder(folder, fold), flow)
    head = train_head(features, labels, len(split.classes), job.recipe)
    net.heads["main"].load_state_dict(head.state_dict())
    write_run(job, net, folder, flow)
    return heldout_scores(split, values, "softmax")


def folds_of(split: Split) -> Iterator[tuple[Split, np.ndarray, np.ndarray]]:
    """The split of each fold, and places in the training part: what trains there, what does not."""
    place = {video.id: number for number, video in enumerate(split.train)}
    for fold in range(FOLDS):
        part = hold_out(split, folds=FOLDS, fold=fold)
        own, other = (np.array([place[v.id] for v in vs]) for vs in (part.train, part.heldout))
        yield part, own, other


def fold_folder(folder: Path, fold: int) -> Path:
    """The run that was trained without a fold, of the run in `folder`."""
    return folder / f"fold-{fold}"


def write_run(job: Job, net: Net, folder: Path, flow: dict[str, Any] | None) -> None:
    """Write the checkpoint of a network that has learned on maps or features."""
    checkpoint = Checkpoint(
        job.recipe.steps,
        job.net,
        job.inputs,
        job.recipe.dropout,
        {task.name: task.classes for task in job.tasks},
        job.augmentation.short_side,
        job.augmentation.crop,
        flow,
        job.describe() | {"places": job.places()},
        trained_on=job.origin(),
        towers=job.towers,
    )
    write_checkpoint(folder, [BEST], checkpoint, net.cpu().state_dict(), {})


def heldout_scores(split: Split, values: np.ndarray, kind: str) -> Scores:
    """Scores of the training videos by what was trained without them; those of no fold are NaN."""
    kept = np.flatnonzero(~np.isnan(values[:, 0]))
    about = {"kind": kind, "part": "heldout", "split": split.name, "folds": FOLDS}
    videos, labels = tuple(split.train[n].id for n in kept), np.array(split.labels(split.train))
    return Scores(videos, split.classes, values[kept], labels[kept], about)


def trunk_features(job: Job, net: StreamNet, file: Path, device: torch.device) -> np.ndarray:
    """Features of the training videos, float32 (videos, MOMENTS, F); kept in `file`."""
    clips = job.clips_of("train", moments=MOMENTS)
    if file.exists():
        return np.load(file)
    [stream] = job.inputs
    net = net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = []
    for first in range(0, len(clips), BATCH_CLIPS):
        numbers = range(first, min(first + BATCH_CLIPS, len(clips)))
        batch = torch.cat([clips[number][stream] for number in numbers])
        batch = batch.to(device, memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            found.append(net.trunk(batch).float().cpu().numpy())
        if first % (10 * BATCH_CLIPS) == 0:
            print(f"  features of {first} of {len(clips)} clips", flush=True)
    features = np.concatenate(found).reshape(len(clips.videos), MOMENTS, -1)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, features)
    return features


def train_head(
    features: np.ndarray, labels: np.ndarray, classes: int, recipe: Recipe, seed: int = 0
) -> nn.Linear:
    """The last layer on features (videos, moments, F), as `recipe` says: classes drawn alike."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    head, drop = nn.Linear(features.shape[2], classes), nn.Dropout(recipe.dropout)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(
        head.parameters(),
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    of_class = [np.flatnonzero(labels == label) for label in range(classes)]
    edges = [part * features.shape[1] // recipe.segments for part in range(recipe.segments + 1)]
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        drawn = random.integers(classes, size=recipe.batch_size)
        videos = np.array([random.choice(of_class[label]) for label in drawn])
        moments = np.stack(
            [random.integers(a, b, recipe.batch_size) for a, b in pairwise(edges)],
            1,
        )
        given = torch.from_numpy(features[videos[:, None], moments])  # (B, segments, F)
        loss = nn.functional.cross_entropy(head(drop(given)).mean(1), torch.from_numpy(drawn))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), recipe.clip_norm or float("inf"))
        optimizer.step()
    return head


@torch.inference_mode()
def head_scores(head: nn.Linear, features: np.ndarray) -> np.ndarray:
    """Mean softmax over moments: float32 (videos, classes)."""
    return head(torch.from_numpy(features)).softmax(2).mean(1).numpy()


def run_hmax(features: str, split: Split, records: RecordFolder, runs: Path) -> dict[str, Scores]:
    """The scores of linear SVMs on HMAX's vectors, which are kept in `runs`, by part."""
    videos = [*split.train, *split.heldout, *split.test]
    places = match_records(videos, records.find())
    folder = runs / "hmax-vectors"
    file = folder / PROTOTYPES
    if not file.exists():
        write_prototypes(file, fit_prototypes(split, places, report=print))
    found = read_prototypes(file)
    for id, reason in encode_c2(plan_c2(places, folder, found), places, folder, found):
        if reason:
            raise SystemExit(f"{id}: {reason}")
    vectors = {id: c2_path(folder, id) for id in places}
    read = reader_of(features, [vectors[video.id] for video in split.train], found.seed)
    return train_svms(split, vectors, found, stream=features, read=read, folds=FOLDS).scores


def run_training(job: Job, folder: Path, device: torch.device, profile: Profile) -> Scores:
    """Train as `flowkit train` does, one fold held out; the scores of its best step there."""
    (task,) = job.tasks
    part = hold_out(task.split, folds=FOLDS)
    if not (folder / TRAINED).exists():
        began = Clock.now()
        job = replace(job, tasks=(Task("main", part, task.records),))
        for progress in train(job, folder, Ranks(0, 1, device), profile.machine, start="resume"):
            if (found := progress.heldout_accuracy) is not None:
                print(f"  step {progress.step}: held out {found:.3f}", flush=True)
        write_json(folder / TRAINED, {"device": name_of(device), **Clock.now().since(began)})
    return score_run(folder, profile.views, part, task.records, "heldout", device)


class Clock(NamedTuple):
    """A time: seconds by the clock, and of processors by this process and its ended ones."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> Clock:
        return cls(time.time(), sum(os.times()[:4]))

    def since(self, began: Clock) -> dict[str, int]:
        """What passed, as the JSON of a cell has it."""
        return {
            "seconds": round(self.wall - began.wall),
            "processor_s": round(self.processor - began.processor),
        }


def score_run(
    folder: Path,
    views: TestViews,
    split: Split,
    records: RecordFolder,
    part: Part,
    device: torch.device,
) -> Scores:
    """The scores of a part of the split by the run in `folder`, which keeps them."""
    out = folder / f"scores-{part}.npz"
    for _ in score_part(Scorer(folder, views=views, device=device), split, records, part, out):
        pass
    return read_scores(out)


def tower_maps(job: Job, maps: Path, device: torch.device) -> list[torch.Tensor]:
    """Both towers' maps of the training videos' center crops, (videos, samples, T, D, h, w).

    They are of MOMENTS samples per video, or of a single one if it has several moments itself, and
    are kept in `maps`.
    """
    net = job.build().eval().to(device)
    assert isinstance(net, TowersNet)
    frames = net.towers.frames
    clips = job.clips_of("train", moments=MOMENTS if frames == 1 else 1)
    files = {stream: maps.with_name(f"{maps.name}-{stream}.npy") for stream in job.inputs}
    if not all(file.exists() for file in files.values()):
        found: dict[str, list[np.ndarray]] = {stream: [] for stream in job.inputs}
        for number in range(len(clips)):
            sample = clips[number]
            for stream in job.inputs:
                with torch.inference_mode():
                    one = net.maps(stream, sample[stream].to(device))  # (T, D, h, w)
                found[stream].append(one.cpu().numpy())
        for stream, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.concatenate(found[stream]))
    shape = (len(clips.videos), -1, frames)
    return [torch.from_numpy(np.load(file)).unflatten(0, shape) for file in files.values()]


def train_above(job: Job, given: Sequence[torch.Tensor], device: torch.device) -> TowersNet:
    """Train what is above the join on the `tower_maps` of the job's training videos."""
    (task,) = job.tasks
    net = job.build().to(device)
    assert isinstance(net, TowersNet)
    net.frozen_statistics = job.recipe.frozen_statistics
    net.train_top(0)
    net.train()
    labels = np.repeat(task.split.labels(task.split.train), given[0].shape[1])
    of_class = [np.flatnonzero(labels == label) for label in range(len(task.classes))]
    samples = [maps.flatten(0, 1) for maps in given]
    random, recipe = np.random.default_rng(job.seed), job.recipe
    torch.manual_seed(job.seed)
    optimizer = torch.optim.SGD(
        [one for one in net.parameters() if one.requires_grad],
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        drawn = random.integers(len(of_class), size=recipe.batch_size)
        places = [int(random.choice(of_class[label])) for label in drawn]
        logits = net.answer(*(maps[places].flatten(0, 1).to(device) for maps in samples))
        right = torch.from_numpy(drawn).to(device)
        outputs = net.split_outputs(logits)[task.name]
        loss = torch.stack([nn.functional.cross_entropy(one, right) for one in outputs]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm or float("inf"))
        optimizer.step()
    return net


def cross_validate_above(
    split: Split, folds: Sequence[Job], given: Sequence[torch.Tensor], device: torch.device
) -> Scores:
    """Held-out scores of joined towers; `folds` are the jobs that hold one fold out each."""
    values = np.full((len(split.train), len(split.classes)), np.nan, np.float32)
    for job, (_, own, other) in zip(folds, folds_of(split), strict=True):
        net = train_above(job, [maps[own] for maps in given], device).eval()
        for place in other:
            with torch.inference_mode():
                logits = net.answer(*(maps[place].flatten(0, 1).to(device) for maps in given))
            values[place] = logits.softmax(1).mean(0).cpu().numpy()
    return heldout_scores(split, values, "softmax")


def cross_validate_bilinear(split: Split, given: Sequence[torch.Tensor]) -> Scores:
    """Held-out scores of the bilinear join, as `score_bilinear` fits its SVM."""
    labels = np.array(split.labels(split.train))
    products = BilinearJoin()
    features = np.empty((len(labels), given[0].shape[3] * given[1].shape[3]), np.float32)
    for place, video in enumerate(zip(*given, strict=True)):
        summed = products(*(maps.flatten(0, 1) for maps in video)).sum(0)
        features[place] = normalize_products(summed.numpy())
    gram = features @ features.T
    values = np.full((len(labels), len(split.classes)), np.nan, np.float32)
    for _, own, other in folds_of(split):
        train, others = gram[np.ix_(own, own)], gram[np.ix_(other, own)]
        values[other] = decide(train, labels[own], others, split.classes, C=BILINEAR_C)
    return heldout_scores(split, values, "logits")


def name_of(device: torch.device) -> str:
    """The GPU's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
