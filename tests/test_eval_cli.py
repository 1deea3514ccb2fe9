"""`flowkit eval` as people type it: conventional places, parts, what is kept, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_runs import write_run
from made_training import CLASSES, make_job, make_split, write_videos

from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import hold_out, read_split, write_split
from flowkit.data.stacks import StackForm
from flowkit.errors import SplitError, UsageError
from flowkit.networks.checkpoints import read_checkpoint
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.training.cross_validation import join_folds
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train
from flowkit_cli.eval import eval as eval_command
from flowkit_cli.fuse import fuse as fuse_command

SPLIT = make_split(heldout=1, test=2)
ALONE = Ranks(0, 1, torch.device("cpu"))
SHORT = ("--moments", "2", "--views", "center")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("records")).root


@pytest.fixture
def project(tmp_path, monkeypatch, records):
    """A folder with records and two runs, to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow").symlink_to(records)
    write_run(tmp_path / "runs/spatial", split=SPLIT, seed=1)
    write_run(tmp_path / "runs/temporal", split=SPLIT, form=StackForm(2))
    return tmp_path


def run(*arguments, command=eval_command):
    result = CliRunner().invoke(command, [str(one) for one in arguments])
    if result.exception:
        raise result.exception
    return result


def test_every_run_and_both_parts_are_scored_where_fusion_looks(project):
    result = run(*SHORT)
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    for line, (stream, part, count) in zip(
        lines,
        [("spatial", "test", 6), ("spatial", "heldout", 3), ("temporal", "test", 6)],
        strict=False,
    ):
        scores = read_scores(f"runs/{stream}/scores-{part}.npz")
        assert (scores.part, len(scores.videos)) == (part, count)
        right = np.mean(scores.values.argmax(axis=1) == scores.labels)
        assert line.startswith(f"runs/{stream}/scores-{part}.npz: top-1 {right:.1%} [")
        assert f"of {count} videos; small, " in line
    assert lines[2].endswith("small, L = 2, step 7, 2 x 1 views")
    fused = run("--method", "svm", "--C", "1", command=fuse_command)
    assert "3 videos of runs/spatial/scores-heldout.npz" in fused.stderr
    assert read_scores("runs/fused/scores-test.npz").videos == scores.videos
    assert run(*SHORT).stdout.count("was there already") == 4  # and runs/fused is no run


def test_json_says_the_same(project):
    result = run("runs/temporal/last.json", *SHORT, "--part", "test", "--json")
    [line] = result.stdout.splitlines()
    told = json.loads(line)
    scores = read_scores("runs/temporal/scores-test.npz")
    assert told["top1"] == np.mean(scores.values.argmax(axis=1) == scores.labels)
    assert told["interval"][0] <= told["top1"] <= told["interval"][1]
    assert (told["run"], told["part"], told["videos"]) == ("runs/temporal/last.json", "test", 6)
    assert told["new"] is True
    assert scores.meta["checkpoint"]["file"] == "last.json"
    assert not (project / "runs/temporal/scores-heldout.npz").exists()
    again = run("runs/temporal/last.json", *SHORT, "--part", "test", "--json", "-j", 2)
    assert json.loads(again.stdout) == told | {"new": False}


def test_a_part_that_is_not_there_is_passed_over_or_refused_if_asked_for(project):
    write_split("runs/spatial/split.json", make_split(heldout=0, test=1))
    result = run("runs/spatial", *SHORT)
    assert "runs/spatial: made has no heldout part" in result.stderr
    assert len(result.stdout.splitlines()) == 1
    with pytest.raises(SplitError, match="made: its heldout part is empty"):
        run("runs/spatial", *SHORT, "--part", "heldout")


def test_another_split_is_taken_if_nothing_in_it_was_trained_on(project):
    write_split("less.json", make_split(heldout=0, test=1))
    run("runs/spatial", *SHORT, "--split", "less.json")
    assert len(read_scores("runs/spatial/scores-test.npz").videos) == 3
    write_split("more.json", make_split(heldout=0, test=4))
    message = f"3 of the test and held-out videos of more.json: {CLASSES[0]}/v0"
    with pytest.raises(UsageError, match=message):
        run("runs/spatial", *SHORT, "--split", "more.json")


