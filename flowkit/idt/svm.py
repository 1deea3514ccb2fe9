"""Fisher vectors to scores: one linear SVM a class, by a Gram matrix that is made in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.data.splits import Split, Video, hold_out
from flowkit.documents import listed
from flowkit.errors import SplitError, UsageError
from flowkit.idt.vectors import Codebooks, read_vector
from flowkit.scores.files import Scores

STREAM = "idt"
SHARPNESS = (-3.0, 4.0)  # the natural logarithm of the scale of margins: 0.05 to 55
BLOCK = 512  # videos whose vectors are in memory at once, twice: 220 MB each at 109,056 numbers


def gram_matrix(
    rows: Sequence[Path],
    columns: Sequence[Path],
    digest: str,
    *,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """The products of the vectors in files: float32 (rows, columns).

    UsageError where one is of another codebook than that of `digest`. `report` is told the rows
    done.
    """
    products = np.empty((len(rows), len(columns)), np.float32)
    for top in range(0, len(rows), BLOCK):
        left_vectors = _read_block(rows[top : top + BLOCK], digest)
        for left in range(0, len(columns), BLOCK):
            block = columns[left : left + BLOCK]
            same = rows[top : top + BLOCK] == block
            right_vectors = left_vectors if same else _read_block(block, digest)
            products[top : top + BLOCK, left : left + BLOCK] = left_vectors @ right_vectors.T
        report(min(top + BLOCK, len(rows)))
    return products


def decide(
    train: np.ndarray, labels: np.ndarray, other: np.ndarray, classes: int, *, C: float
) -> np.ndarray:
    """What the SVM of each class says of other videos: their signed margins, float32 (M, classes).

    train: the Gram matrix of the training videos, (N, N); labels: (N,); other: products of the
    others with them, (M, N). One class against the rest, hinge loss (LIBSVM).
    """
    from sklearn.svm import SVC

    margins = np.empty((len(other), classes), np.float32)
    train, other = train.astype(np.float64), other.astype(np.float64)
    for label in range(classes):
        machine = SVC(C=C, kernel="precomputed").fit(train, labels == label)
        margins[:, label] = machine.decision_function(other)
    return margins


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


def score_split(
    split: Split,
    vectors: Mapping[str, Path],
    codebooks: Codebooks,
    *,
    C: float = 100.0,
    folds: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, Scores]:
    """Scores of the "test" part and, where there is one, of the "heldout" part: scaled margins.

    Of a video `vectors` holds the place, by id. Trained on the training part. The scale is
    `fit_sharpness` of the held-out part, 1 without one. With `folds`, the held-out scores are of
    the whole training and held-out part, by cross-validation over source groups, and the test part
    is scored by what was trained on all of it. SplitError for a leak: a source group in two parts,
    or a codebook fitted on one that is scored.
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
        report=report,
    )
    labels = np.array(split.labels(everyone))
    count, classes = len(everyone), len(split.classes)
    margins = decide(products[:count], labels, products[count:], classes, C=C)
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
    meta = {
        "kind": "logits",
        "sharpness": sharpness,
        "stream": STREAM,
        "about": f"improved dense trajectories, Fisher vectors of {codebooks.gaussians} Gaussians, "
        f"SVM of C = {C:g}",
        "split": split.name,
        "codebook": codebooks.digest,
    }
    return {
        part: Scores(
            tuple(video.id for video in videos),
            split.classes,
            rows[part] * np.float32(sharpness),
            np.array(split.labels(videos)),
            {**meta, "part": part, **({"cross_validation": folds} if folds else {})},
        )
        for part, videos in scored.items()
        if videos
    }


def check_leaks(split: Split, codebooks: Codebooks, parts: Iterable[str]) -> None:
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
            f"the codebook was fitted on source groups of {len(leaks)} videos that are to be "
            f"scored: {listed(leaks)}; it is of the split {codebooks.split}: fit one on the "
            f"training part of {split.name} (flowkit fisher fit --split)"
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
            len(split.classes),
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


def _read_block(places: Sequence[Path], digest: str) -> np.ndarray:
    """The vectors in files as float32 (N, length)."""
    rows: list[Any] = []
    for place in places:
        vector, meta = read_vector(place)
        if meta["codebook"] != digest:
            raise UsageError(
                f"{place}: of another codebook than the one given: flowkit fisher encode "
                "--overwrite makes it again"
            )
        rows.append(vector)
    return np.stack(rows).astype(np.float32)
