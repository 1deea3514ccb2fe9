"""The grids of the papers of 2014 and 2016 on real clips: streams, their fusion, joined towers.

usage: python benchmarks/reproduce.py DATA --frames RECORDS --flow tvl1=RECORDS
           [--flow NAME=RECORDS] [--profile cpu|gpu] [--only CELL,...] [--runs RUNS]
           [--results FOLDER]

DATA holds a split as UCF-101 lists it (*classInd.txt, *trainlist01.txt, ...) or as HMDB-51 does.
The first --flow serves all rows, the others the rows that compare methods. Each finished cell is a
JSON in FOLDER, and a later run goes on with the others; the table is made of those that are there.

Rows of joined towers (table "2016") take the run temporal-L10 and a spatial one at its size, and
records with frames and flow: the first --flow without --no-rgb. In the profile cpu those of single
moments train what is above the join on maps of center crops, computed once.

Nothing is chosen by the test part: a cell asks it once, after its training. Rows of the last layer
train it on features of the fixed trunk, computed once (center crops of MOMENTS clips a video), on
the whole training part; their held-out accuracy is of five folds of its source groups. Other rows
hold one fold out and keep its best step. A training that is done leaves trained.json in its run:
copied here from another machine, a run is scored and not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import accuracy, run_benchmark
from torch import nn

from flowkit.data.augment import Augmentation
from flowkit.data.clips import Stream
from flowkit.data.record_folders import RecordFolder
from flowkit.data.split_lists import hmdb51_split, ucf101_split
from flowkit.data.splits import Split, hold_out
from flowkit.data.stacks import StackForm
from flowkit.evaluation.scoring import Scorer, TestViews, score_part
from flowkit.networks.checkpoints import BEST, Checkpoint, read_checkpoint, write_checkpoint
from flowkit.networks.joining import Towers
from flowkit.networks.streams import StreamNet
from flowkit.networks.towers import TowersNet
from flowkit.networks.weights import FirstLayer
from flowkit.records.reading import flow_of
from flowkit.report.figures import mcnemar
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.scores.fitting import fit_linear, fit_weights
from flowkit.scores.fusion import Fusion, fuse
from flowkit.training.distributed import Ranks, choose_device
from flowkit.training.jobs import Job, Machine
from flowkit.training.loop import train
from flowkit.training.recipes import Mode, Recipe, make_recipe, make_tower_recipe
from flowkit.training.sampling import Task
from flowkit.training.tower_runs import read_towers

FOLDS = 5
MOMENTS = 5  # clips of a video that the features of last-layer rows are of
BATCH_CLIPS = 32  # of a pass for features
LITE = "efficientnet-lite0"
GRID_PASSES = 20.0  # over the training videos, of rows on given weights that are compared


@dataclass(frozen=True)
class Cell:
    """A row of a table; `paper` is what the paper prints for it on UCF-101 split 1, in percent."""

    table: str
    row: str
    stream: Stream
    mode: Mode
    paper: str = ""
    form: StackForm | None = None
    first_layer: FirstLayer = "shared"
    segments: int = 1
    flow: str = ""  # the name of another --flow than the first
    passes: float = GRID_PASSES  # over the training videos, but from scratch
    size_of: Stream | None = None  # whose short side and crop it takes instead of its own


L10 = StackForm(10)
CELLS = {
    "spatial-scratch": Cell("1a", "from scratch", "spatial", "scratch", "52.3"),
    "spatial-last-layer": Cell("1a", "ImageNet, last layer", "spatial", "last-layer", "72.7"),
    "spatial-60-passes": Cell(
        "1a", "ImageNet, last layer, 60 passes", "spatial", "last-layer", "72.7", passes=60
    ),
    "spatial-fine-tune": Cell("1a", "ImageNet, fine-tuned", "spatial", "fine-tune", "72.8"),
    "temporal-scratch": Cell("1b", "L = 10, scratch", "temporal", "scratch", "81.0", L10),
    "temporal-L1": Cell("1b", "L = 1", "temporal", "last-layer", "73.9", form=StackForm(1)),
    "temporal-L5": Cell("1b", "L = 5", "temporal", "last-layer", "80.4", form=StackForm(5)),
    "temporal-mean-kept": Cell(
        "1b",
        "L = 10, mean flow kept",
        "temporal",
        "last-layer",
        "79.9",
        form=StackForm(10, mean_subtract=False),
    ),
    "temporal-L10": Cell("1b", "L = 10", "temporal", "last-layer", "81.0", form=L10),
    "temporal-60-passes": Cell(
        "1b", "L = 10, 60 passes", "temporal", "last-layer", "81.0", form=L10, passes=60
    ),
    "temporal-trajectory": Cell(
        "1b",
        "L = 10, trajectories",
        "temporal",
        "last-layer",
        "80.2",
        form=StackForm(10, "trajectory"),
    ),
    "temporal-bidirectional": Cell(
        "1b",
        "L = 10, bi-directional",
        "temporal",
        "last-layer",
        "81.2",
        form=StackForm(10, bidirectional=True),
    ),
    "temporal-averaged": Cell(
        "1b", "L = 10, filters averaged", "temporal", "last-layer", form=L10, first_layer="averaged"
    ),
    "temporal-fine-tune": Cell("1b", "L = 10, fine-tuned", "temporal", "fine-tune", form=L10),
    "spatial-3-segments": Cell("segments", "3 segments", "spatial", "last-layer", segments=3),
    "temporal-3-segments": Cell(
        "segments", "L = 10, 3 segments", "temporal", "last-layer", form=L10, segments=3
    ),
    "towers-spatial": Cell(
        "2016",
        "alone, at the temporal stream's size",
        "spatial",
        "last-layer",
        size_of="temporal",
    ),
}
TOWER_STREAMS = ("towers-spatial", "temporal-L10")  # the runs that are joined


@dataclass(frozen=True)
class TowerCell:
    """A row of joined towers; `paper` as of `Cell`, the table and row those of the 2016 paper."""

    row: str
    towers: Towers
    paper: str


TOWER_CELLS = {
    "towers-max": TowerCell("1: max at relu5", Towers("max"), "82.7"),
    "towers-cat": TowerCell("1: concatenation at relu5", Towers("cat"), "83.5"),
    "towers-sum": TowerCell("1: sum at relu5", Towers("sum"), "85.2"),
    "towers-conv": TowerCell("1: conv at relu5", Towers("conv"), "86.0"),
    "towers-relu2": TowerCell("2: conv at relu2", Towers("conv", ("relu2",)), "82.3"),
    "towers-relu3": TowerCell("2: conv at relu3", Towers("conv", ("relu3",)), "83.4"),
    "towers-relu4": TowerCell("2: conv at relu4", Towers("conv", ("relu4",)), "82.6"),
    "towers-kept": TowerCell(
        "4: conv at relu5, temporal kept", Towers("conv", keep="temporal"), "89.4"
    ),
    "towers-pool3d": TowerCell(
        "4: conv, 3D pooling, temporal kept",
        Towers("conv", ("relu5",), 5, over_time="pool3d", keep="temporal"),
        "89.6",
    ),
    "towers-conv3d": TowerCell(
        "4: conv3d, 3D pooling, temporal kept",
        Towers("conv", ("relu5",), 5, over_time="conv3d", keep="temporal"),
        "90.4",
    ),
}
STREAM_CELLS = {"spatial": "spatial-last-layer", "temporal": "temporal-L10"}  # that are fused
LONG_CELLS = {"spatial": "spatial-60-passes", "temporal": "temporal-60-passes"}  # likewise
FUSED = {"average": "85.9", "weighted": "", "svm": "87.0 (multi-task)"}  # with the paper's figures
TRAINED = "trained.json"  # in a run: where it was trained, and in how many seconds

TRAJECTORY_CELLS = ("idt", "fused-idt")  # which benchmarks/idt_jhmdb10.py --results writes


@dataclass(frozen=True)
class Profile:
    """How much is computed, and in a sentence what is less than the paper's."""

    scratch_recipe: str
    scratch_net: str
    scratch_sizes: tuple[int, int]  # short side and crop, px
    scratch_steps: dict[Stream, int]  # of streams that take another number than the recipe's
    sizes: dict[Stream, tuple[int, int]]
    views: TestViews
    machine: Machine
    cut: str


