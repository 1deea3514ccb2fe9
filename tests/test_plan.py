"""`flowkit plan`: what it foretells beside what an extraction then takes."""

import json

import pytest
from command import run_here
from made_videos import moving_texture, write_images, write_video

from flowkit.errors import UsageError, VideoError
from flowkit.extraction import forecast as module
from flowkit.extraction.forecast import MethodCost, forecast
from flowkit.flow.stabilized import StabilizedFlow
from flowkit.video.sources import find_videos


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.02)


@pytest.fixture
def videos(tmp_path):
    """Four videos of 9, 10, 11 and 12 frames, and a folder of 8 images."""
    for number in range(4):
        path = tmp_path / "videos" / f"{number}.avi"
        path.parent.mkdir(exist_ok=True)
        write_video(path, moving_texture(9 + number, seed=number))
    write_images(tmp_path / "videos" / "images", moving_texture(8))
    return tmp_path


def planned(videos, *options):
    done = run_here("plan", *options, "--method", "dis", "--json", cwd=videos)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("format", ["jpg", "lz4", pytest.param("flo", marks=pytest.mark.slow)])
def test_files_are_those_of_the_extraction_and_bytes_nearly(videos, format):
    plan = planned(videos, "videos")
    told = next(one for one in plan["formats"] if one["format"] == format)
    for frames, rgb in (("", "--no-rgb"), ("_with_frames", "--rgb")):
        out = f"flow{frames}"
        extract = ("extract", "videos", "--method", "dis", "--out", out, "-j", "2")
        assert run_here(*extract, rgb, "--format", format, cwd=videos).returncode == 0
        files = [path for path in (videos / out).rglob("*") if path.is_file()]
        assert told[f"files{frames}"] == len(files)
        size = sum(path.stat().st_size for path in files) / 1e9
        assert told[f"gigabytes{frames}"] == pytest.approx(size, rel=0.15, abs=0.0005)


def test_frames_are_counted_without_decoding_them(videos):
    plan = planned(videos, "videos")
    assert (plan["videos"], plan["frames"]) == (5, 9 + 10 + 11 + 12 + 8)
    assert (plan["counted_videos"], plan["size"], plan["measured"]["made"]) == (5, [96, 72], False)


def test_an_amount_that_is_told_counts(videos):
    options = ("--videos", "13320", "--frames-per-video", "186", "--size", "48x32")
    for inputs in ((), ("videos",)):
        plan = planned(videos, *inputs, *options)
        assert (plan["videos"], plan["frames"]) == (13_320, 13_320 * 186)
        assert (plan["counted_videos"], plan["size"]) == (0, [48, 32])
        assert plan["measured"]["made"] is not bool(inputs)
        jpg = plan["formats"][0]
        assert jpg["files"] == 13_320 * (2 * 185 + 1) and jpg["files_packed"] == 13_320
        assert jpg["files_with_frames"] == jpg["files"] + 13_320 * 186


def test_twice_the_workers_take_half_the_hours_but_a_gpu_is_one():
    cpu = MethodCost("tvl1", "cpu", flow_s=0.03, rest_s=0.01)
    assert cpu.hours(3600 * 100, 1) == pytest.approx(4)
    assert cpu.hours(3600 * 100, 8) == pytest.approx(0.5)
    gpu = MethodCost("tvl1-cuda", "cuda", flow_s=0.001, rest_s=0.01)
    assert gpu.hours(3600 * 1000, 5) == pytest.approx(2)
    assert gpu.hours(3600 * 1000, 1000) == pytest.approx(1)


def test_text_names_videos_methods_and_formats(videos):
    done = run_here("plan", "videos", "--method", "dis", "--workers", "1000", cwd=videos)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "5 videos, 50 frames of 96x72, counted in 5 videos"
    assert lines[1].endswith(" of them") and not lines[2]
    assert "1,000 workers" in done.stdout.decode() and "with --pack 5 files" in lines[-1]
    assert [line.split()[0] for line in lines if line][2:-1] == [
        *("method", "dis", "format"),
        *("jpg", "png", "lz4", "npy", "flo"),
    ]


def test_a_video_that_cannot_be_read_is_passed_over(videos):
    (videos / "videos" / "a.avi").write_bytes(b"no video")
    plan = planned(videos, "videos")
    assert (plan["videos"], plan["frames"], plan["unreadable_videos"]) == (6, 50, 1)


def test_a_video_of_one_frame_is_not_measured_but_another_one_is(videos):
    write_video(videos / "videos" / "+first.avi", moving_texture(1))
    plan = planned(videos, "videos")
    assert (plan["videos"], plan["frames"]) == (6, 51)


def test_a_method_that_cannot_compute_here_says_why():
    methods = ("dis", "tvl1-opencv-cuda")  # OpenCV from a package index has no CUDA
    dis, cuda = forecast((), methods, videos=1, frames_per_video=3, resize="32x32").methods
    assert not dis.error and dis.flow_s > 0
    assert "CUDA" in cuda.error and cuda.flow_s == 0


def test_flow_less_the_cameras_motion_is_measured_as_such(videos, monkeypatch):
    asked = []
    compute = StabilizedFlow.fields
    monkeypatch.setattr(
        StabilizedFlow, "fields", lambda self, pairs: asked.append(1) or compute(self, pairs)
    )
    planned(videos, "videos", "--method", "dis")
    assert not asked
    planned(videos, "videos", "--method", "dis", "--stabilize", "homography")
    assert asked
    done = run_here("plan", "videos", "--matches", "flow", cwd=videos)
    assert done.returncode == 2 and b"goes with --stabilize" in done.stderr


@pytest.mark.parametrize("options", [(), ("--videos", "3"), ("--frames-per-video", "3")])
def test_without_inputs_the_amount_has_to_be_told(options, tmp_path):
    done = run_here("plan", *options, cwd=tmp_path)
    assert done.returncode == 2 and b"--videos and --frames-per-video" in done.stderr


def test_videos_none_of_which_can_be_read_are_refused(tmp_path):
    (tmp_path / "a.avi").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"a\.avi: expected a video"):
        forecast(find_videos([tmp_path]).sources, ["dis"])


def test_without_videos_there_is_nothing_to_plan():
    with pytest.raises(UsageError, match="expected videos, or their number"):
        forecast((), ["dis"])
