"""Scores with labels to figures: accuracies with intervals, confusions, what fusion changed.

Rates are fractions from 0 to 1; docs/fusion.md has the formulas. Videos without a label are left
out and counted. Every figure is independent of the order of rows and columns: between equal scores
the class whose name comes first ranks higher.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flowkit.documents import listed
from flowkit.errors import ScoresError
from flowkit.scores.files import Scores, align, name_streams, read_scores, softmax

Z = 1.959963984540054  # quantile of a two-sided 95% interval
TOP = 5

# Feichtenhofer et al. 2016, tables 5 and 6: likewise; the towers are joined by conv3d at relu5.
PUBLISHED_2016: tuple[tuple[str, float | None, float | None], ...] = (
    ("Two-stream model, VGG-16, fusion by averaging", 0.917, 0.587),
    ("Towers joined, spatial VGG-16, temporal CNN-M", 0.908, 0.621),
    ("Towers joined, VGG-16, one goes on", 0.918, 0.646),
    ("Towers joined, VGG-16", 0.925, 0.654),
    ("Towers joined, spatial VGG-16, temporal CNN-M, and IDT", 0.925, 0.673),
    ("Towers joined, VGG-16, and IDT", 0.935, 0.692),
)
# Simonyan & Zisserman 2014, table 4: mean accuracy over three splits, UCF-101 and HMDB-51.
PUBLISHED: tuple[tuple[str, float | None, float | None], ...] = (
    ("Improved dense trajectories (IDT)", 0.859, 0.572),
    ("IDT, higher-dimensional encodings", 0.879, 0.611),
    ("IDT, stacked Fisher encoding", None, 0.668),
    ("Spatio-temporal HMAX network", None, 0.228),
    ("“Slow fusion” spatio-temporal ConvNet", 0.654, None),
    ("Spatial stream ConvNet", 0.730, 0.405),
    ("Temporal stream ConvNet", 0.837, 0.546),
    ("Two-stream model, fusion by averaging", 0.869, 0.580),
    ("Two-stream model, fusion by SVM", 0.880, 0.594),
    *PUBLISHED_2016,
    # github.com/wushidonguc/two-stream-action-recognition-keras: split 1 of UCF-101, not the mean
    ("Keras, split 1 alone: spatial stream, Inception v3", 0.731, None),
    ("Keras, split 1 alone: temporal stream, CNN-M", 0.788, None),
    ("Keras, split 1 alone: fusion by averaging", 0.820, None),
)
PUBLISHED_SETS = ("ucf101", "hmdb51")  # the columns of PUBLISHED
PUBLISHED_NET = "cnn-m-2048"  # the network whose figures they are


@dataclass(frozen=True)
class Rate:
    """A proportion with its 95% interval, all from 0 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Method:
    """A stream or a fusion, and how well it does.

    `ranks`, int64 (N,), is the place that each video's own class takes, 0 for the most likely;
    `predicted`, int64 (N,), the most likely class and `confidence`, float64 (N,), its probability;
    `class_right`, int64 (K,), the videos of each class classified correctly. `nets` are the
    networks behind the scores, as far as these name any.
    """

    name: str
    about: str
    top1: Rate
    top5: Rate
    mean_class: Rate
    ranks: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    class_right: np.ndarray
    nets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Method({self.name!r}, {len(self.ranks)} videos, top-1 {self.top1.value:.1%})"


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same videos: those that only one of them classifies correctly.

    `p_value` is McNemar's exact test of equal accuracy: two-sided, binomial.
    """

    method: str
    other: str
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    p_value: float


@dataclass(frozen=True)
class Mistake:
    """A misclassified video, and the most likely class and its probability by each method."""

    video: str
    truth: str
    predicted: str
    confidence: float
    says: dict[str, tuple[str, float]]


@dataclass(frozen=True, eq=False)
class Report:
    """Methods on one part of one split. `method` is the one that the details are of, by `reason`.

    `confusion`, int64 (K, K), counts videos by true class (row) and predicted class (column).
    `comparisons` are of `method` with each of the others.
    """

    split: str
    part: str
    classes: tuple[str, ...]
    videos: tuple[str, ...]
    labels: np.ndarray
    unlabeled: int
    methods: dict[str, Method]
    method: str
    reason: str
    confusion: np.ndarray
    comparisons: tuple[Comparison, ...]

    def __repr__(self) -> str:
        rates = ", ".join(f"{name} {one.top1.value:.1%}" for name, one in self.methods.items())
        return f"Report({self.split!r}, {self.part!r}, {len(self.videos)} videos, top-1: {rates})"

    @property
    def class_counts(self) -> np.ndarray:
        """Videos of each class, int64 (K,)."""
        return np.bincount(self.labels, minlength=len(self.classes))


def evaluate_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    method: str | None = None,
    chosen: Sequence[str] = (),
    most: int | None = None,
) -> list[Report]:
    """The reports of scores files, one for each split that they name, fusions last in each.

    Files that name no split belong to the only one there is. `method`, `chosen` and `most` as of
    `evaluate`. ScoresError as there, and where two files of a split are of streams of one name.
    """
    files = {Path(path): read_scores(path) for path in paths}
    splits = dict.fromkeys(str(s.meta["split"]) for s in files.values() if s.meta.get("split"))
    nameless = [str(path) for path, scores in files.items() if not scores.meta.get("split")]
    if nameless and len(splits) > 1:
        raise ScoresError(
            f"expected files that name their split, as there are {len(splits)}; none is named in "
            f"{listed(nameless)}"
        )
    reports = []
    for split in splits or [""]:
        own = [path for path, s in files.items() if s.meta.get("split") in (split, "", None)]
        streams = {name: files[path] for name, path in name_streams(own).items()}
        order = sorted(streams, key=lambda name: "fusion" in streams[name].meta)
        own_streams = {name: streams[name] for name in order}
        reports.append(evaluate(own_streams, method=method, chosen=chosen, most=most))
    return reports


def evaluate(
    streams: Mapping[str, Scores],
    *,
    method: str | None = None,
    chosen: Sequence[str] = (),
    most: int | None = None,
) -> Report:
    """The report of the methods `streams` on the videos that they all score.

    `method` names the one that confusions and comparisons are of; by default the one of the highest
    top-1. `chosen` names those to report, in their order, by default all; `most` keeps that many
    of them, those of the highest top-1, and `method`. ScoresError where they do not fit together,
    no video has a label, or one that is named is not there.
    """
    chosen = tuple(dict.fromkeys(chosen or streams))
    for name in (*chosen, *([] if method is None else [method])):
        if name not in streams:
            raise ScoresError(f"expected a method of {', '.join(streams)}, got {name!r}")
    if method is not None and method not in chosen:
        raise ScoresError(f"expected a method of {', '.join(chosen)}, got {method!r}")
    streams = {name: streams[name] for name in chosen}
    aligned = align(streams)
    first = next(iter(aligned.values()))
    rows = np.flatnonzero(first.labels >= 0)
    if not len(rows):
        raise ScoresError(f"none of the {len(first.videos)} videos has a label: nothing to report")
    labels = first.labels[rows]
    methods = {name: _judge(name, scores, rows, labels) for name, scores in aligned.items()}
    method, reason = (method, "as asked for") if method else _best(methods)
    if most is not None:
        best = sorted(methods, key=lambda name: (name != method, -methods[name].top1.value))[:most]
        methods = {name: one for name, one in methods.items() if name in best}
    confusion = np.zeros((len(first.classes),) * 2, np.int64)
    np.add.at(confusion, (labels, methods[method].predicted), 1)
    videos = tuple(first.videos[row] for row in rows)
    metas = [scores.meta for scores in aligned.values()]
    return Report(
        split=next((meta["split"] for meta in metas if meta.get("split")), ""),
        part=next((meta["part"] for meta in metas if meta.get("part")), ""),
        classes=first.classes,
        videos=videos,
        labels=labels,
        unlabeled=len(first.videos) - len(rows),
        methods=methods,
        method=method,
        reason=reason,
        confusion=confusion,
        comparisons=tuple(
            compare(methods[method], other, videos)
            for name, other in methods.items()
            if name != method
        ),
    )


def compare(one: Method, other: Method, videos: Sequence[str]) -> Comparison:
    """What `one` gains and loses against `other` on `videos`, and McNemar's exact test of it."""
    right, other_right = one.ranks == 0, other.ranks == 0
    gained = tuple(videos[row] for row in np.flatnonzero(right & ~other_right).tolist())
    lost = tuple(videos[row] for row in np.flatnonzero(~right & other_right).tolist())
    return Comparison(one.name, other.name, gained, lost, mcnemar(len(gained), len(lost)))


