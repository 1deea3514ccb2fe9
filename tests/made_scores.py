"""Makes scores for tests: softmax scores that are right about as often as asked."""

import numpy as np

from flowkit.scores.files import Scores

CLASSES = ("run", "golf", "wave", "Hammering", "HammerThrow")  # in no order of names


def make_scores(
    *, seed=0, per_class=12, strength=1.5, kind="softmax", part="test", classes=CLASSES, **meta
) -> Scores:
    """Videos "class/v_class_gNN_cMM" in groups of three; the same ids for every seed."""
    videos = [
        f"{name}/v_{name}_{'h' if part != 'test' else ''}x_g{k // 3 + 1:02d}_c{k % 3 + 1:02d}"
        for name in classes
        for k in range(per_class)
    ]
    labels = np.repeat(np.arange(len(classes)), per_class)
    values = np.random.default_rng((seed, part == "test")).normal(size=(len(videos), len(classes)))
    values[np.arange(len(labels)), labels] += strength
    if kind == "softmax":
        values = np.exp(values)
        values /= values.sum(axis=1, keepdims=True)
    return Scores(videos, classes, values, labels, {"kind": kind, "part": part, **meta})


def shuffle(scores: Scores, seed: int) -> Scores:
    """The same scores with rows and columns in another order."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(scores.videos)), rng.permutation(len(scores.classes))
    place = np.append(np.argsort(columns), -1)  # old label -> new label; -1 -> -1
    return Scores(
        [scores.videos[row] for row in rows],
        [scores.classes[column] for column in columns],
        scores.values[np.ix_(rows, columns)],
        place[scores.labels[rows]],
        scores.meta,
    )


def columns_by_name(scores: Scores) -> np.ndarray:
    """The values in the order of video ids and class names."""
    return scores.values[np.ix_(np.argsort(scores.videos), np.argsort(scores.classes))]
