"""Prediction: a raw video gives what its record gives, whatever is wrong with the next one."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass

import av
import numpy as np
import pytest
from click.testing import CliRunner
from made_runs import write_run
from made_videos import moving_texture, write_images, write_video

from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError, VideoError
from flowkit.evaluation.held_records import (
    Held,
    Looks,
    Wanted,
    hold_video,
    hold_videos,
    video_request,
)
from flowkit.evaluation.prediction import Predictor
from flowkit.evaluation.scoring import Scorer, TestViews, score_part
from flowkit.extraction.extract import extract_video
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.flow.stabilized import Stabilization
from flowkit.networks.joining import Towers
from flowkit.records.layout import Storage
from flowkit.records.reading import flow_of, open_record
from flowkit.scores.files import read_scores, softmax
from flowkit.scores.fusion import Fusion, write_fusion
from flowkit.series import Series
from flowkit.video.sources import Source
from flowkit_cli import output
from flowkit_cli.predict import predict as predict_command

CLASSES = ("grow", "shrink", "spin")
FRAMES = 12
DIS = make_method("dis")
VIEWS = TestViews(3)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", moving_texture(FRAMES))


def extracted(video, out, request):
    """The record that flowkit extract makes of a video."""
    extract_video(Source(video, f"spin/{video.stem}"), out, request)
    return open_record(out / "spin" / video.stem)


@pytest.fixture(scope="module")
def flow(video, tmp_path_factory):
    """What a checkpoint says of flow as `flowkit extract --method dis` makes it."""
    return flow_of(extracted(video, tmp_path_factory.mktemp("flow"), Request(DIS)))


@pytest.fixture
def project(tmp_path, monkeypatch, flow):
    """A folder with two runs, to work in."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/spatial", seed=1)
    write_run(tmp_path / "runs/temporal", form=StackForm(2), flow=flow)
    return tmp_path


def run(*arguments, stdin=None, fails=False):
    result = CliRunner().invoke(
        predict_command, [*map(str, arguments), "--moments", "2"], input=stdin
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == int(fails), result.output
    return result


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("form", "request_"),
    [
        (StackForm(2), Request(DIS)),
        (StackForm(3, "trajectory"), Request(DIS, resize="48")),
        (StackForm(2), Request(DIS, storage=Storage(bound=4, quality=60))),
        (StackForm(4, bidirectional=True), Request(DIS, backward=True, storage=Storage("png"))),
        (StackForm(2, step=3), Request(DIS, steps=(1, 3), storage=Storage("flo"))),
        (StackForm(20), Request(make_method("farneback", levels=2), storage=Storage("lz4"))),
        (StackForm(2), Request(DIS, stabilize=Stabilization(matches="flow+sift"))),
        (None, Request(DIS)),
        (FrameForm(3, 2), Request(DIS)),
        (FrameForm(30), Request(DIS)),
        (FrameForm(2, 1, "rgb-diff"), Request(DIS)),
    ],
)
def test_a_video_is_predicted_as_its_record_is_scored(tmp_path, video, form, request_):
    """Bit for bit: the same flow, through the same 8-bit planes and JPEG files."""
    record = extracted(video, tmp_path / "flow", request_)
    flow = flow_of(record) if isinstance(form, StackForm) else None
    run = write_run(tmp_path / "run", form=form, flow=flow)
    scorer = Scorer(run, views=VIEWS)
    split = Split("made", CLASSES, (), (), (Video("spin/a", "spin", "a"),))
    out = tmp_path / "s.npz"
    list(score_part(scorer, split, RecordFolder(tmp_path / "flow"), "test", out))
    expected = softmax(read_scores(out))[0]

    found = Predictor({"run": scorer}).predict(video)
    assert found.frames == FRAMES
    by_name = dict(found.top(3))
    np.testing.assert_array_equal([by_name[name] for name in CLASSES], expected)
    assert [p for _, p in found.top(3)] == sorted(expected, reverse=True)
    assert found.streams == {"run": found.top(1)[0]}


def test_a_video_is_predicted_by_joined_towers_as_its_record_is_scored(tmp_path, video):
    record = extracted(video, tmp_path / "flow", Request(DIS))
    towers = Towers(frames=2, over_time="conv3d", keep="temporal")
    place = write_run(tmp_path / "run", form=StackForm(2), flow=flow_of(record), towers=towers)
    scorer = Scorer(place)
    [expected] = scorer.score([record])
    found = Predictor({"run": scorer}).predict(video)
    chances = np.exp(expected - expected.max())
    by_name = dict(found.top(3))
    assert [by_name[name] for name in CLASSES] == pytest.approx(
        (chances / chances.sum()).tolist(), rel=1e-5
    )