PROFILES = {
    "cpu": Profile(
        "short",
        "small",
        (128, 112),
        {"spatial": 400},  # it only learns the recordings by heart
        {"spatial": (256, 224), "temporal": (128, 112)},
        TestViews(MOMENTS, "center"),
        Machine(workers=1, channels_last=True),
        "no row is CNN-M-2048, the paper's network; flow enters at 112 px instead of 224; test "
        f"videos are asked by the center of {MOMENTS} moments instead of ten views of 25; rows of "
        "the last layer learn from features of center crops, computed once",
    ),
    "gpu": Profile(
        "paper",
        "cnn-m-2048",
        (256, 224),
        {},
        {"spatial": (256, 224), "temporal": (256, 224)},
        TestViews(),
        Machine(workers=max(1, (os.cpu_count() or 2) - 1), bf16=True, channels_last=True),
        f"rows with ImageNet weights are {LITE}, not CNN-M-2048; those of the last layer learn "
        "from features of center crops, computed once",
    ),
}


def read_split_of(data: Path) -> Split:
    """Official split 1 of a folder of UCF-101's lists, or of HMDB-51's."""
    return ucf101_split(data, 1) if any(data.glob("*classInd.txt")) else hmdb51_split(data, 1)


def make_job(cell: Cell, split: Split, records: RecordFolder, profile: Profile) -> Job:
    """What a cell trains."""
    is_scratch = cell.mode == "scratch"
    size_of = cell.size_of or cell.stream
    short_side, crop = profile.scratch_sizes if is_scratch else profile.sizes[size_of]
    numbers: dict[str, Any] = {"segments": cell.segments}
    if not is_scratch:
        numbers["passes"] = cell.passes
    elif cell.stream in profile.scratch_steps:
        numbers["steps"] = profile.scratch_steps[cell.stream]
    name = profile.scratch_recipe if is_scratch else "pretrained"
    recipe = make_recipe(name, cell.mode, videos=len(split.train), **numbers)
    return Job(
        {cell.stream: cell.form},
        profile.scratch_net if is_scratch else LITE,
        (Task("main", split, records),),
        recipe,
        augmentation=Augmentation("multi-scale", crop=crop, short_side=short_side),
        weights=None if is_scratch else "imagenet",
        first_layer=cell.first_layer,
    )


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
        None if form is None else flow_of(record),
        job.describe() | {"places": job.places()},
        trained_on=job.origin(),
    )
    write_checkpoint(folder, [BEST], checkpoint, net.cpu().state_dict(), {})
    kept = np.flatnonzero(asked)
    about = {"kind": "softmax", "part": "heldout", "split": split.name, "folds": FOLDS}
    return Scores(tuple(videos[n] for n in kept), split.classes, values[kept], labels[kept], about)


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


