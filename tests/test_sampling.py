"""Sampling: which frames are taken, by exact arithmetic, and what a record of them says."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from command import run_here
from made_videos import moving_texture, write_video

from flowkit.data.stacks import StackForm
from flowkit.errors import RecordError, UsageError, VideoError
from flowkit.evaluation.held_records import Looks, video_request
from flowkit.extraction.extract import extract_video
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.networks.checkpoints import Checkpoint
from flowkit.records.layout import Storage
from flowkit.records.reading import common_flow, flow_of, open_record
from flowkit.video.sampling import Sampling
from flowkit.video.sources import Source

DIS = make_method("dis")
COUNT = 300


def taken(sampling, fps=25.0, count=COUNT):
    video = SimpleNamespace(path="v.mp4", fps=fps, frames=lambda any_size: iter(range(count)))
    return list(sampling.frames(video))


@pytest.mark.parametrize(("source", "wanted"), [(25, 5), (30, 12), (25, 25), (24, 23), (25, 1)])
def test_a_rate_takes_the_first_frame_at_or_after_each_of_its_times(source, wanted):
    times = [Fraction(k, wanted) for k in range(COUNT)]
    expected = [-(-time * source // 1) for time in times]
    assert taken(Sampling(fps=wanted), source) == [k for k in expected if k < COUNT]


def test_a_rate_of_ntsc_keeps_its_count_over_time():
    found = taken(Sampling(fps=10.0), 30000 / 1001, 30_000)
    assert len(found) == 10010  # 1,001 s
    assert set(np.diff(found)) == {2, 3}


def test_every_kth_frame_and_from_to():
    assert taken(Sampling()) == list(range(COUNT))
    assert taken(Sampling(every=7)) == list(range(0, COUNT, 7))
    assert taken(Sampling(start_s=1, stop_s=2)) == list(range(25, 50))
    assert taken(Sampling(start_s=1.01, stop_s=1.09)) == [26, 27]
    assert taken(Sampling(every=10, start_s=1)) == list(range(25, COUNT, 10))
    assert taken(Sampling(fps=5, start_s=2, stop_s=3)) == list(range(50, 75, 5))
    assert taken(Sampling(every=3), None) == list(range(0, COUNT, 3))  # needs no rate


def test_what_cannot_be_taken_is_one_line():
    for sampling, fps, message in (
        (Sampling(fps=30), 25.0, "at least 30 frames/s, it has 25"),
        (Sampling(fps=5), None, "states no frame rate"),
        (Sampling(start_s=1), None, "states no frame rate"),
        (Sampling(start_s=20), 25.0, "from 20 s on, but the video ends at 12 s"),
    ):
        with pytest.raises(VideoError, match=message):
            taken(sampling, fps)
    for options, message in (
        ({"every": 2, "fps": 5}, "give one"),
        ({"every": 0}, "every 1st"),
        ({"fps": 0}, "above 0 frames/s"),
        ({"start_s": 2, "stop_s": 2}, "from 2 to 2 s"),
    ):
        with pytest.raises(UsageError, match=message):
            Sampling(**options)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return Source(write_video(path, moving_texture(20)), "a")


def extracted(video, out, **options):
    extract_video(video, out, Request(DIS, storage=Storage(format="npy"), **options))
    return open_record(out / "a")


def test_a_record_holds_the_frames_taken_and_the_flow_between_them(video, tmp_path):
    whole = extracted(video, tmp_path / "whole", steps=(3,))
    third = extracted(video, tmp_path / "third", sampling=Sampling(every=3))
    assert third.frame_count == 7
    for k in range(7):
        np.testing.assert_array_equal(third.frame(k), whole.frame(3 * k))
    for k in range(6):  # the field from frame 3 k to 3 k + 3
        np.testing.assert_array_equal(third.fields(k, 1), whole.fields(3 * k, 1))
    assert third.fps == pytest.approx(whole.fps / 3)
    assert third.sidecar["request"]["sampling"] == {"every": 3}
    assert third.sidecar["source"]["fps"] == whole.fps
    assert "sampling" not in whole.sidecar["request"]


def test_records_of_other_intervals_are_not_mixed_but_those_of_other_times_are(video, tmp_path):
    whole = extracted(video, tmp_path / "whole")
    part = extracted(video, tmp_path / "part", sampling=Sampling(stop_s=0.4))
    second = extracted(video, tmp_path / "second", sampling=Sampling(every=2))
    common_flow([whole, part])
    with pytest.raises(RecordError, match="sampling"):
        common_flow([whole, second])


def test_a_prediction_looks_at_the_frames_taken(video, tmp_path):
    record = extracted(video, tmp_path, sampling=Sampling(every=2, stop_s=60))
    trained = Checkpoint(
        1, "small", {"temporal": StackForm(2)}, 0.5, {"main": ("a",)}, 36, 32, flow_of(record)
    )
    request = video_request([trained])
    assert request.sampling == Sampling(every=2)  # of whole videos
    held = Looks(request, (), whole=True).hold(video.path)
    assert (held.frame_count, held.fps) == (record.frame_count, record.fps)
    np.testing.assert_array_equal(held.fields(0, 9), record.fields(0, 9))


def test_the_command_takes_times_and_tells_records_apart(video, tmp_path):
    def run(*options):
        arguments = ("extract", video.path, "--method", "dis", "-j", 1, *options)
        return run_here(*arguments, cwd=tmp_path)

    assert run("--from", "0:00.2", "--to", "0:00:00.6").returncode == 0
    fps = open_record(tmp_path / "flow/a").fps
    assert open_record(tmp_path / "flow/a").frame_count == round(0.4 * fps)
    done = run("--every", 2)
    assert done.returncode == 2 and b"sampling" in done.stderr
    done = run("--from", "soon")
    assert done.returncode == 2 and b"--from: expected seconds, MM:SS" in done.stderr
    done = run("--fps", 100, "--out", "b")
    assert done.returncode == 1 and b"expected at least 100 frames/s, it has" in done.stderr
