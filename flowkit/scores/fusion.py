"""Several streams' scores of the same videos to one: fixed rules, and fitted ones applied.

Streams are a mapping of names to scores; they are joined by video id and class name, and what is
fitted is kept by stream and class name. docs/fusion.md has the formulas.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from flowkit.documents import check_version, listed
from flowkit.errors import ScoresError, UsageError
from flowkit.scores.files import Scores, align, log_softmax, softmax, softmax_rows
from flowkit.scores.npz import read_arrays, write_arrays

On = Literal["softmax", "logits"]
FORMAT = "flowkit fusion"
VERSION = 1


@dataclass(frozen=True)
class Rule:
    """A way to fuse: `combine` scores (S, N, K) of named streams to (N, K).

    A linear rule has no `combine`: its coefficients, of all streams' scores, are the fusion.
    `needs`: "nothing", "weights" (given or fitted), or "rows" to fit on. `on` are the scores that
    it can combine: softmax, whose result sums to one, or their logarithms ("logits").
    """

    text: str  # what help says of it
    needs: str = "nothing"
    combine: Callable[[np.ndarray, Fusion, list[str]], np.ndarray] | None = None
    on: tuple[On, ...] = ("softmax",)

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear classifier of all streams' scores."""
        return self.combine is None


@dataclass(frozen=True, eq=False)
class Fusion:
    """A way to fuse named streams, with all that was given or fitted.

    `on` is what is combined: the streams' "softmax", or their "logits", of which the result is the
    softmax. `weights` are "weighted"'s, by stream, summing to one. `coefficients`, float64
    (K, S * K), and `intercepts`, float64 (K,), are those of "svm" and "logistic", for the classes
    of `classes` and the streams of `streams` in that order; of "class-weighted" they are float64
    (S, K). `fit` tells how they were found. UsageError for a method that there is not, one that
    does not combine this, or weights that are no weights, ScoresError for arrays of other shapes.
    """

    method: str
    weights: dict[str, float] = field(default_factory=dict)
    streams: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    coefficients: np.ndarray | None = None
    intercepts: np.ndarray | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    on: On = "softmax"

    def __repr__(self) -> str:
        told = {"streams": self.streams, "weights": self.weights, "classes": len(self.classes)}
        parts = [f", {name}={value!r}" for name, value in told.items() if value]
        return f"Fusion({self.method!r}{''.join(parts)})"

    def __post_init__(self) -> None:
        if self.method not in FUSIONS:
            raise UsageError(f"expected a fusion of {', '.join(FUSIONS)}, got {self.method!r}")
        if self.on not in (known := FUSIONS[self.method].on):
            raise UsageError(
                f"{self.method} combines {' or '.join(known)}, got {self.on!r} to be combined"
            )
        if self.method == "weighted":
            total = sum(self.weights.values())
            if not 0 < total < np.inf or min(self.weights.values()) < 0:
                raise UsageError(
                    f"expected a weight of at least 0 for each stream, not all 0, "
                    f"got {self.weights}"
                )
            scaled = {name: weight / total for name, weight in self.weights.items()}
            object.__setattr__(self, "weights", scaled)
        if self.method == "class-weighted":
            shape, found = (len(self.streams), len(self.classes)), np.asarray(self.coefficients)
            if found.shape != shape or not (found >= 0).all():
                raise ScoresError(f"expected weights {shape} of at least 0, got {found.shape}")
        if FUSIONS[self.method].is_linear:
            shape = (len(self.classes), len(self.streams) * len(self.classes))
            coefficients, intercepts = np.asarray(self.coefficients), np.asarray(self.intercepts)
            if coefficients.shape != shape or intercepts.shape != shape[:1]:
                raise ScoresError(
                    f"expected coefficients {shape} and intercepts {shape[:1]}, "
                    f"got {coefficients.shape} and {intercepts.shape}"
                )


