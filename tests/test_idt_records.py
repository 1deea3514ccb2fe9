"""Track records and `flowkit trajectories`: the same bytes however made, and no fault spreads."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from made_tracks import write_clips
from made_videos import moving_texture, write_video

from flowkit.errors import RecordError, UsageError
from flowkit.idt.extraction import TrackRequest, extract_video_tracks, plan_tracks
from flowkit.idt.parameters import TrackParameters
from flowkit.idt.records import TrackWriter, find_tracks, open_tracks, record_path
from flowkit.idt.tracking import track_dtype, track_frames, track_video
from flowkit.records.unfinished import DEAD_S
from flowkit_cli.main import cli

STILL = TrackParameters(matches="none")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def run(*arguments):
    return CliRunner().invoke(cli, ["trajectories", *map(str, arguments)])


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """What one worker writes for the clips, with text: {path: bytes}, and the folder."""
    out = tmp_path_factory.mktemp("made") / "tracks"
    result = run(clips, "--out", out, "--matches", "none", "--text", "-j", 1)
    assert result.exit_code == 0, result.output
    return contents(out), out


def test_a_record_holds_what_the_generator_gives(made, clips):
    _, out = made
    record = open_tracks(out / "left/v_left_g01_c01.npz")
    given = np.concatenate(list(track_video(clips / "left/v_left_g01_c01.avi", STILL)))
    assert record.count == len(given) > 0
    stored = record.tracks()
    for name in ("frame", "mean", "deviation", "length", "scale", "travel"):
        assert np.array_equal(stored[name], given[name])
    for name in ("trajectory", "hog", "hof", "mbhx", "mbhy"):
        assert stored[name].dtype == np.float16
        assert np.array_equal(stored[name], given[name].astype(np.float16))
    assert record.header["request"]["parameters"]["matches"] == "none"
    assert (record.header["frames"], record.header["size"]) == (18, [64, 80])
    assert len(record.header["source"]["sha256"]) == 64


def test_the_text_has_the_authors_columns(made):
    _, out = made
    record = open_tracks(out / "left/v_left_g01_c01.npz")
    lines = (out / "left/v_left_g01_c01.txt").read_text().splitlines(keepends=True)
    assert len(lines) == record.count
    assert all(line.endswith("\t\n") and line.count("\t") == 436 for line in lines)
    first = [float(word) for word in lines[0].split()]
    track = record.tracks()[0]
    x, y = track["mean"].tolist()
    assert first[:3] == [15, pytest.approx(x, abs=1e-6), pytest.approx(y, abs=1e-6)]
    assert first[7:10] == pytest.approx([x / 80, y / 64, 7.5 / 18], abs=1e-6)
    descriptors = np.concatenate([track[name] for name in ("hog", "hof", "mbhx", "mbhy")])
    assert np.allclose(first[40:], descriptors, atol=1e-3)


def test_a_track_takes_less_than_900_bytes():
    assert track_dtype(TrackParameters(), np.dtype(np.float16)).itemsize < 900


@pytest.mark.slow
def test_again_and_with_more_workers_the_same_bytes(made, clips, tmp_path):
    expected, _ = made
    for workers in (1, 3):
        out = tmp_path / str(workers)
        run(clips, "--out", out, "--matches", "none", "--text", "-j", workers)
        assert contents(out) == expected


@pytest.mark.slow
def test_killed_and_resumed_the_same_bytes(made, clips, tmp_path):
    expected, _ = made
    out = tmp_path / "tracks"
    command = [sys.executable, "-m", "flowkit_cli", "trajectories", str(clips), "--out", str(out)]
    command += ["--matches", "none", "--text", "-j", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for lock in out.glob(".incomplete/*/lock"):
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # its worker, too, has ended
        os.utime(lock, (0, time.time() - DEAD_S - 1))  # else the next run leaves its folder alone
    there = set(contents(out))
    assert 0 < len([name for name in there if name.endswith(".npz")]) < 3
    result = run(clips, "--out", out, "--matches", "none", "--text", "-j", 1)
    assert result.exit_code == 0 and "there already" in result.output
    assert contents(out) == expected


def test_a_rerun_does_nothing_and_other_numbers_are_an_error_before_any_work(made, clips):
    expected, out = made
    result = run(clips, "--out", out, "--matches", "none", "--text", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["status"] for event in events] == ["skipped"] * 3 + ["summary"]
    result = run(clips, "--out", out)
    assert isinstance(result.exception, UsageError)
    assert '"none" on disk, "flow" asked for (3 of them' in str(result.exception)
    assert contents(out) == expected


def test_a_damaged_a_short_and_a_small_video_cost_themselves_only(clips, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    good = (clips / "left/v_left_g01_c01.avi").read_bytes()
    (videos / "good.avi").write_bytes(good)
    (videos / "cut.avi").write_bytes(good[: len(good) // 2])
    (videos / "text.avi").write_text("no video")
    write_video(
        videos / "short.avi", moving_texture(15, size=(64, 80)), "ffv1", pixel_format="bgr0"
    )
    write_video(
        videos / "small.avi", moving_texture(17, size=(24, 80)), "ffv1", pixel_format="bgr0"
    )
    still = moving_texture(1, size=(64, 80)) * 20
    write_video(videos / "still.avi", still, "ffv1", pixel_format="bgr0")
    failures = tmp_path / "failures.txt"
    out = tmp_path / "tracks"
    result = run(videos, "--out", out, "--matches", "none", "--failures", failures, "-j", 2)
    assert result.exit_code == 1
    told = dict(line.split("\t") for line in failures.read_text().splitlines())
    assert {path.rpartition("/")[2] for path in told} == {"cut.avi", "text.avi", "small.avi"}
    assert "at least 32 px a side" in told[str(videos / "small.avi")]
    assert "15 frames, a track needs 16" in result.output
    assert set(find_tracks(out)) == {"good", "short", "still"}
    assert open_tracks(out / "short.npz").count == open_tracks(out / "still.npz").count == 0
    assert open_tracks(out / "good.npz").count > 0
    assert not (out / ".incomplete").exists()


def test_what_flowkit_did_not_make_is_not_replaced(clips, tmp_path):
    out = tmp_path / "tracks"
    for name in ("left/v_left_g01_c01.npz", "left/v_left_g01_c01.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine, 1 2 3")
        result = run(clips, "--out", out, "--text", "--overwrite")
        assert isinstance(result.exception, UsageError)
        assert "not written by flowkit" in str(result.exception) and name in str(result.exception)
        assert (out / name).read_text() == "mine, 1 2 3"
        (out / name).unlink()


def test_a_text_asked_for_later_is_an_error_that_says_so(made, clips, tmp_path):
    out = tmp_path / "tracks"
    run(clips / "left", "--out", out, "--matches", "none", "-j", 1)
    result = run(clips / "left", "--out", out, "--matches", "none", "--text", "-j", 1)
    assert "no text beside it" in str(result.exception)
    again = run(clips / "left", "--out", out, "--matches", "none", "--text", "--overwrite", "-j", 1)
    assert again.exit_code == 0
    assert contents(out) == {
        name.removeprefix("left/"): data
        for name, data in made[0].items() if name.startswith("left/")
    }  # fmt: skip


def test_boxes_are_part_of_the_request_and_frames_past_the_end_an_error(clips, tmp_path):
    boxes = tmp_path / "people.bb"
    boxes.write_text("3 0 0 20 20 0.9\n")
    video = clips / "left/v_left_g01_c01.avi"
    out = tmp_path / "tracks"
    assert run(video, "--out", out, "--boxes", boxes).exit_code == 0
    assert run(video, "--out", out, "--boxes", boxes).exit_code == 0
    result = run(video, "--out", out)
    assert "boxes:" in str(result.exception)
    boxes.write_text("18 0 0 20 20 0.9\n")
    result = run(video, "--out", tmp_path / "others", "--boxes", boxes)
    assert result.exit_code == 1 and "boxes are given of frame 18" in result.output
    result = run(clips, "--out", tmp_path / "others", "--boxes", tmp_path)
    assert "v_down_g01_c01.bb, which is not there" in str(result.exception)
    result = run(clips, "--out", tmp_path / "others", "--boxes", boxes)
    assert "is of one video, got 3" in str(result.exception)


def test_a_writer_that_is_left_by_an_error_leaves_nothing(tmp_path):
    tracks = np.concatenate(list(track_frames(moving_texture(17, size=(64, 80)), STILL)))
    with (
        pytest.raises(ZeroDivisionError),
        TrackWriter(tmp_path, "a", STILL, float32=True, text=True) as writer,
    ):
        writer.add(tracks)
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_single_precision_is_kept_where_asked(clips, tmp_path):
    from flowkit.video.sources import Source

    source = Source(clips / "left/v_left_g01_c01.avi", "a")
    request = TrackRequest(STILL, float32=True)
    assert plan_tracks([source], tmp_path, request) == [source]
    extract_video_tracks(source, tmp_path, request)
    assert plan_tracks([source], tmp_path, request) == []
    given = np.concatenate(list(track_video(source.path, STILL)))
    assert np.array_equal(open_tracks(record_path(tmp_path, "a")).tracks(), given)


def test_what_is_no_record_is_refused_in_a_line(tmp_path, made):
    path = tmp_path / "a.npz"
    with pytest.raises(RecordError, match="flowkit trajectories makes them"):
        open_tracks(path)
    whole = (made[1] / "left/v_left_g01_c01.npz").read_bytes()
    np.savez(tmp_path / "other.npz", scores=np.zeros(3))
    other = (tmp_path / "other.npz").read_bytes()
    for data in (b"", b"no zip", whole[: len(whole) // 2], other):
        path.write_bytes(data)
        with pytest.raises(RecordError, match=r"a\.npz: (cannot be read|expected a track)"):
            open_tracks(path)
    damaged = bytearray(whole)
    at = whole.index(b"hog.npy") + 4000
    damaged[at] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(RecordError, match="cannot be read"):
        open_tracks(path).column("hog")
    with pytest.raises(RecordError, match="no track records there"):
        find_tracks(tmp_path / "nowhere")


def test_tracks_are_drawn_where_the_texture_went(made, clips, tmp_path):
    from flowkit.idt.drawing import HEAD, draw_tracks, paths

    record = open_tracks(made[1] / "left/v_left_g01_c01.npz")
    tracks = record.tracks()
    steps = np.diff(paths(tracks), axis=1)
    assert np.allclose(np.median(steps, axis=(0, 1)), (-2, 0), atol=0.05)
    assert np.allclose(paths(tracks).mean(axis=1), tracks["mean"], atol=1e-3)
    blank = [np.zeros((64, 80, 3), np.uint8)] * 18
    pictures = list(draw_tracks(blank, tracks[:1]))
    assert [bool(picture.any()) for picture in pictures] == [True] * 16 + [False] * 2
    y, x = np.argwhere((pictures[15] == HEAD).all(axis=2)).mean(axis=0)
    assert np.allclose((x, y), paths(tracks[:1])[0, -1], atol=1)
    video = clips / "left/v_left_g01_c01.avi"
    command = ["view", str(record.path), "--out", str(tmp_path / "a.mp4")]
    result = CliRunner().invoke(cli, [*command, "--video", str(video)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.mp4").stat().st_size > 1000


def test_a_view_of_tracks_needs_their_video(made, clips, tmp_path):
    record = made[1] / "left/v_left_g01_c01.npz"
    out = tmp_path / "a.mp4"
    other = write_video(tmp_path / "other.avi", moving_texture(17, size=(64, 80)), "ffv1")
    small = write_video(tmp_path / "small.avi", moving_texture(18, size=(64, 64)), "ffv1")
    video = clips / "left/v_left_g01_c01.avi"
    for arguments, words in (
        (["--out", out], "give the video (v_left_g01_c01.avi)"),
        (["--out", out, "--video", other], "it has 17 frames"),
        (["--out", out, "--video", small], "its frames are (64, 64)"),
        (["--out", tmp_path / "a.png", "--video", video], "ends in .mp4"),
    ):
        result = CliRunner().invoke(cli, ["view", str(record), *map(str, arguments)])
        assert words in str(result.exception)
        assert not out.exists()
