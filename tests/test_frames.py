"""Stacks of frames and of their differences: laws of the tensors, then the stream by commands."""

import json

import numpy as np
import pytest
import torch
from command import run_here
from made_records import write_record
from made_videos import moving_texture, write_video

from flowkit.data.augment import Augmentation, frame_input
from flowkit.data.clips import Clip, View, spaced_frames
from flowkit.data.datasets import TestClips, TrainingClips
from flowkit.data.frames import FrameForm, frame_stacks
from flowkit.data.inputs import (
    check_inputs,
    inputs_from_json,
    inputs_to_json,
    spaced_places,
    stream_name,
)
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.errors import RecordError, UsageError
from flowkit.networks.checkpoints import read_checkpoint
from flowkit.networks.streams import build_net
from flowkit.records import zips
from flowkit.scores.files import read_scores

SIZE, COUNT = (32, 40), 9  # (H, W) and the number of frames
CUT = View(SIZE, 3, 5, 20, 24)
DIFFERENCES = FrameForm(3, 2, "rgb-diff")


def made_record(root, frames, id="run/a", **storage):
    """A record of frames as they are, but for JPEG's losses at the best quality, and of no flow."""
    fields = np.zeros((max(len(frames) - 1, 1), *SIZE, 2), np.float32)
    return write_record(root, id, fields, frames=frames, rgb=True, rgb_quality=100, **storage)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    frames = np.stack(moving_texture(COUNT, size=SIZE))
    return made_record(tmp_path_factory.mktemp("flow"), frames)


def stack(record, start, form, view=CUT, **options):
    clip = Clip("a", start, form.length, form.step)
    return frame_stacks(record, clip, [view], form=form, **options)[0]


# ---- the tensors


def test_a_stack_is_its_frames_each_as_a_single_one_is_seen(record):
    color = np.float32([0.1, -0.2, 0.3])
    seen = stack(record, 1, FrameForm(3, 2), color=color)
    assert seen.shape == (9, 20, 24) and seen.dtype == np.float32
    for place, number in enumerate((1, 3, 5)):
        alone = frame_input(record.frame(number), CUT, (20, 24), color)
        np.testing.assert_array_equal(seen[3 * place : 3 * place + 3], alone)
    np.testing.assert_array_equal(
        stack(record, 4, FrameForm()), frame_input(record.frame(4), CUT, (20, 24))
    )


def test_differences_are_of_neighbors_in_a_stack_of_one_frame_more(record):
    frames = stack(record, 1, FrameForm(4, 2)).reshape(4, 3, 20, 24)
    expected = (frames[1:] - frames[:-1]).reshape(9, 20, 24)
    np.testing.assert_array_equal(stack(record, 1, DIFFERENCES), expected)
    assert np.abs(expected).mean() > 0.1  # the texture does move
    colored = stack(record, 1, DIFFERENCES, color=np.float32([1, 2, 3]))
    np.testing.assert_array_equal(colored, expected)


@pytest.mark.parametrize("form", [FrameForm(3), DIFFERENCES])
def test_a_flip_mirrors_every_channel_and_negates_none(record, form):
    flipped = stack(record, 0, form, View(SIZE, 3, 5, 20, 24, flip=True))
    np.testing.assert_array_equal(flipped, stack(record, 0, form)[:, :, ::-1])


def test_what_does_not_move_has_no_differences(tmp_path):
    still = np.repeat(np.stack(moving_texture(1, size=SIZE)), COUNT, axis=0)
    assert not stack(made_record(tmp_path, still), 2, DIFFERENCES).any()


def test_short_videos_are_looped(record, tmp_path):
    short = made_record(tmp_path, np.stack(moving_texture(3, size=SIZE)))
    frames = [frame_input(short.frame(k), CUT, (20, 24)) for k in range(3)]
    looped = np.concatenate([frames[k] for k in (0, 1, 2, 0, 1)])
    np.testing.assert_array_equal(stack(short, 0, FrameForm(5)), looped)
    first, second = frames[1] - frames[0], frames[2] - frames[1]  # none from frame 2 to frame 0
    np.testing.assert_array_equal(
        stack(short, 0, FrameForm(3, 1, "rgb-diff")), np.concatenate([first, second, first])
    )