def fuse(streams: Mapping[str, Scores], fusion: Fusion) -> Scores:
    """The scores of the videos of `streams` together, in the order of the first stream.

    Independent of the order of rows, columns and streams. "svm" gives margins and "logistic"
    logits (kind "logits"), the others rows that sum to one (kind "softmax"). ScoresError where the
    streams do not fit together or are not those that were fitted.
    """
    aligned = align(streams)
    first = next(iter(aligned.values()))
    rule = FUSIONS[fusion.method]
    if rule.combine is None:
        _expect_streams(fusion.streams, streams)
        _expect_classes(fusion.classes, first.classes)
        assert fusion.coefficients is not None and fusion.intercepts is not None
        values = features(aligned, fusion.streams, fusion.classes) @ fusion.coefficients.T
        values += fusion.intercepts  # (N, K) in the order of fusion.classes
        values = values[:, [fusion.classes.index(name) for name in first.classes]]
    else:
        if fusion.method == "weighted":
            _expect_streams(fusion.weights, streams)
        names = sorted(aligned)  # sums of floats depend on the order
        if fusion.method == "class-weighted":
            fusion = _in_order(fusion, names, first.classes)
        scores = log_softmax if fusion.on == "logits" else softmax
        stacked = np.stack([scores(aligned[name]) for name in names])  # (S, N, K)
        values = rule.combine(stacked, fusion, names)
        if fusion.on == "logits":
            values = softmax_rows(values)
    weights = {"weights": fusion.weights} if fusion.weights else {}
    meta: dict[str, Any] = {
        "kind": "logits" if rule.is_linear else "softmax",
        "stream": "fused",
        "about": describe(fusion, streams),
        "fusion": {
            "method": fusion.method,
            "on": fusion.on,
            "streams": list(aligned),
            **weights,
            **fusion.fit,
        },
    }
    if nets := sorted({net for scores in aligned.values() for net in scores.meta.get("nets", [])}):
        meta["nets"] = nets
    for key in ("part", "split"):
        known = [scores.meta[key] for scores in aligned.values() if scores.meta.get(key)]
        meta |= {key: known[0]} if known else {}
    return replace(first, values=values, meta=meta)


def _in_order(fusion: Fusion, names: list[str], classes: tuple[str, ...]) -> Fusion:
    """The same class weights, for streams and classes in this order."""
    _expect_streams(fusion.streams, names)
    _expect_classes(fusion.classes, classes)
    assert fusion.coefficients is not None
    rows = [fusion.streams.index(name) for name in names]
    columns = [fusion.classes.index(name) for name in classes]
    weights = fusion.coefficients[np.ix_(rows, columns)]
    return replace(fusion, streams=tuple(names), classes=classes, coefficients=weights)


def describe(fusion: Fusion, streams: Collection[str]) -> str:
    """A fusion in a few words: "svm (crammer-singer) of spatial, temporal, C = 10"."""
    weights = {name: f"{weight:.3g} " for name, weight in fusion.weights.items()}
    parts = ", ".join(f"{weights.get(name, '')}{name}" for name in streams)
    svm = f" ({fusion.fit['svm']})" if "svm" in fusion.fit else ""
    c = f", C = {fusion.fit['C']:g}" if "C" in fusion.fit else ""
    on = " of the logits" if fusion.on == "logits" else ""
    return f"{fusion.method}{svm}{on} of {parts}{c}"


def features(
    aligned: Mapping[str, Scores], streams: Collection[str], classes: Collection[str]
) -> np.ndarray:
    """Softmax scores, L2-normalized by stream, side by side: float64 (N, S * K).

    Columns are the streams in the order of `streams`, each with the classes in that of `classes`.
    """
    stacked = []
    for name in streams:
        columns = [aligned[name].classes.index(class_name) for class_name in classes]
        values = softmax(aligned[name])[:, columns]
        stacked.append(values / np.linalg.norm(values, axis=1, keepdims=True))
    return np.concatenate(stacked, axis=1)


