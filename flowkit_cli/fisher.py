"""`flowkit fisher`: track records to Fisher vectors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flowkit.errors import FlowkitError, UsageError
from flowkit_cli import output
from flowkit_cli.options import cores, failures_option, json_option, workers_option
from flowkit_cli.record_options import missing_option

if TYPE_CHECKING:
    import numpy as np

    from flowkit.idt.svm import LinearSvms

PATH = click.Path(path_type=Path)
VECTORS = "fisher"  # the folder that the commands write and read unless told


@click.group()
def fisher() -> None:
    """Fisher vectors of trajectories: first the codebook of a split, then one vector per video.

    \b
    flowkit fisher fit tracks/ --split runs/split.json    -> fisher/codebook.npz
    flowkit fisher encode tracks/                         -> fisher/<class>/<video>.npz
    flowkit train svm                                     -> runs/idt/scores-test.npz, svm.npz
    flowkit fisher score other/                           -> the class of each video
    """


@fisher.command()
@click.argument("tracks", type=PATH, default="tracks")
@click.option(
    "--split",
    "split_file",
    type=PATH,
    help="Split whose training part is looked at.  [default: RUNS/split.json]",
)
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Folder of all runs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=f"{VECTORS}/codebook.npz",
    show_default=True,
    help="Where to.",
)
@click.option(
    "--gaussians",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Of the mixture of each descriptor.",
)
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=256_000,
    show_default=True,
    help="Tracks to fit to, at most, drawn from all.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@missing_option
@click.option("--overwrite", is_flag=True, help="Fit again where there is a codebook already.")
def fit(
    tracks: Path,
    split_file: Path | None,
    runs: Path,
    out: Path,
    gaussians: int,
    sample: int,
    seed: int,
    missing: Literal["error", "skip"],
    overwrite: bool,
) -> None:
    """Fit the codebook of a split: PCA to half and a mixture of Gaussians for each descriptor.

    Only the training part is looked at. TRACKS is the folder of the track records.
    """
    from flowkit.data.record_folders import match_records
    from flowkit.data.splits import read_split
    from flowkit.idt.records import find_tracks
    from flowkit.idt.vectors import fit_codebooks, read_codebooks, write_codebooks

    split = read_split(split_file or runs / "split.json")
    if out.exists():
        read_codebooks(out)  # an error where it is anything else
        if not overwrite:
            raise UsageError(f"{out}: there is a codebook already: --overwrite fits again")
    records = match_records(
        split.train,
        find_tracks(tracks),
        missing=missing,
        kind="track record",
        maker="flowkit trajectories",
    )
    output.say(f"{output.count(len(records), 'training video')} of split {split.name}")
    output.check_out("--out", out, "an .npz", records.values())
    found = fit_codebooks(
        split, records, gaussians=gaussians, sample=sample, seed=seed, report=output.say
    )
    write_codebooks(out, found)
    output.result(f"{out}: vectors of {found.length:,} numbers; next: flowkit fisher encode")


@fisher.command()
@click.argument("tracks", type=PATH, default="tracks")
@click.option("--codebook", type=PATH, help="What fit made.  [default: OUT/codebook.npz]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=VECTORS,
    show_default=True,
    help="Folder of the vectors.",
)
@click.option("--overwrite", is_flag=True, help="Make vectors again that are there already.")
@workers_option
@json_option
@failures_option
def encode(
    tracks: Path,
    codebook: Path | None,
    out: Path,
    overwrite: bool,
    workers: int | None,
    as_json: bool,
    failures: Path | None,
) -> None:
    """Write the Fisher vector of every track record below TRACKS; a rerun does what is missing.

    A video without tracks has a zero vector, and is named. Exit status 1 where some failed.
    """
    from flowkit.idt.records import find_tracks
    from flowkit.idt.vectors import CODEBOOK, encode_records, plan_encoding, read_codebooks

    codebook = codebook or out / CODEBOOK
    found = read_codebooks(codebook)
    records = find_tracks(tracks)
    todo = plan_encoding(records, out, found, overwrite=overwrite)
    workers = workers or cores()
    output.say(
        f"{output.count(len(records), 'record')}, {len(todo):,} to do: vectors of "
        f"{found.length:,} numbers to {out} with {output.count(workers, 'worker')}"
    )
    failed, empty = [], 0
    with (
        output.Failures(failures, [codebook, *records.values()], out) as told,
        output.ProgressBar(len(todo)) as progress,
    ):
        for one in encode_records(todo, records, out, codebook, workers=workers):
            progress.finished(failed=bool(one.reason))
            if one.reason:
                failed.append(one)
                output.error(f"failed: {records[one.id]}: {one.reason}")
                told.add(records[one.id], one.reason)
            elif not one.tracks:
                empty += 1
                output.error(f"zero vector: {records[one.id]}: no tracks")
            if as_json:
                status = {"status": "failed", "reason": one.reason} if one.reason else {
                    "status": "done", "tracks": one.tracks,
                }  # fmt: skip
                output.json_line({"video": one.id, **status})
    done, skipped = len(todo) - len(failed), len(records) - len(todo)
    output.say(
        f"{done:,} done, {skipped:,} there already, {len(failed):,} failed; "
        f"{empty:,} without tracks"
    )
    if as_json:
        counts = {"done": done, "skipped": skipped, "failed": len(failed), "without_tracks": empty}
        output.json_line({"status": "summary", **counts})
    if failed:
        sys.exit(1)


@fisher.command()
@click.argument("vectors", type=PATH, default=VECTORS)
@click.option(
    "--svm", "svm_file", type=PATH, help="What train svm kept.  [default: RUNS/idt/svm.npz]"
)
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Folder of all runs.")
@click.option(
    "--split",
    "split_file",
    type=PATH,
    help="Score its test part and say how many are right.  [default: every vector, no labels]",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a scores file, too."
)
@missing_option
@json_option
def score(
    vectors: Path,
    svm_file: Path | None,
    runs: Path,
    split_file: Path | None,
    out: Path | None,
    missing: Literal["error", "skip"],
    as_json: bool,
) -> None:
    """Score Fisher vectors by SVMs that were trained before, of any videos.

    VECTORS is their folder. The codebook is that of the training: flowkit fisher encode --codebook.
    With --split, videos that the SVMs or their codebook were trained on are refused, or others of
    their source groups. Exit status 1 where some failed; the others are scored.
    """
    from flowkit.data.record_folders import match_records
    from flowkit.data.splits import read_split
    from flowkit.idt.svm import STREAM, SVM_FILE, read_svms
    from flowkit.idt.vectors import find_vectors
    from flowkit.scores.files import read_scores, write_scores

    svms = read_svms(svm_file or runs / STREAM / SVM_FILE)
    found, split = find_vectors(vectors), None
    if split_file is not None:
        split = read_split(split_file)
        svms.check_unseen(split.test)
        found = match_records(
            split.test, found, missing=missing, kind="Fisher vector", maker="flowkit fisher encode"
        )
    if out is not None:
        output.check_out("--out", out, "an .npz", found.values())
        if out.exists():
            read_scores(out)  # an error where it is anything else
    rows = dict(_score_all(svms, found, as_json=as_json))
    failed = len(found) - len(rows)
    if not rows:
        raise UsageError(f"{vectors}: none of {output.count(failed, 'vector')} could be scored")
    scores = svms.collect(rows, split)
    right = (scores.values.argmax(axis=1) == scores.labels)[scores.labels >= 0]
    if as_json:
        share = {"right": float(right.mean())} if len(right) else {}
        counts = {"done": len(rows), "failed": failed, **share}
        output.json_line({"status": "summary", **counts})
    elif len(right):
        output.result(f"{right.mean():.1%} of {output.count(len(right), 'test video')} right")
    if out is not None:
        write_scores(out, scores)
        output.say(f"{out}: scores of {output.count(len(rows), 'video')}")
    if failed:
        sys.exit(1)


def _score_all(
    svms: LinearSvms, found: Mapping[str, Path], *, as_json: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """The id and the scores of each vector, told as they come; one that fails is told only."""
    for id, place in found.items():
        try:
            values, tracks = svms.score(place)
        except FlowkitError as error:
            output.say(f"failed: {error}")
            if as_json:
                output.json_line({"video": id, "status": "failed", "reason": str(error)})
            continue
        best = svms.classes[int(values.argmax())]
        if as_json:
            by_class = dict(zip(svms.classes, values.tolist(), strict=True))
            output.json_line({"video": id, "status": "done", "class": best, "scores": by_class})
        else:
            output.result(f"{id}: {best}{'' if tracks else ' (no tracks)'}")
        yield id, values