def test_frames_of_a_pack_are_read_at_once(tmp_path, monkeypatch):
    record = made_record(
        tmp_path, np.stack(moving_texture(COUNT, size=SIZE)), pack=True, format="png"
    )
    asked, original = [], zips.read_members
    monkeypatch.setattr(
        zips, "read_members", lambda *a, **k: asked.append(len(a[1])) or original(*a, **k)
    )
    stack(record, 1, DIFFERENCES)
    assert asked == [4]


# ---- the data sets


def made_split(*ids):
    return Split("made", ("run", "jump"), tuple(Video(id, "run", id) for id in ids), (), ())


@pytest.mark.parametrize("crops", ["random", "corner", "multi-scale"])
def test_all_frames_of_a_sample_are_changed_alike(tmp_path, crops):
    still = np.repeat(np.stack(moving_texture(1, size=SIZE)), COUNT, axis=0)
    made_record(tmp_path, still)
    augmentation = Augmentation(crops, crop=24, short_side=32, jitter=0.5)
    for form in (FrameForm(4, 2), DIFFERENCES):
        clips = TrainingClips(
            made_split("run/a"),
            RecordFolder(tmp_path),
            inputs={"spatial": form},
            augmentation=augmentation,
        )
        for number in range(8):
            sample = clips[number]["spatial"].unflatten(0, (form.count, 3))
            assert torch.equal(sample, sample[:1].expand_as(sample))
            assert sample.any() != form.differences


def test_training_draws_every_start_that_fits_and_no_other(tmp_path):
    """And with segments one out of each equal part of the starts."""
    gray = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * 25
    made_record(tmp_path, np.broadcast_to(gray, (COUNT, *SIZE, 3)))
    mean, deviation = 0.485, 0.229  # of red

    def frames_of(segments, numbers):
        clips = TrainingClips(
            made_split("run/a"),
            RecordFolder(tmp_path),
            inputs={"spatial": FrameForm(3, 2)},
            augmentation=Augmentation(crop=24, short_side=32, jitter=0),
            segments=segments,
        )
        reds = (clips[n]["spatial"][0::3].mean((1, 2)) * deviation + mean for n in numbers)
        return {tuple((red * 255 / 25).round().int().tolist()) for red in reds}

    starts = range(COUNT - 4)
    assert frames_of(1, range(60)) == {(k, k + 2, k + 4) for k in starts}
    assert frames_of(2, range(0, 60, 2)) == {(k, k + 2, k + 4) for k in starts[:2]}
    assert frames_of(2, range(1, 60, 2)) == {(k, k + 2, k + 4) for k in starts[2:]}