def write_fusion(path: str | os.PathLike[str], fusion: Fusion) -> None:
    """Write a fusion as .npz without pickles; replaces what is there in one step."""
    arrays: dict[str, np.ndarray] = {}
    if fusion.coefficients is not None:
        arrays["coefficients"] = fusion.coefficients
    if fusion.intercepts is not None:
        arrays["intercepts"] = fusion.intercepts
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "method": fusion.method,
        "weights": fusion.weights,
        "streams": fusion.streams,
        "classes": fusion.classes,
        "fit": fusion.fit,
        "on": fusion.on,
    }
    write_arrays(path, arrays, meta)


def read_fusion(path: str | os.PathLike[str]) -> Fusion:
    """Read what `write_fusion` wrote; ScoresError if it is anything else. Executes nothing."""
    arrays, meta = read_arrays(
        path,
        {},
        optional={"coefficients": "numbers", "intercepts": "numbers"},
        maker="flowkit fuse",
    )
    check_version(meta, FORMAT, VERSION, where=str(path), error=ScoresError, maker="flowkit fuse")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ScoresError(f"{path}: expected finite coefficients, got NaN or infinity")
    try:
        return Fusion(
            method=meta["method"],
            weights={str(name): float(weight) for name, weight in meta["weights"].items()},
            streams=tuple(map(str, meta["streams"])),
            classes=tuple(map(str, meta["classes"])),
            coefficients=arrays.get("coefficients"),
            intercepts=arrays.get("intercepts"),
            fit=dict(meta["fit"]),
            on=meta.get("on", "softmax"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ScoresError(f"{path}: not of this format ({error})") from error


def _average(stacked: np.ndarray, fusion: Fusion, names: list[str]) -> np.ndarray:
    return stacked.mean(axis=0)


def _weighted(stacked: np.ndarray, fusion: Fusion, names: list[str]) -> np.ndarray:
    return np.tensordot([fusion.weights[name] for name in names], stacked, axes=1)


def _max(stacked: np.ndarray, fusion: Fusion, names: list[str]) -> np.ndarray:
    largest = stacked.max(axis=0)
    return largest / largest.sum(axis=1, keepdims=True)


def _vote(stacked: np.ndarray, fusion: Fusion, names: list[str]) -> np.ndarray:
    """Votes differ by whole numbers and means by less: the mean only breaks ties."""
    votes = stacked == stacked.max(axis=2, keepdims=True)
    votes = votes / votes.sum(axis=2, keepdims=True)  # equal classes share a vote
    return (votes.sum(axis=0) + stacked.mean(axis=0)) / (len(names) + 1)


def _class_weighted(stacked: np.ndarray, fusion: Fusion, names: list[str]) -> np.ndarray:
    assert fusion.coefficients is not None
    return (fusion.coefficients[:, None] * stacked).sum(axis=0)


BOTH: tuple[On, ...] = ("softmax", "logits")
FUSIONS = {
    "average": Rule("the mean of the streams' scores", combine=_average, on=BOTH),
    "weighted": Rule("a weighted mean", "weights", _weighted, BOTH),
    "class-weighted": Rule(
        "a mean with weights of each class's own, of logits", "rows", _class_weighted, ("logits",)
    ),
    "svm": Rule("a linear SVM of all scores", "rows"),
    "logistic": Rule("a logistic regression of all scores", "rows"),
    "max": Rule("the largest of the streams", combine=_max),
    "vote": Rule("one vote per stream", combine=_vote),
}


def _expect_streams(expected: Collection[str], streams: Collection[str]) -> None:
    if set(expected) != set(streams):
        raise ScoresError(
            f"expected the streams {', '.join(sorted(expected))} of the fusion, "
            f"got {', '.join(sorted(streams))}"
        )


def _expect_classes(expected: Collection[str], classes: Collection[str]) -> None:
    differing = sorted(set(expected) ^ set(classes))
    if differing:
        raise ScoresError(
            f"expected the {len(expected)} classes of the fusion, got {len(classes)}; "
            f"not in both: {listed(differing)}"
        )
