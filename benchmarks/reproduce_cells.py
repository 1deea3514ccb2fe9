"""The rows that reproduce.py computes, how much of each in which profile, and a row's job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from flowkit.data.augment import Augmentation
from flowkit.data.clips import Stream
from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split
from flowkit.data.stacks import StackForm
from flowkit.evaluation.scoring import TestViews
from flowkit.networks.joining import Towers
from flowkit.networks.table import net_facts
from flowkit.training.jobs import Job, Machine
from flowkit.training.recipes import Mode, make_recipe
from flowkit.training.sampling import Task

FOLDS = 5
MOMENTS = 5  # clips of a video that the features of last-layer rows are of
LITE = "efficientnet-lite0"
FRAME = FrameForm()
GRID_PASSES = 20.0  # over the training videos, of rows of the last layer that are compared


@dataclass(frozen=True)
class Cell:
    """A row of a table; `paper` is what the paper prints for it on UCF-101 split 1, in percent."""

    table: str
    row: str
    stream: Stream
    mode: Mode
    paper: str = ""
    form: FrameForm | StackForm = FRAME
    first_layer: str = "shared"
    segments: int = 1
    flow: str = ""  # the name of another --flow than the first
    passes: float = GRID_PASSES  # over the training videos, of the last layer
    size_of: Stream | None = None  # whose short side and crop it takes instead of its own
    net: str = ""  # another network than the profile's, at its own size
    profile: str = ""  # the only profile that computes it unless it is named


L10 = StackForm(10)
CELLS = {
    "spatial-scratch": Cell("1a", "from scratch", "spatial", "scratch", "52.3"),
    "spatial-last-layer": Cell("1a", "ImageNet, last layer", "spatial", "last-layer", "72.7"),
    "spatial-60-passes": Cell(
        "1a", "ImageNet, last layer, 60 passes", "spatial", "last-layer", "72.7", passes=60
    ),
    "spatial-fine-tune": Cell("1a", "ImageNet, fine-tuned", "spatial", "fine-tune", "72.8"),
    "slow-fusion": Cell(
        "text",
        "slow fusion of 11 frames, from scratch",
        "spatial",
        "scratch",
        "56.4",
        form=FrameForm(11),
        net="slow-fusion",
        profile="gpu",
    ),
    "frames-10": Cell(
        "frames", "10 frames, last layer", "spatial", "last-layer", form=FrameForm(10)
    ),
    "rgb-diff": Cell(
        "frames",
        "5 differences of frames, last layer",
        "spatial",
        "last-layer",
        form=FrameForm(5, kind="rgb-diff"),
        first_layer="averaged",
    ),
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
    has_folds: bool = True  # whether it is trained without each fold, too, where maps are kept


TOWER_CELLS = {
    "towers-max": TowerCell("1: max at relu5", Towers("max"), "82.7"),
    "towers-cat": TowerCell("1: concatenation at relu5", Towers("cat"), "83.5"),
    "towers-sum": TowerCell("1: sum at relu5", Towers("sum"), "85.2"),
    "towers-bilinear": TowerCell("1: bilinear at relu5, SVM", Towers("bilinear"), "85.1"),
    "towers-conv": TowerCell("1: conv at relu5", Towers("conv"), "86.0"),
    "towers-relu2": TowerCell("2: conv at relu2", Towers("conv", ("relu2",)), "82.3", False),
    "towers-relu3": TowerCell("2: conv at relu3", Towers("conv", ("relu3",)), "83.4", False),
    "towers-relu4": TowerCell("2: conv at relu4", Towers("conv", ("relu4",)), "82.6", False),
    "towers-full8": TowerCell(
        "2: conv at relu5 and full8",
        Towers("conv", ("relu5", "full8"), keep="temporal"),
        "86.0",
    ),
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
        has_folds=False,
    ),
}
STREAM_CELLS = {"spatial": "spatial-last-layer", "temporal": "temporal-L10"}  # that are fused
LONG_CELLS = {"spatial": "spatial-60-passes", "temporal": "temporal-60-passes"}  # likewise
FUSED = {"average": "85.9", "weighted": "", "svm": "87.0 (multi-task)"}  # with the paper's figures
TRAJECTORY_CELLS = ("idt", "fused-idt")  # which benchmarks/idt_jhmdb10.py --results writes
# Joined towers averaged with the scores of --trajectories.
TOWERS_IDT, WITH_IDT = "towers-idt", "towers-kept"
HMAX_CELLS = {  # row, and what the paper prints
    "hmax": ("HMAX, mean of C2, linear SVM", "22.8 (HMDB-51)"),
    "hmax-c3": ("HMAX, C3, linear SVM", ""),
}
TABLES = ("1a", "1b", "segments", "flow", "text")  # which are computed unless others are named
MORE_TABLES = ("2016", "frames", "4")
RAFT_ROW = ("flow-raft", "flow", "temporal, L = 10, flow by raft")  # cell, table, row
RAFT_NEEDS = "not computed: needs a file of RAFT's weights (make reproduce RAFT=FILE)"


@dataclass(frozen=True)
class Profile:
    """How much is computed, and in a sentence what is less than the paper's."""

    scratch_recipe: str
    scratch_net: str
    scratch_sizes: tuple[int, int]  # short side and crop, px
    scratch_steps: dict[Stream, int]  # of streams that take another number than the recipe's
    tuned_passes: dict[Stream, float]  # over the training videos, of rows that are fine-tuned
    sizes: dict[Stream, tuple[int, int]]
    views: TestViews
    sample_views: TestViews  # of joined towers that see several moments in a sample
    keeps_maps: bool  # train joined towers on maps of center crops, computed once
    conv3d_passes: float  # over the training videos, of the join of most parameters
    machine: Machine
    cut: str


