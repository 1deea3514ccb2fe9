"""The grids of the papers of 2014 and 2016 on real clips: streams, their fusion, joined towers.

usage: python benchmarks/reproduce.py DATA --frames RECORDS --flow tvl1=RECORDS
           [--flow NAME=RECORDS] [--profile cpu|gpu] [--only CELL,...] [--runs RUNS]
           [--results FOLDER]

DATA holds a split as UCF-101 lists it (*classInd.txt, *trainlist01.txt, ...) or as HMDB-51 does.
The first --flow serves all rows, the others the rows that compare methods. Each finished cell is a
JSON in FOLDER, and a later run goes on with the others; the table is made of those that are there.

Rows of joined towers (table "2016") take the run temporal-L10 and a spatial one at its size, and
records with frames and flow: the first --flow without --no-rgb. In the profile cpu they train what
is above the join on maps of center crops, computed once. --trajectories is the file of test scores
that benchmarks/idt_jhmdb10.py wrote (WORK/runs/SPLIT/scores-test.npz), for the row with them.

Nothing is chosen by the test part: a cell asks it once, after its training. Rows of the last layer
train it on features of the fixed trunk, computed once (center crops of MOMENTS clips a video), on
the whole training part; their held-out accuracy is of five folds of its source groups. Other rows
hold one fold out and keep its best step. A training that is done leaves trained.json in its run:
copied here from another machine, a run is scored and not trained again.

The rows themselves stand in reproduce_cells.py, their training in reproduce_training.py, the table
in reproduce_page.py.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clips import accuracy, run_benchmark, write_json
from reproduce_cells import (
    CELLS,
    FOLDS,
    FUSED,
    GRID_PASSES,
    HMAX_CELLS,
    LITE,
    LONG_CELLS,
    PROFILES,
    STREAM_CELLS,
    TOWER_CELLS,
    TOWER_STREAMS,
    TOWERS_IDT,
    WITH_IDT,
    Cell,
    TowerCell,
    make_job,
)
from reproduce_page import picture_of, read_cells, read_test, table_of
from reproduce_training import (
    TRAINED,
    name_of,
    run_hmax,
    run_last_layer,
    run_training,
    train_above,
)

from flowkit.data.augment import Augmentation
from flowkit.data.inputs import inputs_to_json
from flowkit.data.record_folders import RecordFolder
from flowkit.data.split_lists import hmdb51_split, ucf101_split
from flowkit.data.splits import Split, hold_out
from flowkit.evaluation.bilinear import score_bilinear
from flowkit.evaluation.scoring import Scorer, score_part
from flowkit.networks.checkpoints import read_checkpoint
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.scores.fitting import fit_linear, fit_weights
from flowkit.scores.fusion import Fusion, fuse
from flowkit.training.distributed import Ranks, choose_device
from flowkit.training.jobs import Job
from flowkit.training.loop import train
from flowkit.training.recipes import make_tower_recipe
from flowkit.training.sampling import Task
from flowkit.training.tower_runs import read_towers


def read_split_of(data: Path) -> Split:
    """Official split 1 of a folder of UCF-101's lists, or of HMDB-51's."""
    return ucf101_split(data, 1) if any(data.glob("*classInd.txt")) else hmdb51_split(data, 1)


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
        "form": inputs_to_json({cell.stream: cell.form})[cell.stream],
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
    views = profile.views if cell.towers.frames == 1 else profile.sample_views
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
    out, is_svm = folder / "scores-test.npz", cell.towers.join == "bilinear"
    if is_svm:
        write_scores(out, score_bilinear(job, runs.checkpoints[1], views, device)["test"])
    else:
        if profile.keeps_maps:
            maps = f"maps-{cell.towers.seam}" + f"-{cell.towers.frames}" * (cell.towers.frames > 1)
            train_above(job, folder, options.runs / "features" / maps, device)
        else:
            job = replace(job, tasks=(Task(runs.task, hold_out(split, folds=FOLDS), records),))
            for _ in train(job, folder, Ranks(0, 1, device), profile.machine, start="resume"):
                pass
        scorer = Scorer(folder, views=views, device=device)
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
        "recipe": None if is_svm else asdict(job.recipe),
        "input_px": job.augmentation.crop,
        "views": asdict(views),
        "split": split.name,
        "profile": options.profile,
        "device": name_of(device),
        "seconds": round(time.time() - began),
    }


def score_hmax(
    name: str, split: Split, records: RecordFolder, options: argparse.Namespace
) -> dict[str, Any]:
    """Score HMAX's features; what the JSON of the cell says."""
    row, paper = HMAX_CELLS[name]
    scores = run_hmax(name, split, records, options.runs)
    for part, one in scores.items():
        write_scores(options.runs / name / f"scores-{part}.npz", one)
    return {
        "cell": name,
        "table": "4",
        "row": row,
        "stream": "hmax",
        "paper": paper,
        "test": accuracy(scores["test"]),
        "heldout": accuracy(scores["heldout"]),
        "split": split.name,
        "device": "CPU",
    }


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


def fuse_trajectories(runs: Path, results: Path, idt: Scores) -> None:
    """Average joined towers with the scores of hand-made features, as table 6 of 2016 does."""
    towers = read_test(runs, WITH_IDT)
    if towers is None:
        return
    fused = fuse({"towers": towers, "idt": idt}, Fusion("average"))
    write_scores(runs / TOWERS_IDT / "scores-test.npz", fused)
    cell = {
        "cell": TOWERS_IDT,
        "table": "2016",
        "row": f"towers, 6: {TOWER_CELLS[WITH_IDT].row.partition(': ')[2]}, and trajectories",
        "stream": "towers",
        "paper": "92.5 (mean of three splits)",
        "test": accuracy(fused),
    }
    write_json(results / f"{TOWERS_IDT}.json", cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", type=Path, required=True, help="records with frames")
    parser.add_argument("--flow", action="append", required=True, metavar="NAME=RECORDS")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="cpu")
    parser.add_argument("--only", help="cells, separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs-reproduce"))
    parser.add_argument("--trajectories", type=Path, metavar="SCORES", help="of hand-made features")
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
    wanted = [name for name, cell in cells.items() if cell.profile in ("", options.profile)]
    wanted = [*wanted, *TOWER_CELLS, *HMAX_CELLS]
    if options.only:
        wanted = options.only.split(",")
    for name in wanted:
        file = options.results / f"{name}.json"
        if file.exists():
            continue
        first = flows[next(iter(flows))]
        print(f"{name}:", flush=True)
        if name in TOWER_CELLS:
            found = run_towers(name, TOWER_CELLS[name], split, RecordFolder(first), options)
        elif name in HMAX_CELLS:
            found = score_hmax(name, split, RecordFolder(first), options)
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
    if options.trajectories:
        fuse_trajectories(options.runs, options.results, read_scores(options.trajectories))
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
