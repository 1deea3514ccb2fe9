"""`flowkit fuse` and `flowkit report` as people type them: places, tables, JSON, refusals."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from made_records import write_record
from made_scores import CLASSES, make_scores, shuffle

from flowkit.errors import ScoresError, UsageError
from flowkit.report.figures import evaluate, mistakes
from flowkit.scores.files import read_scores, write_scores
from flowkit.scores.fitting import fit_linear
from flowkit.scores.fusion import FUSIONS, Fusion, fuse, read_fusion
from flowkit_cli.fuse import fuse as fuse_command
from flowkit_cli.report import report as report_command

STREAMS = {"spatial": (0, 1.0), "temporal": (1, 1.8)}


def scores_of(name, part):
    seed, strength = STREAMS[name]
    return make_scores(seed=seed, strength=strength, part=part, split="made-1", stream=name)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the scores of two runs, and the working directory of the test."""
    for name in STREAMS:
        for part in ("test", "heldout"):
            write_scores(tmp_path / f"runs/{name}/scores-{part}.npz", scores_of(name, part))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, *arguments, fails=None):
    """The result of a command that works, or the error of one that is to fail."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
        return str(result.exception)
    if result.exception:
        raise result.exception
    return result


def streams(part="test"):
    return {name: scores_of(name, part) for name in STREAMS}


def test_fuse_reads_all_runs_and_writes_beside_them(project):
    result = run(fuse_command, "--method", "svm", "--C", "10")
    fused = read_scores(project / "runs/fused/scores-test.npz")
    expected = fuse(streams(), fit_linear("svm", streams("heldout"), C=10))
    np.testing.assert_array_equal(fused.values, expected.values)
    table = result.stdout.splitlines()
    assert table[0] == "made-1, test part: 60 videos of 5 classes, chance 20.0%"
    assert [line.split()[0] for line in table[1:]] == ["method", "spatial", "temporal", "fused"]
    top1 = evaluate({"fused": fused}).methods["fused"].top1.value
    assert table[-1].split()[1] == f"{100 * top1:.1f}"
    assert table[-1].endswith("svm (crammer-singer) of spatial, temporal, C = 10")
    assert "read runs/spatial/scores-test.npz, runs/temporal/scores-test.npz" in result.stderr
    assert "fitted on 60 videos of runs/spatial/scores-heldout.npz" in result.stderr
    assert "wrote runs/fused/scores-test.npz, runs/fused/fusion.npz" in result.stderr


def test_kept_fusion_gives_the_same_scores(project):
    run(fuse_command, "--method", "logistic", "--C", "1", "--fitted", "elsewhere/f.npz")
    again = fuse(streams(), read_fusion("elsewhere/f.npz"))
    np.testing.assert_array_equal(again.values, read_scores("runs/fused/scores-test.npz").values)


@pytest.mark.parametrize("method", FUSIONS)
def test_every_method_runs_and_a_second_run_leaves_its_own_output_out(project, method):
    options = ("--C", "1") if method in ("svm", "logistic") else ()
    for _ in range(2):
        run(fuse_command, "--method", method, *options)
        meta = read_scores("runs/fused/scores-test.npz").meta
        assert meta["fusion"]["streams"] == ["spatial", "temporal"]


def test_a_fusion_that_is_named_is_fused_again(project):
    run(fuse_command)
    run(fuse_command, "runs", "runs/fused", "--out", "twice.npz")
    found = read_scores("twice.npz").meta["fusion"]["streams"]
    assert found == ["fused", "spatial", "temporal"]


def test_weights_are_given_by_name(project):
    run(fuse_command, "--method", "weighted", "--shares", "temporal=1.5,spatial=1")
    expected = fuse(streams(), Fusion("weighted", {"spatial": 1, "temporal": 1.5}))
    np.testing.assert_array_equal(read_scores("runs/fused/scores-test.npz").values, expected.values)


def test_a_hand_made_file_joins_as_a_third_stream(project):
    idt = shuffle(make_scores(seed=5, strength=1.4, kind="logits", part="test"), 3)
    meta = json.dumps({"version": 1, "kind": "logits"})
    np.savez("idt.npz", videos=idt.videos, classes=idt.classes, scores=idt.values, meta=meta)
    run(fuse_command, "runs", "idt.npz")
    fused = read_scores("runs/fused/scores-test.npz")
    expected = fuse({**streams(), "idt": idt}, Fusion("average"))
    np.testing.assert_allclose(fused.values, expected.values, atol=1e-6)
    assert fused.meta["fusion"]["streams"] == ["spatial", "temporal", "idt"]
    error = run(fuse_command, "runs", "idt.npz", "--method", "svm", fails=UsageError)
    assert "idt-heldout.npz: no such scores" in error
    heldout = make_scores(seed=5, strength=1.4, kind="logits", part="heldout")
    write_scores("other/idt.npz", heldout)
    run(
        fuse_command,
        *("runs", "idt.npz", "--method", "svm", "--C", "1"),
        *("--fit-on", "runs", "--fit-on", "other/idt.npz"),
    )
    assert read_fusion("runs/fused/fusion.npz").streams == ("idt", "spatial", "temporal")


def test_json_says_what_was_done_and_how_well(project):
    result = run(fuse_command, "--method", "weighted", "--json")
    [line] = result.stdout.splitlines()
    data = json.loads(line)
    assert (data["out"], data["method"]) == ("runs/fused/scores-test.npz", "weighted")
    assert sum(data["weights"].values()) == pytest.approx(1)
    report = evaluate({**streams(), "fused": read_scores(data["out"])}, method="fused")
    assert data["methods"]["fused"]["top1"]["value"] == report.methods["fused"].top1.value
    assert data["comparisons"][1]["p_value"] == report.comparisons[1].p_value


def test_scores_without_labels_are_fused_without_a_table(project):
    for name in STREAMS:
        scores = scores_of(name, "test")
        np.savez(
            f"{name}.npz",
            videos=scores.videos,
            classes=scores.classes,
            scores=scores.values,
            meta='{"version": 1, "kind": "softmax"}',
        )
    result = run(fuse_command, "spatial.npz", "temporal.npz", "--out", "both.npz")
    assert result.stdout == ""
    assert read_scores("both.npz").videos == scores.videos


def test_fitting_on_the_test_part_is_refused(project):
    arguments = ("--method", "svm", "--fit-on", "runs/spatial/scores-test.npz")
    error = run(
        fuse_command, *arguments, "--fit-on", "runs/temporal/scores-test.npz", fails=ScoresError
    )
    assert "to fit on, got test" in error
    for name in STREAMS:  # test videos that a file calls held out
        one = scores_of(name, "test")
        one.meta["part"] = "heldout"
        write_scores(f"runs/{name}/scores-heldout.npz", one)
    error = run(fuse_command, "--method", "weighted", fails=ScoresError)
    assert "60 videos to fit on are also to be fused" in error
    assert not (project / "runs/fused").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--C", "1"), "--C does not go with --method average"),
        (("--svm", "ovr", "--method", "logistic"), "--svm does not go with --method logistic"),
        (("--shares", "a=1"), "--shares does not go with --method average"),
        (("--fit-on", "runs", "--method", "max"), "--fit-on does not go with --method max"),
        (
            ("--method", "weighted", "--shares", "a=1", "--fit-on", "runs"),
            "--shares are given, so there is nothing to fit",
        ),
        (("--method", "weighted", "--shares", "1,2"), "such as spatial=1,temporal=1.5"),
        (("--method", "weighted", "--shares", "a=x"), "such as spatial=1,temporal=1.5"),
        (("runs/spatial",), "to fuse, got runs/spatial/scores-test"),
        (("--out", "runs/spatial/scores-test.npz"), "is an input, and would be replaced"),
        (
            ("--method", "svm", "--fit-on", "runs/spatial"),
            "spatial, temporal to fit on, got spatial",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(project, arguments, match):
    assert match in run(fuse_command, *arguments, fails=UsageError)
    assert not (project / "runs/fused").exists()


def test_missing_scores_name_the_command_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (fuse_command, report_command):
        assert run(command, fails=ScoresError) == "runs: no such file: flowkit eval writes them"


def test_report_reads_all_runs_and_writes_a_page(project):
    run(fuse_command)
    (project / "runs/spatial/log.csv").write_text("step,loss\n10,2\n20,1\n")
    result = run(report_command)
    assert result.stdout.startswith("made-1, test part: 60 videos of 5 classes")
    assert "fused against spatial: " in result.stdout
    assert "wrote runs/report.html" in result.stderr
    text = (project / "runs/report.html").read_text()
    assert "runs/spatial: loss" in text
    assert all(f"runs/{name}/scores-test.npz" in text for name in (*STREAMS, "fused"))


def test_report_shows_pictures_where_there_are_records(project):
    run(fuse_command)
    wrong = mistakes(evaluate({"fused": read_scores("runs/fused/scores-test.npz")}))[:3]
    for one in wrong[:2]:
        write_record(project / "flow", one.video, np.ones((3, 20, 30, 2), np.float32))
    result = run(report_command, "--mistakes", "3")
    assert "pictures of 2 mistakes from flow" in result.stderr
    text = (project / "runs/report.html").read_text()
    assert text.count("data:image/jpeg") == 2
    assert "no flow record below flow" in text
    assert "pictures" not in run(report_command, "--mistakes", "0").stderr


def test_report_as_json(project):
    [line] = run(report_command, "--json", "--method", "spatial", "--out", "r.html").stdout.split(
        "\n"
    )[:-1]
    data = json.loads(line)
    assert (data["page"], data["splits"][0]["method"]) == ("r.html", "spatial")
    expected = evaluate(streams(), method="spatial")
    assert data["splits"][0]["confusion"] == expected.confusion.tolist()
    assert (project / "r.html").exists()
    assert [row["class"] for row in data["splits"][0]["per_class"]] == list(CLASSES)
