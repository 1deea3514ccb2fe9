"""The grids of the papers of 2014 and 2016 on real clips: streams, their fusion, joined towers.

usage: python benchmarks/reproduce.py DATA --frames RECORDS --flow tvl1=RECORDS
           [--flow NAME=RECORDS] [--profile cpu|gpu] [--tables TABLE,... | --only CELL,...]
           [--runs RUNS] [--results FOLDER]

DATA holds a split as UCF-101 lists it (*classInd.txt, *trainlist01.txt, ...) or as HMDB-51 does.
The first --flow serves all rows, the others the rows that compare methods. Each finished cell is a
JSON in FOLDER, and a later run goes on with the others; the table is made of those that are there.
Without --tables those of 2014 are computed, with segments and the rows of flow methods; further
tables are "2016" (joined towers), "frames" (stacks of them) and "4" (HMAX).

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
    MORE_TABLES,
    PROFILES,
    STREAM_CELLS,
    TABLES,
    TOWER_CELLS,
    TOWER_STREAMS,
    TOWERS_IDT,
    WITH_IDT,
    Cell,
    TowerCell,
    make_job,
)
from reproduce_page import minutes_of, picture_of, read_cells, read_test, table_of
from reproduce_training import (
    TRAINED,
    Clock,
    cross_validate_above,
    cross_validate_bilinear,
    fold_folder,
    name_of,
    run_hmax,
    run_last_layer,
    run_training,
    score_run,
    tower_maps,
    train_above,
    write_run,
)

from flowkit.data.augment import Augmentation
from flowkit.data.inputs import inputs_to_json
from flowkit.data.record_folders import RecordFolder
from flowkit.data.split_lists import hmdb51_split, ucf101_split
from flowkit.data.splits import Split, hold_out
from flowkit.errors import UsageError
from flowkit.evaluation.bilinear import score_bilinear
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
    job, folder = make_job(cell, split, records, profile), options.runs / name
    device_name = name_of(device)
    if cell.mode == "last-layer":
        trunk = f"{cell.stream}-{cell.first_layer}-{cell.form}-{records.root.resolve()}"
        trunk += f"-{cell.size_of}" if cell.size_of else ""
        file = options.runs / "features" / f"{hash_text(trunk):x}.npy"
        is_tower = name in TOWER_STREAMS
        heldout = run_last_layer(job, folder, device, file, keeps_folds=is_tower)
        write_scores(folder / "scores-heldout.npz", heldout)
    else:
        heldout = run_training(job, folder, device, profile)
        device_name = read_trained(folder)["device"]
    test = score_run(folder, profile.views, split, records, "test", device)
    return {
        "cell": name,
        "table": cell.table,
        "row": cell.row,
        "stream": cell.stream,
        "paper": cell.paper,
        "test": accuracy(test),
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
        "device": device_name,
    }


def run_towers(
    name: str, cell: TowerCell, split: Split, records: RecordFolder, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and score joined towers; what the JSON of the cell says."""
    profile, device = PROFILES[options.profile], choose_device(options.device)
    folder, runs = options.runs / name, options.runs
    views = profile.views if cell.towers.frames == 1 else profile.sample_views
    job, temporal = (
        tower_job(cell, split, records, options),
        read_checkpoint(runs / TOWER_STREAMS[1]),
    )
    heldout, is_svm = None, cell.towers.join == "bilinear"
    if profile.keeps_maps:
        maps = f"maps-{cell.towers.seam}" + f"-{cell.towers.frames}" * (cell.towers.frames > 1)
        given = tower_maps(job, runs / "features" / maps, device)
        if is_svm:
            heldout = cross_validate_bilinear(split, given)
        elif cell.has_folds:
            folds = [tower_job(cell, split, records, options, fold) for fold in range(FOLDS)]
            heldout = cross_validate_above(split, folds, given, device)
        if not is_svm:
            write_run(job, train_above(job, given, device), folder, temporal.flow)
    elif not is_svm:
        job = tower_job(cell, split, records, options, fold=0)
        for _ in train(job, folder, Ranks(0, 1, device), profile.machine, start="resume"):
            pass
        heldout = score_run(folder, views, job.tasks[0].split, records, "heldout", device)
    if is_svm:
        test = score_bilinear(job, temporal, views, device)["test"]
        write_scores(folder / "scores-test.npz", test)
    else:
        test = score_run(folder, views, split, records, "test", device)
    return {
        "cell": name,
        "table": "2016",
        "row": f"towers, {cell.row}",
        "stream": "towers",
        "paper": cell.paper,
        "test": accuracy(test),
        **({"heldout": accuracy(heldout)} if heldout else {}),
        "net": LITE,
        "towers": asdict(cell.towers),
        "recipe": None if is_svm else asdict(job.recipe),
        "input_px": job.augmentation.crop,
        "views": asdict(views),
        "split": split.name,
        "profile": options.profile,
        "device": name_of(device),
    }