@pytest.mark.parametrize("form", [FrameForm(), FrameForm(4), FrameForm(3, 2), DIFFERENCES])
@pytest.mark.parametrize("count", [5, 9, 40])
def test_the_middle_of_a_test_stack_is_the_frame_nearest_to_its_moment(form, count):
    reach = form.length * form.step
    for [[clip]], frame in zip(
        spaced_places({"spatial": form}, "a", count, 25), spaced_frames(count), strict=True
    ):
        last = max(count - 1 - reach, 0)
        assert 0 <= clip.start <= last
        assert abs(clip.middle - frame) == min(abs(s + reach // 2 - frame) for s in range(last + 1))


def test_a_video_without_a_second_frame_has_no_difference(tmp_path):
    made_record(tmp_path, np.stack(moving_texture(2, size=SIZE)))
    folder, split = RecordFolder(tmp_path), made_split("run/a")
    options = {"part": "train", "crop": 24, "short_side": 32}
    assert len(TestClips(split, folder, inputs={"spatial": FrameForm(4)}, **options))
    with pytest.raises(RecordError, match="expected at least 3 frames, got 2"):
        TestClips(split, folder, inputs={"spatial": DIFFERENCES}, **options)


# ---- the form


def test_a_form_says_what_it_is():
    assert (FrameForm().channels, FrameForm().name, FrameForm().least_frames) == (3, "spatial", 1)
    assert (FrameForm(10).channels, FrameForm(10).name) == (30, "frames")
    assert (DIFFERENCES.channels, DIFFERENCES.name, DIFFERENCES.least_frames) == (9, "rgb-diff", 3)
    assert FrameForm(2).channel_names == ("R1", "G1", "B1", "R2", "G2", "B2")
    assert FrameForm(10).about == "10 frames"
    assert DIFFERENCES.about == "3 differences of frames, 2 apart"
    assert stream_name({"spatial": DIFFERENCES}) == "rgb-diff"
    assert stream_name({"temporal": StackForm()}) == "temporal"


def test_forms_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="expected an input of frames, rgb-diff, got 'yuv'"):
        FrameForm(2, 1, "yuv")
    with pytest.raises(UsageError, match="at least 1 frame, at least 1 frame apart, got 0 and 1"):
        FrameForm(0)
    with pytest.raises(UsageError, match="at least 1 frame apart, got 3 and 0"):
        FrameForm(3, 0)
    with pytest.raises(UsageError, match="give a stack of several"):
        FrameForm(1, 2)
    with pytest.raises(UsageError, match="expected a single frame beside the flow, got 3 diff"):
        check_inputs({"spatial": DIFFERENCES, "temporal": StackForm()})


def test_a_single_frame_is_written_as_earlier_versions_read_it():
    assert inputs_to_json({"spatial": FrameForm()}) == {"spatial": None}
    for form in (FrameForm(), FrameForm(10), DIFFERENCES):
        told = inputs_to_json({"spatial": form})
        assert inputs_from_json(told) == {"spatial": form}
    assert inputs_from_json({"spatial": {"count": 4}}) == {"spatial": FrameForm(4)}


def test_a_network_of_differences_takes_no_difference_as_zero():
    net = build_net("efficientnet-lite0", {"spatial": DIFFERENCES}, {"main": 2})
    assert not net.trunk.pixels(torch.zeros(1, 9, 8, 8)).any()
    frames = build_net("efficientnet-lite0", {"spatial": FrameForm(3)}, {"main": 2})
    single = build_net("efficientnet-lite0", {"spatial": FrameForm()}, {"main": 2})
    pixels = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(
        frames.trunk.pixels(pixels.repeat(1, 3, 1, 1)),
        single.trunk.pixels(pixels).repeat(1, 3, 1, 1),
    )


# ---- the stream, by the command line


TINY = ("--net", "small", "--recipe", "short", "--short-side", 36, "--crop", 32, "-j", 0)
TINY += ("--batch-size", 6, "--steps", 2)
SHORT = ("--moments", 2, "--views", "center")
DIFF = ("train", "spatial", "--input", "rgb-diff", "--stack", 2)


@pytest.fixture
def flowkit(tmp_path):
    """What runs a command in a folder with records of made videos, and the folder."""

    def run(*arguments):
        done = run_here(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode()
        return done

    for name, step in (("left", (-2, 0)), ("right", (2, 0))):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for number in range(1, 5):
            frames = moving_texture(7, size=(36, 44), step=step, seed=number)
            write_video(tmp_path / "videos" / name / f"v_{name}_g{number:02d}_c01.mp4", frames)
    run("extract", "videos", "--method", "dis", "--format", "png", "-j", 1)
    return run, tmp_path


@pytest.mark.slow
def test_three_streams_are_trained_scored_fused_and_predict(flowkit):
    """TSN's three, each in its own folder, by the defaults of every command."""
    run, place = flowkit
    runs = place / "runs"
    run("train", "spatial", *TINY)
    told = run(*DIFF, *TINY)
    assert b"rgb-diff stream, recipe short: small" in told.stderr
    assert b"6 channels of 32x32 px; 2 differences of frames" in told.stderr
    run("train", "temporal", "--L", 2, *TINY)
    checkpoint = read_checkpoint(runs / "rgb-diff")
    assert checkpoint.inputs == {"spatial": FrameForm(2, 1, "rgb-diff")}
    assert checkpoint.flow is None
    goes_on = run(*DIFF, "--resume", "--steps", 3, "-j", 0)
    assert b"runs/rgb-diff: goes on at step 2 of 3" in goes_on.stderr
    other = run_here("train", "spatial", "--input", "rgb-diff", "--resume", cwd=place)
    assert other.returncode and b"was begun otherwise" in other.stderr
    joined = run_here("train", "towers", "--spatial", "runs/rgb-diff", cwd=place)
    assert joined.returncode and b"holds a rgb-diff stream" in joined.stderr

    run("eval", *SHORT)
    names = ["rgb-diff", "spatial", "temporal"]
    streams = [read_scores(runs / one / "scores-test.npz") for one in names]
    assert streams[0].meta["stream"] == "rgb-diff"
    assert streams[0].meta["about"].startswith("small, 2 differences of frames, step ")
    run("fuse")
    fused = read_scores(runs / "fused" / "scores-test.npz")
    assert sorted(fused.meta["fusion"]["streams"]) == names
    mean = np.mean([one.values for one in streams], axis=0)
    np.testing.assert_allclose(fused.values, mean, atol=1e-6)
    run("report")
    assert "2 differences of frames" in (runs / "report.html").read_text()

    video = f"{fused.videos[0]}.mp4"
    answer = json.loads(run("predict", f"videos/{video}", "--json", *SHORT).stdout)
    assert sorted(answer["streams"]) == names
    chances = {one["class"]: one["probability"] for one in answer["top"]}
    assert [chances[name] for name in fused.classes] == pytest.approx(fused.values[0], abs=1e-6)
    alone = json.loads(
        run("predict", f"videos/{video}", "--rgb-diff", "runs/rgb-diff", "--json", *SHORT).stdout
    )
    assert list(alone["streams"]) == ["rgb-diff"]
    wrong = run_here("predict", f"videos/{video}", "--frames", "runs/rgb-diff", cwd=place)
    assert wrong.returncode == 2 and b"--frames runs/rgb-diff: holds a rgb-diff" in wrong.stderr


@pytest.mark.slow
def test_a_stack_of_frames_goes_through_every_command(flowkit):
    run, place = flowkit
    run("train", "spatial", "--stack", 3, "--every", 2, *TINY)
    frames = place / "runs" / "frames"
    assert read_checkpoint(frames).inputs == {"spatial": FrameForm(3, 2)}
    run("train", "spatial", "--stack", 3, "--every", 2, *TINY, "--dry-run", "--out", "runs/try")
    run("eval", "--cv", 2, *SHORT)
    heldout = read_scores(frames / "scores-heldout.npz")
    assert len(heldout.videos) == 6 and heldout.meta["cross_validation"] == 2
    run("features", "runs/frames", "--layer", "pool", "--out", "features", *SHORT)
    with np.load(next((place / "features").rglob("*.npz"))) as found:
        assert found["features"].shape[0] == 2
        assert found["frames"].tolist() == [2, 4]  # the middles of frames 0 2 4 and 2 4 6
    run("export", "runs/frames", "--format", "torchscript")
    run("view", "runs/frames", "--out", "filters.png")
    film = "videos/left/v_left_g01_c01.mp4"
    told = run("predict", film, "--timeline", "a.csv", "--window", 0.2, *SHORT)
    assert b"left" in told.stdout or b"right" in told.stdout
    single = run_here("train", "spatial", "--every", 2, cwd=place)
    assert single.returncode == 2 and b"give a stack of several" in single.stderr
