"""Fusion: every rule by hand or by scikit-learn, independence of order, refusal of test rows."""

import logging
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from made_scores import CLASSES, columns_by_name, make_scores, shuffle
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from flowkit.errors import ScoresError, UsageError
from flowkit.scores.files import Scores, read_scores, softmax, write_scores
from flowkit.scores.fitting import C_GRID, PRIOR, fit_class_weights, fit_linear, fit_weights
from flowkit.scores.fusion import FUSIONS, Fusion, features, fuse, read_fusion, write_fusion

SVMS = [("svm", "crammer-singer"), ("svm", "ovr"), ("logistic", "ovr")]


def streams_of(part="test", count=2, **options):
    names = ("spatial", "temporal", "idt")[:count]
    strengths = (1.0, 2.0, 1.5)
    return {
        name: make_scores(seed=seed, strength=strengths[seed], part=part, **options)
        for seed, name in enumerate(names)
    }


def by_hand(method, svm, C):
    """The classifier called by hand."""
    if method == "logistic":
        return LogisticRegression(C=C, max_iter=20_000)
    name = svm.replace("-", "_")
    return LinearSVC(C=C, multi_class=name, max_iter=20_000, random_state=0)


def stacked_by_hand(streams):
    """(inputs, true names, groups) in the order of video ids, streams and class names."""
    first = next(iter(streams.values()))
    order = np.argsort(first.videos)
    inputs = np.hstack([normalize(columns_by_name(streams[name])) for name in sorted(streams)])
    truth = np.array([first.classes[first.labels[row]] for row in order])
    groups = [first.videos[row].rpartition("_")[0] for row in order]
    return inputs.astype(np.float64), truth, groups


@pytest.fixture
def streams():
    return streams_of()


@pytest.fixture(scope="module")
def heldout():
    return streams_of("heldout")


@pytest.fixture(scope="module")
def fitted(heldout):
    """A fusion of every method."""
    weights = Fusion("weighted", {"spatial": 1.0, "temporal": 3.0})
    linear = {method: fit_linear(method, heldout, C=10.0) for method in ("svm", "logistic")}
    fixed = {method: Fusion(method) for method in ("average", "max", "vote")}
    by_class = fit_class_weights(heldout)
    return {**fixed, **linear, "weighted": weights, "class-weighted": by_class}


HAND = {  # two streams, one video, three classes
    "average": [0.35, 0.45, 0.2],
    "weighted": [0.6 * 0.25 + 0.1 * 0.75, 0.3 * 0.25 + 0.6 * 0.75, 0.1 * 0.25 + 0.3 * 0.75],
    "max": [0.6 / 1.5, 0.6 / 1.5, 0.3 / 1.5],
    "vote": [(1 + 0.35) / 3, (1 + 0.45) / 3, (0 + 0.2) / 3],
}


@pytest.mark.parametrize("method", HAND)
def test_fixed_rules_by_hand(method):
    def one(values):
        return Scores(["v"], ["a", "b", "c"], [values], None, {"kind": "softmax"})

    weights = {"x": 1, "y": 3} if method == "weighted" else {}
    fused = fuse({"x": one([0.6, 0.3, 0.1]), "y": one([0.1, 0.6, 0.3])}, Fusion(method, weights))
    np.testing.assert_allclose(fused.values[0], HAND[method], rtol=1e-6)
    assert fused.meta["kind"] == "softmax"


LOGITS = {  # of the same, the shares 1 and 3
    "average": np.sqrt([0.6 * 0.1, 0.3 * 0.6, 0.1 * 0.3]),
    "weighted": np.power([0.6 * 0.1**3, 0.3 * 0.6**3, 0.1 * 0.3**3], 0.25),
}


@pytest.mark.parametrize("method", LOGITS)
@pytest.mark.parametrize("kind", ["softmax", "logits"])
def test_logits_are_combined_by_hand(method, kind):
    def one(values):
        values = values if kind == "softmax" else np.log(values) + 5
        return Scores(["v"], ["a", "b", "c"], [values], None, {"kind": kind})

    shares = {"x": 1, "y": 3} if method == "weighted" else {}
    streams = {"x": one([0.6, 0.3, 0.1]), "y": one([0.1, 0.6, 0.3])}
    fused = fuse(streams, Fusion(method, shares, on="logits"))
    np.testing.assert_allclose(fused.values[0], LOGITS[method] / LOGITS[method].sum(), rtol=1e-6)
    assert (fused.meta["kind"], fused.meta["fusion"]["on"]) == ("softmax", "logits")
    assert "of the logits" in fused.meta["about"]