def test_a_missing_split_or_run_is_an_error_that_says_what_makes_it(project):
    with pytest.raises(UsageError, match=r"no run there .* flowkit train temporal"):
        run("--runs", "nothing")
    (project / "runs/spatial/split.json").unlink()
    with pytest.raises(UsageError, match=r"runs/spatial/split.json: no split"):
        run()


def test_progress_is_told_now_and_then(project, monkeypatch):
    monkeypatch.setattr("flowkit_cli.output.QUIET_LINE_S", 0.0)
    result = run("runs/spatial", *SHORT, "--part", "test")
    told = [line for line in result.stderr.splitlines() if "videos/s" in line]
    assert len(told) == 5
    assert told[0].startswith("runs/spatial/scores-test.npz: 2 of 6 videos, ")


@pytest.fixture
def trained(project, records):
    """A run that was trained indeed, a little."""
    recipe = {"steps": 2, "eval_every": 2, "drop_at": (1,)}
    split = make_split(per_class=4, heldout=1, test=1)
    job = make_job(RecordFolder(project / "flow"), split, recipe=recipe, seed=3)
    list(train(job, project / "runs/trained", ALONE, Machine()))
    return job, project / "runs/trained"


def test_cross_validation_scores_every_training_video_by_a_net_that_has_not_seen_it(trained):
    job, place = trained
    result = run(place, *SHORT, "--cv", 2, "--part", "heldout")
    joined = read_scores(place / "scores-heldout.npz")
    split = job.tasks[0].split
    assert joined.videos == tuple(video.id for video in (*split.train, *split.heldout))
    assert joined.meta["cross_validation"] == 2
    assert joined.meta["about"].endswith("2 x 1 views, 2 folds")
    assert f"{place}/scores-heldout.npz: top-1 " in result.stdout
    for number in (1, 2):
        fold = place / f"cv/fold-{number}of2"
        seen = {video.id for video in read_split(fold / "split.json").train}
        scores = read_scores(fold / "scores-heldout.npz")
        assert not seen & set(scores.videos)
        assert len(seen) + len(scores.videos) == len(joined.videos)
        rows = [joined.videos.index(video) for video in scores.videos]
        np.testing.assert_array_equal(joined.values[rows], scores.values)
        told, own = read_checkpoint(fold).training, job.describe()
        assert {key: told[key] for key in own if key != "data"} == {
            key: own[key] for key in own if key != "data"
        }
    again = run(place, *SHORT, "--cv", 2, "--part", "heldout")
    assert "was there already" in again.stdout
    assert "step" not in again.stderr


def test_cross_validation_that_cannot_be_is_refused(trained, project):
    _, place = trained
    with pytest.raises(UsageError, match="--cv makes the held-out scores"):
        run(place, "--cv", 3, "--part", "test")
    tasks = {"main": CLASSES, "aux": ("x", "y")}
    write_run(project / "runs/two", split=SPLIT, tasks=tasks)
    with pytest.raises(UsageError, match="trained on aux by a split"):
        run("runs/two", "--cv", 3, "--part", "heldout")
    classes = (*CLASSES, "added")
    write_run(project / "runs/more", split=SPLIT, classes=classes)
    with pytest.raises(UsageError, match="trained on main by a split"):
        run("runs/more", "--cv", 3, "--part", "heldout")


def test_a_class_of_one_group_is_in_no_fold(project):
    one_group = replace(
        SPLIT, train=tuple(v for v in SPLIT.train if v.class_name != "spin"), heldout=()
    )
    lone = replace(one_group, train=(*one_group.train, SPLIT.train[-1]), heldout=SPLIT.heldout[:2])
    scored = [
        write_fold(project / f"fold{k}.npz", hold_out(lone, folds=2, fold=k)) for k in range(2)
    ]
    joined = join_folds(scored, lone)
    assert set(joined.videos) == {v.id for v in (*lone.train, *lone.heldout)} - {"spin/v0"}


def write_fold(path, split):
    ids = tuple(video.id for video in split.heldout)
    values = np.full((len(ids), 3), 1 / 3)
    meta = {"kind": "softmax", "part": "heldout", "about": "made", "checkpoint": {}}
    write_scores(path, Scores(ids, CLASSES, values, np.array(split.labels(split.heldout)), meta))
    return path
