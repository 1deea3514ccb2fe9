"""Scoring: the mean over test views, by record alone, and resumed as if never stopped."""

import logging
import threading
import time
from random import Random

import numpy as np
import pytest
import torch
from made_records import write_record
from made_runs import write_run
from made_training import CLASSES, FIELDS, SIZE, make_split, write_videos

from flowkit.data.clips import spaced_clips
from flowkit.data.datasets import TestClips
from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.stacks import StackForm
from flowkit.errors import RecordError, SplitError, UsageError
from flowkit.evaluation import scoring
from flowkit.evaluation.scoring import Scorer, TestViews, score_part
from flowkit.networks.checkpoints import load_net, read_checkpoint
from flowkit.records.reading import open_record
from flowkit.scores.files import read_scores

SPLIT = make_split(heldout=1, test=2)
FORMS = {
    "spatial": FrameForm(),
    "frames": FrameForm(2),
    "rgb-diff": FrameForm(2, 2, "rgb-diff"),
    "flow": StackForm(2),
    "trajectory": StackForm(2, "trajectory"),
    "no means": StackForm(3, mean_subtract=False),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "temporal", form=StackForm(2), split=SPLIT)


def finish(scorer, records, out, *, split=SPLIT, part="test"):
    """The scores of a part, and how far it was at every step."""
    told = list(score_part(scorer, split, records, part, out))
    return read_scores(out), told


def by_hand(run, records, form, *, average, **how):
    """The mean over all views of all moments of the test part, one forward pass per view."""
    checkpoint, net = load_net(run)
    [stream] = checkpoint.inputs
    clips = TestClips(
        SPLIT,
        records,
        inputs=checkpoint.inputs,
        crop=checkpoint.crop,
        short_side=checkpoint.short_side,
        **how,
    )
    total = np.zeros((len(clips.videos), len(CLASSES)))
    for sample in clips:
        for view in sample[stream]:
            with torch.no_grad():
                logits = net(view[None]).double()
            values = logits.softmax(1) if average == "softmax" else logits
            total[sample["video"]] += values[0].numpy() / (len(sample[stream]) * clips.moments)
    return total