def name_of(device: torch.device) -> str:
    """The GPU's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def run_cell(
    name: str, cell: Cell, split: Split, records: RecordFolder, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and score a cell; what its JSON says."""
    profile, device = PROFILES[options.profile], choose_device(options.device)
    job, folder, began = make_job(cell, split, records, profile), options.runs / name, time.time()
    trained = {"device": name_of(device)}
    if cell.mode == "last-layer":
        trunk = f"{cell.stream}-{cell.first_layer}-{cell.form}-{records.root.name}"
        trunk += f"-{cell.size_of}" if cell.size_of else ""
        file = options.runs / "features" / f"{hash_text(trunk):x}.npy"
        heldout = run_last_layer(job, folder, device, file)
    else:
        heldout = run_training(job, folder, device, profile)
        trained = json.loads((folder / TRAINED).read_text())
    write_scores(folder / "scores-heldout.npz", heldout)
    out = folder / "scores-test.npz"
    scorer = Scorer(folder, views=profile.views, device=device)
    for _ in score_part(scorer, split, records, "test", out):
        pass
    return {
        "cell": name,
        "table": cell.table,
        "row": cell.row,
        "stream": cell.stream,
        "paper": cell.paper,
        "test": accuracy(read_scores(out)),
        "heldout": accuracy(heldout),
        "net": job.net,
        "mode": cell.mode,
        "step": read_checkpoint(folder).step,
        "recipe": asdict(job.recipe),
        "form": None if cell.form is None else asdict(cell.form),
        "first_layer": cell.first_layer if cell.mode != "scratch" else None,
        "input_px": job.augmentation.crop,
        "views": asdict(profile.views),
        "split": split.name,
        "profile": options.profile,
        "seconds": round(time.time() - began),
        **trained,
    }


