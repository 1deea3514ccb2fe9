"""Scores: what a stream says of each video, by video id and class name, and the scores file.

A scores file is one ``.npz`` without pickles; docs/fusion.md specifies it. Rows and columns are
known by name: nothing here relies on the order that a file happens to have.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowkit.documents import check_version, listed
from flowkit.errors import ScoresError
from flowkit.scores.npz import read_arrays, write_arrays

FORMAT = "flowkit scores file"
VERSION = 1
KINDS = ("softmax", "logits")
PARTS = ("train", "heldout", "test")
# How `flowkit eval` places the moments of a video, in `meta["views"]`. Without it they are those of
# an earlier rule: equally spaced starts of stacks, at whose middles the spatial stream looked.
PLACED = "over all frames"
# Largest error of the sum of a row of softmax scores: half precision keeps 3 digits
SUM_TOLERANCE = 0.01

LEAST = 1e-12  # a probability of zero, where its logarithm is taken


@dataclass(frozen=True, eq=False)
class Scores:
    """Values of N videos for K classes, higher is more likely.

    `videos` are N distinct ids and `classes` K distinct names; `values` is float32 (N, K) and
    finite; `labels` is int64 (N,), the place of each video's class in `classes` or -1 where it is
    unknown (None: all are). `meta` holds JSON values: "kind" ("softmax": rows sum to one; "logits":
    any numbers, such as an SVM's margins) and, where known, "part" ("train", "heldout" or "test"),
    the name of the "split", a line "about" how they were made, and whatever else tells of them.
    ScoresError for anything else.
    """

    videos: tuple[str, ...]
    classes: tuple[str, ...]
    values: np.ndarray
    labels: np.ndarray = None  # type: ignore[assignment]  # None becomes an array of -1
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        videos, classes = tuple(map(str, self.videos)), tuple(map(str, self.classes))
        values = np.asarray(self.values)
        labels = np.full(len(videos), -1) if self.labels is None else np.asarray(self.labels)
        _check_names("video id", videos, at_least=1)
        _check_names("class name", classes, at_least=2)
        shape = (len(videos), len(classes))
        if values.shape != shape or values.dtype.kind not in "fiu":
            raise ScoresError(
                f"expected numbers {shape} for {shape[0]} videos and {shape[1]} classes, "
                f"got {values.dtype} {values.shape}"
            )
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if len(bad := np.flatnonzero(~np.isfinite(values).all(axis=1))):
            names = listed(videos[row] for row in bad)
            raise ScoresError(f"expected finite scores, got NaN or infinity for {names}")
        if labels.shape != (len(videos),) or labels.dtype.kind not in "iu":
            raise ScoresError(
                f"expected integer labels ({len(videos)},), got {labels.dtype} {labels.shape}"
            )
        if labels.min() < -1 or labels.max() >= len(classes):
            raise ScoresError(
                f"expected labels from -1 (unknown) to {len(classes) - 1}, "
                f"got {labels.min()} to {labels.max()}"
            )
        _check_meta(self.meta)
        if self.meta["kind"] == "softmax":
            _check_softmax(videos, values)
        for name, value in {
            "videos": videos,
            "classes": classes,
            "values": values,
            "labels": labels.astype(np.int64),
        }.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        known = [self.meta["kind"], *filter(None, (self.part, self.meta.get("split")))]
        counts = f"{len(self.videos)} videos, {len(self.classes)} classes"
        return f"Scores({counts}, {', '.join(map(str, known))})"

    @property
    def part(self) -> str | None:
        """The part of the split, "train", "heldout" or "test", None where it is unknown."""
        return self.meta.get("part")


def has_old_moments(meta: Mapping[str, Any]) -> bool | None:
    """Whether `flowkit eval` of an earlier version placed the moments; None: it made no views."""
    views = meta.get("views")
    return views.get("placed") != PLACED if isinstance(views, dict) else None


def softmax(scores: Scores) -> np.ndarray:
    """The scores as probabilities, float64 (N, K): as they are, or the softmax of logits."""
    values = scores.values.astype(np.float64)
    return values if scores.meta["kind"] == "softmax" else softmax_rows(values)


def log_softmax(scores: Scores) -> np.ndarray:
    """The logarithms of `softmax`, float64 (N, K): logits less a number of each row.

    A probability of zero counts as 1e-12.
    """
    values = scores.values.astype(np.float64)
    if scores.meta["kind"] == "softmax":
        return np.log(np.maximum(values, LEAST))
    return log_softmax_rows(values)


def softmax_rows(values: np.ndarray) -> np.ndarray:
    """The softmax of each row of logits, float64 (N, K)."""
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_softmax_rows(values: np.ndarray) -> np.ndarray:
    """The logarithm of the softmax of each row of logits, float64 (N, K)."""
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def align(streams: Mapping[str, Scores]) -> dict[str, Scores]:
    """The same scores, all with the videos, classes and labels of the first, in its order.

    Joined by video id and class name. A label that only one knows becomes known to all. ScoresError
    that lists what differs: videos, classes, parts, labels.
    """
    if not streams:
        raise ScoresError("expected the scores of at least one stream, got none")
    first_name, first = next(iter(streams.items()))
    aligned = {}
    for name, scores in streams.items():
        if {has_old_moments(scores.meta), has_old_moments(first.meta)} == {True, False}:
            raise ScoresError(
                f"{first_name} and {name} look at different moments of the videos: one of them "
                f"was scored by an earlier version of flowkit: score it again (flowkit eval)"
            )
        _refuse_difference("videos", first_name, first.videos, name, scores.videos)
        _refuse_difference("classes", first_name, first.classes, name, scores.classes)
        if scores.part and first.part and scores.part != first.part:
            raise ScoresError(
                f"{first_name} scores the {first.part} part and {name} the {scores.part} part"
            )
        row_of = {video: row for row, video in enumerate(scores.videos)}
        column_of = {class_name: column for column, class_name in enumerate(scores.classes)}
        rows = [row_of[video] for video in first.videos]
        columns = [column_of[class_name] for class_name in first.classes]
        label_of = np.empty(len(columns) + 1, np.int64)  # label there -> label here
        label_of[columns] = np.arange(len(columns))
        label_of[-1] = -1
        aligned[name] = replace(
            scores,
            videos=first.videos,
            classes=first.classes,
            values=scores.values[np.ix_(rows, columns)],
            labels=label_of[scores.labels[rows]],
        )
    labels = _merge_labels(aligned)
    return {name: replace(scores, labels=labels) for name, scores in aligned.items()}


def write_scores(path: str | os.PathLike[str], scores: Scores) -> None:
    """Write a scores file, its folder too; replaces what is there in one step, or OSError."""
    write_arrays(
        path,
        {
            "videos": np.array(scores.videos),
            "classes": np.array(scores.classes),
            "scores": scores.values,
            "labels": scores.labels,
        },
        {"version": VERSION, **scores.meta},
    )


def read_scores(path: str | os.PathLike[str]) -> Scores:
    """Read a scores file; ScoresError, a line that says what is wrong, if it is anything else.

    Executes nothing and unpacks no more than 2 GiB, whatever the file holds.
    """
    arrays, meta = read_arrays(
        path,
        {"videos": "text", "classes": "text", "scores": "numbers"},
        optional={"labels": "numbers"},
        maker="flowkit eval",
    )
    check_version(
        {"format": FORMAT, **meta},  # a key that scores files need not have
        FORMAT,
        VERSION,
        where=str(path),
        error=ScoresError,
        maker="flowkit eval",
    )
    del meta["version"]
    for name in ("videos", "classes"):
        if arrays[name].ndim != 1:
            raise ScoresError(f"{path}: expected {name} in one row, got {arrays[name].shape}")
    if has_old_moments(meta) and isinstance(meta.get("about"), str):
        meta["about"] += ", moments of an earlier rule"
    try:
        videos, classes = (tuple(arrays[name].tolist()) for name in ("videos", "classes"))
        return Scores(videos, classes, arrays["scores"], arrays.get("labels"), meta)  # type: ignore[arg-type]
    except ScoresError as error:
        raise ScoresError(f"{path}: {error}") from None


def find_scores(
    places: Iterable[str | os.PathLike[str]], part: Literal["test", "heldout"] = "test"
) -> list[Path]:
    """The scores files that `places` name: files, run folders, and folders of runs.

    In folders those called ``scores-<part>.npz``, in the order of names. ScoresError where a place
    has none.
    """
    name = f"scores-{part}.npz"
    found: list[Path] = []
    for place in map(Path, places):
        own = place / name if place.is_dir() else place
        files = [own] if own.is_file() else sorted(place.glob(f"*/{name}"))
        if not files:
            what = f"no {name} there or in a folder there" if place.is_dir() else "no such file"
            raise ScoresError(f"{place}: {what}: flowkit eval writes them", absent=True)
        found += files
    return list(dict.fromkeys(found))


def heldout_path(path: str | os.PathLike[str]) -> Path:
    """Where the held-out scores of the stream in a test scores file lie: beside it.

    ``scores-heldout.npz`` for ``scores-test.npz``, ``idt-heldout.npz`` for ``idt.npz``.
    """
    path = Path(path)
    return path.with_name(path.stem.removesuffix("-test") + "-heldout.npz")


def stream_name(path: str | os.PathLike[str]) -> str:
    """The name of the stream in a scores file, by its place alone.

    ``runs/temporal/scores-test.npz`` is "temporal"; any other file goes by its own name without
    the part: ``idt-test.npz`` and ``idt.npz`` are "idt".
    """
    path = Path(path)
    stem = path.stem
    for part in PARTS:
        stem = stem.removesuffix(f"-{part}")
    return path.absolute().parent.name if stem == "scores" else stem


def name_streams(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    """The files by the names of their streams; ScoresError where two have one name."""
    named: dict[str, Path] = {}
    for path in map(Path, paths):
        name = stream_name(path)
        if name in named:
            raise ScoresError(
                f"{named[name]} and {path} are both called {name!r}: "
                "give the files, or the folders of their runs, different names"
            )
        named[name] = path
    return named


def _check_names(what: str, names: Sequence[str], *, at_least: int) -> None:
    if len(names) < at_least:
        raise ScoresError(f"expected at least {at_least} {what}s, got {len(names)}")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ScoresError(f"expected every {what} once, got more than once: {listed(repeated)}")
    for name in names:
        if not name or _has_controls(name):
            raise ScoresError(f"expected a {what} without control characters, got {name!r}")


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(letter) == "Cc" for letter in text)


def _check_meta(meta: Mapping[str, Any]) -> None:
    if meta.get("kind") not in KINDS:
        raise ScoresError(
            f"expected meta with a kind of {', '.join(KINDS)}, got {meta.get('kind')!r}"
        )
    if meta.get("part") not in (None, *PARTS):
        raise ScoresError(f"expected a part of {', '.join(PARTS)}, got {meta['part']!r}")
    for key in ("split", "about"):
        text = meta.get(key, "")
        if not isinstance(text, str) or _has_controls(text):
            raise ScoresError(f"expected meta with a line of text as {key}, got {text!r:.100}")
    nets = meta.get("nets", [])
    if not isinstance(nets, list) or not all(
        isinstance(n, str) and not _has_controls(n) for n in nets
    ):
        raise ScoresError(f"expected meta with a list of names as nets, got {nets!r:.100}")


def _check_softmax(videos: Sequence[str], values: np.ndarray) -> None:
    sums = values.sum(axis=1, dtype=np.float64)
    bad = np.flatnonzero((np.abs(sums - 1) > SUM_TOLERANCE) | (values < 0).any(axis=1))
    if len(bad):
        raise ScoresError(
            f"expected softmax scores, at least 0 with rows that sum to 1, but {videos[bad[0]]} "
            f"sums to {sums[bad[0]]:.4g}, least {values[bad[0]].min():.4g}: "
            'any other scores are of the kind "logits"'
        )


def _refuse_difference(
    what: str, first_name: str, first: Sequence[str], name: str, other: Sequence[str]
) -> None:
    absent, extra = set(first) - set(other), set(other) - set(first)
    if absent or extra:
        sides = [(name, absent, first_name), (first_name, extra, name)]
        text = "; ".join(
            f"{one} lacks {len(some)} {what} of {two}: {listed(sorted(some))}"
            for one, some, two in sides
            if some
        )
        raise ScoresError(text)


def _merge_labels(aligned: Mapping[str, Scores]) -> np.ndarray:
    """The labels that any of them knows; ScoresError where two know different ones."""
    merged: np.ndarray | None = None
    for name, scores in aligned.items():
        if merged is None:
            merged, first_name, classes = scores.labels.copy(), name, scores.classes
            continue
        conflict = (merged != scores.labels) & (merged >= 0) & (scores.labels >= 0)
        if len(rows := np.flatnonzero(conflict)):
            row = rows[0]
            raise ScoresError(
                f"labels of {len(rows)} videos differ, the first is {scores.videos[row]}: "
                f"{classes[merged[row]]} in {first_name}, {classes[scores.labels[row]]} in {name}"
            )
        merged = np.maximum(merged, scores.labels)
    assert merged is not None
    return merged
