"""Trajectories, Fisher vectors and SVM on ten classes of J-HMDB, the three splits of HMDB-51.

usage: python benchmarks/idt_jhmdb10.py TRACKS DATA WORK [--gaussians 256] [--sample 256000]
           [--streams SCORES ...] [--method average] [--json FILE.json] [--results FOLDER]

TRACKS is what `flowkit trajectories DATA --out TRACKS` wrote; DATA holds clips.csv, whose tags of
HMDB-51's splits are followed (a clip that a split does not use is left out). Codebooks and vectors
are kept in WORK/split1 ... and used again. --streams are scores files of split 1's test part to
fuse with these scores, such as those of benchmarks/reproduce.py, in whose FOLDER --results puts the
rows of split 1 for its table. A --method that is fitted is so on the held-out part, whose scores
are scores-heldout.npz beside each. The Gaussians and the method are to be chosen by what the
held-out part says, which is printed first, and the test part asked once.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from clips import accuracy, run_benchmark

from flowkit.data.splits import Split, Video, source_group
from flowkit.idt.records import find_tracks
from flowkit.idt.svm import STREAM, train_svms
from flowkit.idt.vectors import (
    CODEBOOK,
    encode_records,
    find_vectors,
    fit_codebooks,
    plan_encoding,
    read_codebooks,
    write_codebooks,
)
from flowkit.scores.files import Scores, align, name_streams, read_scores, write_scores
from flowkit.scores.fitting import fit_class_weights, fit_linear, fit_weights
from flowkit.scores.fusion import Fusion, fuse

FOLDS = 5  # of the cross-validation that makes held-out scores
SPLITS = (1, 2, 3)
METHODS = ("average", "weighted", "class-weighted", "logistic")  # of the fusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tracks", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gaussians", type=int, default=256)
    parser.add_argument("--sample", type=int, default=256_000)
    parser.add_argument("--streams", type=Path, nargs="*", default=[])
    parser.add_argument("--method", choices=METHODS, default="average")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    found = {number: score(read_split(options.data, number), options) for number in SPLITS}
    for number, scores in found.items():
        print(f"split {number}, held out: {accuracy(scores['heldout'])['accuracy']:.1%}")
    rows = {f"split {number}": accuracy(scores["test"]) for number, scores in found.items()}
    mean = float(np.mean([row["accuracy"] for row in rows.values()]))
    rows |= fusions(found[1], options.streams, options.method)
    for name, row in rows.items():
        low, high = row["interval_95"]
        print(f"{name}: {row['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {row['videos']} videos")
    print(f"mean of the splits: {mean:.1%}")
    if options.json:
        numbers = {name: getattr(options, name) for name in ("gaussians", "sample", "method")}
        result = {**numbers, "mean": round(mean, 4), "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.results:
        write_cells(options.results, rows, options)


def write_cells(folder: Path, rows: dict[str, Any], options: argparse.Namespace) -> None:
    """The rows of split 1 as the cells that benchmarks/reproduce.py makes its table of."""
    names = {"idt": "split 1"}
    together = [name for name in rows if name.endswith(f" + {STREAM}")]
    if together:
        names["fused-idt"] = max(together, key=len)
    words = {
        "idt": f"improved dense trajectories, Fisher vectors of {options.gaussians} Gaussians",
        "fused-idt": f"{options.method} of {names.get('fused-idt')}",
    }
    paper = {"idt": "85.9 (mean of three splits)", "fused-idt": ""}
    for cell, row in names.items():
        one = {
            "cell": cell,
            "table": "4",
            "row": words[cell],
            "stream": "fused",
            "paper": paper[cell],
        }
        text = json.dumps({**one, "test": rows[row]}, indent=1) + "\n"
        (folder / f"{cell}.json").write_text(text)


def read_split(data: Path, number: int) -> Split:
    """One of HMDB-51's three splits, of the clips at hand."""
    parts: dict[str, list[Video]] = {"train": [], "test": []}
    with (data / "clips.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            part = row["split1_filled" if number == 1 else f"hmdb51_split{number}"]
            if part in parts:
                id = f"{row['class']}/{Path(row['file']).stem}"
                parts[part].append(Video(id, row["class"], row["source_group"]))
    classes = sorted({video.class_name for video in parts["train"]})
    name = f"jhmdb10-{number}"
    return Split(name, tuple(classes), tuple(parts["train"]), (), tuple(parts["test"]))


def score(split: Split, options: argparse.Namespace) -> dict[str, Scores]:
    """The scores of a split's test and held-out part, by what is in its folder or made there."""
    folder = options.work / f"split{split.name[-1]}"
    records, codebook = find_tracks(options.tracks), folder / CODEBOOK
    if not codebook.exists():
        found = fit_codebooks(
            split, records, gaussians=options.gaussians, sample=options.sample, report=print
        )
        write_codebooks(codebook, found)
    codebooks = read_codebooks(codebook)
    if (codebooks.gaussians, codebooks.sample) != (options.gaussians, options.sample):
        raise SystemExit(
            f"{codebook}: of {codebooks.gaussians} Gaussians, {codebooks.sample} tracks"
        )
    todo = plan_encoding(records, folder, codebooks)
    for one in encode_records(todo, records, folder, codebook, workers=1):
        if one.reason:
            raise SystemExit(f"{one.id}: {one.reason}")
    scores = train_svms(split, find_vectors(folder), codebooks, folds=FOLDS).scores
    for part, values in scores.items():
        write_scores(options.work / "runs" / split.name / f"scores-{part}.npz", values)
    return scores


def fusions(own: dict[str, Scores], files: list[Path], method: str) -> dict[str, Any]:
    """The streams in files alone, fused, and fused with these scores."""
    streams = {name: read_scores(path) for name, path in name_streams(files).items()}
    test, heldout = {**streams, STREAM: own["test"]}, {STREAM: own["heldout"]}
    if files:
        beside = [file.with_name("scores-heldout.npz") for file in files]
        heldout |= {name: read_scores(path) for name, path in name_streams(beside).items()}
        for one in METHODS:
            print(f"all fused, {one}, held out: {judge(one, heldout):.1%}")
    sets = [[*streams], *([name, STREAM] for name in streams), [*streams, STREAM]]
    found = {name: accuracy(one) for name, one in streams.items()}
    for names in (names for names in sets if len(names) > 1):
        fitted = {name: heldout[name] for name in names if method != "average"}
        fusion = fit_fusion(method, fitted)
        found[" + ".join(names)] = accuracy(fuse({name: test[name] for name in names}, fusion))
    return found


def judge(method: str, streams: dict[str, Scores]) -> float:
    """The accuracy of a fusion on held-out scores, fitted on the other folds of source groups."""
    from sklearn.model_selection import StratifiedGroupKFold

    streams = align(streams)
    first = next(iter(streams.values()))
    groups = [f"{Path(video).parent} {source_group(video)}" for video in first.videos]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    right = 0
    for inside, outside in folds.split(groups, first.labels, groups):
        fusion = fit_fusion(method, {name: rows(one, inside) for name, one in streams.items()})
        fused = fuse({name: rows(one, outside) for name, one in streams.items()}, fusion)
        right += int((fused.values.argmax(axis=1) == fused.labels).sum())
    return right / len(groups)


def rows(scores: Scores, places: np.ndarray) -> Scores:
    videos = tuple(scores.videos[place] for place in places)
    return replace(
        scores, videos=videos, values=scores.values[places], labels=scores.labels[places]
    )


def fit_fusion(method: str, heldout: dict[str, Scores]) -> Fusion:
    if method == "average":
        return Fusion(method)
    if method == "weighted":
        return fit_weights(heldout)
    if method == "class-weighted":
        return fit_class_weights(heldout)
    return fit_linear(method, heldout)


if __name__ == "__main__":
    run_benchmark(main)