@pytest.mark.parametrize(
    ("name", "average"), [*((name, "softmax") for name in FORMS), ("flow", "logits")]
)
def test_scores_are_the_mean_over_all_views_of_all_moments(tmp_path, records, name, average):
    form = FORMS[name]
    run = write_run(tmp_path / "run", form=form)
    scores, _ = finish(Scorer(run, views=TestViews(4, "ten", average)), records, tmp_path / "s.npz")
    expected = by_hand(run, records, form, average=average, moments=4)
    np.testing.assert_allclose(scores.values, expected, atol=1e-5, rtol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.05  # the videos do differ
    assert scores.meta["kind"] == average


def test_each_moment_has_one_vote_of_the_mean_of_its_views(tmp_path, records, run, monkeypatch):
    scorer, random, votes = Scorer(run, views=TestViews(7, "flip", "vote")), Random(0), []

    def logits(one, inputs):
        drawn = 2 * torch.tensor([[random.gauss(0, 1) for _ in CLASSES] for _ in one.places * 2])
        for (_, times), views in zip(one.places, drawn.unflatten(0, (-1, 2)), strict=True):
            votes.extend([int(views.softmax(1).mean(0).argmax())] * times)
        return drawn

    monkeypatch.setattr(scorer, "_forward", logits)
    scores, _ = finish(scorer, records, tmp_path / "s.npz")
    by_video = np.reshape(votes, (-1, 7))
    expected = [[np.mean(row == place) for place in range(len(CLASSES))] for row in by_video]
    np.testing.assert_allclose(scores.values, expected, atol=1e-6)
    assert 0 < np.max(expected) < 1, "no video is unanimous"
    assert (scores.meta["kind"], scores.meta["views"]["average"]) == ("softmax", "vote")


@pytest.mark.parametrize(("moments", "crops"), [(1, "center"), (3, "center"), (1, "ten")])
def test_fewer_moments_and_views(tmp_path, records, run, moments, crops):
    scores, _ = finish(Scorer(run, views=TestViews(moments, crops)), records, tmp_path / "s.npz")
    expected = by_hand(run, records, StackForm(2), average="softmax", moments=moments, views=crops)
    np.testing.assert_allclose(scores.values, expected, atol=1e-5, rtol=1e-5)


def test_rows_and_columns_are_those_of_the_split(tmp_path, records, run):
    scores, _ = finish(Scorer(run, views=TestViews(2)), records, tmp_path / "s.npz")
    assert scores.videos == tuple(video.id for video in SPLIT.test)
    assert scores.classes == CLASSES
    assert [CLASSES[k] for k in scores.labels] == [video.class_name for video in SPLIT.test]
    turned = make_split(heldout=1, test=2, classes=CLASSES[::-1])
    other, _ = finish(Scorer(run, views=TestViews(2)), records, tmp_path / "t.npz", split=turned)
    rows = [other.videos.index(video) for video in scores.videos]
    np.testing.assert_allclose(other.values[rows][:, ::-1], scores.values, atol=1e-7)
    assert scores.meta["split"] == "made"
    assert (scores.meta["part"], scores.meta["stream"]) == ("test", "temporal")
    assert scores.meta["about"] == "small, L = 2, step 7, 2 x 10 views"


def test_a_video_and_its_mirror_image_score_alike(tmp_path, run):
    """Ten views of the mirrored video are those of the video, if flips negate x and x alone."""
    random = np.random.default_rng(1)
    fields = random.normal(0, 1, (FIELDS, *SIZE, 2)).astype(np.float32)
    mirrored = fields[:, :, ::-1] * np.float32([-1, 1])
    unsigned = np.ascontiguousarray(fields[:, :, ::-1])
    made = [
        write_record(tmp_path / "flow", name, one)
        for name, one in (("a", fields), ("mirrored", mirrored), ("unsigned", unsigned))
    ]
    one, other, wrong = Scorer(run, views=TestViews(3)).score(made)
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(one - wrong).max() > 1e-3


def test_a_video_is_asked_alone(records, run):
    """Neither the other videos nor the readers change a bit; the size of a pass but rounding."""
    opened = [open_record(path) for path in records.find().values()]
    scorer = Scorer(run, views=TestViews(4))
    together = np.stack(list(scorer.score(opened, readers=3)))
    alone = np.stack([next(scorer.score([record])) for record in opened])
    np.testing.assert_array_equal(together, alone)
    for pass_inputs in (1, 7, 1000):
        other = Scorer(run, views=TestViews(4), pass_inputs=pass_inputs)
        np.testing.assert_allclose(np.stack(list(other.score(opened))), alone, atol=1e-5)


def test_reading_ahead_ends_with_the_scores_that_are_asked_for(records, run, monkeypatch):
    opened, begun, go_on = list(map(open_record, records.find().values())), [], threading.Event()

    def read(self, one):
        begun.append(one.record.name)
        if len(begun) > 1:
            go_on.wait(60)
        return original(self, one)

    original = Scorer._read
    monkeypatch.setattr(Scorer, "_read", read)
    before = set(threading.enumerate())
    scores = Scorer(run, views=TestViews(1)).score(opened, readers=3)
    threading.Timer(0.3, go_on.set).start()
    next(scores)
    scores.close()
    assert len(begun) <= 5
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("readers", [1, 2])
def test_no_more_than_the_readers_read_at_once(records, run, monkeypatch, readers):
    opened, lock, now = list(map(open_record, records.find().values())), threading.Lock(), []
    most = [0]

    def read(self, one):
        with lock:
            now.append(one)
            most[0] = max(most[0], len(now))
        time.sleep(0.02)
        with lock:
            now.remove(one)
        return original(self, one)

    original = Scorer._read
    monkeypatch.setattr(Scorer, "_read", read)
    list(Scorer(run, views=TestViews(1)).score(opened, readers=readers))
    assert most == [readers]


def test_moments_that_a_short_video_repeats_are_asked_once(records, run, monkeypatch):
    asked = []
    original = scoring.look_at
    monkeypatch.setattr(
        scoring, "look_at", lambda r, c, *rest: asked.append(c) or original(r, c, *rest)
    )
    record = open_record(next(iter(records.find().values())))
    list(Scorer(run).score([record]))
    clips = spaced_clips(record.name, FIELDS, 2)
    assert (len(clips), len(asked)) == (25, 4)
    assert set(asked) == set(clips)


def test_resumed_equals_never_stopped(tmp_path, records, run):
    whole, told = finish(Scorer(run, views=TestViews(2)), records, tmp_path / "whole.npz")
    assert told == [(done, 6) for done in range(1, 7)]

    out = tmp_path / "stopped.npz"
    stopped = score_part(Scorer(run, views=TestViews(2)), SPLIT, records, "test", out)
    assert [next(stopped), next(stopped)] == [(1, 6), (2, 6)]
    stopped.close()
    assert not out.exists()
    partial = tmp_path / "stopped.partial.npz"
    assert read_scores(partial).videos == whole.videos[:2]

    resumed, told = finish(Scorer(run, views=TestViews(2)), records, out)
    assert told == [(done, 6) for done in range(2, 7)]
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    np.testing.assert_array_equal(resumed.values, whole.values)
    assert not partial.exists()


def test_what_is_done_is_kept_by_time_and_not_at_every_video(tmp_path, records, run, monkeypatch):
    written = []
    original = scoring._write_rows
    monkeypatch.setattr(
        scoring,
        "_write_rows",
        lambda path, *rest: written.append(path.name) or original(path, *rest),
    )
    finish(Scorer(run, views=TestViews(1)), records, tmp_path / "s.npz")
    assert written == ["s.npz"]


def test_a_scorer_shows_its_run_and_its_scores_name_the_step(tmp_path, records, run):
    scorer = Scorer(run, views=TestViews(1))
    assert repr(scorer).startswith("Scorer(") and "3 classes" in repr(scorer)
    step = read_checkpoint(run).step
    assert scorer.describe()["checkpoint"]["step"] == step


def test_what_is_done_is_kept_through_an_error(tmp_path, records, run, monkeypatch):
    monkeypatch.setattr(scoring, "SAVE_S", 0.0)
    broken = RecordFolder(tmp_path / "flow")
    for id, path in records.find().items():
        (broken.root / id).parent.mkdir(parents=True, exist_ok=True)
        (broken.root / id).symlink_to(path)
    last = SPLIT.test[-1].id
    (broken.root / last).unlink()
    write_record(broken.root, last, np.zeros((FIELDS, *SIZE, 2), np.float32))
    (broken.root / last / "flow_00003.npy").write_bytes(b"damaged")
    out = tmp_path / "s.npz"
    with pytest.raises(RecordError, match="flow_00003"):
        finish(Scorer(run, views=TestViews(1)), broken, out)
    assert len(read_scores(tmp_path / "s.partial.npz").videos) == 5
    assert not out.exists()


def test_finished_scores_are_kept_only_if_made_the_same_way(tmp_path, records, run, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "s.npz"
    first, _ = finish(Scorer(run, views=TestViews(1)), records, out)
    again, told = finish(Scorer(run, views=TestViews(1), pass_inputs=3), records, out)
    assert told == []
    assert not caplog.records
    np.testing.assert_array_equal(again.values, first.values)

    _, told = finish(Scorer(run, views=TestViews(2)), records, out)
    assert len(told) == 6
    assert "views.moments: 1 on disk, 2 asked for" in caplog.text

    other = write_run(tmp_path / "other", form=StackForm(2), seed=1)  # trained again, so to say
    retrained, told = finish(Scorer(other, views=TestViews(2)), records, out)
    assert len(told) == 6
    assert "checkpoint.weights" in caplog.text
    assert (retrained.values != first.values).any()


def test_records_made_again_are_scored_again(tmp_path, run):
    for seed in (0, 1):
        write_videos(tmp_path / f"flow{seed}", per_class=4, seed=seed, format=("npy", "flo")[seed])
    scorer = Scorer(run, views=TestViews(1))
    for seed in (0, 1):
        found, told = finish(scorer, RecordFolder(tmp_path / f"flow{seed}"), tmp_path / "s.npz")
        assert len(told) == 6
        assert len(bytes.fromhex(found.meta["data"])) == 8  # short: a name, not a proof


def test_records_of_other_flow_are_refused_with_the_difference(tmp_path, records):
    flow = {"method": None, "resize": None, "bound": 20.0, "format": "floats", "quality": None}
    run = write_run(tmp_path / "run", form=StackForm(2), flow=flow)
    message = r"bound: null on disk, 20.0 in training"
    with pytest.raises(RecordError, match=message):
        finish(Scorer(run), records, tmp_path / "s.npz")
    fits = write_run(tmp_path / "fits", form=StackForm(2), flow=flow | {"bound": None})
    assert finish(Scorer(fits, views=TestViews(1)), records, tmp_path / "s.npz")[1]


def test_records_that_lack_what_the_stream_reads_are_refused(tmp_path, records):
    both = write_run(tmp_path / "both", form=StackForm(2, bidirectional=True))
    with pytest.raises(RecordError, match="holds no backward fields"):
        finish(Scorer(both), records, tmp_path / "s.npz")
    for video in SPLIT.test:
        write_record(tmp_path / "flow", video.id, np.zeros((FIELDS, *SIZE, 2), np.float32))
    spatial = write_run(tmp_path / "spatial")
    with pytest.raises(RecordError, match="holds none: flowkit extract --rgb stores them"):
        finish(Scorer(spatial), RecordFolder(tmp_path / "flow"), tmp_path / "s.npz")


def test_classes_that_the_split_has_not_are_left_out_before_the_softmax(tmp_path, records):
    run = write_run(tmp_path / "run", form=StackForm(2), classes=("other", *CLASSES, "another"))
    scores, _ = finish(Scorer(run, views=TestViews(1, "center")), records, tmp_path / "s.npz")
    assert scores.classes == CLASSES
    np.testing.assert_allclose(scores.values.sum(axis=1), 1, atol=1e-6)
    clips = TestClips(
        SPLIT,
        records,
        inputs={"temporal": StackForm(2)},
        moments=1,
        views="center",
        crop=32,
        short_side=36,
    )
    with torch.no_grad():
        logits = load_net(run)[1](clips[0]["temporal"])
    np.testing.assert_allclose(scores.values[:1], logits[:, 1:4].softmax(1), atol=1e-6)


def test_of_several_tasks_the_first_is_asked(tmp_path, records):
    tasks = {"main": CLASSES, "aux": ("x", "y")}
    run = write_run(tmp_path / "run", form=StackForm(2), tasks=tasks)
    scores, _ = finish(Scorer(run, views=TestViews(1)), records, tmp_path / "s.npz")
    assert scores.classes == CLASSES


def test_classes_that_the_network_does_not_know_are_refused(tmp_path, records):
    run = write_run(tmp_path / "run", form=StackForm(2), classes=("grow", "spin"))
    with pytest.raises(UsageError, match="was not trained on 1 of 3 classes: shrink"):
        finish(Scorer(run), records, tmp_path / "s.npz")


def test_an_empty_part_is_refused(tmp_path, records, run):
    with pytest.raises(SplitError, match="made: its heldout part is empty"):
        finish(
            Scorer(run), records, tmp_path / "s.npz", split=make_split(heldout=0), part="heldout"
        )


def test_videos_without_a_record_are_refused_or_counted(tmp_path, records, run, caplog):
    caplog.set_level(logging.INFO)
    more = make_split(per_class=5, heldout=1, test=2)
    with pytest.raises(SplitError, match="3 of 6 listed videos have no flow record"):
        finish(Scorer(run), records, tmp_path / "s.npz", split=more)
    scorer, out = Scorer(run, views=TestViews(1)), tmp_path / "s.npz"
    list(score_part(scorer, more, records, "test", out, missing="skip"))
    assert len(read_scores(out).videos) == 3
    assert "3 videos have no record and are left out" in caplog.text


def test_videos_that_a_run_was_trained_on_are_found(tmp_path):
    old = Scorer(write_run(tmp_path / "run", split=make_split(heldout=0, test=1)))
    assert old.seen(make_split(heldout=0, test=1).test) == []
    assert old.seen(make_split(heldout=1, test=1).heldout) == [f"{name}/v2" for name in CLASSES]
    assert Scorer(write_run(tmp_path / "other")).seen(SPLIT.train) == []  # nothing is known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moments": 0}, "expected at least one moment, got 0"),
        ({"crops": "five"}, "expected views ten or center.* got 'five'"),
        ({"average": "max"}, "softmax, logits, vote, got 'max'"),
    ],
)
def test_views_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TestViews(**options)


def test_a_pass_of_nothing_is_refused(run):
    with pytest.raises(UsageError, match="at least one input of a pass, got 0"):
        Scorer(run, pass_inputs=0)
