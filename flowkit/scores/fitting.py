"""Fusions fitted on rows outside the test part: weights, linear SVM, softmax regression."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flowkit.data.splits import source_group
from flowkit.documents import listed
from flowkit.errors import ScoresError, UsageError
from flowkit.scores.files import LEAST, Scores, align, log_softmax, log_softmax_rows, softmax
from flowkit.scores.fusion import FUSIONS, Fusion, On, features

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

log = logging.getLogger(__name__)

SVMS = ("crammer-singer", "ovr")
C_GRID = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # tried by cross-validation; the paper gives no C
UNJUDGED_C = 1.0  # C where cross-validation is impossible
FOLDS = 5  # most folds of the cross-validation; fewer where a class has fewer source groups
PASSES = 20_000  # over the rows, at most, for the linear solvers
STEPS = 20_000  # most steps of expectation maximization
STILL = 1e-10  # the largest change of a weight in a step that ends it
PRIOR = 100.0  # how strongly class weights are drawn to equal ones, beside the rows' likelihood


def fit_class_weights(
    streams: Mapping[str, Scores], *, test_videos: Collection[str] = ()
) -> Fusion:
    """The "class-weighted" fusion: weights of at least 0 for each stream and class, of logits.

    They maximize sum_i log softmax_k(sum_s w_sk log p_s(k | i))[label_i] - PRIOR sum_sk (w_sk -
    w)^2, a concave problem, where w is the one weight of all that is the most likely. Rows as
    `fit_linear` takes them.
    """
    aligned, labels = _fitting_rows(streams, test_videos)
    names, classes = sorted(aligned), next(iter(aligned.values())).classes
    order = np.argsort(np.array(classes))
    labels = np.argsort(order)[labels]
    stacked = np.stack([log_softmax(aligned[name])[:, order] for name in names])
    equal = float(_most_likely(stacked.sum(axis=0)[None], labels)[0, 0])
    weights = _most_likely(stacked, labels, by_class=True, equal=equal)
    return Fusion(
        "class-weighted",
        streams=tuple(names),
        classes=tuple(sorted(classes)),
        coefficients=weights,
        fit={"rows": len(labels)},
        on="logits",
    )


def _most_likely(
    stacked: np.ndarray, labels: np.ndarray, *, by_class: bool = False, equal: float | None = None
) -> np.ndarray:
    """Weights of logits (S, N, K), of at least 0, that make the labels most likely: (S, 1 or K).

    With `equal` they are drawn to it by PRIOR.
    """
    from scipy.optimize import minimize

    shape = (len(stacked), stacked.shape[2] if by_class else 1)
    truth = np.eye(stacked.shape[2])[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        values = log_softmax_rows((weights[:, None] * stacked).sum(axis=0))
        slope = ((np.exp(values) - truth) * stacked).sum(axis=1)  # (S, K)
        slope = slope if by_class else slope.sum(axis=1, keepdims=True)
        away = 0.0 if equal is None else weights - equal
        lost = -(values * truth).sum() + PRIOR * np.sum(np.square(away))
        return float(lost), (slope + 2 * PRIOR * away).ravel()

    found = minimize(
        loss, np.ones(shape).ravel(), jac=True, bounds=[(0, None)] * (shape[0] * shape[1])
    )
    return found.x.reshape(shape)


def fit_weights(
    streams: Mapping[str, Scores], *, test_videos: Collection[str] = (), on: On = "softmax"
) -> Fusion:
    """The "weighted" fusion whose weights make the labels of these rows most likely.

    Weights w on the simplex that maximize sum_i log sum_s w_s p_s(label_i | i), a concave problem,
    by expectation maximization; on "logits" those of at least 0 that maximize sum_i log
    softmax_k(sum_s w_s log p_s(k | i))[label_i]. Rows as `fit_linear` takes them.
    """
    aligned, labels = _fitting_rows(streams, test_videos)
    names = sorted(aligned)
    if on == "logits":
        found = _most_likely(np.stack([log_softmax(aligned[name]) for name in names]), labels)[:, 0]
        given = dict(zip(names, found.tolist(), strict=True))
        return Fusion("weighted", given, fit={"rows": len(labels)}, on=on)
    rows = np.arange(len(labels))
    likely = np.stack([softmax(aligned[name])[rows, labels] for name in names], axis=1)  # (N, S)
    likely = np.maximum(likely, LEAST)
    weights = np.full(len(names), 1 / len(names))
    for _ in range(STEPS):
        shares = likely * weights
        updated = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
        still = np.abs(updated - weights).max() < STILL
        weights = updated
        if still:
            break
    fit = {"rows": len(labels), "log_likelihood": float(np.log(likely @ weights).mean())}
    return Fusion("weighted", dict(zip(names, weights.tolist(), strict=True)), fit=fit)


def fit_linear(
    method: str,
    streams: Mapping[str, Scores],
    *,
    svm: str = "crammer-singer",
    C: float | None = None,
    seed: int = 0,
    test_videos: Collection[str] = (),
) -> Fusion:
    """A multi-class linear SVM ("svm") or softmax regression ("logistic") on stacked scores.

    Features are the streams' softmax scores, each L2-normalized, side by side (Simonyan & Zisserman
    2014, section 5). `svm` is "crammer-singer" or "ovr" (one class against the rest). `C` is chosen
    by cross-validation over source groups unless given. The rows must be of the training or the
    held-out part, with labels and every class among them, and none of `test_videos`: ScoresError.
    """
    if method not in FUSIONS or not FUSIONS[method].is_linear or svm not in SVMS:
        raise UsageError(f"expected svm ({', '.join(SVMS)}) or logistic, got {method}, {svm}")
    if C is not None and not 0 < C < np.inf:
        raise UsageError(f"expected C above 0, got {C:g}")
    aligned, labels = _fitting_rows(streams, test_videos)
    first = next(iter(aligned.values()))
    names, classes = tuple(sorted(aligned)), tuple(sorted(first.classes))
    absent = sorted(set(classes) - {first.classes[label] for label in labels})
    if absent:
        raise ScoresError(
            f"expected rows of every class to fit {method} on, got none of {len(absent)} classes: "
            f"{listed(absent)}: fit on more rows, or use a method that needs no fitting"
        )
    truth = np.array([first.classes[label] for label in labels])
    order = np.argsort(np.array(first.videos))  # the solvers depend on the order of rows
    inputs, truth = features(aligned, names, classes)[order], truth[order]
    groups = [f"{truth[k]} {source_group(first.videos[row])}" for k, row in enumerate(order)]
    fit: dict[str, Any] = {"rows": len(truth)}
    if C is None:
        C, accuracies = _choose_c(method, svm, inputs, truth, groups, seed)
        fit |= {"cross_validation": accuracies} if accuracies else {}
    fit |= {"C": C} | ({"svm": svm} if method == "svm" else {})
    model = _fit(method, svm, C, seed, inputs, truth)
    coefficients, intercepts = model.coef_, np.broadcast_to(model.intercept_, len(model.coef_))
    if len(classes) == 2:  # one row that tells the second class from the first
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    return Fusion(
        method,
        streams=names,
        classes=classes,
        coefficients=np.array(coefficients, np.float64),
        intercepts=np.array(intercepts, np.float64),
        fit=fit,
    )


def _fitting_rows(
    streams: Mapping[str, Scores], test_videos: Collection[str]
) -> tuple[dict[str, Scores], np.ndarray]:
    """The aligned streams and their labels, if a fusion may be fitted on them; else ScoresError."""
    for name, scores in streams.items():
        if scores.part not in ("train", "heldout"):
            raise ScoresError(
                f"{name}: expected scores of the held-out or training part to fit on, got "
                f"{scores.part or 'an unknown'} part: fitting on test rows tells nothing"
            )
        if scores.part == "train":
            log.warning(
                "%s: fitted on the training part, where networks are surer than on new videos; "
                "held-out rows are better",
                name,
            )
    aligned = align(streams)
    first = next(iter(aligned.values()))
    shared = sorted(set(first.videos) & set(test_videos))
    if shared:
        raise ScoresError(
            f"{len(shared)} videos to fit on are also to be fused: {listed(shared)}: "
            "fitting on test rows tells nothing"
        )
    unknown = [first.videos[row] for row in np.flatnonzero(first.labels < 0)]
    if unknown:
        raise ScoresError(
            f"expected labels of the rows to fit on, {len(unknown)} have none: {listed(unknown)}"
        )
    return aligned, first.labels


def _choose_c(
    method: str, svm: str, inputs: np.ndarray, truth: np.ndarray, groups: list[str], seed: int
) -> tuple[float, dict[str, float]]:
    """The C of the grid with the best accuracy on folds of whole source groups; the least of ties.

    Also the accuracy of each, by C. A class of one source group is always fitted on, never judged
    by; where all are, C is 1 and nothing is judged.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    group_counts = Counter(name for name, _ in set(zip(truth.tolist(), groups, strict=True)))
    judged = np.array([group_counts[name] > 1 for name in truth.tolist()])
    if not judged.any():
        log.warning(
            "no class has two source groups to choose C by cross-validation: %s is fitted with "
            "C=%g (--C gives another)",
            method,
            UNJUDGED_C,
        )
        return UNJUDGED_C, {}
    fewest = min(count for count in group_counts.values() if count > 1)
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    rows, others = np.flatnonzero(judged), np.flatnonzero(~judged)
    right = dict.fromkeys(C_GRID, 0)
    for inside, outside in folds.split(inputs[rows], truth[rows], np.array(groups)[rows]):
        fitted, held = np.sort(np.concatenate([rows[inside], others])), rows[outside]
        for C in C_GRID:
            model = _fit(method, svm, C, seed, inputs[fitted], truth[fitted])
            right[C] += int((model.predict(inputs[held]) == truth[held]).sum())
    best = max(C_GRID, key=lambda C: (right[C], -C))
    return best, {f"{C:g}": right[C] / len(rows) for C in C_GRID}


def _fit(
    method: str, svm: str, C: float, seed: int, inputs: np.ndarray, truth: np.ndarray
) -> LinearSVC | LogisticRegression:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if method == "logistic":
        model = LogisticRegression(C=C, max_iter=PASSES)
    else:
        name = "crammer_singer" if svm == "crammer-singer" else "ovr"
        model = LinearSVC(C=C, multi_class=name, max_iter=PASSES, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the log says it in one line
        model.fit(inputs, truth)
    if np.max(model.n_iter_) >= PASSES:
        log.warning("%s with C=%g was not solved to the end in %d passes", method, C, PASSES)
    return model
