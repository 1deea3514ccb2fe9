"""Both streams on ten classes of J-HMDB, official split 1 of HMDB-51: trained, scored, averaged.

usage: python benchmarks/jhmdb10.py RECORDS DATA [--runs runs-jhmdb10] [--json FILE.json]

RECORDS is what `flowkit extract DATA --out RECORDS --pack --format lz4` wrote; DATA holds
jhmdb10_classInd.txt, jhmdb10_trainlist01.txt and jhmdb10_testlist01.txt. A run that is finished
under --runs is taken, one that was stopped goes on; one begun with other options is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowkit.augment import Augmentation
from flowkit.batches import Task
from flowkit.checkpoints import read_checkpoint
from flowkit.dataset import STREAMS, Stream
from flowkit.fusion import Fusion, fuse
from flowkit.jobs import Job, Machine
from flowkit.matching import RecordFolder
from flowkit.ranks import Ranks, choose_device
from flowkit.recipes import make_recipe
from flowkit.report import wilson
from flowkit.scores import Scores, read_scores
from flowkit.scoring import Scorer, TestViews, score_part
from flowkit.split_lists import ucf101_split
from flowkit.splits import Split, hold_out
from flowkit.stacks import StackForm
from flowkit.training import train

NET, SHORT_SIDE, CROP, LENGTH = "small", 128, 112, 10
RATE = 0.03
STEPS = {"temporal": 1_000, "spatial": 500}
HELDOUT_FOLDS = 5  # one source group in five chooses the step: 69 videos; ten folds leave 33
YARDSTICK = {"spatial": 0.449, "temporal": 0.543, "fused": 0.594}  # hand-made features, no network


def make_job(stream: Stream, split: Split, records: RecordFolder, steps: int) -> Job:
    return Job(
        stream,
        NET,
        (Task("main", split, records),),
        make_recipe("short", "scratch", steps=steps, learning_rate=RATE),
        form=StackForm(LENGTH) if stream == "temporal" else None,
        augmentation=Augmentation("multi-scale", crop=CROP, short_side=SHORT_SIDE),
    )


def train_and_score(
    job: Job, folder: Path, device: torch.device, views: TestViews
) -> tuple[Scores, dict[str, Any]]:
    """The scores of the test part, and what the run was."""
    begin = time.monotonic()
    for progress in train(job, folder, Ranks(0, 1, device), Machine(workers=1), start="resume"):
        if progress.heldout_accuracy is not None:
            print(
                f"{job.stream}, step {progress.step}: loss {progress.loss:.3f}, "
                f"held out {progress.heldout_accuracy:.3f}",
                flush=True,
            )
    train_s, begin = time.monotonic() - begin, time.monotonic()
    (task,) = job.tasks
    out = folder / "scores-test.npz"
    scorer = Scorer(folder, views=views, device=device)
    for done, videos in score_part(scorer, task.split, task.records, "test", out):
        if done % 20 == 0:
            print(f"{job.stream}: {done} of {videos} test videos", flush=True)
    best = read_checkpoint(folder)
    return read_scores(out), {
        "best_step": best.step,
        "heldout": best.progress.get("best"),
        "train_s": round(train_s),  # of this call: next to nothing for a run that was there
        "score_s": round(time.monotonic() - begin),
        "recipe": asdict(job.recipe),
        "augmentation": asdict(job.augmentation),
    }


def judge(scores: Scores, yardstick: float) -> dict[str, Any]:
    """Accuracy over the test videos with its 95% Wilson interval."""
    right = int((scores.values.argmax(1) == scores.labels).sum())
    rate = wilson(right / len(scores.labels), len(scores.labels))
    return {
        "accuracy": round(rate.value, 4),
        "interval_95": [round(rate.low, 4), round(rate.high, 4)],
        "right": right,
        "videos": len(scores.labels),
        "yardstick": yardstick,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs-jhmdb10"))
    parser.add_argument("--steps", type=int, help="of each stream, for a trial")
    parser.add_argument("--moments", type=int, default=25)
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    split = hold_out(ucf101_split(options.data, 1), folds=HELDOUT_FOLDS)
    records, views = RecordFolder(options.records), TestViews(options.moments)
    scores, runs = {}, {}
    for stream in STREAMS:
        job = make_job(stream, split, records, options.steps or STEPS[stream])
        scores[stream], runs[stream] = train_and_score(job, options.runs / stream, device, views)
    scores["fused"] = fuse(scores, Fusion("average"))
    found = {name: judge(one, YARDSTICK[name]) for name, one in scores.items()}
    for name, one in found.items():
        low, high = one["interval_95"]
        print(
            f"{name}: {one['accuracy']:.3f} ({low:.3f} to {high:.3f}) of {one['videos']} test "
            f"videos; yardstick {one['yardstick']:.3f}"
        )
    cut = (
        f"net {NET} instead of CNN-M-2048, input {CROP} px of {SHORT_SIDE} instead of 224 of 256, "
        f"{STEPS['temporal']} and {STEPS['spatial']} steps of 64 clips instead of 80,000 of 256, "
        "no weights of ImageNet"
    )
    print(f"cut to fit: {cut}")
    result = {
        "split": split.name,
        "videos": {part: len(split.part(part)) for part in ("train", "heldout", "test")},
        "device": str(device),
        "cores": os.cpu_count(),
        "net": NET,
        "L": LENGTH,
        "views": asdict(views),
        "cut": cut,
        "test": found,
        "runs": runs,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
