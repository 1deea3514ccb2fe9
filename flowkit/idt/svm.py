"""Vectors of videos to scores: one linear SVM for each class, by a Gram matrix made in blocks.

What is trained is kept (`LinearSvms`), and scores vectors of any later video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowkit.data.origins import Origin, origin_from_json, origin_of
from flowkit.data.splits import Split, Video, hold_out
from flowkit.documents import listed
from flowkit.errors import RecordError, SplitError, UsageError
from flowkit.idt.vectors import read_vector
from flowkit.scores.files import Scores
from flowkit.scores.npz import read_arrays, write_arrays

STREAM = "idt"
FORMAT, VERSION = "flowkit svm", 1
SVM_FILE = "svm.npz"  # in the folder of a run
SHARPNESS = (-3.0, 4.0)  # the natural logarithm of the scale of margins: 0.05 to 55
BLOCK = 512  # videos whose vectors are in memory at once, twice: 220 MB each at 109,056 numbers


# What gives the vector (length,) in a file, and what is told of it
ReadVector = Callable[[Path], tuple[np.ndarray, dict[str, Any]]]


class Fitted(Protocol):
    """What vectors were made by, fitted on a training part: `flowkit.idt.vectors.Codebooks`.

    `videos` are ids, `groups` "class: source group" of those; `digest` is a number of what changes
    vectors, and `about` what a scores file says of them.
    """

    @property
    def videos(self) -> tuple[str, ...]: ...
    @property
    def groups(self) -> tuple[str, ...]: ...
    @property
    def split(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def origin(self) -> Origin: ...


def gram_matrix(
    rows: Sequence[Path],
    columns: Sequence[Path],
    digest: str,
    *,
    read: ReadVector = read_vector,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """The products of the vectors in files: float32 (rows, columns).

    UsageError where one is of another codebook than that of `digest`. `report` is told the rows
    done.
    """
    products = np.empty((len(rows), len(columns)), np.float32)
    for top in range(0, len(rows), BLOCK):
        left_vectors = _read_block(rows[top : top + BLOCK], digest, read)
        for left in range(0, len(columns), BLOCK):
            block = columns[left : left + BLOCK]
            same = rows[top : top + BLOCK] == block
            right_vectors = left_vectors if same else _read_block(block, digest, read)
            products[top : top + BLOCK, left : left + BLOCK] = left_vectors @ right_vectors.T
        report(min(top + BLOCK, len(rows)))
    return products


def fit_duals(
    train: np.ndarray, labels: np.ndarray, classes: Sequence[str], *, C: float
) -> tuple[np.ndarray, np.ndarray]:
    """The SVM of each class against the rest, hinge loss (LIBSVM), by its training videos.

    train: the Gram matrix of the training videos, (N, N); labels: (N,), places in `classes`, their
    names. Returns float64 (classes, N), how much each training video counts, and (classes,), what
    is added. A vector of zeros, of a
    video without tracks, does not count: at a large C what is added would serve it alone.
    SplitError where a class has no other.
    """
    from sklearn.svm import SVC

    shares, added = np.zeros((len(classes), len(train))), np.empty(len(classes))
    seen = np.flatnonzero(np.diag(train) > 0)
    train = train[np.ix_(seen, seen)].astype(np.float64)
    if absent := sorted(set(range(len(classes))) - set(labels[seen].tolist())):
        raise SplitError(
            "expected training videos whose vectors are not zero of every class, got none of "
            f"{listed([classes[label] for label in absent])}"
        )
    for label in range(len(classes)):
        machine = SVC(C=C, kernel="precomputed").fit(train, labels[seen] == label)
        shares[label, seen[machine.support_]] = machine.dual_coef_[0]
        added[label] = machine.intercept_[0]
    return shares, added


def decide(
    train: np.ndarray, labels: np.ndarray, other: np.ndarray, classes: Sequence[str], *, C: float
) -> np.ndarray:
    """What the SVM of each class says of other videos: their signed margins, float32 (M, classes).

    train, labels and classes as in `fit_duals`; other: products of the others with the training
    videos, (M, N).
    """
    shares, added = fit_duals(train, labels, classes, C=C)
    return (other.astype(np.float64) @ shares.T + added).astype(np.float32)


@dataclass(frozen=True, eq=False)
class LinearSvms:
    """The SVM of each class, as `flowkit train svm` keeps it.

    A vector's scores are `sharpness` times (weights @ vector + added): weights are float32
    (classes, length), added float32 (classes,). `codebook` is the digest of what the vectors were
    made by, `about` what they are, `stream` the name of the scores; `trained_on` are the videos
    that either has seen.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    added: np.ndarray
    sharpness: float
    C: float
    codebook: str
    about: str
    stream: str
    split: str
    trained_on: Origin

    def score(self, place: Path) -> tuple[np.ndarray, int]:
        """The scores of a vector's file, float32 (classes,), and of how many tracks it is.

        UsageError where the vector is of another codebook, RecordError where it is none.
        """
        vector, meta = read_vector(place)
        _check_codebook(place, meta, self.codebook)
        margins = self.weights @ vector.astype(np.float32) + self.added
        return margins * np.float32(self.sharpness), meta["tracks"]

    def check_unseen(self, videos: Iterable[Video]) -> None:
        """Raise SplitError where it was trained on one of these videos or on its source group."""
        if seen := self.trained_on.seen(videos):
            raise SplitError(
                f"the SVM or its codebook was trained on {len(seen)} of the videos that are to be "
                f"scored, or on others of their source: {listed(seen)}"
            )

    def collect(self, rows: Mapping[str, np.ndarray], split: Split | None = None) -> Scores:
        """The scores of videos, by id, as one; labels are those of the test part of `split`.

        SplitError where that has a class that the SVMs do not know.
        """
        known = {} if split is None else {video.id: video.class_name for video in split.test}
        if strange := sorted({known[id] for id in rows if known} - set(self.classes)):
            raise SplitError(f"the SVMs know no class {listed(strange)}")
        labels = [self.classes.index(known[id]) if known else -1 for id in rows]
        said = {} if split is None else {"split": split.name, "part": "test"}
        values = np.stack(list(rows.values()))
        return Scores(tuple(rows), self.classes, values, np.array(labels), {**self.meta, **said})

    @property
    def meta(self) -> dict[str, Any]:
        """What a scores file says of how its scores were made."""
        return {
            "kind": "logits",
            "sharpness": self.sharpness,
            "stream": self.stream,
            "about": f"{self.about}, SVM of C = {self.C:g}",
            "codebook": self.codebook,
        }


