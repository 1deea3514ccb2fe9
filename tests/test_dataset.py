"""Training and test clips as a network gets them: what they hold, and what they depend on."""

import numpy as np
import pytest
import torch
from made_records import write_record
from torch.utils.data import DataLoader

from flowkit.data.augment import Augmentation
from flowkit.data.clips import Clip, View
from flowkit.data.datasets import TestClips, TrainingClips, start_worker
from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm, flip, flow_stack
from flowkit.errors import RecordError, SplitError, UsageError

BOTH = {"spatial": FrameForm(), "temporal": StackForm(4)}
SMALL = Augmentation(crop=24, short_side=32)
FORM = StackForm(4)
TRAINING = {"jump/a": 12, "run/b": 3, "run/c": 9, "run/d": 20}
TESTS = {"jump/e": 12, "run/f": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos whose frame k is of gray 10 k and whose field k is k px to the right, and noise."""
    root = tmp_path_factory.mktemp("flow")
    random = np.random.default_rng(0)
    for id, count in (TRAINING | TESTS).items():
        fields = random.normal(0, 0.2, (2, count, 32, 40, 2)).astype(np.float32)
        fields[..., 0] += np.arange(count)[:, None, None]
        gray = 10 * np.arange(count + 1, dtype=np.uint8)[:, None, None, None]
        frames = np.broadcast_to(gray, (count + 1, 32, 40, 3))
        write_record(root, id, *fields, frames=frames, rgb=True, rgb_quality=100)
    return RecordFolder(root)


@pytest.fixture(scope="module")
def split():
    train, test = (
        tuple(Video(id, id.split("/")[0], id) for id in ids) for ids in (TRAINING, TESTS)
    )
    return Split("made", ("run", "jump"), train, (), test)


def training(split, folder, **options):
    return TrainingClips(
        split, folder, **{"inputs": {"temporal": FORM}, "augmentation": SMALL, **options}
    )


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in BOTH) and one["label"] == other["label"]


def test_training_sample_is_a_frame_a_stack_and_a_label(split, folder):
    sample = training(split, folder, inputs=BOTH)[0]
    assert sample["spatial"].shape == (3, 24, 24) and sample["spatial"].dtype == torch.float32
    assert sample["temporal"].shape == (8, 24, 24) and sample["temporal"].dtype == torch.float32
    assert sample["label"] in (0, 1)
    assert set(training(split, folder)[0]) == {"temporal", "label"}
    assert set(training(split, folder, inputs={"spatial": FrameForm()})[0]) == {"spatial", "label"}


def frame_number(image):
    gray = (image[0].mean() * 0.229 + 0.485) * 255
    return round(float(gray) / 10)


def test_frame_and_stack_of_a_sample_are_of_one_moment(split, folder):
    form = StackForm(4, mean_subtract=False)
    plain = Augmentation(crop=24, short_side=32, jitter=0, flip=False)
    clips = training(split, folder, inputs=BOTH | {"temporal": form}, augmentation=plain)
    starts = set()
    for draw in range(60):
        sample = clips[draw]
        fields = [round(float(x)) for x in sample["temporal"][0::2].mean((1, 2))]
        assert fields[2] == frame_number(sample["spatial"])
        starts.add(tuple(fields))
    assert (0, 1, 2, 0) in starts  # the short video, looped
    assert len(starts) > 10


def test_segments_of_a_draw_are_clips_of_one_video_in_order_changed_alike(split, folder):
    form = StackForm(2, mean_subtract=False)
    clips = training(split, folder, inputs={"temporal": form}, segments=3, augmentation=SMALL)
    parts = np.zeros((40, 3))
    for draw in range(40):
        samples = [clips[3 * draw + part] for part in range(3)]
        assert len({sample["label"] for sample in samples}) == 1
        moved = np.array([float(sample["temporal"][0].mean()) for sample in samples])
        assert len(set(np.sign(moved[np.abs(moved) > 0.5]))) <= 1  # flipped all or none
        parts[draw] = np.abs(moved)  # field k of a video is k px to the right
    assert (np.diff(parts, axis=1) > -0.3).all()
    assert parts[:, 2].max() > parts[:, 0].max() + 1


def test_classes_are_drawn_alike_whatever_their_number_of_videos(split, folder):
    clips = training(split, folder, inputs={"spatial": FrameForm()})
    labels = [clips[draw]["label"] for draw in range(400)]
    assert abs(np.mean(labels) - 0.5) < 0.08  # one video of jump, three of run


def test_videos_are_drawn_alike_where_that_is_asked_for(split, folder):
    clips = training(split, folder, inputs={"spatial": FrameForm()}, draw="video")
    labels = [clips[draw]["label"] for draw in range(400)]
    assert abs(np.mean(labels) - np.mean(clips.labels)) < 0.08 < abs(np.mean(clips.labels) - 0.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_the_number_of_workers(split, folder, workers):
    clips = training(split, folder, inputs=BOTH | {"temporal": StackForm(4, mode="trajectory")})
    loader = DataLoader(
        clips, 4, sampler=range(5, 17), num_workers=workers, worker_init_fn=start_worker
    )
    batches = list(loader)
    for number, batch in enumerate(batches):
        for k in range(4):
            sample = {key: batch[key][k] for key in batch}
            assert equal(sample, clips[5 + 4 * number + k])
    assert len(batches) == 3


def test_samples_depend_on_the_seed_and_the_draw(split, folder):
    clips = training(split, folder, inputs=BOTH, seed=1)
    assert equal(clips[3], training(split, folder, inputs=BOTH, seed=1)[3])
    assert not equal(clips[3], clips[4])
    assert not equal(clips[3], training(split, folder, inputs=BOTH, seed=2)[3])


def test_flow_is_never_treated_as_color(split, folder):
    still = Augmentation(crop=24, short_side=32, jitter=0)
    strong = Augmentation(crop=24, short_side=32, jitter=5)
    for draw in range(8):
        one, other = (
            training(split, folder, inputs=BOTH, augmentation=change)[draw]
            for change in (still, strong)
        )
        assert torch.equal(one["temporal"], other["temporal"])
        assert not torch.allclose(one["spatial"], other["spatial"], atol=0.01)
        change = (other["spatial"] - one["spatial"]).reshape(3, -1)
        torch.testing.assert_close(change, change[:, :1].expand_as(change), atol=1e-3, rtol=1e-3)


def test_flipped_sample_has_x_negated(split, folder):
    options = {"inputs": {"temporal": StackForm(4, mean_subtract=False)}}
    flipped = training(split, folder, **options)
    straight = training(
        split, folder, augmentation=Augmentation(crop=24, short_side=32, flip=False), **options
    )
    found = 0
    for draw in range(12):
        one, other = flipped[draw]["temporal"], straight[draw]["temporal"]
        if not torch.equal(one, other):
            assert torch.equal(one, flip(other))
            found += 1
    assert 2 < found < 10


def test_test_clips_are_all_views_of_equally_spaced_moments(split, folder):
    clips = TestClips(split, folder, inputs=BOTH, moments=5, crop=24, short_side=32)
    assert len(clips) == 10 and [video.id for video in clips.videos] == ["jump/e", "run/f"]
    assert clips.labels == [1, 0]
    record = folder.open(folder.find()["jump/e"])
    for moment, start in enumerate((0, 1, 4, 7, 8)):  # 13 frames: moments 0, 3, 6, 9 and 12
        sample = clips[moment]
        assert sample["video"] == 0
        assert sample["spatial"].shape == (10, 3, 24, 24)
        assert sample["temporal"].shape == (10, 8, 24, 24)
        corner = flow_stack(record, Clip("", start, 4), View((32, 40), 8, 16, 24, 24), form=FORM)
        np.testing.assert_array_equal(sample["temporal"][3], corner)
        np.testing.assert_array_equal(sample["temporal"][8], flip(corner))
        assert frame_number(sample["spatial"][0]) == 3 * moment
    assert clips[5]["video"] == 1
    with pytest.raises(IndexError):
        clips[10]


def test_center_view_is_the_fifth_of_ten(split, folder):
    options = {"inputs": {"temporal": FORM}, "moments": 3, "crop": 24, "short_side": 32}
    ten = TestClips(split, folder, **options)
    center = TestClips(split, folder, views="center", **options)
    assert torch.equal(center[1]["temporal"], ten[1]["temporal"][4:5])


def test_paper_default_is_25_moments_of_ten_224_crops(split, folder):
    clips = TestClips(split, folder)
    assert len(clips) == 50
    assert clips[24]["temporal"].shape == (10, 20, 224, 224)


def test_videos_without_a_record_are_an_error_or_counted(split, folder):
    videos = (*split.train, Video("run/zzz", "run", "zzz"))
    more = Split("more", split.classes, videos, (), ())
    with pytest.raises(SplitError, match="no flow record: run/zzz"):
        training(more, folder)
    clips = training(more, folder, missing="skip")
    assert clips.skipped == 1 and len(clips.videos) == 4


def test_what_records_lack_is_found_before_training(split, folder, tmp_path):
    fields = np.zeros((6, 32, 40, 2), np.float32)
    videos = (Video("run/a", "run", "a"),)
    one = Split("one", ("run",), videos, (), ())
    write_record(tmp_path, "run/a", fields)
    with pytest.raises(RecordError, match="this record holds none: flowkit extract --rgb"):
        training(one, RecordFolder(tmp_path), inputs=BOTH)
    with pytest.raises(RecordError, match=r"backward .*flowkit extract --backward"):
        training(one, RecordFolder(tmp_path), inputs={"temporal": StackForm(4, bidirectional=True)})
    with pytest.raises(RecordError, match=r"step 2.*: flowkit extract --step 1 --step 2 makes"):
        training(one, RecordFolder(tmp_path), inputs={"temporal": StackForm(4, step=2)})


def test_requests_that_cannot_be_are_refused(split, folder):
    with pytest.raises(UsageError, match="streams of spatial and temporal, got rgb"):
        training(split, folder, inputs={"rgb": None})
    with pytest.raises(UsageError, match="views ten or center"):
        TestClips(split, folder, views="all")
    with pytest.raises(SplitError, match="part heldout, got none"):
        training(split, folder, part="heldout")