def run_towers(
    name: str, cell: TowerCell, split: Split, records: RecordFolder, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and score joined towers; what the JSON of the cell says."""
    profile, device = PROFILES[options.profile], choose_device(options.device)
    folder, began = options.runs / name, time.time()
    runs = read_towers(*(options.runs / one for one in TOWER_STREAMS))
    runs.check_split(split)
    job = Job(
        runs.inputs,
        runs.net,
        (Task(runs.task, split, records),),
        make_tower_recipe("pretrained", "top", LITE, videos=len(split.train), passes=GRID_PASSES),
        augmentation=Augmentation(
            "multi-scale", crop=runs.checkpoints[0].crop, short_side=runs.checkpoints[0].short_side
        ),
        weights=runs.sources,
        towers=cell.towers,
    )
    if options.profile == "cpu" and cell.towers.frames == 1:
        train_above(job, folder, options.runs / "features" / f"maps-{cell.towers.seam}", device)
    else:
        job = replace(job, tasks=(Task(runs.task, hold_out(split, folds=FOLDS), records),))
        for _ in train(job, folder, Ranks(0, 1, device), profile.machine, start="resume"):
            pass
    out = folder / "scores-test.npz"
    scorer = Scorer(folder, views=profile.views, device=device)
    for _ in score_part(scorer, split, records, "test", out):
        pass
    return {
        "cell": name,
        "table": "2016",
        "row": f"towers, {cell.row}",
        "stream": "towers",
        "paper": cell.paper,
        "test": accuracy(read_scores(out)),
        "net": LITE,
        "towers": asdict(cell.towers),
        "recipe": asdict(job.recipe),
        "input_px": job.augmentation.crop,
        "views": asdict(profile.views),
        "split": split.name,
        "profile": options.profile,
        "device": name_of(device),
        "seconds": round(time.time() - began),
    }


def train_above(job: Job, folder: Path, maps: Path, device: torch.device) -> None:
    """Train what is above the join on maps of the training videos' center crops, kept in `maps`."""
    (task,) = job.tasks
    net = job.build().eval().to(device)
    assert isinstance(net, TowersNet)
    clips = job.clips_of("train", moments=MOMENTS)
    files = {stream: maps.with_name(f"{maps.name}-{stream}.npy") for stream in job.inputs}
    if not all(file.exists() for file in files.values()):
        found: dict[str, list[np.ndarray]] = {stream: [] for stream in job.inputs}
        for number in range(len(clips)):
            sample = clips[number]
            for stream in job.inputs:
                with torch.inference_mode():
                    one = net.maps(stream, sample[stream].to(device))  # (1, D, h, w)
                found[stream].append(one.cpu().numpy())
        for stream, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.concatenate(found[stream]))
    given = [torch.from_numpy(np.load(file)) for file in files.values()]
    net.frozen_statistics = job.recipe.frozen_statistics
    net.train_top(0)
    net.train()
    labels = np.repeat(task.split.labels(task.split.train), MOMENTS)
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
        logits = net.answer(*(maps[places].to(device) for maps in given))
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


def hash_text(text: str) -> int:
    """A number of a text, the same in every process."""
    return zlib.crc32(text.encode())