def mcnemar(gained: int, lost: int) -> float:
    """The p-value that `gained` and `lost` of gained + lost fair coin flips are so uneven."""
    flips, tail, ways = gained + lost, 0, 1
    for k in range(min(gained, lost) + 1):  # whole numbers, so that nothing is rounded away
        tail += ways  # flips choose k
        ways = ways * (flips - k) // (k + 1)
    return min(1.0, 2 * tail / 2**flips)


def wilson(rate: float, count: float) -> Rate:
    """The `rate` of right ones among `count` with its 95% Wilson score interval (Wilson 1927)."""
    square = Z * Z / count
    center = (rate + square / 2) / (1 + square)
    half = Z * math.sqrt((rate * (1 - rate) + square / 4) / count) / (1 + square)
    low = 0.0 if rate == 0 else center - half  # exactly, whatever the rounding
    high = 1.0 if rate == 1 else center + half
    return Rate(rate, low, high)


def mean_class_rate(right: np.ndarray, counts: np.ndarray) -> Rate:
    """The mean over classes of the rate `right` / `counts`, both int (K,), each count above 0.

    Its interval is Wilson's for the number of videos that would give a single rate the same
    variance, that is sum_k p_k (1 - p_k) / (n_k - 1) / K^2; where that is zero, for the harmonic
    number K^2 / sum_k 1 / n_k, as if all classes were equally hard.
    """
    rates = right / counts
    mean = math.fsum(rates) / len(rates)  # fsum: the same in every order of the classes
    spreads = rates * (1 - rates) / np.maximum(counts - 1, 1)
    variance = math.fsum(spreads) / len(rates) ** 2
    if variance == 0:
        return wilson(mean, len(rates) ** 2 / math.fsum(1 / counts))
    return wilson(mean, mean * (1 - mean) / variance)


