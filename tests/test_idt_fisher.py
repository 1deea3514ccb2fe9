"""Fisher vectors against scikit-image and scikit-learn; from tracks to scores without a leak."""

import json
import shutil
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from made_tracks import write_clips

from flowkit.data.splits import Split, Video, read_split, write_split
from flowkit.errors import FlowkitError, RecordError, ScoresError, SplitError, UsageError
from flowkit.idt import fisher
from flowkit.idt.fisher import fit_codebook, fit_mixture, fit_pca, gather, gradients
from flowkit.idt.records import TrackWriter, find_tracks, open_tracks
from flowkit.idt.svm import check_leaks, decide, fit_sharpness, gram_matrix, read_svms, train_svms
from flowkit.idt.tracking import TrackParameters, track_dtype
from flowkit.idt.vectors import (
    find_vectors,
    fit_codebooks,
    plan_encoding,
    read_codebooks,
    read_vector,
    write_codebooks,
)
from flowkit.scores.files import read_scores, write_scores
from flowkit.scores.npz import write_arrays
from flowkit_cli.main import cli

CLASSES = ("down", "left", "right")
STILL = TrackParameters(matches="none")


def blobs(count=4000, numbers=6, seed=0):
    """Rows around three centers, float32."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, 3, (3, numbers))
    rows = centers[rng.integers(0, 3, count)] + rng.normal(0, [0.5] * (numbers - 1) + [2], (
        count, numbers,
    ))  # fmt: skip
    return rows.astype(np.float32)


def sklearn_mixture(weights, means, variances):
    from sklearn.mixture import GaussianMixture

    made = GaussianMixture(len(weights), covariance_type="diag")
    made.weights_, made.means_, made.covariances_ = weights, means, variances
    made.precisions_cholesky_ = 1 / np.sqrt(variances)
    return made


# --- formulas ---


def test_projection_is_scikit_learns_pca():
    from sklearn.decomposition import PCA

    rows = blobs(numbers=8) @ np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    mean, components = fit_pca(rows, 4)
    expected = PCA(4, svd_solver="full").fit(rows.astype(np.float64))
    signs = np.sign((components * expected.components_).sum(axis=1))[:, None]
    assert np.allclose(components, expected.components_ * signs, atol=1e-5)
    book = fit_codebook(rows, 3)
    assert np.allclose(book.project(rows), expected.transform(rows) * signs.T, atol=1e-3)
    assert np.allclose(mean, rows.mean(axis=0), atol=1e-4)


def test_posteriors_and_likelihood_are_scikit_learns():
    rows = blobs()
    mixture = fit_mixture(rows, 5, seed=1)
    theirs = sklearn_mixture(*mixture)
    found = gather(rows, *mixture)
    shares = theirs.predict_proba(rows)
    assert found.log_likelihood == pytest.approx(theirs.score(rows), abs=1e-4)
    assert np.allclose(found.zeroth, shares.sum(axis=0), rtol=1e-4)
    assert np.allclose(found.first, shares.T @ rows, rtol=1e-3, atol=0.5)
    assert np.allclose(found.second, shares.T @ rows**2, rtol=1e-3, atol=0.5)


def test_a_step_of_expectation_maximization_is_scikit_learns():
    from sklearn.mixture import GaussianMixture

    rows = blobs()
    weights, means, variances = np.full(4, 0.25), rows[:4].astype(np.float64), np.ones((4, 6))
    theirs = GaussianMixture(
        4, covariance_type="diag", max_iter=1, reg_covar=0,
        weights_init=weights, means_init=means, precisions_init=1 / variances,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one step is none to the end
        theirs.fit(rows)
    ours = fisher._after(gather(rows, weights, means, variances), np.zeros(6))
    for one, other in zip(ours, (theirs.weights_, theirs.means_, theirs.covariances_), strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_the_fitted_mixture_is_as_likely_as_scikit_learns():
    from sklearn.mixture import GaussianMixture

    rows = blobs()
    ours = gather(rows, *fit_mixture(rows, 3, seed=0)).log_likelihood
    theirs = GaussianMixture(3, covariance_type="diag", random_state=0, n_init=3).fit(rows)
    assert ours > theirs.score(rows) - 0.05


def test_gradients_and_roots_are_scikit_images():
    skimage = pytest.importorskip("skimage.feature", reason="needs scikit-image (the test extra)")
    rows, seen = blobs(seed=0), blobs(500, seed=5)
    mixture = fit_mixture(rows, 4)
    expected = skimage.fisher_vector(seen.astype(np.float64), sklearn_mixture(*mixture))[4:]
    by_mean, by_deviation = gradients(gather(seen, *mixture), *mixture)
    assert np.allclose(by_mean, expected[: len(by_mean)], atol=1e-4)
    assert np.allclose(by_deviation, -expected[len(by_mean) :], atol=1e-4)  # theirs point inwards
    both = np.concatenate([by_mean, by_deviation])
    rooted = fisher.normalize(both)
    improved = np.sign(both) * np.abs(both) ** 0.5
    assert np.allclose(rooted, improved / np.linalg.norm(improved), atol=1e-5)
    assert np.linalg.norm(rooted) == pytest.approx(1, abs=1e-5)


def test_gradients_of_one_gaussian_by_hand():
    mixture = np.ones(1), np.array([[1.0]]), np.array([[4.0]])
    by_mean, by_deviation = gradients(gather(np.array([[3], [7]], np.float32), *mixture), *mixture)
    assert by_mean[0] == pytest.approx((1 + 3) / 2)  # (x - mu)/sigma is 1 and 3
    assert by_deviation[0] == pytest.approx((0 + 8) / 2 / np.sqrt(2))


def test_the_same_seed_gives_the_same_codebook_and_too_few_rows_none():
    rows = blobs()
    one, two = fit_codebook(rows, 8, seed=3), fit_codebook(rows, 8, seed=3)
    assert all(np.array_equal(getattr(one, name), value) for name, value in vars(two).items())
    assert not np.array_equal(fit_codebook(rows, 8, seed=4).means, one.means)
    assert (one.variances > 0).all() and one.weights.sum() == pytest.approx(1)
    same = np.ones((50, 4), np.float32)
    assert np.isfinite(fit_codebook(same, 4).encode(same)).all()
    with pytest.raises(UsageError, match="at least 8 tracks to fit to, got 7"):
        fit_codebook(rows[:7], 8)


# --- the SVM ---


NAMES = ("jump", "run", "walk")


def test_margins_are_those_of_scikit_learns_linear_svm():
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(60, 10)), np.repeat([0, 1, 2], 20)
    rows[np.arange(60), labels] += 1.5
    others = rng.normal(size=(7, 10))
    found = decide(rows @ rows.T, labels, others @ rows.T, NAMES, C=2.0)
    for label in range(3):
        theirs = SVC(C=2.0, kernel="linear").fit(rows, labels == label).decision_function(others)
        assert np.allclose(found[:, label], theirs, atol=1e-3)


def test_a_vector_of_zeros_teaches_no_svm_and_a_class_of_such_is_refused():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(30, 8)), np.arange(30) % 3
    others = rng.normal(size=(10, 8))
    with_one, one_more = np.concatenate([rows, np.zeros((1, 8))]), np.append(labels, 2)
    found = decide(with_one @ with_one.T, one_more, others @ with_one.T, NAMES, C=100.0)
    assert np.array_equal(found, decide(rows @ rows.T, labels, others @ rows.T, NAMES, C=100.0))
    rows[labels == 1] = 0
    with pytest.raises(SplitError, match=r"not zero of every class, got none of run$"):
        decide(rows @ rows.T, labels, others @ rows.T, NAMES, C=100.0)


def test_sharpness_is_the_scale_that_logits_were_divided_by():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20_000, 4))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) < rng.uniform(size=(20_000, 1))).sum(axis=1)
    assert fit_sharpness((logits / 7).astype(np.float32), labels) == pytest.approx(7, rel=0.03)


# --- from tracks to scores ---


def write_tracks(folder, id, *, count=300, toward=0.0, seed=0):
    """A track record of random descriptors, all moved by `toward` along their first numbers."""
    rng = np.random.default_rng(seed)
    tracks = np.zeros(count, track_dtype(STILL))
    for name in ("trajectory", "hog", "hof", "mbhx", "mbhy"):
        tracks[name] = rng.normal(0, 0.2, tracks[name].shape)
        tracks[name][:, :3] += toward
    with TrackWriter(folder, id, STILL, float32=False, text=False) as writer:
        writer.add(tracks)
        request = {"parameters": vars(STILL), "float32": False}
        writer.commit({"size": [64, 80], "frames": 18, "request": request}, overwrite=True)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Track records of three classes, four groups each, and a split of them."""
    folder = tmp_path_factory.mktemp("tracked")
    videos = []
    for k, name in enumerate(CLASSES):
        for group in range(1, 6):
            id = f"{name}/v_{name}_g{group:02d}_c01"
            write_tracks(folder / "tracks", id, toward=0.15 * (k - 1), seed=10 * k + group)
            videos.append(Video(id, name, f"g{group:02d}"))
    parts = [tuple(v for v in videos if v.group in groups) for groups in (
        ("g01", "g02", "g03"), ("g04",), ("g05",),
    )]  # fmt: skip
    split = Split("three", CLASSES, *parts)
    write_split(folder / "runs/split.json", split)
    return folder