def fuse_cells(runs: Path, results: Path, cells: dict[str, str], prefix: str, table: str) -> None:
    """Fuse the two streams: by their average, and by what is fitted on held-out scores."""
    folders = {stream: runs / cell for stream, cell in cells.items()}
    if not all((folder / "scores-test.npz").exists() for folder in folders.values()):
        return
    test = {s: read_scores(f / "scores-test.npz") for s, f in folders.items()}
    heldout = {s: read_scores(f / "scores-heldout.npz") for s, f in folders.items()}
    videos = next(iter(test.values())).videos
    fusions = {
        "average": Fusion("average"),
        "weighted": fit_weights(heldout, test_videos=videos),
        "svm": fit_linear("svm", heldout, test_videos=videos),
    }
    for name, fusion in fusions.items():
        fused = fuse(test, fusion)
        write_scores(runs / f"{prefix}fused-{name}" / "scores-test.npz", fused)
        found = {
            "cell": f"{prefix}fused-{name}",
            "table": table,
            "row": f"fused, {name} of {' and '.join(cells.values())}",
            "stream": "fused",
            "paper": FUSED[name] if table == "3" else "",
            "test": accuracy(fused),
        }
        if name == "average":  # what is fitted has seen the held-out part
            found["heldout"] = accuracy(fuse(heldout, fusion))
        write_json(results / f"{prefix}fused-{name}.json", found)


def read_cells(results: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """The finished cells in the order of the tables, each compared with the one above it.

    Those of segments are compared with the same stream's without, joined towers with the average of
    the two streams that they are made of.
    """
    names = [name for name in CELLS if name not in TOWER_STREAMS[:1]]
    names += [f"{prefix}fused-{name}" for prefix in ("", "60-passes-") for name in FUSED]
    names += TRAJECTORY_CELLS
    names += [TOWER_STREAMS[0], *(f"towers-fused-{name}" for name in FUSED), *TOWER_CELLS]
    names += sorted(f.stem for f in results.glob("flow-*.json"))
    above: Scores | None = None
    table = ""
    for name in names:
        file = results / f"{name}.json"
        if not file.exists():
            continue
        cell = json.loads(file.read_text())
        if cell["table"] == "segments":
            above, table = read_test(runs, STREAM_CELLS[cell["stream"]]), "segments"
        if name in TOWER_CELLS:
            above, table = read_test(runs, "towers-fused-average"), "2016"
        own = read_test(runs, name)
        if own is not None and above is not None and cell["table"] == table:
            mine, theirs = (s.values.argmax(1) == s.labels for s in (own, above))
            cell["mcnemar_p"] = round(
                mcnemar(int((mine & ~theirs).sum()), int((theirs & ~mine).sum())), 3
            )
            write_json(file, cell)
        above, table = own, cell["table"]
        yield cell


def read_test(runs: Path, name: str) -> Scores | None:
    """The scores of a run's test videos, None where they are not here."""
    file = runs / name / "scores-test.npz"
    return read_scores(file) if file.exists() else None


def table_of(cells: list[dict[str, Any]]) -> str:
    """The cells as Markdown, the paper's figures beside them."""
    lines = [
        "| table | row | network | input, px | trained on | test accuracy | 95% | held out | "
        "p against the row above | paper, UCF-101 split 1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        low, high = (100 * one for one in cell["test"]["interval_95"])
        heldout = cell.get("heldout")
        told = f"{100 * heldout['accuracy']:.1f} of {heldout['videos']}" if heldout else ""
        chance = "< 0.001" if cell.get("mcnemar_p") == 0 else cell.get("mcnemar_p", "")
        lines.append(
            f"| {cell['table']} | {row_name(cell)} | {cell.get('net', '')} | "
            f"{cell.get('input_px', '')} | {cell.get('device', '')} | "
            f"{100 * cell['test']['accuracy']:.1f} | {low:.1f} to {high:.1f} | {told} | "
            f"{chance} | {cell['paper']} |"
        )
    return "\n".join(lines) + "\n"


def row_name(cell: dict[str, Any]) -> str:
    """A row in words, its stream first."""
    return (
        cell["row"] if cell["stream"] in ("fused", "towers") else f"{cell['stream']}, {cell['row']}"
    )


def picture_of(cells: list[dict[str, Any]]) -> str:
    """The table as SVG: accuracies on their 95% intervals, the paper's figures as open circles."""
    left, width, row_height, top = 430, 400, 22, 34  # px
    low = min(cell["test"]["interval_95"][0] for cell in cells)
    first = int(10 * low) / 10  # of the axis, which ends at 1

    def x(share: float) -> str:
        return f"{left + width * (share - first) / (1 - first):.1f}"

    height = top + row_height * len(cells) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#16202c">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="20">top-1 of test videos, 95%; open: the paper on UCF-101</text>'
    ]
    for tenth in range(round(10 * first), 11):
        parts.append(
            f'<line x1="{x(tenth / 10)}" x2="{x(tenth / 10)}" y1="{top - 6}" y2="{height - 8}" '
            f'stroke="#dfe4ea"/><text x="{x(tenth / 10)}" y="20" text-anchor="middle">'
            f"{10 * tenth}%</text>"
        )
    for number, cell in enumerate(cells):
        y, share = top + row_height * (number + 0.5), cell["test"]["accuracy"]
        ends = [x(one) for one in cell["test"]["interval_95"]]
        paper = cell["paper"].partition(" ")[0]
        parts.append(
            f'<text x="8" y="{y + 4}">{escape(cell["table"])}</text>'
            f'<text x="{left - 14}" y="{y + 4}" text-anchor="end">{escape(row_name(cell))}</text>'
            f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}" stroke="#0a8f78" '
            f'stroke-width="2"/><circle cx="{x(share)}" cy="{y}" r="4.5" fill="#0a8f78"/>'
            f'<text x="{left + width + 14}" y="{y + 4}">{100 * share:.1f}</text>'
        )
        if paper:
            parts.append(
                f'<circle cx="{x(float(paper) / 100)}" cy="{y}" r="4" fill="none" '
                'stroke="#5b6775" stroke-width="1.5"/>'
            )
    return "".join(parts) + "</svg>\n"


