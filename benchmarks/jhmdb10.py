"""Both streams on ten classes of J-HMDB, official split 1 of HMDB-51: trained, scored, fused.

usage: python benchmarks/jhmdb10.py RECORDS DATA/jhmdb10 [--runs runs-jhmdb10] [--json FILE.json]

RECORDS is what `flowkit extract DATA/jhmdb10 --out RECORDS --pack --format lz4` wrote;
DATA/jhmdb10 holds jhmdb10_classInd.txt, jhmdb10_trainlist01.txt and jhmdb10_testlist01.txt. A run
that is finished under --runs is taken, one that was stopped goes on; one begun with other options
is an error. The SVM is fitted on the held-out videos. `flowkit report --runs RUNS` then makes the
page.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from clips import accuracy, run_benchmark

from flowkit.data.augment import Augmentation
from flowkit.data.clips import STREAMS, Stream
from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.split_lists import ucf101_split
from flowkit.data.splits import Split, hold_out
from flowkit.data.stacks import StackForm
from flowkit.evaluation.scoring import Part, Scorer, TestViews, score_part
from flowkit.networks.checkpoints import read_checkpoint
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.scores.fitting import fit_linear
from flowkit.scores.fusion import Fusion, fuse
from flowkit.training.distributed import Ranks, choose_device
from flowkit.training.jobs import Job, Machine
from flowkit.training.loop import train
from flowkit.training.recipes import make_recipe
from flowkit.training.sampling import Task

PARTS: tuple[Part, ...] = ("test", "heldout")
NET, SHORT_SIDE, CROP, LENGTH = "small", 128, 112, 10
RATE = 0.03
STEPS = {"temporal": 3_000, "spatial": 400}
MACHINE = Machine(workers=1, bf16=True, channels_last=True)  # twice the speed on 2 cores
HELDOUT_FOLDS = 5  # one source group in five chooses the step: 69 videos; ten folds leave 33
# Of hand-made features and a ridge classifier, no network.
YARDSTICK = {"spatial": 0.449, "temporal": 0.543, "average": 0.594}


def make_job(stream: Stream, split: Split, records: RecordFolder, steps: int) -> Job:
    return Job(
        {stream: StackForm(LENGTH) if stream == "temporal" else FrameForm()},
        NET,
        (Task("main", split, records),),
        make_recipe(
            "short", "scratch", steps=steps, learning_rate=RATE, eval_every=max(1, steps // 10)
        ),
        augmentation=Augmentation("multi-scale", crop=CROP, short_side=SHORT_SIDE),
    )


def train_and_score(
    job: Job, folder: Path, device: torch.device, views: TestViews
) -> tuple[dict[Part, Scores], dict[str, Any]]:
    """The scores of the test and the held-out part, and what the run was."""
    for progress in train(job, folder, Ranks(0, 1, device), MACHINE, start="resume"):
        if progress.heldout_accuracy is not None:
            print(
                f"{next(iter(job.inputs))}, step {progress.step}: loss {progress.loss:.3f}, "
                f"held out {progress.heldout_accuracy:.3f}",
                flush=True,
            )
    (task,) = job.tasks
    scorer = Scorer(folder, views=views, device=device)
    scores: dict[Part, Scores] = {}
    for part in PARTS:
        out = folder / f"scores-{part}.npz"
        for done, videos in score_part(scorer, task.split, task.records, part, out):
            if done % 20 == 0:
                print(f"{next(iter(job.inputs))}: {done} of {videos} {part} videos", flush=True)
        scores[part] = read_scores(out)
    best = read_checkpoint(folder)
    return scores, {
        "best_step": best.step,
        "heldout": best.progress.get("best"),
        "recipe": asdict(job.recipe),
        "augmentation": asdict(job.augmentation),
    }


def fuse_streams(
    test: dict[str, Scores], heldout: dict[str, Scores], runs: Path
) -> dict[str, Scores]:
    """The streams' average, and a linear SVM fitted on the held-out videos; kept under `runs`."""
    test_videos = next(iter(test.values())).videos
    fusions = {
        "average": Fusion("average"),
        "svm": fit_linear("svm", heldout, test_videos=test_videos),
    }
    fused = {name: fuse(test, fusion) for name, fusion in fusions.items()}
    for name, scores in fused.items():
        write_scores(runs / name / "scores-test.npz", scores)
    return fused


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
    scores: dict[Part, dict[str, Scores]] = {part: {} for part in PARTS}
    runs: dict[str, dict[str, Any]] = {}
    for stream in STREAMS:
        job = make_job(stream, split, records, options.steps or STEPS[stream])
        by_part, runs[stream] = train_and_score(job, options.runs / stream, device, views)
        for part in PARTS:
            scores[part][stream] = by_part[part]
    methods = scores["test"] | fuse_streams(scores["test"], scores["heldout"], options.runs)
    found = {
        name: accuracy(one) | {"yardstick": YARDSTICK.get(name)} for name, one in methods.items()
    }
    for name, figures in found.items():
        low, high = figures["interval_95"]
        yardstick = figures["yardstick"]
        print(
            f"{name}: {figures['accuracy']:.3f} ({low:.3f} to {high:.3f}) of "
            f"{figures['videos']} test videos" + (f"; yardstick {yardstick}" if yardstick else "")
        )
    cut = (
        f"net {NET} instead of CNN-M-2048, input {CROP} px of {SHORT_SIDE} instead of 224 of 256, "
        f"{runs['temporal']['recipe']['steps']} (temporal) and "
        f"{runs['spatial']['recipe']['steps']} (spatial) steps of 64 clips instead of 80,000 of "
        "256, no weights of ImageNet"
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
    run_benchmark(main)