def class_rates(report: Report, method: str) -> dict[str, Rate]:
    """The accuracy of a method in each class that has videos, in the order of the classes."""
    right, counts = report.methods[method].class_right.tolist(), report.class_counts.tolist()
    return {
        class_name: wilson(right[k] / counts[k], counts[k])
        for k, class_name in enumerate(report.classes)
        if counts[k]
    }


def confusions(report: Report) -> list[tuple[str, str, int]]:
    """(true class, predicted class, videos) of all confusions, the most frequent first."""
    found = [
        (report.classes[truth], report.classes[predicted], int(report.confusion[truth, predicted]))
        for truth, predicted in np.argwhere(report.confusion)
        if truth != predicted
    ]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))


def class_gains(report: Report, comparison: Comparison) -> list[tuple[str, int]]:
    """(class, videos gained less videos lost) of the classes where that is not 0, most first."""
    labels = dict(zip(report.videos, report.labels.tolist(), strict=True))
    net = Counter(labels[video] for video in comparison.gained)
    net.subtract(labels[video] for video in comparison.lost)
    found = [(report.classes[label], videos) for label, videos in net.items() if videos]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def group_by_class(report: Report, videos: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Some videos of a report by their true class, the class with the most of them first."""
    labels = dict(zip(report.videos, report.labels.tolist(), strict=True))
    groups: dict[str, list[str]] = {}
    for video in videos:
        groups.setdefault(report.classes[labels[video]], []).append(video)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def mistakes(report: Report) -> list[Mistake]:
    """The videos that the report's method misclassifies, the most confident first."""
    chosen = report.methods[report.method]
    found = []
    for row in np.flatnonzero(chosen.ranks > 0).tolist():
        says = {}
        for name, method in report.methods.items():
            says[name] = report.classes[method.predicted[row]], float(method.confidence[row])
        predicted_name, confidence = says[chosen.name]
        truth = report.classes[report.labels[row]]
        found.append(Mistake(report.videos[row], truth, predicted_name, confidence, says))
    return sorted(found, key=lambda one: (-one.confidence, one.video))


@dataclass(frozen=True)
class MeanRow:
    """A row of the table over splits: by data set, top-1 of each split, or a published mean.

    `other_nets` are those of its networks that are not the one of the published rows above it.
    """

    name: str
    published: bool
    by_set: dict[str, dict[str, float]]  # data set -> split -> top-1
    other_nets: tuple[str, ...] = ()

    def mean(self, data_set: str) -> float | None:
        """The mean over the splits of a data set, None where there are none."""
        rates = self.by_set.get(data_set)
        return sum(rates.values()) / len(rates) if rates else None


def mean_table(reports: Iterable[Report]) -> list[MeanRow]:
    """Mean accuracy over splits by method and data set, laid out as the paper's table 4.

    A split called "ucf101-2" is split 2 of the data set "ucf101". Rows that the paper prints come
    first where its data sets are among them; rows of other networks than the paper's say so there.
    """
    rows: dict[str, MeanRow] = {}
    nets: dict[str, set[str]] = {}
    for report in reports:
        for name, method in report.methods.items():
            row = rows.setdefault(name, MeanRow(name, False, {}))
            row.by_set.setdefault(data_set(report.split), {})[report.split] = method.top1.value
            nets.setdefault(name, set()).update(method.nets)
    sets = {name for row in rows.values() for name in row.by_set}
    published = []
    for name, *rates in PUBLISHED:
        by_set = {
            one: {"published": rate}
            for one, rate in zip(PUBLISHED_SETS, rates, strict=True)
            if one in sets and rate is not None
        }
        if by_set:
            published.append(MeanRow(name, True, by_set))
    if not published:
        return list(rows.values())
    return published + [
        replace(row, other_nets=tuple(sorted(nets[name] - {PUBLISHED_NET})))
        for name, row in rows.items()
    ]


def data_set(split: str) -> str:
    """The data set of a split, by its name without the number at the end."""
    name, _, number = split.rpartition("-")
    return name if name and number.isdigit() else split


def _best(methods: Mapping[str, Method]) -> tuple[str, str]:
    """The name of the method with the highest top-1, and that as a reason to read.

    Between equals the one of the higher mean class accuracy, then the one that comes first.
    """
    best = max(methods.values(), key=lambda one: (one.top1.value, one.mean_class.value))
    if len(methods) == 1:
        return best.name, "the only method"
    equals = sum(one.top1.value == best.top1.value for one in methods.values())
    if equals == 1:
        return best.name, f"the highest top-1 of {len(methods)} methods on these videos"
    return best.name, f"one of {equals} methods that share the highest top-1 of {len(methods)}"


def _judge(name: str, scores: Scores, rows: np.ndarray, labels: np.ndarray) -> Method:
    by_name = np.argsort(np.array(scores.classes))  # ties go to the name that comes first
    values = scores.values[rows]
    order = by_name[np.argsort(-values[:, by_name], axis=1, kind="stable")]  # (N, K)
    ranks = (order == labels[:, None]).argmax(axis=1)
    classes = len(scores.classes)
    right = np.bincount(labels[ranks == 0], minlength=classes)
    counts = np.bincount(labels, minlength=classes)
    seen = counts > 0
    return Method(
        name=name,
        about=scores.meta.get("about", ""),
        top1=wilson(float((ranks == 0).mean()), len(rows)),
        top5=wilson(float((ranks < TOP).mean()), len(rows)),
        mean_class=mean_class_rate(right[seen], counts[seen]),
        ranks=ranks,
        predicted=order[:, 0],
        confidence=softmax(scores)[rows].max(axis=1),
        class_right=right,
        nets=tuple(scores.meta.get("nets", ())),
    )
