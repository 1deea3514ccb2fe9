"""`flowkit train svm`: Fisher vectors to scores, by a linear SVM a class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from flowkit.errors import UsageError
from flowkit_cli import output
from flowkit_cli.fisher import VECTORS
from flowkit_cli.record_options import missing_option

PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--vectors", type=PATH, default=VECTORS, show_default=True, help="Folder of the vectors."
)
@click.option("--codebook", type=PATH, help="Theirs.  [default: VECTORS/codebook.npz]")
@click.option(
    "--split",
    "split_file",
    type=PATH,
    help="Split to train on (flowkit split make).  [default: RUNS/split.json]",
)
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Folder of all runs.")
@click.option("--out", type=PATH, help="Folder of this run.  [default: RUNS/idt]")
@click.option(
    "--C",
    "c",
    type=click.FloatRange(0, min_open=True),
    default=100.0,
    show_default=True,
    help="Price of a training video on the wrong side of the margin.",
)
@click.option(
    "--cv",
    "folds",
    type=click.IntRange(2),
    metavar="FOLDS",
    help="Held-out scores of the whole training part, by cross-validation over source groups.  "
    "[default: of the split's held-out part]",
)
@missing_option
def svm(
    vectors: Path,
    codebook: Path | None,
    split_file: Path | None,
    runs: Path,
    out: Path | None,
    c: float,
    folds: int | None,
    missing: Literal["error", "skip"],
) -> None:
    """Train a linear SVM for each class on Fisher vectors, and score the test part.

    \b
    Reads fisher/, writes runs/idt/scores-test.npz and scores-heldout.npz, which flowkit fuse and
    flowkit report take like those of a stream, and runs/idt/svm.npz, by which flowkit fisher score
    scores other videos. With --cv the codebook has seen the held-out videos, though not their
    classes; the test part it never sees.
    """
    from dataclasses import replace

    from flowkit.data.record_folders import match_records
    from flowkit.data.splits import PARTS, read_split
    from flowkit.idt.svm import STREAM, SVM_FILE, read_svms, train_svms, write_svms
    from flowkit.idt.vectors import CODEBOOK, find_vectors, read_codebooks
    from flowkit.scores.files import read_scores, write_scores

    split = read_split(split_file or runs / "split.json")
    out = out or runs / STREAM
    output.check_out_folder("--out", out)
    files = {part: out / f"scores-{part}.npz" for part in ("heldout", "test")}
    for file in files.values():
        if file.exists() and read_scores(file).meta.get("stream") != STREAM:
            raise UsageError(f"{file}: holds the scores of another stream: choose another --out")
    if (out / SVM_FILE).exists():
        read_svms(out / SVM_FILE)  # an error where it is anything else
    found = match_records(
        [video for part in PARTS for video in split.part(part)],
        find_vectors(vectors),
        missing=missing,
        kind="Fisher vector",
        maker="flowkit fisher encode",
    )
    train, heldout, test = (
        tuple(video for video in split.part(part) if video.id in found) for part in PARTS
    )
    svms, scores = train_svms(
        replace(split, train=train, heldout=heldout, test=test),
        found,
        read_codebooks(codebook or vectors / CODEBOOK),
        C=c,
        folds=folds or 0,
    )
    for part, file in files.items():
        if part not in scores:
            file.unlink(missing_ok=True)  # scores of an earlier split would not fit the test part
            continue
        write_scores(file, scores[part])
        right = (scores[part].values.argmax(axis=1) == scores[part].labels).mean()
        videos = output.count(len(scores[part].videos), f"{part} video")
        output.result(f"{file}: {right:.1%} of {videos} right")
    write_svms(out / SVM_FILE, svms)
    output.say(f"{out / SVM_FILE}: the SVMs; next: flowkit fuse, report, fisher score")
