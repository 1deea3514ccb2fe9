"""The timeline of a long video: each window as a video of its own, in bounded memory."""

import csv
import itertools
import json

import av
import numpy as np
import pytest
from command import run_here
from made_runs import write_run
from made_videos import moving_texture, write_video

from flowkit.data.frames import FrameForm
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError, VideoError
from flowkit.evaluation.held_windows import Spans, _Held
from flowkit.evaluation.prediction import Prediction, Predictor
from flowkit.evaluation.scoring import Scorer, TestViews
from flowkit.evaluation.timeline import Segment, Segments, Window, predict_windows
from flowkit.extraction.extract import extract_video
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.records.reading import flow_of, open_record
from flowkit.scores.fusion import Fusion
from flowkit.video.sources import Source

FRAMES, RATE, SIZE = 23, 10, (40, 48)
DIS = make_method("dis")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    frames = moving_texture(FRAMES, size=SIZE)
    folder = tmp_path_factory.mktemp("video")
    return write_video(folder / "a.mkv", frames, "ffv1", pixel_format="bgr0", rate=RATE)


@pytest.fixture(scope="module")
def record(video, tmp_path_factory):
    out = tmp_path_factory.mktemp("flow")
    extract_video(Source(video, "a"), out, Request(DIS))
    return open_record(out / "a")


@pytest.fixture
def runs(tmp_path, record):
    write_run(tmp_path / "runs/spatial", seed=1)
    write_run(tmp_path / "runs/rgb-diff", form=FrameForm(2, 1, "rgb-diff"), seed=2)
    flow = flow_of(record)
    write_run(tmp_path / "runs/temporal", form=StackForm(2), flow=flow)
    flow |= {"stabilize": {"name": "homography", "matches": "flow"}}
    write_run(tmp_path / "runs/stabilized", form=StackForm(2), flow=flow)
    return tmp_path / "runs"


def predictor(runs, *names):
    scorers = {name: Scorer(runs / name, views=TestViews(2, "center")) for name in names}
    return Predictor(scorers, Fusion("average") if len(names) > 1 else None)