def test_a_rule_combines_what_it_can():
    with pytest.raises(UsageError, match="max combines softmax, got 'logits'"):
        Fusion("max", on="logits")


def likelihood(streams, weights):
    """sum_i log softmax(sum_s w_s log p_s) of the labels; weights (S, 1) or (S, K) by name."""
    values = sum(
        w * np.log(columns_by_name(streams[name]).astype(np.float64))
        for name, w in zip(sorted(streams), weights, strict=True)
    )
    _, truth, _ = stacked_by_hand(streams)
    names = sorted(next(iter(streams.values())).classes)
    logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return logs[np.arange(len(truth)), [names.index(name) for name in truth]].sum()


def test_weights_of_logits_are_the_most_likely(heldout):
    found = fit_weights(heldout, on="logits")
    ratio = found.weights["temporal"] / found.weights["spatial"]
    sizes = np.linspace(0.2, 3, 29)
    grid = {(a, b): likelihood(heldout, [[a], [b]]) for a in sizes for b in sizes}
    a, b = max(grid, key=grid.get)
    assert ratio == pytest.approx(b / a, rel=0.15)


def test_class_weights_are_the_most_likely_beside_their_prior(heldout):
    fusion = fit_class_weights(heldout)
    equal = max(np.linspace(0.05, 3, 591), key=lambda w: likelihood(heldout, [[w], [w]]))

    def worth(weights):
        return likelihood(heldout, weights) - PRIOR * ((weights - equal) ** 2).sum()

    best = worth(fusion.coefficients)
    random = np.random.default_rng(0)
    for size in (0.003, 0.03):
        for _ in range(20):
            other = fusion.coefficients + random.normal(0, size, fusion.coefficients.shape)
            assert worth(np.maximum(other, 0)) < best + 1e-3
    assert fusion.coefficients.std() > 0


def test_votes_count_more_than_any_mean():
    sure = Scores(["v"], ["a", "b"], [[1.0, 0.0]], None, {"kind": "softmax"})
    unsure = replace(sure, values=np.array([[0.49, 0.51]]))
    fused = fuse({"x": sure, "y": unsure, "z": unsure}, Fusion("vote"))
    assert fused.values.argmax() == 1
    assert fuse({"x": sure, "y": unsure, "z": unsure}, Fusion("average")).values.argmax() == 0


def test_a_vote_between_equals_is_shared():
    half = Scores(["v"], ["a", "b", "c"], [[0.4, 0.4, 0.2]], None, {"kind": "softmax"})
    np.testing.assert_allclose(
        fuse({"x": half}, Fusion("vote")).values[0], [0.45, 0.45, 0.1], rtol=1e-6
    )


def test_logits_are_fused_as_probabilities(streams):
    logits = {
        name: replace(one, values=np.log(one.values) + 7, meta={"kind": "logits"})
        for name, one in streams.items()
    }
    for method in ("average", "max", "vote"):
        np.testing.assert_allclose(
            fuse(logits, Fusion(method)).values, fuse(streams, Fusion(method)).values, atol=1e-6
        )


@pytest.mark.parametrize("method", FUSIONS)
def test_order_of_rows_columns_and_streams_does_not_matter(streams, fitted, method):
    plain = fuse(streams, fitted[method])
    other = {
        "temporal": shuffle(streams["temporal"], 1),
        "spatial": shuffle(streams["spatial"], 2),
    }
    shuffled = fuse(other, fitted[method])
    assert shuffled.videos == other["temporal"].videos  # the order of the first
    np.testing.assert_allclose(columns_by_name(shuffled), columns_by_name(plain), atol=1e-6)
    names = [shuffled.classes[label] for label in shuffled.labels]
    assert names == [video.partition("/")[0] for video in shuffled.videos]