def write_svms(path: Path, svms: LinearSvms) -> None:
    """Write SVMs to an .npz file; replaces what is there in one step."""
    names = ("sharpness", "C", "codebook", "about", "stream", "split")
    write_arrays(
        path,
        {"classes": np.array(svms.classes), "weights": svms.weights, "added": svms.added},
        {
            "format": FORMAT,
            "version": VERSION,
            **{name: getattr(svms, name) for name in names},
            "trained_on": dataclasses.asdict(svms.trained_on),
        },
    )


def read_svms(path: Path) -> LinearSvms:
    """Read what `write_svms` wrote; an error of one line if it is anything else."""
    wanted = {"classes": "text", "weights": "numbers", "added": "numbers"}
    arrays, meta = read_arrays(path, wanted, optional={}, maker="flowkit train svm")
    if (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
        raise RecordError(f"{path}: expected a {FORMAT} of version {VERSION}")
    names = ("sharpness", "C", "codebook", "about", "stream", "split")
    try:
        numbers = {name: meta[name] for name in names}
        trained_on = origin_from_json(meta["trained_on"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not of this format ({error!r})") from error
    classes, weights, added = (arrays[name] for name in wanted)
    if weights.ndim != 2 or not classes.shape == added.shape == weights.shape[:1]:
        raise RecordError(
            f"{path}: expected weights (classes, length), got {weights.shape} for classes "
            f"{classes.shape}"
        )
    return LinearSvms(tuple(classes.tolist()), weights, added, **numbers, trained_on=trained_on)


class Trained(NamedTuple):
    """The SVMs, and the scores by part: "test" and, where there is one, "heldout"."""

    svms: LinearSvms
    scores: dict[str, Scores]


def fit_sharpness(margins: np.ndarray, labels: np.ndarray) -> float:
    """The number by which margins (M, K) become the logits that make labels (M,) most likely.

    Margins are near 1 for the surest of videos, so that their softmax is nearly even; an average
    with a network's scores would leave them unheard.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    values = margins.astype(np.float64)

    def loss(log_sharpness: float) -> float:
        logits = values * np.exp(log_sharpness)
        likely = logits[np.arange(len(labels)), labels] - logsumexp(logits, axis=1)
        return -float(likely.mean())

    return float(np.exp(minimize_scalar(loss, bounds=SHARPNESS, method="bounded").x))


def train_svms(
    split: Split,
    vectors: Mapping[str, Path],
    codebooks: Fitted,
    *,
    stream: str = STREAM,
    read: ReadVector = read_vector,
    C: float = 100.0,
    folds: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Trained:
    """SVMs of the training part, and scores of the test and the held-out part: scaled margins.

    Of a video `vectors` holds the place, by id, and `read` gives the vector there. `stream` is the
    name of the scores. The scale is `fit_sharpness` of the held-out part, 1 without one. With
    `folds`, the held-out scores are of the whole training and held-out part, by cross-validation
    over source groups, and the test part is scored by what was trained on all of it. SplitError for
    a leak: a source group in two parts, or a codebook fitted on one that is scored.
    """
    if not split.test:
        raise SplitError(f"{split.name}: its test part is empty")
    check_leaks(split, codebooks, ("test",) if folds else ("test", "heldout"))
    if folds:
        everyone = split.train + split.heldout
        held = [hold_out(split, folds=folds, fold=fold) for fold in range(folds)]
    else:
        everyone, held = split.train, []
    _expect_classes(split, everyone)
    others = split.test if folds else split.heldout + split.test
    places = [vectors[video.id] for video in everyone]
    products = gram_matrix(
        [*places, *(vectors[video.id] for video in others)],
        places,
        codebooks.digest,
        read=read,
        report=report,
    )
    labels = np.array(split.labels(everyone))
    count = len(everyone)
    shares, added = fit_duals(products[:count], labels, split.classes, C=C)
    margins = (products[count:] @ shares.T + added).astype(np.float32)
    scored = {"heldout": list(split.heldout), "test": list(split.test)}
    rows = {
        "heldout": margins[: len(others) - len(split.test)],
        "test": margins[-len(split.test) :],
    }
    if folds:
        scored["heldout"], rows["heldout"] = _cross_validate(
            split, everyone, held, products[:count], labels, C
        )
    sharpness = 1.0
    if scored["heldout"]:
        sharpness = fit_sharpness(rows["heldout"], np.array(split.labels(scored["heldout"])))
    svms = LinearSvms(
        split.classes,
        _combine(shares, places, codebooks.digest, read),
        added.astype(np.float32),
        sharpness,
        C,
        codebooks.digest,
        codebooks.about,
        stream,
        split.name,
        origin_of(everyone, codebooks.origin),
    )
    scores = {
        part: Scores(
            tuple(video.id for video in videos),
            split.classes,
            rows[part] * np.float32(sharpness),
            np.array(split.labels(videos)),
            {
                **svms.meta,
                "split": split.name,
                "part": part,
                **({"cross_validation": folds} if folds else {}),
            },
        )
        for part, videos in scored.items()
        if videos
    }
    return Trained(svms, scores)


def _combine(
    shares: np.ndarray, places: Sequence[Path], digest: str, read: ReadVector
) -> np.ndarray:
    """The sum of the vectors in files, each counted by its share: float32 (classes, length)."""
    weights: Any = 0.0
    for first in range(0, len(places), BLOCK):
        block = slice(first, first + BLOCK)
        vectors = _read_block(places[block], digest, read)
        weights = weights + shares[:, block].astype(np.float32) @ vectors
    return weights


def check_leaks(split: Split, codebooks: Fitted, parts: Iterable[str]) -> None:
    """Raise SplitError where the codebooks saw a source group of these parts, or two share one."""
    if straddling := split.straddling_groups():
        raise SplitError(
            f"{split.name}: {len(straddling)} source groups have videos in two parts: "
            f"{listed(straddling)}"
        )
    seen, groups = set(codebooks.videos), set(codebooks.groups)
    leaks = [
        video.id
        for part in parts
        for video in split.part(part)
        if video.id in seen or f"{video.class_name}: {video.group}" in groups
    ]
    if leaks:
        raise SplitError(
            f"{codebooks.about}: fitted on source groups of {len(leaks)} videos that are to be "
            f"scored: {listed(leaks)}; it is of the split {codebooks.split}: fit one on the "
            f"training part of {split.name} (flowkit fisher fit --split; for HMAX, other --vectors)"
        )


def _cross_validate(
    split: Split,
    everyone: Sequence[Video],
    held: Sequence[Split],
    products: np.ndarray,
    labels: np.ndarray,
    C: float,
) -> tuple[list[Video], np.ndarray]:
    """The videos that are held out in a fold, in the order of `everyone`, and their margins."""
    margins = np.full((len(everyone), len(split.classes)), np.nan, np.float32)
    for fold in held:
        _expect_classes(fold, fold.train)
        out = {video.id for video in fold.heldout}
        outside = np.array([video.id in out for video in everyone])
        inside = np.flatnonzero(~outside)
        margins[outside] = decide(
            products[np.ix_(inside, inside)],
            labels[inside],
            products[np.ix_(np.flatnonzero(outside), inside)],
            split.classes,
            C=C,
        )
    known = np.flatnonzero(~np.isnan(margins).any(axis=1))
    return [everyone[int(row)] for row in known], margins[known]


def _expect_classes(split: Split, videos: Sequence[Video]) -> None:
    absent = sorted(set(split.classes) - {video.class_name for video in videos})
    if absent or len(split.classes) < 2:
        raise SplitError(
            f"{split.name}: expected training videos of two classes or more, and of every one, "
            f"got none of {listed(absent) or 'a second class'}"
        )


def _read_block(places: Sequence[Path], digest: str, read: ReadVector) -> np.ndarray:
    """The vectors in files as float32 (N, length)."""
    rows: list[Any] = []
    for place in places:
        vector, meta = read(place)
        _check_codebook(place, meta, digest)
        rows.append(vector)
    return np.stack(rows).astype(np.float32)


def _check_codebook(place: Path, meta: Mapping[str, Any], digest: str) -> None:
    if meta.get("codebook") != digest:
        raise UsageError(
            f"{place}: of another codebook than the one given: flowkit fisher encode "
            "--overwrite makes it again"
        )
