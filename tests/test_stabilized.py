"""Flow less the camera's motion: a pan leaves the background, and not who walks before it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from command import run_here
from made_videos import moving_texture, pasted_disc, write_video

from flowkit._cv2 import cv2
from flowkit.errors import RecordError, UsageError
from flowkit.extraction.extract import extract, extract_video, video_fields
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.flow.pairs import consecutive
from flowkit.flow.stabilized import Stabilization, StabilizedFlow
from flowkit.records.layout import Storage
from flowkit.records.reading import common_flow, open_record
from flowkit.records.statistics import record_facts
from flowkit.video.sources import Source

PAN, WALK = (3, 1), (4, -1)  # px per frame in the image: the camera's, and the walker's
RADIUS, SIZE = 22, (120, 160)
DIS = make_method("dis")  # quick, but smooth: a walk shows in the background, too
FARNEBACK = make_method("farneback")
FLOATS = Storage("npy", rgb=False)


def scene(count):
    """A panned texture before which a disc walks, and the disc's centers (x, y)."""
    return pasted_disc(moving_texture(count, size=SIZE, step=PAN), radius=RADIUS, step=WALK)


def means(field, center, *, margin=6):
    """The mean of a field on the background, away from the disc and the border, and on the disc."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    away = np.hypot(x - center[0], y - center[1])
    inside = np.zeros(SIZE, bool)
    inside[12:-12, 12:-12] = True
    return field[(away > RADIUS + margin) & inside].mean(0), field[away < RADIUS - margin].mean(0)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """The scene as a video, and the disc's centers."""
    frames, centers = scene(6)
    path = tmp_path_factory.mktemp("scene") / "a.mp4"
    return Source(write_video(path, frames, options={"qscale": "2"}), "walk/a"), centers


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """A video without a corner: no camera can be found."""
    frames = [np.full((*SIZE, 3), 90 + t, np.uint8) for t in range(4)]
    return Source(write_video(tmp_path_factory.mktemp("blank") / "b.mp4", frames), "walk/b")


@pytest.mark.parametrize("matches", ["flow", "flow+sift"])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [("tvl1", {"preset": "fast"}), ("farneback", {}), ("tvl1-opencv", {"warps": 2})],
)
def test_the_pan_is_gone_and_the_walk_stays(method, parameters, matches):
    frames, centers = scene(2)
    chosen = make_method(method, **parameters)
    [plain] = chosen.fields(consecutive(frames))
    background, walker = means(plain, centers[0])
    assert np.abs(background - PAN).max() < 0.3  # what there is to take off
    flow = StabilizedFlow(chosen.fields, Stabilization(matches=matches))
    [field] = flow.fields(consecutive(frames))
    background, walker = means(field, centers[0])
    assert np.abs(background).max() < 0.1
    assert np.abs(walker - np.subtract(WALK, PAN)).max() < 0.3
    assert flow.plain == 0


def test_fields_back_and_over_steps_are_less_the_camera_too(video, tmp_path):
    source, centers = video
    request = Request(
        FARNEBACK, steps=(1, 2), backward=True, storage=FLOATS, stabilize=Stabilization()
    )
    extracted = extract_video(source, tmp_path, request)
    assert extracted.plain_fields == 0
    record = open_record(tmp_path / "walk/a")
    for step in (1, 2):
        for direction, sign, first in (("forward", 1, 0), ("backward", -1, step)):
            [field] = record.fields(0, 1, direction=direction, step=step)
            background, walker = means(field, centers[first])
            assert np.abs(background).max() < 0.1
            assert np.abs(walker - sign * step * np.subtract(WALK, PAN)).max() < 0.4


def test_a_camera_that_turns_and_nears_is_taken_off_by_a_homography():
    first = moving_texture(1, size=SIZE)[0]
    turn = np.vstack([cv2.getRotationMatrix2D((80, 60), 1.5, 1.02), [0, 0, 1]])
    second = cv2.warpPerspective(first, turn, SIZE[::-1], borderMode=cv2.BORDER_REFLECT)
    flow = StabilizedFlow(FARNEBACK.fields, Stabilization())
    [plain] = FARNEBACK.fields(consecutive([first, second]))
    [field] = flow.fields(consecutive([first, second]))
    inside = np.s_[15:-15, 15:-15]
    assert np.linalg.norm(plain[inside], axis=2).mean() > 1
    assert np.linalg.norm(field[inside], axis=2).mean() < 0.1


