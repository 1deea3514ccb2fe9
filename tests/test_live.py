"""Live streams: predicted window by window as they come, by live protocols alone, to their end."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import run_here
from made_runs import write_run
from made_streams import http_stream, piece_by_piece, rtsp_stream
from made_videos import moving_texture, write_video
from pool_tasks import CrashingLooks, count_forever, die, fail, raise_absent
from test_timeline import DIS, SIZE, predictor

from flowkit.data.stacks import StackForm
from flowkit.errors import FlowkitError, UsageError, VideoError
from flowkit.evaluation.held_windows import Spans
from flowkit.evaluation.prediction import Prediction
from flowkit.evaluation.timeline import Window, predict_live, predict_windows
from flowkit.extraction.extract import extract_video
from flowkit.extraction.request import Request
from flowkit.records.reading import flow_of, open_record
from flowkit.video.live import check_address, open_live, shown_address
from flowkit.video.reading import open_video
from flowkit.video.sources import Source
from flowkit.workers.signals import Stopped
from flowkit.workers.streamed import stream_from_child
from flowkit_cli.timeline import tell_live

FRAMES, RATE = 60, 25


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    place = tmp_path_factory.mktemp("video") / "a.ts"
    return write_video(place, moving_texture(FRAMES, size=SIZE), "mpeg2video", rate=RATE)


@pytest.fixture
def runs(tmp_path, video):
    extract_video(Source(video, "a"), tmp_path, Request(DIS))
    flow = flow_of(open_record(tmp_path / "a"))
    write_run(tmp_path / "runs/temporal", form=StackForm(2), flow=flow)
    return tmp_path / "runs"


def frames_of(address, **options):
    stream, findings = open_live(address, **options)
    with stream:
        return list(stream.frames()), findings.problem


def playlist(*names):
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:4"]
    lines += [line for name in names for line in ("#EXTINF:4.0,", name)]
    return piece_by_piece("\n".join([*lines, "#EXT-X-ENDLIST", ""]).encode())


def test_frames_over_http_hls_and_rtsp_are_those_of_the_file(video):
    data = video.read_bytes()
    expected = list(open_video(video).frames())
    with (
        http_stream({"/a.ts": piece_by_piece(data), "/a.m3u8": playlist("a.ts")}) as web,
        rtsp_stream(piece_by_piece(data)) as camera,
    ):
        for address in (f"{web}/a.ts", f"{web}/a.m3u8?key=1", camera):
            frames, problem = frames_of(address, stall_s=5)
            assert problem == "" and len(frames) >= FRAMES - 1  # the last RTP packet has no next
            assert all((a == b).all() for a, b in zip(frames, expected, strict=False))


def test_a_stream_that_stalls_gives_what_came_and_says_so(video):
    with http_stream({"/a.ts": piece_by_piece(video.read_bytes(), then_s=20)}) as web:
        start = time.monotonic()
        frames, problem = frames_of(f"{web}/a.ts", stall_s=1)
        assert time.monotonic() - start < 15
    assert len(frames) == FRAMES and problem == "nothing came for 1 s"


def test_what_is_lost_on_the_way_does_not_end_a_stream(video):
    data = video.read_bytes()
    holed = data[: len(data) // 3] + b"junk" * 500 + data[len(data) // 2 :]
    with http_stream({"/a.ts": piece_by_piece(holed)}) as web:
        frames, problem = frames_of(f"{web}/a.ts")
    assert not problem and FRAMES // 2 < len(frames) < FRAMES


@pytest.mark.parametrize("place", ["file://{video}", "{video}", "concat:{video}", "sub.m3u8"])
def test_a_playlist_of_the_web_names_no_files(video, place):
    places = {
        "/a.m3u8": playlist(place.format(video=video)),
        "/sub.m3u8": playlist(f"file://{video}"),
    }
    with http_stream(places) as web, pytest.raises(VideoError, match="stream cannot be opened"):
        frames_of(f"{web}/a.m3u8", stall_s=1)


@pytest.mark.parametrize(
    "address",
    ["a.mp4", "/etc/passwd", "file:///a.ts", "concat:a|b", "s3://a/b", "srt://a", "http:a"],
)
def test_addresses_of_live_protocols_alone_are_taken(address):
    with pytest.raises(UsageError, match=r"address of a live stream .*rtsp://"):
        open_live(address)


def test_files_name_no_streams(video, tmp_path):
    """What --live may open, a video, by whatever name, still may not."""
    with http_stream({"/a.ts": piece_by_piece(video.read_bytes())}) as web:
        for name, text in (
            ("a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\n{web}/a.ts\n"),
            ("a.mp4", f"ffconcat version 1.0\nfile {web}/a.ts\n"),
        ):
            (tmp_path / name).write_text(text)
            with pytest.raises(VideoError, match="expected a"):
                open_video(tmp_path / name)
        with pytest.raises(VideoError, match="found neither"):
            open_video(f"{web}/a.ts")


def test_what_may_be_a_secret_in_an_address_is_not_shown():
    address = "rtsp://user:word@host:554/a?token=secret"
    assert check_address(address) == "rtsp"
    assert shown_address(address) == "rtsp://host:554/a"
    with pytest.raises(VideoError) as error:
        open_live("http://user:word@127.0.0.1:1/a?token=secret", stall_s=1)
    assert str(error.value) == (
        "http://127.0.0.1:1/a: the stream cannot be opened: Connection refused"
    )


def test_windows_of_a_stream_are_those_of_the_file(runs, video):
    one, spans = predictor(runs, "temporal"), Spans(1.0, 0.5)
    expected = [(w.start_s, w.end_s, w.found.top(9)) for w in predict_windows(one, video, spans)]
    with http_stream({"/a.ts": piece_by_piece(video.read_bytes())}) as web:
        found = predict_live(one, f"{web}/a.ts", spans)
        assert [(w.start_s, w.end_s, w.found.top(9)) for w in found] == expected


def predict(runs, *options):
    return run_here("predict", "--moments", 2, "--window", 1, *options, cwd=runs.parent)


@pytest.mark.slow
def test_the_command_tells_windows_as_lines_and_keeps_what_was_seen(runs, video):
    places = {"/a.ts": piece_by_piece(video.read_bytes(), then_s=20)}
    with http_stream(places) as web:
        done = predict(runs, "--live", f"{web}/a.ts", "--stall", 1)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(one["start_s"], one["end_s"]) for one in told] == [
            (0, 1), (0.48, 1.48), (0.96, 1.96), (1.4, 2.4)
        ]  # fmt: skip
        assert sum(told[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert done.returncode == 1
        assert b"/a.ts: the stream ended: nothing came for 1 s" in done.stderr.splitlines()[-1]
        done = predict(runs, "--live", f"{web}/a.ts", "--stall", 1, "--timeline", "a.jsonl")
    assert done.returncode == 1 and b" to " in done.stdout
    written = (runs.parent / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == told


@pytest.mark.slow  # torch is imported by a command of its own
def test_windows_come_while_the_stream_goes_on_until_ctrl_c(runs, video):
    data = video.read_bytes()
    endless = (part for _ in itertools.count() for part in piece_by_piece(data, seconds=2)())
    with http_stream({"/a.ts": lambda: endless}) as web:
        command = [sys.executable, "-m", "flowkit_cli", "predict", "--live", f"{web}/a.ts"]
        command += ["--window", "1", "--moments", "2"]
        run = subprocess.Popen(
            command, cwd=runs.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert json.loads(run.stdout.readline())["start_s"] == 0
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and err.splitlines()[-1] == "flowkit: stopped by SIGINT"


@pytest.mark.parametrize("error", [Stopped(signal.SIGINT), VideoError("the stream ended")])
def test_what_was_seen_is_written_however_a_stream_ends(tmp_path, monkeypatch, capsys, error):
    def windows(*_, **__):
        for start in (0, 1):
            found = Prediction(("a", "b"), np.array([0.75, 0.25]), {}, 20)
            yield Window(start, start + 2, found, None)
        raise error

    monkeypatch.setattr("flowkit.evaluation.timeline.predict_live", windows)
    place = tmp_path / "a.csv"
    one = SimpleNamespace(classes=("a", "b"))
    with pytest.raises(type(error)):
        tell_live(one, "rtsp://u:p@host/a", Spans(), place, 9.0, as_json=False)
    assert place.read_text().splitlines() == [
        "start_s,end_s,a,b", "0,2,0.750000,0.250000", "1,3,0.750000,0.250000"
    ]  # fmt: skip
    assert capsys.readouterr() == (
        "rtsp://host/a: 0.00 to 3.00 s: a 75.0%\n", f"wrote {place}\n"
    )  # fmt: skip


def test_options_that_do_not_go_with_live_are_refused(runs, video):
    for options, words in (
        ([video, "--live", "rtsp://a/b"], "--live goes with no VIDEO"),
        (["--live", "rtsp://a/b", "--out", "a.mp4"], "--live goes with no --out"),
        (["--live", "a.mp4"], "address of a live stream"),
        ([], "VIDEO"),
    ):
        done = predict(runs, *options)
        assert done.returncode == 2 and words in done.stderr.decode(), options


# --- what comes from a child ----------------------------------------------------------------------


def test_a_child_waits_until_its_values_are_taken(tmp_path):
    """Of values of 1 MB, some are in the pipe: far fewer than it could make meanwhile."""
    values = stream_from_child(count_forever, tmp_path / "made")
    assert len(next(values)) == 1 << 20
    time.sleep(1)
    made = int((tmp_path / "made").read_text())
    time.sleep(0.5)
    assert made == int((tmp_path / "made").read_text()) <= 3
    values.close()


def test_what_goes_wrong_in_a_child_is_one_error():
    with pytest.raises(FlowkitError, match=r"worker died by SIGKILL \(signal 9\)"):
        list(stream_from_child(die, 2))
    with pytest.raises(FlowkitError, match="ZeroDivisionError: "):
        list(stream_from_child(fail))
    with pytest.raises(VideoError, match="gone") as error:
        list(stream_from_child(raise_absent))
    assert error.value.absent


def test_the_child_of_a_timeline_does_not_import_torch():
    """A child that did would hold half a gigabyte more, and start seconds later."""
    code = "import sys, flowkit.evaluation.held_windows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_decoder_that_crashes_costs_its_video(tmp_path):
    one = SimpleNamespace(looks=CrashingLooks())
    with pytest.raises(VideoError, match=r"a\.mp4: worker died by SIGKILL"):
        list(predict_windows(one, Path("a.mp4"), Spans()))