def run(folder, *arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def fit_and_encode(folder, out, *, gaussians=4):
    for arguments in (
        ("fit", folder / "tracks", "--split", folder / "runs/split.json", "--out",
         out / "codebook.npz", "--gaussians", gaussians, "--sample", 2000),
        ("encode", folder / "tracks", "--out", out, "-j", 2),
    ):  # fmt: skip
        result = run(folder, "fisher", *arguments)
        assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def encoded(tracked):
    return fit_and_encode(tracked, tracked / "fisher")


def test_commands_lead_from_tracks_to_scores_that_fuse_and_report(tracked, encoded, tmp_path):
    runs = tmp_path / "runs"
    split = tracked / "runs/split.json"
    result = run(tmp_path, "train", "svm", "--vectors", encoded, "--split", split, "--runs", runs)
    assert result.exit_code == 0, result.output
    test, heldout = (read_scores(runs / f"idt/scores-{part}.npz") for part in ("test", "heldout"))
    assert (test.part, heldout.part) == ("test", "heldout")
    assert len(test.videos) == len(heldout.videos) == 3
    assert (test.values.argmax(axis=1) == test.labels).all()
    (runs / "other").mkdir()
    for part in ("test", "heldout"):
        scores = read_scores(runs / f"idt/scores-{part}.npz")
        other = replace(scores, meta={**scores.meta, "stream": "spatial"})
        write_scores(runs / f"other/scores-{part}.npz", other)
    fused = run(tmp_path, "fuse", "--runs", runs, "--method", "svm", "--C", 1)
    assert fused.exit_code == 0, fused.output
    assert "idt" in fused.output
    reported = run(tmp_path, "report", runs / "idt", "--out", tmp_path / "report.html")
    assert reported.exit_code == 0, reported.output
    crossed = run(
        tmp_path, "train", "svm", "--vectors", encoded, "--split", split, "--runs", runs, "--cv", 3
    )
    assert crossed.exit_code == 0, crossed.output
    assert len(read_scores(runs / "idt/scores-heldout.npz").videos) == 12


def test_kept_svms_score_other_videos_and_refuse_those_they_were_trained_on(
    tracked, encoded, tmp_path
):
    split_file = tracked / "runs/split.json"
    arguments = ("--vectors", encoded, "--split", split_file, "--out", tmp_path / "idt")
    assert run(tmp_path, "train", "svm", *arguments).exit_code == 0
    kept = tmp_path / "idt/svm.npz"
    test = read_scores(tmp_path / "idt/scores-test.npz")
    score = ("fisher", "score", encoded, "--svm", kept)
    result = run(tmp_path, *score, "--split", split_file, "--out", tmp_path / "again.npz")
    assert result.exit_code == 0 and "100.0% of 3 test videos right" in result.output
    again = read_scores(tmp_path / "again.npz")
    assert again.videos == test.videos and np.array_equal(again.labels, test.labels)
    assert np.allclose(again.values, test.values, atol=1e-3 * np.abs(test.values).max())
    assert again.part == "test"
    # without a split: every vector, no labels; a bad one and one of another codebook fail alone
    other = tmp_path / "fisher"
    shutil.copytree(encoded, other)
    (other / "left/v_left_g05_c01.npz").write_bytes(b"PK")
    vector, meta = read_vector(other / "down/v_down_g05_c01.npz")
    write_arrays(
        other / "down/v_down_g05_c01.npz", {"vector": vector}, {**meta, "codebook": "0123"}
    )
    result = run(
        tmp_path, "fisher", "score", other, "--svm", kept, "--json", "--out", tmp_path / "all.npz"
    )
    assert result.exit_code == 1
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1] == {"status": "summary", "done": 13, "failed": 2}
    failed = {e["video"]: e["reason"] for e in events if e["status"] == "failed"}
    assert failed.keys() == {"left/v_left_g05_c01", "down/v_down_g05_c01"}
    assert "of another codebook" in failed["down/v_down_g05_c01"]
    assert (read_scores(tmp_path / "all.npz").labels == -1).all()
    split = read_split(split_file)
    swapped = replace(split, train=split.test, test=split.train)
    write_split(tmp_path / "swapped.json", swapped)
    result = run(tmp_path, *score, "--split", tmp_path / "swapped.json")
    assert "trained on 9 of the videos" in str(result.exception)
    strange = replace(split, classes=(*CLASSES, "up"), test=(Video("up/a", "up", "g09"),))
    svms = read_svms(kept)
    with pytest.raises(SplitError, match="know no class up"):
        svms.collect({"up/a": svms.added}, strange)
    before = kept.read_bytes()
    result = run(tmp_path, *score, "--out", kept)  # not a scores file, though flowkit's own
    assert isinstance(result.exception, FlowkitError) and kept.read_bytes() == before
    kept.write_text("mine")
    assert isinstance(run(tmp_path, "train", "svm", *arguments).exception, FlowkitError)
    assert kept.read_text() == "mine"


