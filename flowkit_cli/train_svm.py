"""`flowkit train svm`: Fisher vectors, or HMAX's, to scores by a linear SVM for each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from flowkit.errors import RecordError, UsageError
from flowkit.idt.parameters import FEATURES
from flowkit_cli import output
from flowkit_cli.record_options import missing_option

if TYPE_CHECKING:
    from flowkit.data.splits import Split
    from flowkit.hmax.vectors import Prototypes
    from flowkit.idt.svm import Fitted, ReadVector

PATH = click.Path(path_type=Path)
FISHER = "fisher"  # the features whose vectors and SVMs flowkit fisher makes and scores by
HMAX_ONLY = ("records", "prototypes", "candidates", "every", "seed", "overwrite")


@click.command()
@click.option(
    "--features",
    type=click.Choice(tuple(FEATURES)),
    default=FISHER,
    show_default=True,
    help="; ".join(f"{name}: {one.text}" for name, one in FEATURES.items()) + ".",
)
@click.option(
    "--vectors",
    type=PATH,
    help="Folder of the vectors; those of HMAX are made here.  [default: fisher, or hmax]",
)
@click.option("--codebook", type=PATH, help="Fisher vectors' own.  [default: VECTORS/codebook.npz]")
@click.option(
    "--split",
    "split_file",
    type=PATH,
    help="Split to train on (flowkit split make).  [default: RUNS/split.json]",
)
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Folder of all runs.")
@click.option("--out", type=PATH, help="Folder of this run.  [default: RUNS/idt, RUNS/hmax, ...]")
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
@click.option("--records", type=PATH, help="Of HMAX: folder of the flow records.  [default: flow]")
@click.option(
    "--prototypes",
    type=click.IntRange(4),
    help="Of HMAX: patches cut from the training videos, a multiple of 4.  [default: 500]",
)
@click.option(
    "--candidates",
    type=click.IntRange(4),
    help="Of HMAX: cut so many, and keep the prototypes that tell the training videos' classes "
    "apart.  [default: as many as prototypes]",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    metavar="K",
    help="Of HMAX: look at each K-th field.  [default: 1]",
)
@click.option("--seed", type=click.IntRange(0), help="Of HMAX: of what is drawn.  [default: 0]")
@click.option(
    "--overwrite",
    is_flag=True,
    default=None,
    help="Of HMAX: cut and compute again what is there already.",
)
@missing_option
def svm(
    features: str,
    vectors: Path | None,
    codebook: Path | None,
    split_file: Path | None,
    runs: Path,
    out: Path | None,
    c: float,
    folds: int | None,
    missing: Literal["error", "skip"],
    **hmax: Any,
) -> None:
    """Train a linear SVM for each class on vectors of videos, and score the test part.

    \b
    flowkit train svm                        fisher/ -> runs/idt/
    flowkit train svm --features hmax        flow/ -> hmax/ -> runs/hmax/
    flowkit train svm --features hmax-c3     -> runs/hmax-c3/, of the same vectors

    Writes scores-test.npz and scores-heldout.npz, which flowkit fuse and flowkit report take like
    those of a stream, and of Fisher vectors svm.npz, by which flowkit fisher score scores other
    videos. With --cv the codebook has seen the held-out videos, though not their classes; the test
    part it never sees. HMAX's prototypes and vectors are made on the way; a rerun does what is
    missing.
    """
    from flowkit.data.splits import PARTS, read_split
    from flowkit.idt.svm import SVM_FILE, read_svms, train_svms, write_svms
    from flowkit.scores.files import read_scores, write_scores

    row = FEATURES[features]
    _check_options(features, codebook, folds, hmax)
    split = read_split(split_file or runs / "split.json")
    out, vectors = out or runs / row.stream, vectors or Path(row.folder)
    output.check_out_folder("--out", out)
    files = {part: out / f"scores-{part}.npz" for part in ("heldout", "test")}
    for file in files.values():
        if file.exists() and read_scores(file).meta.get("stream") != row.stream:
            raise UsageError(f"{file}: holds the scores of another stream: choose another --out")
    if (out / SVM_FILE).exists():
        read_svms(out / SVM_FILE)  # an error where it is anything else
    found: Mapping[str, Path]
    if features == FISHER:
        found, fitted, read = _fisher_vectors(split, vectors, codebook, missing)
    else:
        found, fitted, read = _hmax_vectors(features, split, vectors, missing, hmax)
    train, heldout, test = (
        tuple(video for video in split.part(part) if video.id in found) for part in PARTS
    )
    svms, scores = train_svms(
        replace(split, train=train, heldout=heldout, test=test),
        found,
        fitted,
        stream=row.stream,
        read=read,
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
    if features == FISHER:
        write_svms(out / SVM_FILE, svms)
        output.say(f"{out / SVM_FILE}: the SVMs; next: flowkit fuse, report, fisher score")


def _check_options(
    features: str, codebook: Path | None, folds: int | None, hmax: Mapping[str, Any]
) -> None:
    """UsageError for an option of other features."""
    given = [name for name in HMAX_ONLY if hmax[name] is not None]
    if features == FISHER and given:
        raise UsageError(f"--{given[0]} goes with --features hmax, not with {features}")
    if features != FISHER and codebook is not None:
        raise UsageError(f"--codebook goes with --features {FISHER}, not with {features}")
    if folds and hmax["candidates"]:
        raise UsageError(
            "--cv does not go with --candidates: prototypes that were selected have seen the "
            "classes of the videos that are held out"
        )


def _fisher_vectors(
    split: Split, vectors: Path, codebook: Path | None, missing: Literal["error", "skip"]
) -> tuple[Mapping[str, Path], Fitted, ReadVector]:
    """The places of the split's Fisher vectors, their codebooks, and what reads a vector."""
    from flowkit.data.record_folders import match_records
    from flowkit.data.splits import PARTS
    from flowkit.idt.vectors import CODEBOOK, find_vectors, read_codebooks, read_vector

    found = match_records(
        [video for part in PARTS for video in split.part(part)],
        find_vectors(vectors),
        missing=missing,
        kind="Fisher vector",
        maker="flowkit fisher encode",
    )
    return found, read_codebooks(codebook or vectors / CODEBOOK), read_vector


