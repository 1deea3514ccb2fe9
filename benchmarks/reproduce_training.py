"""How a row of reproduce.py is trained: its last layer, its top above a join, or the whole."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from clips import write_json
from reproduce_cells import FOLDS, MOMENTS, Profile
from torch import nn

from flowkit.data.record_folders import RecordFolder, match_records
from flowkit.data.splits import Split, hold_out
from flowkit.data.stacks import StackForm
from flowkit.evaluation.scoring import Scorer, score_part
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
from flowkit.idt.svm import train_svms
from flowkit.networks.checkpoints import BEST, Checkpoint, read_checkpoint, write_checkpoint
from flowkit.networks.streams import StreamNet
from flowkit.networks.towers import TowersNet
from flowkit.records.reading import flow_of
from flowkit.scores.files import Scores, read_scores
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Job
from flowkit.training.loop import train
from flowkit.training.recipes import Recipe
from flowkit.training.sampling import Task

BATCH_CLIPS = 32  # of a pass for features
TRAINED = "trained.json"  # in a run: where it was trained, and in how many seconds


def run_last_layer(job: Job, folder: Path, device: torch.device, features_file: Path) -> Scores:
    """Train the last layer on the whole training part; its held-out scores, fold by fold."""
    (task,) = job.tasks
    split, net = task.split, job.build()
    videos, features = trunk_features(job, net, features_file, device)
    place = {video: number for number, video in enumerate(videos)}
    labels = np.array(split.labels(split.train))
    values = np.zeros((len(videos), len(split.classes)), np.float32)
    asked = np.zeros(len(videos), bool)
    for fold in range(FOLDS):
        part = hold_out(split, folds=FOLDS, fold=fold)
        own, other = (np.array([place[v.id] for v in vs]) for vs in (part.train, part.heldout))
        head = train_head(features[own], labels[own], len(split.classes), job.recipe)
        values[other], asked[other] = head_scores(head, features[other]), True
    head = train_head(features, labels, len(split.classes), job.recipe)
    net.heads["main"].load_state_dict(head.state_dict())
    form = next(iter(job.inputs.values()))
    record = task.records.open(next(iter(task.records.find().values())))
    checkpoint = Checkpoint(
        job.recipe.steps,
        job.net,
        job.inputs,
        job.recipe.dropout,
        {"main": split.classes},
        job.augmentation.short_side,
        job.augmentation.crop,
        flow_of(record) if isinstance(form, StackForm) else None,
        job.describe() | {"places": job.places()},
        trained_on=job.origin(),
    )
    write_checkpoint(folder, [BEST], checkpoint, net.cpu().state_dict(), {})
    kept = np.flatnonzero(asked)
    about = {"kind": "softmax", "part": "heldout", "split": split.name, "folds": FOLDS}
    return Scores(tuple(videos[n] for n in kept), split.classes, values[kept], labels[kept], about)


def trunk_features(
    job: Job, net: StreamNet, file: Path, device: torch.device
) -> tuple[list[str], np.ndarray]:
    """The training videos, and float32 (videos, MOMENTS, F) of each; kept in `file`."""
    clips = job.clips_of("train", moments=MOMENTS)
    videos = [video.id for video in clips.videos]
    if file.exists():
        return videos, np.load(file)
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
    features = np.concatenate(found).reshape(len(videos), MOMENTS, -1)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, features)
    return videos, features


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
        began = time.time()
        job = replace(job, tasks=(Task("main", part, task.records),))
        for progress in train(job, folder, Ranks(0, 1, device), profile.machine, start="resume"):
            if (found := progress.heldout_accuracy) is not None:
                print(f"  step {progress.step}: held out {found:.3f}", flush=True)
        done = {"device": name_of(device), "seconds": round(time.time() - began)}
        write_json(folder / TRAINED, done)
    out = folder / "scores-heldout.npz"
    for _ in score_part(
        Scorer(folder, views=profile.views, device=device), part, task.records, "heldout", out
    ):
        pass
    return read_scores(out)


def train_above(job: Job, folder: Path, maps: Path, device: torch.device) -> None:
    """Train what is above the join on maps of the training videos' center crops, kept in `maps`.

    They are of MOMENTS samples a video, or of a single one if it has several moments itself.
    """
    (task,) = job.tasks
    net = job.build().eval().to(device)
    assert isinstance(net, TowersNet)
    frames = net.towers.frames
    samples = MOMENTS if frames == 1 else 1
    clips = job.clips_of("train", moments=samples)
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
    given = [torch.from_numpy(np.load(file)).unflatten(0, (-1, frames)) for file in files.values()]
    net.frozen_statistics = job.recipe.frozen_statistics
    net.train_top(0)
    net.train()
    labels = np.repeat(task.split.labels(task.split.train), samples)
    of_class = [np.flatnonzero(labels == label) for label in range(len(task.classes))]
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
        logits = net.answer(*(maps[places].flatten(0, 1).to(device) for maps in given))
        right = torch.from_numpy(drawn).to(device)
        outputs = net.split_outputs(logits)[task.name]
        loss = torch.stack([nn.functional.cross_entropy(one, right) for one in outputs]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm or float("inf"))
        optimizer.step()
    checkpoint = Checkpoint(
        recipe.steps,
        job.net,
        job.inputs,
        recipe.dropout,
        {task.name: task.classes},
        job.augmentation.short_side,
        job.augmentation.crop,
        read_checkpoint(job.sources[1]).flow,
        job.describe() | {"places": job.places()},
        trained_on=job.origin(),
        towers=job.towers,
    )
    write_checkpoint(folder, [BEST], checkpoint, net.cpu().state_dict(), {})


def name_of(device: torch.device) -> str:
    """The GPU's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