@pytest.mark.parametrize("method", ["average", "weighted", "vote"])
def test_order_of_streams_changes_no_bit(method):
    three = streams_of(count=3)
    backward = {name: three[name] for name in reversed(three)}
    weights = {name: 1.0 + k for k, name in enumerate(three)} if method == "weighted" else {}
    fusion = Fusion(method, weights)
    np.testing.assert_array_equal(fuse(three, fusion).values, fuse(backward, fusion).values)


@pytest.mark.parametrize(("method", "svm"), SVMS)
def test_order_of_the_fitting_rows_does_not_matter(streams, heldout, method, svm):
    other = {name: shuffle(heldout[name], seed) for seed, name in enumerate(reversed(heldout))}
    C = 10.0 if method == "logistic" else None  # its cross-validation takes seconds
    one = fit_linear(method, heldout, svm=svm, C=C)
    two = fit_linear(method, other, svm=svm, C=C)
    assert one.fit == two.fit
    np.testing.assert_array_equal(one.coefficients, two.coefficients)
    np.testing.assert_array_equal(fuse(streams, one).values, fuse(streams, two).values)


@pytest.mark.parametrize("method", FUSIONS)
def test_fused_scores_are_scores_and_say_how_they_were_made(tmp_path, streams, fitted, method):
    fused = fuse(streams, fitted[method])
    write_scores(tmp_path / "fused.npz", fused)
    meta = read_scores(tmp_path / "fused.npz").meta
    assert (meta["part"], meta["fusion"]["method"]) == ("test", method)
    assert meta["fusion"]["streams"] == ["spatial", "temporal"]
    assert meta["about"].startswith(method)
    assert (meta["kind"] == "logits") == (method in ("svm", "logistic"))


def test_split_is_that_of_the_streams_that_name_one(streams):
    named = replace(streams["temporal"], meta={**streams["temporal"].meta, "split": "made-2"})
    fused = fuse({"spatial": streams["spatial"], "temporal": named}, Fusion("average"))
    assert fused.meta["split"] == "made-2"


def test_features_are_stacked_and_normalized_by_stream(streams):
    inputs = features(streams, ("temporal", "spatial"), CLASSES)
    assert inputs.shape == (60, 10)
    np.testing.assert_allclose(inputs[:, :5], normalize(streams["temporal"].values), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(inputs[:, 5:], axis=1), 1)


@pytest.mark.parametrize(("method", "svm"), SVMS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("classes", [CLASSES, ("run", "golf")])
def test_linear_fusion_is_scikit_learn_called_by_hand(method, svm, count, classes):
    heldout = streams_of("heldout", count, classes=classes)
    test = streams_of("test", count, classes=classes)
    fused = fuse(test, fit_linear(method, heldout, svm=svm, C=3.0))
    inputs, truth, _ = stacked_by_hand(heldout)
    model = by_hand(method, svm, 3.0).fit(inputs, truth)
    margins = model.decision_function(stacked_by_hand(test)[0])
    values = columns_by_name(fused)
    if len(classes) == 2:  # scikit-learn has one margin for two classes
        margins = np.stack([-margins, margins], axis=1) / 2
    np.testing.assert_allclose(values, margins, atol=2e-4)
    if method == "logistic":
        probabilities = model.predict_proba(stacked_by_hand(test)[0])
        order = np.ix_(np.argsort(fused.videos), np.argsort(fused.classes))
        np.testing.assert_allclose(softmax(fused)[order], probabilities, atol=2e-4)


@pytest.mark.parametrize("svm", ["crammer-singer", "ovr"])
def test_c_is_chosen_by_folds_of_whole_groups(heldout, svm):
    fusion = fit_linear("svm", heldout, svm=svm, seed=3)
    inputs, truth, groups = stacked_by_hand(heldout)
    accuracy = dict.fromkeys(C_GRID, 0.0)
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=3)  # 4 groups a class
    for inside, outside in folds.split(inputs, truth, groups):
        assert not {groups[row] for row in inside} & {groups[row] for row in outside}
        for C in C_GRID:
            model = by_hand("svm", svm, C).set_params(random_state=3)
            model.fit(inputs[inside], truth[inside])
            accuracy[C] += (model.predict(inputs[outside]) == truth[outside]).sum() / len(truth)
    found = {float(C): value for C, value in fusion.fit["cross_validation"].items()}
    assert found == pytest.approx(accuracy, abs=1e-12)
    best = max(found.values())
    assert fusion.fit["C"] == min(C for C in found if found[C] == best)