def test_a_codebook_sees_the_training_part_only(tracked, encoded):
    found = read_codebooks(encoded / "codebook.npz")
    split = read_split(tracked / "runs/split.json")
    assert set(found.videos) == {video.id for video in split.train}
    records = find_tracks(tracked / "tracks")
    alone = {id: place for id, place in records.items() if id in found.videos}
    again = fit_codebooks(split, alone, gaussians=4, sample=2000)
    assert again.digest == found.digest
    assert {name: book.means.shape for name, book in found.books.items()} == {
        "trajectory": (4, 15), "hog": (4, 48), "hof": (4, 54), "mbhx": (4, 48), "mbhy": (4, 48),
    }  # fmt: skip
    assert found.length == 2 * 4 * 213


def test_a_vector_is_five_of_length_one_and_zero_without_tracks(encoded, tracked, tmp_path):
    found = read_codebooks(encoded / "codebook.npz")
    vector, meta = read_vector(encoded / "left/v_left_g05_c01.npz")
    assert vector.dtype == np.float16 and meta["tracks"] == 300
    starts = np.cumsum([0, *(2 * book.means.size for book in found.books.values())])
    parts = [vector[a:b].astype(np.float32) for a, b in pairwise(starts)]
    assert np.allclose([np.linalg.norm(part) for part in parts], 1, atol=1e-2)
    write_tracks(tmp_path / "tracks", "a", count=0)
    result = run(
        tmp_path, "fisher", "encode", tmp_path / "tracks", "--codebook", encoded / "codebook.npz",
        "--out", tmp_path / "fisher",
    )  # fmt: skip
    assert result.exit_code == 0 and "zero vector" in result.output and "1 without" in result.output
    assert not read_vector(tmp_path / "fisher/a.npz")[0].any()