def write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", type=Path, required=True, help="records with frames")
    parser.add_argument("--flow", action="append", required=True, metavar="NAME=RECORDS")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="cpu")
    parser.add_argument("--only", help="cells, separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs-reproduce"))
    parser.add_argument("--results", type=Path, help="[benchmarks/results/reproduce-DATA-PROFILE]")
    parser.add_argument("--picture", type=Path, help="[table.svg among the results]")
    parser.add_argument("--device")
    options = parser.parse_args()
    split = read_split_of(options.data)
    name = f"reproduce-{split.name.rpartition('-')[0]}-{options.profile}"
    options.results = options.results or Path("benchmarks/results") / name
    flows = {name: Path(root) for name, _, root in (one.partition("=") for one in options.flow)}
    cells = dict(CELLS)
    for name in flows:
        row = f"L = 10, flow by {name}"
        cells[f"flow-{name}"] = replace(
            CELLS["temporal-L10"], table="flow", row=row, paper="", flow=name
        )
    wanted = options.only.split(",") if options.only else [*cells, *TOWER_CELLS]
    for name in wanted:
        file = options.results / f"{name}.json"
        if file.exists():
            continue
        first = flows[next(iter(flows))]
        print(f"{name}:", flush=True)
        if name in TOWER_CELLS:
            found = run_towers(name, TOWER_CELLS[name], split, RecordFolder(first), options)
        else:
            cell = cells[name]
            own = flows[cell.flow] if cell.flow else first
            root = options.frames if cell.stream == "spatial" else own
            found = run_cell(name, cell, split, RecordFolder(root), options)
        write_json(file, found)
    fuse_cells(options.runs, options.results, STREAM_CELLS, "", "3")
    fuse_cells(options.runs, options.results, LONG_CELLS, "60-passes-", "3")
    joined = dict(zip(STREAM_CELLS, TOWER_STREAMS, strict=True))
    fuse_cells(options.runs, options.results, joined, "towers-", "2016")
    done = list(read_cells(options.results, options.runs))
    profile = PROFILES[options.profile]
    text = f"{table_of(done)}\n{split.name}, profile {options.profile}: {profile.cut}.\n"
    (options.results / "table.md").write_text(text)
    (options.picture or options.results / "table.svg").write_text(picture_of(done))
    print(text, end="")
    best = {
        stream: {"cell": name, **cell["test"]}
        for stream, name in [*STREAM_CELLS.items(), ("fused", "fused-average")]
        for cell in done
        if cell["cell"] == name
    }
    summary = best | {"split": split.name, "profile": options.profile, "cut": profile.cut}
    write_json(options.results.with_suffix(".json"), summary | {"cells": done})


if __name__ == "__main__":
    run_benchmark(main)
