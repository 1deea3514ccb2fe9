"""Leaks: no video that reached the weights, by whatever way, is tested on or fitted on unsaid."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_runs import write_run
from made_training import CLASSES, make_job, make_split, write_videos

from flowkit.data.origins import Origin, origin_of
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Video, train_on_all, write_split
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import read_checkpoint
from flowkit.scores.files import read_scores, write_scores
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train
from flowkit.training.sampling import Task
from flowkit_cli.eval import eval as eval_command
from flowkit_cli.fuse import fuse as fuse_command

ALONE = Ranks(0, 1, torch.device("cpu"))
RECIPE = {"steps": 1, "drop_at": (), "eval_every": 1}
QUICK = ("--moments", 1, "--views", "center")
SPLIT = make_split(per_class=6, heldout=1, test=2)  # v0 to v2 train, v3 is held out, v4, v5 test
OTHER_CLASSES = ("grow", "jump", "sit")


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_videos(tmp_path / "flow", per_class=6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_run(name, records, split=None, **options):
    job = make_job(records, split, recipe=RECIPE, **options)
    list(train(job, name, ALONE, Machine()))


def evaluate(*arguments):
    result = CliRunner().invoke(eval_command, [str(argument) for argument in (*arguments, *QUICK)])
    if result.exception:
        raise result.exception
    return result


def test_videos_seen_by_the_weights_before_are_refused(place, caplog):
    records = RecordFolder(place / "flow")
    before = make_split(per_class=6, heldout=1, test=0)  # trains on v0 to v4
    train_run(place / "runs/before", records, before)
    train_run(place / "runs/middle", records, SPLIT, weights=str(place / "runs/before"))
    assert "3 of 6 test videos are trained on" in caplog.text  # v4 of each class
    train_run(place / "runs/last", records, SPLIT, weights=str(place / "runs/middle"))
    for run in ("middle", "last"):
        with pytest.raises(UsageError, match=r"3 of the test videos of .*: grow/v4, shrink/v4"):
            evaluate(f"runs/{run}", "--part", "test")
        with pytest.raises(UsageError, match="trained on 3 of the held-out videos"):
            evaluate(f"runs/{run}", "--part", "heldout")
    with pytest.raises(UsageError, match=r"3 videos of fold 1"):
        evaluate("runs/last", "--part", "heldout", "--cv", 3)


def test_videos_of_auxiliary_tasks_and_of_added_classes_are_refused(place):
    records = RecordFolder(place / "flow")
    tasks = (Task("main", SPLIT, records), Task("aux", train_on_all(SPLIT), records))
    train_run(place / "runs/tasks", records, SPLIT, tasks=tasks)
    with pytest.raises(UsageError, match="was trained on 6 of the test videos"):
        evaluate("runs/tasks", "--part", "test")

    more = write_videos(place / "more", classes=OTHER_CLASSES, per_class=2)
    other = make_split(2, heldout=0, classes=OTHER_CLASSES, test=1)
    task = Task("main", SPLIT, records, added=(other, more))
    train_run(place / "runs/added", records, tasks=(task,))
    evaluate("runs/added", "--part", "test")  # of its own data set nothing leaked
    asked = tuple(video for video in other.test if video.class_name != "grow")
    write_split(place / "other.json", replace(other, train=(), test=asked))
    arguments = ["runs/added", "--part", "test", "--split", "other.json", "--records", "more"]
    with pytest.raises(UsageError, match=r"2 of the test videos .*jump/v1, sit/v1"):
        evaluate(*arguments)


def test_several_tasks_are_cross_validated_by_the_first(place):
    records = RecordFolder(place / "flow")
    more = write_videos(place / "more", classes=("jump", "sit"), per_class=2)
    aux = train_on_all(make_split(2, heldout=0, classes=("jump", "sit")))
    tasks = (Task("main", SPLIT, records), Task("aux", aux, more))
    train_run(place / "runs/tasks", records, tasks=tasks)
    evaluate("runs/tasks", "--part", "heldout", "--cv", 2)
    scores = read_scores(place / "runs/tasks/scores-heldout.npz")
    assert scores.classes == CLASSES
    assert set(scores.videos) == {video.id for video in (*SPLIT.train, *SPLIT.heldout)}
    for fold in (1, 2):
        checkpoint = read_checkpoint(place / f"runs/tasks/cv/fold-{fold}of2")
        assert set(checkpoint.tasks) == {"main", "aux"}
        assert {"jump", "sit"} < set(checkpoint.trained_on.videos)


def test_a_source_group_counts_as_its_videos():
    origin = origin_of([Video("a/x_g01_c01", "a", "g01"), Video("b/y_g02_c01", "b", "g02")])
    asked = [
        Video("a/x_g01_c07", "a", "g01"),  # the same footage
        Video("a/x_g02_c01", "a", "g02"),
        Video("UCF/A/X_G01_C01", "A", "other"),  # the same video, spelled otherwise
    ]
    assert origin.seen(asked) == ["a/x_g01_c07", "UCF/A/X_G01_C01"]
    joined = origin_of([Video("c/z", "c", "z")], origin, Origin(unknown=("w.pth",)))
    assert joined.seen(asked) == origin.seen(asked)
    assert joined.unknown == ("w.pth",)


def test_a_checkpoint_that_does_not_say_is_warned_of_once_and_scored(place):
    write_run(place / "runs/old", form=StackForm(2), split=SPLIT)  # as 0.1.0 wrote it
    told = evaluate("runs/old").stderr
    assert told.count("does not say what it was trained on") == 1
    assert "unseen" not in read_scores("runs/old/scores-test.npz").meta


def test_fitting_asks_for_scores_of_the_same_network_and_views(place):
    records = RecordFolder(place / "flow")
    for number, name in enumerate(("one", "two")):
        train_run(place / f"runs/{name}", records, SPLIT, seed=number)
    evaluate("runs/one")
    evaluate("runs/two")
    assert read_scores("runs/one/scores-heldout.npz").meta["unseen"]
    fused = ["runs/one", "runs/two", "--method", "weighted"]
    assert fuse(*fused).exit_code == 0
    write_run(place / "runs/old", form=StackForm(2), split=SPLIT)
    evaluate("runs/old")
    assert (
        "scores-heldout.npz: does not say"
        in fuse("runs/one", "runs/old", "--method", "weighted").stderr
    )
    evaluate("runs/two", "--part", "heldout", "--average", "logits")
    assert "of other views than the scores" in str(fuse(*fused).exception)
    list(
        train(
            make_job(records, SPLIT, recipe=RECIPE, seed=7),
            place / "runs/two",
            ALONE,
            Machine(),
            start="overwrite",
        )
    )
    evaluate("runs/two", "--part", "heldout")
    assert "of another checkpoint than the scores" in str(fuse(*fused).exception)


def test_of_two_runs_of_one_stream_fuse_asks_for_names(place):
    for name in ("temporal", "longer"):
        write_run(place / f"runs/{name}", form=StackForm(2), split=SPLIT)
    write_run(place / "runs/spatial", split=SPLIT)
    evaluate("--part", "test")
    message = str(fuse().exception)
    assert "longer, temporal: name those to fuse" in message
    assert "runs: holds 2 runs of the temporal stream" in str(fuse("runs").exception)
    alike = fuse("runs/spatial", "runs/temporal")
    assert alike.exit_code == 0 and "other views" not in alike.stderr
    assert len(read_scores("runs/fused/scores-test.npz").videos) == 6
    assert np.isfinite(read_scores("runs/fused/scores-test.npz").values).all()


def test_streams_scored_at_other_views_are_fused_and_said_so(place):
    write_run(place / "runs/temporal", form=StackForm(2), split=SPLIT)
    write_run(place / "runs/spatial", split=SPLIT)
    evaluate("runs/temporal", "--part", "test")
    evaluate("runs/spatial", "--part", "test")
    spatial = read_scores("runs/spatial/scores-test.npz")
    more = spatial.meta["views"] | {"moments": 3}
    write_scores(
        "runs/spatial/scores-test.npz", replace(spatial, meta={**spatial.meta, "views": more})
    )
    told = fuse("runs/spatial", "runs/temporal")
    assert told.exit_code == 0
    assert "other views (moments: 3 in spatial, 1 in temporal)" in told.stderr


def fuse(*arguments):
    return CliRunner().invoke(fuse_command, [str(argument) for argument in arguments])