def one_group(scores, names):
    """The scores without all groups but the first in the classes `names`."""
    rows = [
        row
        for row, video in enumerate(scores.videos)
        if "_g01_" in video or video.partition("/")[0] not in names
    ]
    videos = [scores.videos[row] for row in rows]
    return replace(scores, videos=videos, values=scores.values[rows], labels=scores.labels[rows])


def test_a_class_of_one_group_is_fitted_on_and_not_judged_by(heldout):
    rows = {name: one_group(one, ["run"]) for name, one in heldout.items()}
    fusion = fit_linear("svm", rows)
    assert "run" in fusion.classes
    judged = 48  # videos of the other four classes
    counts = [value * judged for value in fusion.fit["cross_validation"].values()]
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    assert max(counts) > 24


def test_classes_of_one_group_each_leave_c_at_one_and_say_so(heldout, caplog):
    rows = {name: one_group(one, CLASSES) for name, one in heldout.items()}
    with caplog.at_level(logging.WARNING, "flowkit"):
        fusion = fit_linear("svm", rows)
    assert fusion.fit == {"rows": 15, "C": 1.0, "svm": "crammer-singer"}
    assert "no class has two source groups" in caplog.text


def test_learned_weights_are_the_most_likely(heldout):
    fusion = fit_weights(heldout)
    rows = np.arange(60)
    spatial, temporal = (
        heldout[n].values[rows, heldout[n].labels] for n in ("spatial", "temporal")
    )
    best = minimize_scalar(
        lambda w: -np.log(w * spatial + (1 - w) * temporal).sum(),
        bounds=(0, 1),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert 0 < best.x < 1
    assert fusion.weights["spatial"] == pytest.approx(best.x, abs=1e-4)
    assert sum(fusion.weights.values()) == pytest.approx(1)
    assert fusion.fit == {"rows": 60, "log_likelihood": pytest.approx(-best.fun / 60)}


def test_a_stream_of_noise_gets_no_weight(heldout):
    noise = make_scores(seed=9, strength=0, part="heldout")
    sure = replace(heldout["temporal"], values=np.eye(5)[heldout["temporal"].labels])
    weights = fit_weights({"noise": noise, "sure": sure}).weights
    assert weights["sure"] > 0.999


def test_weights_are_kept_by_stream_name(streams):
    fused = fuse(streams, Fusion("weighted", {"temporal": 3, "spatial": 1}))
    expected = 0.25 * streams["spatial"].values + 0.75 * streams["temporal"].values
    np.testing.assert_allclose(fused.values, expected, rtol=1e-5)
    assert fused.meta["fusion"]["weights"] == {"temporal": 0.75, "spatial": 0.25}


@pytest.mark.parametrize("fit", [fit_weights, lambda *a, **k: fit_linear("svm", *a, C=1, **k)])
def test_fitting_on_test_rows_is_refused(streams, heldout, fit):
    with pytest.raises(ScoresError, match=r"spatial: .*held-out.*got test"):
        fit(streams)
    nameless = {name: replace(one, meta={"kind": "softmax"}) for name, one in heldout.items()}
    with pytest.raises(ScoresError, match="got an unknown part"):
        fit(nameless)
    relabeled = {
        name: replace(one, meta={"kind": "softmax", "part": "heldout"})
        for name, one in streams.items()
    }
    videos = streams["spatial"].videos
    with pytest.raises(ScoresError, match="also to be fused: HammerThrow/"):
        fit(relabeled, test_videos=videos)
    with pytest.raises(ScoresError, match=r"^1 videos to fit on .*: run/"):
        fit(relabeled, test_videos=videos[:1])


def test_fitting_on_the_training_part_is_warned_of(heldout, caplog):
    rows = {
        name: replace(one, meta={"kind": "softmax", "part": "train"})
        for name, one in heldout.items()
    }
    with caplog.at_level(logging.WARNING, "flowkit"):
        fit_weights(heldout)
        assert not caplog.text
        fit_weights(rows)
    assert "networks are surer than on new videos" in caplog.text


def test_fitting_needs_labels_and_every_class(heldout):
    labels = heldout["spatial"].labels.copy()
    labels[:7] = -1
    unknown = {name: replace(one, labels=labels) for name, one in heldout.items()}
    with pytest.raises(ScoresError, match=r"rows to fit on, 7 have none: run/.* and 2 more"):
        fit_weights(unknown)
    only = {
        name: replace(one, labels=np.where(one.labels == 2, 0, one.labels))
        for name, one in heldout.items()
    }
    with pytest.raises(ScoresError, match=r"rows of every class .*1 classes: wave"):
        fit_linear("svm", only)


def test_a_solver_that_stops_early_is_told(heldout, caplog, monkeypatch):
    monkeypatch.setattr("flowkit.scores.fitting.PASSES", 2)
    before = list(warnings.filters)
    with caplog.at_level(logging.WARNING, "flowkit"):
        fit_linear("svm", heldout, svm="ovr", C=1000.0)
    assert list(warnings.filters) == before  # scikit-learn's warning is silent in there only
    assert "C=1000 was not solved to the end" in caplog.text


@pytest.mark.parametrize("method", FUSIONS)
def test_fusion_file_comes_back_and_holds_no_pickle(tmp_path, streams, fitted, method):
    path = tmp_path / "fusion.npz"
    write_fusion(path, fitted[method])
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "Uf" for name in file)
    back = read_fusion(path)
    assert back.fit == fitted[method].fit
    np.testing.assert_array_equal(fuse(streams, back).values, fuse(streams, fitted[method]).values)