def test_a_rerun_encodes_what_is_missing_and_a_bad_record_costs_itself(tracked, encoded, tmp_path):
    tracks, out = tmp_path / "tracks", tmp_path / "fisher"
    for k in range(3):
        write_tracks(tracks, f"a/{k}", seed=k)
    (tracks / "a/bad.npz").write_bytes((tracks / "a/1.npz").read_bytes()[:5000])
    command = ("fisher", "encode", tracks, "--codebook", encoded / "codebook.npz", "--out", out)
    failures = tmp_path / "failures.txt"
    result = run(tmp_path, *command, "--json", "--failures", failures)
    assert result.exit_code == 1
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {e["video"]: e["status"] for e in events[:-1]} == {
        "a/0": "done", "a/1": "done", "a/2": "done", "a/bad": "failed",
    }  # fmt: skip
    assert failures.read_text().startswith(f"{tracks / 'a/bad.npz'}\t")
    assert failures.read_text().count("bad.npz") == 1
    (tracks / "a/bad.npz").unlink()
    result = run(tmp_path, *command)
    assert result.exit_code == 0 and "0 done, 3 there already" in result.output
    write_tracks(tracks, "a/1", count=301)
    result = run(tmp_path, *command)
    assert isinstance(result.exception, UsageError) and "of other tracks" in str(result.exception)
    assert run(tmp_path, *command, "--overwrite").exit_code == 0
    other = replace(read_codebooks(encoded / "codebook.npz"), books={
        name: replace(book, means=book.means + 1)
        for name, book in read_codebooks(encoded / "codebook.npz").books.items()
    })  # fmt: skip
    with pytest.raises(UsageError, match="another codebook"):
        plan_encoding(find_tracks(tracks), out, other)