def _hmax_vectors(
    features: str,
    split: Split,
    vectors: Path,
    missing: Literal["error", "skip"],
    options: Mapping[str, Any],
) -> tuple[Mapping[str, Path], Fitted, ReadVector]:
    """The places of the split's C2 vectors, made where missing; prototypes; what reads a vector."""
    from flowkit.data.record_folders import RecordFolder, match_records
    from flowkit.data.splits import PARTS
    from flowkit.hmax.vectors import c2_path, encode_c2, plan_c2, reader_of

    records = match_records(
        [video for part in PARTS for video in split.part(part)],
        RecordFolder(options["records"] or Path("flow")).find(),
        missing=missing,
    )
    output.check_out_folder("--vectors", vectors)
    found = _prototypes(split, records, vectors, options)
    todo = plan_c2(records, vectors, found, overwrite=bool(options["overwrite"]))
    output.say(
        f"{output.count(len(records), 'video')}, {len(todo):,} to do: C2 vectors of {found.count} "
        f"numbers to {vectors}"
    )
    failed = {}
    with output.ProgressBar(len(todo)) as progress:
        for id, reason in encode_c2(todo, records, vectors, found):
            progress.finished(failed=bool(reason))
            if reason:
                failed[id] = reason
                output.error(f"failed: {reason}")
    if failed and missing == "error":
        raise RecordError(
            f"{output.count(len(failed), 'video')} without vectors: "
            f"{next(iter(failed.values()))}; --missing skip goes on without"
        )
    places = {id: c2_path(vectors, id) for id in records if id not in failed}
    train = [places[video.id] for video in split.train if video.id in places]
    return places, found, reader_of(features, train, found.seed)


def _prototypes(
    split: Split, records: Mapping[str, Any], vectors: Path, options: Mapping[str, Any]
) -> Prototypes:
    """Those that are there, if they are as asked for, else cut now."""
    from flowkit.hmax.vectors import PROTOTYPES, fit_prototypes, read_prototypes, write_prototypes

    file = vectors / PROTOTYPES
    asked = {"count": options["prototypes"], "every": options["every"], "seed": options["seed"]}
    asked = {name: value for name, value in asked.items() if value is not None}
    if file.exists() and not options["overwrite"]:
        found = read_prototypes(file)
        asked["selected"] = bool(options["candidates"])
        for name, value in asked.items():
            if getattr(found, name) != value:
                raise UsageError(
                    f"{file}: of {name} {getattr(found, name)}, asked for {value}: --overwrite "
                    "makes it again, another --vectors keeps it"
                )
        return found
    if file.exists():
        read_prototypes(file)  # an error where it is anything else
    found = fit_prototypes(
        split, records, candidates=options["candidates"], report=output.say, **asked
    )
    write_prototypes(file, found)
    return found