def test_fusion_file_that_is_something_else_is_refused(tmp_path, streams, fitted):
    path = tmp_path / "fusion.npz"
    with pytest.raises(ScoresError, match=r"fusion\.npz: no such file"):
        read_fusion(path)
    write_scores(path, streams["spatial"])
    with pytest.raises(ScoresError, match=r"expected arrays .*coefficients, .*got .*scores"):
        read_fusion(path)
    np.savez(path, meta=np.array({"a": 1}, dtype=object))
    with pytest.raises(ScoresError, match="meta to be a whole array"):
        read_fusion(path)
    np.savez(path, meta='{"format": "flowkit fusion", "version": 1}')
    with pytest.raises(ScoresError, match="not of this format"):
        read_fusion(path)
    svm = fitted["svm"]
    coefficients = svm.coefficients.copy()
    coefficients[0, 0] = np.nan
    write_fusion(path, replace(svm, coefficients=coefficients))
    with pytest.raises(ScoresError, match="expected finite coefficients"):
        read_fusion(path)
    write_fusion(path, svm)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist() if name != "intercepts.npy"}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    with pytest.raises(ScoresError, match=r"coefficients \(5, 10\)"):
        read_fusion(path)


def test_fusion_of_other_streams_or_classes_is_refused(streams, fitted):
    other = {"spatial": streams["spatial"], "idt": streams["temporal"]}
    for method in ("svm", "weighted"):
        with pytest.raises(ScoresError, match="of the fusion, got idt"):
            fuse(other, fitted[method])
    renamed = {
        name: replace(one, classes=("walk", *one.classes[1:])) for name, one in streams.items()
    }
    with pytest.raises(ScoresError, match="not in both: run, walk"):
        fuse(renamed, fitted["svm"])


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": -1, "b": 2}, {"a": np.nan}, {"a": np.inf}])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(UsageError, match="weight of at least 0"):
        Fusion("weighted", weights)


def test_unknown_methods_are_refused(heldout):
    with pytest.raises(UsageError, match=r"expected a fusion of average, .*, got 'mean'"):
        Fusion("mean")
    with pytest.raises(UsageError, match=r"crammer-singer, ovr"):
        fit_linear("svm", heldout, svm="rbf")
    with pytest.raises(UsageError, match="expected C above 0, got -1"):
        fit_linear("svm", heldout, C=-1)