def test_leaks_are_refused(tracked, encoded):
    found = read_codebooks(encoded / "codebook.npz")
    split = read_split(tracked / "runs/split.json")
    swapped = replace(split, train=split.test, test=split.train)
    with pytest.raises(SplitError, match=r"source groups of 9 videos"):
        train_svms(swapped, find_vectors(encoded), found)
    sibling = replace(split.test[0], id="down/v_down_g05_c02", group="g01")
    with pytest.raises(SplitError, match="1 source groups have videos in two parts"):
        check_leaks(replace(split, test=(*split.test, sibling)), found, ("test",))
    with pytest.raises(SplitError, match="g05_c02; it is of the split three"):
        check_leaks(replace(split, train=(), test=(sibling,)), found, ("test",))
    into_heldout = replace(split, train=split.heldout, heldout=split.train)
    with pytest.raises(SplitError, match="source groups of 9 videos"):
        train_svms(into_heldout, find_vectors(encoded), found)


def test_a_block_at_a_time_gives_the_whole_gram_matrix(encoded, monkeypatch):
    places = list(find_vectors(encoded).values())[:7]
    digest = read_codebooks(encoded / "codebook.npz").digest
    whole = gram_matrix(places, places[:5], digest)
    monkeypatch.setattr("flowkit.idt.svm.BLOCK", 2)
    assert np.allclose(gram_matrix(places, places[:5], digest), whole, rtol=1e-5)
    vectors = np.stack([read_vector(place)[0].astype(np.float32) for place in places])
    assert np.allclose(whole, vectors @ vectors[:5].T, rtol=1e-5)
    with pytest.raises(UsageError, match="of another codebook"):
        gram_matrix(places, places, "0123")


def test_what_does_not_fit_is_refused_by_name(tracked, encoded, tmp_path):
    split = read_split(tracked / "runs/split.json")
    vectors, found = find_vectors(encoded), read_codebooks(encoded / "codebook.npz")
    with pytest.raises(SplitError, match="its test part is empty"):
        train_svms(replace(split, test=()), vectors, found)
    fewer = replace(split, train=tuple(v for v in split.train if v.class_name != "left"))
    with pytest.raises(SplitError, match="got none of left"):
        train_svms(fewer, vectors, found)
    with pytest.raises(ScoresError, match="flowkit fisher fit"):
        read_codebooks(tmp_path / "codebook.npz")
    with pytest.raises(RecordError, match="flowkit fisher encode makes them"):
        find_vectors(tmp_path)
    changed = open_tracks(tracked / "tracks/left/v_left_g01_c01.npz")
    parameters = {**changed.header["request"]["parameters"], "sampling": 8}
    other = replace(changed, header={**changed.header, "request": {"parameters": parameters}})
    with pytest.raises(RecordError, match=r"of other parameters .* sampling: 8"):
        found.encode(other)
    write_codebooks(tmp_path / "codebook.npz", found)
    result = run(tmp_path, "fisher", "fit", tracked / "tracks", "--split",
                 tracked / "runs/split.json", "--out", tmp_path / "codebook.npz")  # fmt: skip
    assert "--overwrite fits again" in str(result.exception)
    lost = replace(split, train=(*split.train, Video("left/v_left_g09_c01", "left", "g09")))
    write_split(tmp_path / "split.json", lost)
    result = run(tmp_path, "fisher", "fit", tracked / "tracks", "--split", tmp_path / "split.json")
    assert "no track record: left/v_left_g09_c01" in str(result.exception)
    (tmp_path / "idt").mkdir()
    (tmp_path / "idt/scores-test.npz").write_text("mine")
    result = run(tmp_path, "train", "svm", "--vectors", encoded, "--split",
                 tracked / "runs/split.json", "--out", tmp_path / "idt")  # fmt: skip
    assert isinstance(result.exception, FlowkitError)
    assert (tmp_path / "idt/scores-test.npz").read_text() == "mine"


@pytest.mark.slow
def test_real_tracks_of_three_motions_are_told_apart(tmp_path):
    clips = write_clips(tmp_path / "clips", each=3)
    assert run(tmp_path, "trajectories", clips, "--out", tmp_path / "tracks", "--matches", "none",
               ).exit_code == 0  # fmt: skip
    ids = find_tracks(tmp_path / "tracks")
    videos = [Video(id, id.partition("/")[0], id[-7:-4]) for id in ids]
    groups = sorted({video.group for video in videos})
    parts = [tuple(v for v in videos if v.group in some) for some in (groups[:2], groups[2:])]
    write_split(tmp_path / "runs/split.json", Split("s", CLASSES, parts[0], (), parts[1]))
    out = fit_and_encode(tmp_path, tmp_path / "fisher", gaussians=2)
    result = run(tmp_path, "train", "svm", "--vectors", out, "--runs", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert "100.0% of 3 test videos right" in result.output