PROFILES = {
    "cpu": Profile(
        "short",
        "small",
        (128, 112),
        {"spatial": 400, "temporal": 300},  # frames: it only learns the recordings by heart
        {"spatial": 6, "temporal": 12},
        {"spatial": (256, 224), "temporal": (128, 112)},
        TestViews(MOMENTS, "center"),
        TestViews(1, "center"),
        True,
        5,
        Machine(workers=1, channels_last=True),
        "no row is CNN-M-2048, the paper's network; flow enters at 112 px instead of 224; test "
        f"videos are asked by the center of {MOMENTS} moments instead of ten views of 25; rows of "
        "the last layer learn from features of center crops, computed once, joined towers from "
        "maps of them, conv3d for 5 passes instead of 20; from scratch, 400 steps of frames and "
        "300 of flow; fine-tuned, 6 passes and 12",
    ),
    "gpu": Profile(
        "paper",
        "cnn-m-2048",
        (256, 224),
        {},
        {"spatial": GRID_PASSES, "temporal": GRID_PASSES},
        {"spatial": (256, 224), "temporal": (256, 224)},
        TestViews(),
        TestViews(),
        False,
        GRID_PASSES,
        Machine(workers=max(1, (os.cpu_count() or 2) - 1), bf16=True, channels_last=True),
        f"rows with ImageNet weights are {LITE}, not CNN-M-2048; those of the last layer learn "
        "from features of center crops, computed once",
    ),
}


def make_job(cell: Cell, split: Split, records: RecordFolder, profile: Profile) -> Job:
    """What a cell trains."""
    is_scratch = cell.mode == "scratch"
    size_of = cell.size_of or cell.stream
    short_side, crop = profile.scratch_sizes if is_scratch else profile.sizes[size_of]
    if cell.net:
        short_side, crop = net_facts(cell.net).size
    numbers: dict[str, Any] = {"segments": cell.segments}
    if not is_scratch:
        tuned = cell.mode == "fine-tune"
        numbers["passes"] = profile.tuned_passes[cell.stream] if tuned else cell.passes
    elif cell.stream in profile.scratch_steps:
        numbers["steps"] = profile.scratch_steps[cell.stream]
    name = profile.scratch_recipe if is_scratch else "pretrained"
    recipe = make_recipe(name, cell.mode, videos=len(split.train), **numbers)
    return Job(
        {cell.stream: cell.form},
        cell.net or (profile.scratch_net if is_scratch else LITE),
        (Task("main", split, records),),
        recipe,
        augmentation=Augmentation("multi-scale", crop=crop, short_side=short_side),
        weights=None if is_scratch else "imagenet",
        first_layer=cell.first_layer,
    )
