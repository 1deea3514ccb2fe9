"""Synthetic videos: real files whose motion is the one that is told."""

import dataclasses

import av
import numpy as np
import pytest

from flowkit._cv2 import cv2
from flowkit.errors import UsageError
from flowkit.fields import end_point_error
from flowkit.synthetic import CLASSES, FRAME_COUNTS, GROWTHS, SIZES, SPEEDS, write_videos
from flowkit.video.writing import write_video


def decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


# One class of each motion; both textures are among them.
SOME = ("up_stripes", "down_checks", "sideways_stripes", "spin_checks", "grow_stripes")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return write_videos(folder, videos_per_class=4, seed=3, classes=SOME)


@pytest.mark.slow
def test_every_class_has_its_videos_in_its_folder(tmp_path):
    videos = write_videos(tmp_path, videos_per_class=4, seed=3)
    assert [video.class_name for video in videos] == [name for name in CLASSES for _ in range(4)]
    for video in videos:
        assert video.path.is_file()
        assert video.path.parent.name == video.class_name
        assert video.path.stem == video.name
    names = [video.name.removeprefix("v_up_stripes_") for video in videos[:4]]
    assert names == ["g01_c01", "g01_c02", "g02_c01", "g02_c02"]


def test_files_are_of_several_kinds_alike_in_every_class(videos):
    kinds = {}
    for video in videos:
        with av.open(str(video.path)) as container:
            codec = container.streams.video[0].codec_context.name
            assert container.streams.video[0].average_rate == 25
        kinds.setdefault(video.class_name, []).append((video.path.suffix, codec))
    expected = [(".mp4", "h264"), (".avi", "mpeg4"), (".mp4", "mpeg4"), (".avi", "mjpeg")]
    assert all(kind == expected for kind in kinds.values())


def test_files_decode_to_the_frames_that_were_drawn(videos):
    for video in videos[::5]:
        decoded, drawn = decode(video.path), list(video.frames())
        assert len(decoded) == video.frame_count == len(drawn)
        assert FRAME_COUNTS[0] <= video.frame_count <= FRAME_COUNTS[1]
        assert video.size in SIZES
        for got, expected in zip(decoded, drawn, strict=True):
            assert got.shape == (*video.size, 3)
            assert np.abs(got.astype(float) - expected).mean() < 6  # compression


def test_motion_is_the_one_told_from_the_first_frame_to_the_last(videos):
    for video in videos:
        frames = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in decode(video.path)]
        truth = video.field()
        assert truth.shape == (*video.size, 2)
        assert truth.dtype == np.float32
        assert np.hypot(truth[..., 0], truth[..., 1]).mean() > 0.4
        for at in (0, len(frames) - 2):
            field = cv2.DISOpticalFlow_create(2).calc(frames[at], frames[at + 1], None)
            assert end_point_error(field, truth).mean() < 0.25, video


def test_directions_are_those_of_the_names(videos):
    fields = {}
    for video in videos:
        fields.setdefault(video.class_name.partition("_")[0], []).append(video.field())
    assert all((field[..., 1] < 0).all() and not field[..., 0].any() for field in fields["up"])
    assert all((field[..., 1] > 0).all() and not field[..., 0].any() for field in fields["down"])
    assert not any(field[..., 1].any() for field in fields["sideways"])
    assert {float(np.sign(field[0, 0, 0])) for field in fields["sideways"]} == {-1.0, 1.0}
    for field in fields["grow"]:  # outward in all corners
        assert (field[0, 0] < 0).all() and (field[-1, -1] > 0).all()
    turns = {float(np.sign(field[0, 0, 0])) for field in fields["spin"]}
    assert turns == {-1.0, 1.0}  # both senses
    for field in fields["spin"]:  # opposite corners move oppositely
        np.testing.assert_allclose(field[0, 0], -field[-1, -1], atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [
        (1, 0, SPEEDS[1], 0, 1, 0),
        pytest.param((1, 0, -SPEEDS[1], 0, 1, 0), marks=pytest.mark.slow),
        pytest.param((1, 0, 0, 0, 1, SPEEDS[1]), marks=pytest.mark.slow),
        (GROWTHS[1], 0, 0, 0, GROWTHS[1], 0),
        (0, -1, 0, 1, 0, 0),
    ],
    ids=["right", "left", "down", "grow", "quarter turns"],
)
def test_no_frame_shows_the_border_of_its_scene(videos, transform):
    # beyond its border there is black, and no scene has any; the largest, longest and fastest video
    longest = dataclasses.replace(
        videos[0], size=max(SIZES), frame_count=FRAME_COUNTS[1], transform=transform
    )
    assert min(frame.max(axis=2).min() for frame in longest.frames()) > 15


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path, videos):
    again = write_videos(tmp_path / "again", videos_per_class=4, seed=3, classes=["spin_checks"])
    first = [video for video in videos if video.class_name == "spin_checks"]
    assert [video.path.read_bytes() for video in again] == [
        video.path.read_bytes() for video in first
    ]
    (other, *_) = write_videos(
        tmp_path / "other", videos_per_class=1, seed=4, classes=["spin_checks"]
    )
    assert other.path.read_bytes() != first[0].path.read_bytes()


def test_refuses_classes_that_it_does_not_know(tmp_path):
    with pytest.raises(UsageError, match=r"expected classes among up_stripes, .*, got jump"):
        write_videos(tmp_path, classes=["jump"])


def test_refuses_to_write_no_videos(tmp_path):
    with pytest.raises(UsageError, match="at least one video per class, got 0"):
        write_videos(tmp_path, videos_per_class=0)


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("a:b.avi", [np.full((16, 32, 3), 128, np.uint8)] * 3, fps=29.97, codec="mjpeg")
    assert len(decode(tmp_path / "a:b.avi")) == 3