def part_of(path, start, count, tmp_path):
    """A video, without loss, of some frames of another."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    place = tmp_path / f"{start}.mkv"
    return write_video(place, frames[start : start + count], "ffv1", pixel_format="bgr0", rate=RATE)


@pytest.mark.parametrize(
    "names",
    [
        *(pytest.param((one,), marks=pytest.mark.slow) for one in ("spatial", "temporal")),
        ("spatial", "temporal"),
        ("rgb-diff",),
        ("stabilized",),
    ],
)
def test_each_window_is_predicted_as_a_video_of_its_frames(runs, video, tmp_path, names):
    one = predictor(runs, *names)
    found = list(predict_windows(one, video, Spans(1.0, 0.5)))
    assert [(w.start_s, w.end_s) for w in found] == [(0, 1), (0.5, 1.5), (1, 2), (1.3, 2.3)]
    for window in found:
        start, count = round(window.start_s * RATE), round((window.end_s - window.start_s) * RATE)
        alone = one.predict(part_of(video, start, count, tmp_path))
        assert dict(window.found.top(9)) == pytest.approx(dict(alone.top(9)), abs=1e-6)


def test_a_video_shorter_than_a_window_is_one_and_one_of_a_frame_fails(runs, video, tmp_path):
    for name in ("temporal", "rgb-diff"):
        one = predictor(runs, name)
        [window] = predict_windows(one, video, Spans(60, 60))
        assert (window.start_s, window.end_s, window.record.frame_count) == (0, 2.3, FRAMES)
        with pytest.raises(VideoError, match="at least 2 frames, got 1"):
            list(predict_windows(one, part_of(video, 0, 1, tmp_path), Spans()))


def test_no_more_than_a_window_and_a_stride_is_held_however_long_the_video(runs, tmp_path):
    one = predictor(runs, "temporal")
    request = one.looks.request
    held = _Held(tmp_path / "a", request, SIZE, 10.0, request.series, 2)
    scenes = moving_texture(8, size=SIZE)
    most = 0
    starts = []
    for start, record in held.windows(itertools.islice(itertools.cycle(scenes), 400), 10, 5):
        assert record.frame_count == 10
        starts.append(start)
        most = max(most, len(held.images), *map(len, held.fields.values()))
    assert starts == list(range(0, 391, 5)) and most <= 10 + 5 + 1


def test_windows_that_leave_gaps_and_videos_without_a_rate_are_refused(runs, tmp_path):
    with pytest.raises(UsageError, match="at most their own length apart, got 2 s every 3 s"):
        Spans(2, 3)
    from made_videos import write_images

    folder = write_images(tmp_path / "frames", moving_texture(3, size=SIZE))
    with pytest.raises(VideoError, match="states no frame rate"):
        list(predict_windows(predictor(runs, "spatial"), folder, Spans()))


def test_windows_in_a_row_of_one_class_are_a_segment():
    segments, told = Segments(), []
    for start, name, chance in ((0, "a", 0.9), (1, "a", 0.7), (2, "b", 0.6), (3, "a", 1.0)):
        found = Prediction((name, "z"), np.array([chance, 1 - chance]), {}, 20)
        told.append(segments.add(Window(start, start + 2, found, None)))
    assert told == [
        None, None, Segment(0, 2, "a", pytest.approx(0.8)), Segment(2, 3, "b", 0.6)
    ]  # fmt: skip
    assert segments.finish() == Segment(3, 5, "a", 1.0)
    assert Segments().finish() is None


def predict(runs, video, *options):
    return run_here("predict", video, "--moments", 2, *options, cwd=runs.parent)


def test_the_command_writes_rows_and_tells_segments(runs, video):
    done = predict(runs, video, "--timeline", "a.csv", "--window", 1, "--json")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((runs.parent / "a.csv").read_text().splitlines()))
    assert [float(row["start_s"]) for row in rows] == [0, 0.5, 1, 1.3]
    assert list(rows[0]) == ["start_s", "end_s", "grow", "shrink", "spin"]
    for row in rows:
        assert sum(float(row[name]) for name in ("grow", "shrink", "spin")) == pytest.approx(
            1, abs=1e-5
        )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[0]["start_s"] == 0 and told[-1]["end_s"] == 2.3
    assert all(a["end_s"] == b["start_s"] for a, b in itertools.pairwise(told))
    done = predict(runs, video, "--timeline", "a.jsonl", "--window", 1)
    listed = [json.loads(line) for line in (runs.parent / "a.jsonl").read_text().splitlines()]
    assert [{k: f"{v:.6f}" for k, v in one["scores"].items()} for one in listed] == [
        {k: row[k] for k in ("grow", "shrink", "spin")} for row in rows
    ]
    assert b"a.mkv: 0.00 to " in done.stdout


def test_the_film_has_every_frame_with_the_curve_below(runs, video):
    done = predict(runs, video, "--timeline", "a.csv", "--window", 1, "--out", "film.mp4")
    assert done.returncode == 0, done.stderr
    with av.open(str(runs.parent / "film.mp4")) as container:
        pages = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pages) == FRAMES - 1  # a page shows a frame beside the field that starts there
    assert (pages[0][-40:] != pages[-1][-40:]).any() or pages[0].shape[0] > 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--timeline", "a.txt"), b"expected a name that ends in .csv or .jsonl"),
        (("--timeline", "a.csv", "--stride", "9"), b"at most their own length apart"),
        (("other.mkv", "--timeline", "a.csv"), b"--timeline shows one video, got 2"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(runs, video, options, words):
    (runs.parent / "other.mkv").write_bytes(b"x")
    done = predict(runs, video, *options)
    assert done.returncode == 2 and words in done.stderr and not (runs.parent / "a.csv").exists()


def test_a_damaged_video_leaves_no_half_a_table(runs, video, tmp_path):
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(video.read_bytes()[:-4000])
    done = predict(runs, cut, "--timeline", "a.csv", "--window", 1)
    assert done.returncode == 1 and b"damaged" in done.stderr
    assert not (runs.parent / "a.csv").exists()