def test_where_the_camera_is_not_found_the_plain_flow_stays_and_is_counted(blank, tmp_path):
    plain = Request(DIS, storage=FLOATS)
    stabilized = replace(plain, stabilize=Stabilization())
    extract_video(blank, tmp_path / "plain", plain)
    assert extract_video(blank, tmp_path / "new", stabilized).plain_fields == 3
    records = [open_record(tmp_path / name / "walk/b") for name in ("plain", "new")]
    assert np.array_equal(*(record.fields(0, 3) for record in records))
    assert records[1].sidecar["plain_fields"] == 3
    assert "plain_fields" not in records[0].sidecar


def test_any_number_of_workers_makes_the_same_bytes(video, blank, tmp_path):
    sources = [video[0], blank, replace(video[0], id="walk/c")]
    request = Request(DIS, backward=True, stabilize=Stabilization(matches="flow+sift"))
    trees = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        outcomes = [
            one
            for one in extract(sources, out, request, workers=workers)
            if one.status != "running"
        ]
        assert [one.status for one in outcomes] == ["done"] * 3
        files = (path for path in out.rglob("*") if path.is_file())
        trees.append({path.relative_to(out): path.read_bytes() for path in files})
    assert trees[0] == trees[1] and len(trees[0]) > 3 * 10


def test_records_say_so_and_do_not_mix_with_others(video, tmp_path):
    source, _ = video
    extract_video(source, tmp_path / "plain", Request(DIS))
    for matches in ("flow", "flow+sift"):
        request = Request(DIS, stabilize=Stabilization(matches=matches))
        extract_video(source, tmp_path / matches, request)
    plain, flow, sift = (
        open_record(tmp_path / name / "walk/a") for name in ("plain", "flow", "flow+sift")
    )
    assert sift.sidecar["request"]["stabilize"] == {"name": "homography", "matches": "flow+sift"}
    assert record_facts(flow.path, "a").method == "dis, stabilized"
    with pytest.raises(RecordError, match='stabilize: null on disk, "homography" there'):
        common_flow([flow, plain])
    with pytest.raises(RecordError, match=r"stabilize\.matches"):
        common_flow([flow, sift])


def test_the_command_says_what_it_did_and_does_it_once(video, blank, tmp_path):
    folder = video[0].path.parent
    (folder / "b.mp4").write_bytes(blank.path.read_bytes())
    ask = ("extract", folder, "--method", "dis", "--stabilize", "homography", "-j", "1")
    told = run_here(*ask, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert b"camera's motion was not found for 3 of 8 fields" in told.stderr
    assert b"2 there already" in run_here(*ask, cwd=tmp_path).stderr
    other = run_here(*ask, "--matches", "flow+sift", cwd=tmp_path)
    assert other.returncode == 2 and b"stabilize.matches" in other.stderr
    listed = run_here("info", "flow", cwd=tmp_path).stdout.decode().splitlines()
    assert "camera's motion taken off by homography;" in listed[0] + ";"
    assert "taken off by homography, but of 3 fields" in listed[1]
    alone = run_here("extract", folder, "--matches", "flow", cwd=tmp_path)
    assert alone.returncode == 2 and b"--stabilize" in alone.stderr


def test_only_known_ways_are_taken():
    with pytest.raises(UsageError, match="expected name of homography"):
        Stabilization("affine")
    with pytest.raises(UsageError, match=r"expected matches of flow, flow\+sift, got 'none'"):
        Stabilization(matches="none")


@dataclass(frozen=True)
class Colored:
    """DIS that asks for colors, and keeps the frames that it is given."""

    given: list
    color = True

    def fields(self, pairs):
        for first, second in pairs:
            self.given.append((first, second))
            yield from DIS.fields(consecutive([first, second]))


def test_a_method_of_colors_is_given_the_second_frame_in_color(video):
    given = []
    source, centers = video
    [first, *_] = video_fields(source.path, Colored(given), stabilize=Stabilization())
    assert np.abs(means(first, centers[0])[0]).max() < 0.2
    assert {frame.shape for pair in given for frame in pair} == {(*SIZE, 3)}
    plain, warped = given[0][1], given[1][1]
    inside = np.s_[20:-20, 20:-20]
    moved = np.roll(plain, (-PAN[1], -PAN[0]), axis=(0, 1)).astype(int)
    assert np.abs(moved - warped)[inside].mean() < 4 < np.abs(plain.astype(int) - warped).mean()