def tower_job(
    cell: TowerCell,
    split: Split,
    records: RecordFolder,
    options: argparse.Namespace,
    fold: int | None = None,
) -> Job:
    """What a cell of joined towers trains: without a `fold`, as their streams, if one is named."""
    folders = [options.runs / name for name in TOWER_STREAMS]
    passes = GRID_PASSES
    if cell.towers.over_time == "conv3d":
        passes = PROFILES[options.profile].conv3d_passes
    if fold is not None:
        split = hold_out(split, folds=FOLDS, fold=fold)
        folders = [fold_folder(folder, fold) for folder in folders]
    towers = read_towers(*folders)
    towers.check_split(split)
    sizes = towers.checkpoints[0]
    return Job(
        towers.inputs,
        towers.net,
        (Task(towers.task, split, records),),
        make_tower_recipe("pretrained", "top", LITE, videos=len(split.train), passes=passes),
        augmentation=Augmentation("multi-scale", crop=sizes.crop, short_side=sizes.short_side),
        weights=towers.sources,
        towers=cell.towers,
    )


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


def read_trained(folder: Path) -> dict[str, Any]:
    """Where and how long the run in `folder` was trained; nothing where it is not done."""
    file = folder / TRAINED
    return json.loads(file.read_text()) if file.exists() else {}


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
    parser.add_argument("--tables", default=",".join(TABLES), help="separated by commas")
    parser.add_argument("--only", help="cells, separated by commas")
    parser.add_argument("--runs", type=Path, default=Path("runs-reproduce"))
    parser.add_argument("--trajectories", type=Path, metavar="SCORES", help="of hand-made features")
    parser.add_argument("--results", type=Path, help="[benchmarks/results/reproduce-DATA-PROFILE]")
    parser.add_argument("--picture", type=Path, help="[table.svg among the results]")
    parser.add_argument("--device")
    options = parser.parse_args()
    tables = options.tables.split(",")
    if unknown := set(tables) - {*TABLES, *MORE_TABLES}:
        known = ", ".join((*TABLES, *MORE_TABLES))
        raise UsageError(f"--tables: expected some of {known}, got {', '.join(unknown)}")
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
    wanted = [
        name
        for name, cell in cells.items()
        if cell.table in tables and cell.profile in ("", options.profile)
    ]
    wanted += [*TOWER_CELLS] * ("2016" in tables) + [*HMAX_CELLS] * ("4" in tables)
    if options.only:
        wanted = options.only.split(",")
    for name in wanted:
        file = options.results / f"{name}.json"
        if file.exists():
            continue
        first = flows[next(iter(flows))]
        print(f"{name}:", flush=True)
        before, began = read_trained(options.runs / name), Clock.now()
        if name in TOWER_CELLS:
            found = run_towers(name, TOWER_CELLS[name], split, RecordFolder(first), options)
        elif name in HMAX_CELLS:
            found = score_hmax(name, split, RecordFolder(first), options)
        else:
            cell = cells[name]
            own = flows[cell.flow] if cell.flow else first
            root = options.frames if cell.stream == "spatial" else own
            found = run_cell(name, cell, split, RecordFolder(root), options)
        spent = Clock.now().since(began)
        write_json(file, found | {unit: n + before.get(unit, 0) for unit, n in spent.items()})
    fuse_cells(options.runs, options.results, STREAM_CELLS, "", "3")
    fuse_cells(options.runs, options.results, LONG_CELLS, "60-passes-", "3")
    joined = dict(zip(STREAM_CELLS, TOWER_STREAMS, strict=True))
    fuse_cells(options.runs, options.results, joined, "towers-", "2016")
    if options.trajectories:
        fuse_trajectories(options.runs, options.results, read_scores(options.trajectories))
    done = list(read_cells(options.results, options.runs))
    profile = PROFILES[options.profile]
    text = f"{table_of(done)}\n{split.name}, profile {options.profile}: {profile.cut}.\n"
    text += f"\n{minutes_of(done)}\n"
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