def test_joined_towers_are_named(project, video, flow):
    write_run(project / "runs/towers", form=StackForm(2), flow=flow, towers=Towers(frames=2))
    [found] = lines(run(video, "--towers", "runs/towers", "--json"))
    assert list(found["streams"]) == ["towers"]
    with pytest.raises(UsageError, match="--towers runs/spatial: holds a spatial stream"):
        run(video, "--towers", "runs/spatial")
    assert list(lines(run(video, "--json"))[0]["streams"]) == ["spatial", "temporal"]


def test_only_what_is_looked_at_is_computed(tmp_path, project, monkeypatch):
    video = write_video(tmp_path / "long.mp4", moving_texture(60, step=(1, 0)))
    pairs = []
    original = type(DIS).fields
    monkeypatch.setattr(
        type(DIS),
        "fields",
        lambda self, given: original(self, (pairs.append(1) or p for p in given)),
    )
    views = TestViews(3, "center")
    scorers = {name: Scorer(f"runs/{name}", views=views) for name in ("spatial", "temporal")}
    record = Predictor(scorers, Fusion("average")).hold(video)
    assert len(pairs) == 6  # three clips of two fields
    images = [index for name, index in record.files if name.startswith("img")]
    assert images == [0, 30, 59]  # 29.5, half up
    places = sorted(index for name, index in record.files if name.startswith("flow_x"))
    assert places == [0, 1, 29, 30, 57, 58]
    assert record.field_count() == 59


def test_streams_are_fused_as_scores_are(project, video):
    scorers = {name: Scorer(f"runs/{name}", views=VIEWS) for name in ("spatial", "temporal")}
    alone = {
        name: dict(Predictor({name: one}).predict(video).top(3)) for name, one in scorers.items()
    }
    fused = dict(Predictor(scorers, Fusion("average")).predict(video).top(3))
    for name in CLASSES:
        assert fused[name] == pytest.approx(np.mean([alone[s][name] for s in scorers]), abs=1e-7)
    linear = Fusion(
        "logistic",
        streams=("temporal", "spatial"),
        classes=("spin", "grow"),
        coefficients=np.eye(2, 4),
        intercepts=np.zeros(2),
    )
    found = Predictor(scorers, linear).predict(video)
    assert sorted(found.classes) == ["grow", "spin"]  # those of the fusion alone
    record = Predictor(scorers, linear).hold(video)
    pair = next(scorers["temporal"].score([record], ("spin", "grow"))).astype(np.float64)
    powers = np.exp(pair / np.linalg.norm(pair))
    assert dict(found.top(2))["spin"] == pytest.approx(powers[0] / powers.sum(), abs=1e-6)
    assert alone["temporal"] == dict(Predictor({"t": scorers["temporal"]}).predict(video).top(3))


def test_frames_alone_need_no_flow(project, video):
    record = Predictor({"spatial": Scorer("runs/spatial", views=VIEWS)}).hold(video)
    assert {name for name, _ in record.files} == {"img_%05d.jpg"}
    assert video_request([]).method.name == "tvl1"  # as flowkit extract's default


def test_flow_that_cannot_be_computed_is_refused(tmp_path, flow):
    foreign = write_run(tmp_path / "r", form=StackForm(2), flow={"foreign": {"layout": "tsn"}})
    with pytest.raises(UsageError, match="flow of another tool"):
        Predictor({"r": Scorer(foreign)})
    one = write_run(tmp_path / "one", form=StackForm(2), flow=flow)
    other = write_run(tmp_path / "two", form=StackForm(2), flow=flow | {"bound": 20.0})
    with pytest.raises(UsageError, match="streams trained on the same flow: bound: null"):
        Predictor({"a": Scorer(one), "b": Scorer(other)}, Fusion("average"))


def test_streams_that_do_not_fit_together_are_refused(tmp_path, flow):
    one = Scorer(write_run(tmp_path / "one", form=StackForm(2), flow=flow))
    more = Scorer(write_run(tmp_path / "more", classes=(*CLASSES, "up")))
    with pytest.raises(UsageError, match=r"same classes: .*one.* has 3, .*more.* has 4"):
        Predictor({"one": one, "more": more}, Fusion("average"))
    linear = Fusion(
        "svm",
        streams=("one", "more"),
        classes=("up", "spin"),
        coefficients=np.zeros((2, 4)),
        intercepts=np.zeros(2),
    )
    with pytest.raises(UsageError, match="was not trained on 1 of 2 classes: up"):
        Predictor({"one": one, "more": more}, linear)
    with pytest.raises(UsageError, match="got 2 and none"):
        Predictor({"more": more, "one": one})


def test_a_video_too_short_for_flow_is_refused(tmp_path, project):
    short = write_images(tmp_path / "short", moving_texture(1))
    with pytest.raises(VideoError, match="expected at least 2 frames, got 1"):
        Predictor({"temporal": Scorer("runs/temporal")}).predict(short)


def test_the_runs_and_their_fusion_are_found(project, video):
    result = run(video, "--json")
    assert "runs/spatial/best.json, runs/temporal/best.json; average" in result.stderr
    [one] = lines(result)
    assert (one["video"], one["status"], one["frames"]) == (str(video), "done", FRAMES)
    assert set(one["streams"]) == {"spatial", "temporal"}
    probabilities = [entry["probability"] for entry in one["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)

    weights = {"spatial": 0.0, "temporal": 1.0}
    write_fusion("runs/fused/fusion.npz", Fusion("weighted", weights=weights))
    kept = run(video, "--json")
    assert "weighted of 0 spatial, 1 temporal" in kept.stderr
    alone = run(video, "--json", "--temporal", "runs/temporal")
    assert lines(kept)[0]["top"] == lines(alone)[0]["top"]
    assert lines(run(video, "--json", "--fusion", "average"))[0] == one
    text = run(video, "--top", 1).stdout
    assert text.startswith(f"{video}: {lines(kept)[0]['top'][0]['class']} ")
    assert text.count("%") == 1


@dataclass(frozen=True)
class Dimensions:
    """A flow method that takes colors; its fields say how many dimensions its frames have."""

    name = "dimensions"
    color: bool = True

    def fields(self, pairs):
        return (np.full((*first.shape[:2], 2), first.ndim, np.float32) for first, _ in pairs)


@pytest.mark.parametrize(("color", "dimensions"), [(True, 3), (False, 2)])
def test_methods_that_take_colors_get_them(video, color, dimensions):
    request = Request(Dimensions(color), storage=Storage("npy"))
    forward = Series("forward", 1)
    record = hold_video(video, request, Wanted(FRAMES, set(), {forward: {0}}))
    assert (record.fields(0, 1) == dimensions).all()


def test_frames_too_large_are_refused_without_loss_to_the_rest(project, video):
    large = write_video(project / "b.mp4", moving_texture(FRAMES, size=(144, 96)))
    result = run(video, large, "--json", "--max-frame-mpx", "0.01", fails=True)
    told = {line["video"]: line["status"] for line in lines(result)}
    assert told == {str(video): "done", str(large): "failed"}
    assert "got 0.01382 (96x144 px): --max-frame-mpx" in result.stderr


def test_a_bad_video_stops_nothing(project, video, monkeypatch):
    monkeypatch.setattr(output, "QUIET_LINE_S", 0)
    bad = project / "bad.mp4"
    bad.write_bytes(b"no video")
    cut = project / "cut.mp4"
    cut.write_bytes(video.read_bytes()[:-2000])
    stdin = f"{bad}\n{video}\n\nnowhere.mp4\n{cut}\n{video}\n"
    result = run("-", "--json", stdin=stdin, fails=True)
    told = lines(result)
    assert [one["status"] for one in told] == ["failed", "done", "failed", "failed", "done"]
    assert [one["video"] for one in told] == [
        *map(str, (bad, video)),
        "nowhere.mp4",
        str(cut),
        str(video),
    ]
    assert told[1] == told[4]
    assert "cannot be opened" in told[0]["reason"]
    assert "no such file" in told[2]["reason"]
    assert f"failed: {bad}: expected a video" in result.stderr
    assert re.search(r"^5 videos, \d+ frames/s, 3 failed$", result.stderr, re.M)


@dataclass(frozen=True)
class Killed:
    """A flow method that kills its process on frames of 40 rows."""

    name = "killed"

    def fields(self, pairs):
        for first, _ in pairs:
            if len(first) == 40:
                os.kill(os.getpid(), signal.SIGKILL)
            yield np.zeros((*first.shape, 2), np.float32)


def test_a_crash_costs_one_video_and_the_first_event_does_not_wait(project, video):
    small = write_video(project / "small.mp4", moving_texture(FRAMES, size=(40, 96)))
    looks = Looks(Request(Killed()), (({"temporal": StackForm(2)}, 2, None),))
    asked = [(str(video), ""), (str(small), ""), ("x.mp4", "no such video"), (str(video), "")]
    events = list(hold_videos(looks, asked, workers=1))
    assert events[0] == Held(str(video))  # at work, before there is a record
    ended = [one for one in events if one.record or one.reason]
    assert [one.path for one in ended] == [path for path, _ in asked]
    assert [bool(one.record) for one in ended] == [True, False, False, True], ended
    assert "died by SIGKILL" in ended[1].reason
    assert ended[2].reason == "no such video"


def test_a_reason_names_the_video_once(project):
    (project / "bad.mp4").write_bytes(b"no video")
    looks = Looks(Request(Killed()), (({"spatial": FrameForm()}, 2, None),))
    *_, last = hold_videos(looks, [("bad.mp4", "")], workers=1)
    assert last.reason.startswith("expected a video")


def test_folders_of_videos_and_of_frames_are_taken(project, monkeypatch):
    frames = moving_texture(5)
    write_video(project / "v.mp4", frames)
    (project / "videos").mkdir()
    write_video(project / "videos/b.mp4", frames)
    write_images(project / "videos2/c", frames)
    monkeypatch.setattr(output, "QUIET_LINE_S", 0)
    told = lines(result := run("videos", "videos2/c", "v.mp4", "--json"))
    assert re.search(r"2 of 3 videos, \d+ frames/s, 0 failed, [\d.]+ s left", result.stderr)
    assert {one["video"].removeprefix(f"{project}/") for one in told} == {
        "videos/b.mp4",
        "videos2/c",
        "v.mp4",
    }


def test_the_overlay_shows_every_field_and_the_classes(project, video):
    result = run(video, "--out", "shown/overlay.mp4")
    assert "wrote shown/overlay.mp4" in result.stderr
    with av.open("shown/overlay.mp4") as container:
        pages = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert len(pages) == FRAMES - 1
    strip = pages[0][-120:]
    is_bar = np.abs(strip.astype(int) - (86, 130, 200)).max(axis=2) < 30
    probabilities = [entry["probability"] for entry in lines(run(video, "--json"))[0]["top"]]
    widths = is_bar.sum(axis=1).max()
    room = pages[0].shape[1] // 2 - 8
    assert widths == pytest.approx(room * probabilities[0], abs=4)
    assert list((project / "shown").iterdir()) == [project / "shown/overlay.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mp4", "b.mp4", "--out", "o.mp4"], "--out shows one video, got 2"),
        (["a.mp4", "--temporal", "runs/temporal", "--fusion", "average"], "goes with two streams"),
        (
            ["a.mp4", "--spatial", "runs/temporal"],
            "holds a temporal stream",
        ),
        (["a.mp4", "--runs", "nothing"], "nothing: .*no trained stream: flowkit train"),
        (
            ["a.mp4", "--spatial", "runs/spatial", "--temporal", "other/spatial"],
            "give the runs' folders different names",
        ),
    ],
)
def test_what_cannot_be_is_refused(project, arguments, message, flow):
    write_run(project / "other/spatial", form=StackForm(2), flow=flow)
    for name in ("a.mp4", "b.mp4"):
        (project / name).touch()
    with pytest.raises(UsageError, match=message):
        run(*arguments)


def test_an_overlay_of_another_kind_is_refused(project, video):
    with pytest.raises(UsageError, match=r"ends in \.mp4"):
        run(video, "--out", "overlay.gif", fails=True)


def test_series_are_those_of_the_form(flow):
    form = StackForm(2, bidirectional=True, step=2)
    checkpoint = type("Checkpoint", (), {"inputs": {"temporal": form}, "flow": flow})
    series = video_request([checkpoint]).series
    assert series == (Series("forward", 2), Series("backward", 2))


def test_workers_are_there_before_torch_is(project, video):
    """They are forked then, which takes no time, and decode while the networks are loaded."""
    code = (
        "import sys; from flowkit.evaluation import held_records; "
        "from flowkit_cli.main import main; "
        "held_records.hold_videos = lambda *_, **__: sys.exit(3 + ('torch' in sys.modules));"
        "sys.argv[1:] = ['predict', sys.argv[1]]; main()"
    )
    assert subprocess.run([sys.executable, "-c", code, str(video)]).returncode == 3
