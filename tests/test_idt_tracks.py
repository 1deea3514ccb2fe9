"""Improved dense trajectories: the authors' output, OpenCV's own arithmetic, and laws of motion."""

import gzip
from collections import defaultdict

import numpy as np
import pytest
from made_videos import moving_texture, pasted_disc

from flowkit._cv2 import cv2
from flowkit.errors import FlowkitError, UsageError
from flowkit.flow import farneback, farneback_kernels
from flowkit.flow.camera import find_corners, find_homography
from flowkit.flow.farneback_kernels import PLANES, columns
from flowkit.idt import flow_kernels, kernels
from flowkit.idt.boxes import read_boxes
from flowkit.idt.flow import Size, expand, smoothing, solve
from flowkit.idt.parameters import TrackParameters
from flowkit.idt.records import text_lines
from flowkit.idt.tracking import (
    ensure_compiled_kernels,
    level_sizes,
    track_dtype,
    track_frames,
    track_video,
)

# The columns of the authors' text, after frame, mean, deviation, length, scale and places.
BLOCKS = {
    "trajectory": slice(10, 40),
    "hog": slice(40, 136),
    "hof": slice(136, 244),
    "mbhx": slice(244, 340),
    "mbhy": slice(340, 436),
}
CLIP = "idt/person01_boxing_d1_uncomp.avi"


def ended(frames, **parameters) -> np.ndarray:
    return np.concatenate(list(track_frames(frames, TrackParameters(**parameters))))


def paths_of(tracks, camera):
    """The points of tracks under a camera that moves by (x, y) px per frame: (N, 16, 2) px."""
    moves = tracks["trajectory"].reshape(-1, 15, 2) * tracks["travel"][:, None, None] + camera
    points = np.concatenate([np.zeros((len(tracks), 1, 2)), moves.cumsum(axis=1)], axis=1)
    return points + (tracks["mean"] - points.mean(axis=1))[:, None]


# --- the authors' program ---


@pytest.fixture(scope="module")
def golden(real_data):
    """The authors' lines for a clip, and the clip; skips where they are absent."""
    lines = real_data / "idt/person01_boxing_d1.features.gz"
    if not lines.is_file():
        pytest.skip(f"no output of the authors' program at {lines}")
    with gzip.open(lines) as file:
        return np.loadtxt(file), real_data / CLIP


def nearest_tracks(tracks, lines):
    """Of each line the track of its frame and scale with the nearest mean, and how far it is."""
    places = defaultdict(list)
    for k, track in enumerate(tracks):
        places[int(track["frame"]), round(float(track["scale"]), 3)].append(k)
    found, away = np.full(len(lines), -1), np.full(len(lines), np.inf)
    for k, line in enumerate(lines):
        here = places[int(line[0]), round(line[6], 3)]
        if here:
            distances = np.abs(tracks["mean"][here] - line[1:3]).max(axis=1)
            found[k], away[k] = here[distances.argmin()], distances.min()
    return found, away


@pytest.mark.slow
def test_the_authors_clip_gives_the_authors_lines(golden):
    lines, clip = golden
    tracks = np.concatenate(list(track_video(clip)))
    assert abs(len(tracks) - len(lines)) <= 0.01 * len(lines)
    found, away = nearest_tracks(tracks, lines)
    near = away < 0.01
    assert near.mean() >= 0.995
    differences = {
        name: np.abs(tracks[name][found[near]] - lines[near][:, block]).max(axis=1)
        for name, block in BLOCKS.items()
    }
    assert differences["hog"].max() < 1e-3
    assert max(np.median(differences[name]) for name in ("hof", "mbhx", "mbhy")) < 0.006
    assert np.median(differences["trajectory"]) < 0.002
    text = np.loadtxt(text_lines(tracks, (120, 160), 360))
    assert text.shape == (len(tracks), 436)
    assert np.abs(text[found[near]][:, :10] - lines[near][:, :10]).max() < 0.05
    assert np.abs(text[found[near]][:, 7:10] - lines[near][:, 7:10]).max() < 1e-4


@pytest.mark.slow
def test_without_matches_every_line_of_the_authors_is_there(golden):
    lines, clip = golden
    tracks = np.concatenate(list(track_video(clip, TrackParameters(matches="none"))))
    _, away = nearest_tracks(tracks, lines)
    assert (away < 0.01).all()


# --- what moves ---


@pytest.mark.slow
def test_a_plane_that_moves_as_one_gives_no_tracks_for_that_is_the_camera():
    assert len(ended(moving_texture(20, size=(96, 128), step=(3, 0)))) == 0
    assert len(ended(moving_texture(20, size=(96, 128), step=(3, 0)), matches="none")) > 100


@pytest.mark.parametrize("matches", ["flow", "flow+sift"])
def test_on_a_moving_plane_the_tracks_are_on_the_disc_that_moves_otherwise(matches):
    plane = moving_texture(20, size=(120, 160), step=(3, 0))
    frames, centers = pasted_disc(plane, radius=25, step=(3, 2))
    tracks = ended(frames, matches=matches)
    of_disc = np.stack([centers[t - 15 : t + 1] for t in tracks["frame"]])
    away = np.linalg.norm(paths_of(tracks, camera=(3, 0)) - of_disc, axis=2)
    assert len(tracks) > 100
    # a point of the plane that the disc runs over goes with it from then on
    assert (away.min(axis=1) <= 25 + 3 * tracks["scale"]).mean() >= 0.95
    assert np.median(away.mean(axis=1)) <= 25


def test_boxes_keep_people_out_of_the_camera():
    # a figure that fills most of the frame passes for the camera, unless a box says what it is
    frames = moving_texture(20, size=(96, 160), step=(-2, 2))
    for frame, ground in zip(frames, moving_texture(20, size=(36, 160), step=(3, 0)), strict=True):
        frame[:36] = ground
    boxes = {t: np.array([[0.0, 36.0, 159.0, 95.0]]) for t in range(20)}
    without = ended(frames)["mean"][:, 1]
    kept = np.concatenate(list(track_frames(frames, boxes=boxes)))["mean"][:, 1]
    assert np.median(without) < 40 and np.median(kept) > 40


def test_a_still_clip_and_a_short_one_give_none():
    still = moving_texture(1, size=(64, 80)) * 20
    assert len(ended(still)) == 0
    moving = moving_texture(16, size=(64, 80), step=(2, 1))
    assert len(ended(moving[:15], matches="none")) == 0
    assert len(ended(moving, matches="none")) > 0


def test_a_track_says_how_far_and_where_it_went():
    tracks = ended(moving_texture(16, size=(64, 80), step=(2, 1)), matches="none")
    inner = np.abs(tracks["mean"] - (40, 32)).max(axis=1) < 10
    whole = tracks[inner & (tracks["scale"] == 1)]
    assert len(whole) and set(tracks["frame"].tolist()) == {15}
    assert np.allclose(whole["length"], 15 * np.sqrt(5), rtol=0.02)
    assert np.allclose(whole["deviation"], np.std(np.arange(16)) * np.array([2, 1]), rtol=0.05)
    sums = np.linalg.norm(whole["trajectory"].reshape(-1, 15, 2), axis=2).sum(axis=1)
    assert np.allclose(sums, 1, atol=1e-5)
    x, y = whole["trajectory"][:, 0::2], whole["trajectory"][:, 1::2]
    assert np.allclose(x, 2 * y, atol=0.01)
    for name in ("hog", "hof", "mbhx", "mbhy"):  # means of five vectors of length 1
        norms = np.linalg.norm(whole[name].reshape(len(whole), 3, -1), axis=2)
        assert (norms > 0.7).all() and (norms < 1 + 1e-5).all()


def test_every_frame_has_its_array_and_gray_frames_serve():
    frames = moving_texture(18, size=(64, 80), step=(2, 1))
    arrays = list(track_frames(frames, TrackParameters(matches="none")))
    assert len(arrays) == 18 and sum(map(len, arrays[:15])) == 0 and len(arrays[15]) > 0
    grays = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    again = list(track_frames(grays, TrackParameters(matches="none")))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, again, strict=True))


# --- parts against OpenCV and by hand ---


def reference_histogram(x, y, bins, zero):
    """Votes of each pixel by NumPy and cv2.phase: float64 (H, W, bins, or a bin more)."""
    length = np.hypot(x.astype(np.float64), y)
    place = cv2.phase(x, y, angleInDegrees=True).astype(np.float64) % 360 * bins / 360
    votes = np.zeros((*x.shape, bins + (zero is not None)))
    low = np.floor(place).astype(int)
    rows, columns = np.indices(x.shape)
    still = np.zeros(x.shape, bool) if zero is None else length <= zero
    length = np.where(still, 0, length)
    np.add.at(votes, (rows, columns, low % bins), length * (1 - (place - low)))
    np.add.at(votes, (rows, columns, (low + 1) % bins), length * (place - low))
    if zero is not None:
        votes[..., bins] = still
    return votes


def reference_descriptor(votes, top, left, patch, cells):
    """The window's bins, x outer, y inner, with 0.05 added, divided by their sum, rooted."""
    side = patch // cells
    window = votes[top : top + patch, left : left + patch]
    by_cell = window.reshape(cells, side, cells, side, -1).sum((1, 3)).transpose(1, 0, 2) + 0.05
    return np.sqrt(by_cell / by_cell.sum()).ravel()


@pytest.mark.parametrize(("patch", "cells", "bins"), [(32, 2, 8), (24, 3, 6), (12, 2, 11)])
def test_descriptors_are_opencvs_derivatives_and_angles_summed_over_cells(patch, cells, bins):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (50, 60), np.uint8)
    u, v = rng.normal(0, 1, (2, 50, 60)).astype(np.float32)
    points = np.zeros((4, 16, 2), np.float32)
    points[:, 0] = [(0, 0), (59, 49), (30.5, 22.5), (31.5, 23.5)]  # halves to even: 30, 22, 32, 24
    corners = [(0, 0), (60 - patch, 50 - patch), *((x - patch // 2, y - patch // 2)
                                                  for x, y in ((30, 22), (32, 24)))]  # fmt: skip
    lanes = [cells**2 * kernels.whole_lanes(count) for count in (bins, bins + 1, bins, bins)]
    sums, ages = np.zeros((4, 3, sum(lanes)), np.float32), np.zeros(4, np.int32)
    ensure_compiled_kernels()
    zero, epsilon = np.float32(0.4), np.float32(0.05)
    order = np.array([2, 0, 3, 1], np.int32)
    kernels.describe(
        gray, u, v, order, 4, ages, points, patch, cells, bins, zero, epsilon, 5, sums
    )  # fmt: skip
    assert ages.tolist() == [1, 1, 1, 1] and not sums[:, 1:].any()

    def derivatives(image):
        return (cv2.Sobel(image, cv2.CV_32F, *d, ksize=1) for d in ((1, 0), (0, 1)))

    votes = [
        reference_histogram(*derivatives(gray), bins, None),
        reference_histogram(u, v, bins, 0.4),
        reference_histogram(*derivatives(u), bins, None),
        reference_histogram(*derivatives(v), bins, None),
    ]
    for track, (left, top) in enumerate(corners):
        blocks = np.split(sums[track, 0], np.cumsum(lanes)[:-1])
        for found, image in zip(blocks, votes, strict=True):
            found = found.reshape(cells**2, -1)[:, : image.shape[2]].ravel()
            expected = reference_descriptor(image, top, left, patch, cells)
            assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("size", [(50, 61), (32, 32), (33, 47)])
def test_medians_are_opencvs(size):
    height, width = size
    plane = np.random.default_rng(0).normal(0, 1, (height, columns(width))).astype(np.float32)
    found = np.empty(size, np.float32)
    ensure_compiled_kernels()
    flow_kernels.median(plane, width, found)
    assert np.array_equal(found, cv2.medianBlur(np.ascontiguousarray(plane[:, :width]), 5))


def test_least_eigenvalues_are_opencvs():
    gray = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (43, 57), np.uint8), (5, 5), 1
    )
    expected = cv2.cornerMinEigenVal(gray, 3, ksize=3)
    mirrored = cv2.copyMakeBorder(gray, 1, 1, 1, 1, cv2.BORDER_REFLECT_101)
    ensure_compiled_kernels()
    for distance in (1, 5):
        found, largest = kernels.grid_eigenvalues(mirrored, distance)
        middle = expected[distance // 2 :: distance, distance // 2 :: distance]
        assert np.allclose(found, middle[: 43 // distance, : 57 // distance], rtol=0, atol=1e-7)
        assert np.isclose(largest, expected.max(), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2**0.5, 4.0])
def test_smaller_frames_are_smoothed_as_opencv_does(scale):
    gray = np.random.default_rng(0).integers(0, 256, (97, 120), np.uint8)
    size = Size(round(97 / scale), round(120 / scale), np.float32(scale))
    gaussian = smoothing(float(size.scale))
    side, sigma = 2 * len(gaussian) - 1, (scale - 1) / 2
    small = np.empty((size.height, columns(size.width)), np.float32)
    ensure_compiled_kernels()
    flow_kernels.shrink(gray, gaussian, small, size.width)
    smooth = cv2.GaussianBlur(gray.astype(np.float32), (side, side), sigma, sigmaY=sigma)
    expected = cv2.resize(smooth, (size.width, size.height))
    assert np.abs(small[:, : size.width] - expected).max() < 0.01


def test_the_flow_is_that_of_farnebacks_exact_kernels():
    first, second = (cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
                     for frame in moving_texture(2, size=(50, 61), step=(2, 1)))  # fmt: skip
    size = Size(50, 61, np.float32(1))
    ensure_compiled_kernels()
    farneback.warm_up()
    [found] = solve(expand(first, [size]), expand(second, [size]), [size])
    weights, planes = farneback.expansion_weights(7, 1.5), []
    for gray in (first, second):
        small = np.zeros((50, columns(61)), np.float32)
        small[:, :61] = cv2.GaussianBlur(gray.astype(np.float32), (3, 3), 0)
        planes.append(np.empty((50, PLANES, columns(61)), np.float32))
        farneback_kernels.expand(small, 61, *weights, False, planes[-1])
    field = np.zeros((2, 50, columns(61)), np.float32)
    edges, window = farneback.edge_weights(50, 61, columns(61)), farneback.gaussian_window(10)
    farneback_kernels.solve_level(field, *planes, 61, edges, 10, window, 2)
    expected = [cv2.medianBlur(np.ascontiguousarray(plane[:, :61]), 5) for plane in field]
    assert np.abs(found - np.stack(expected)).max() < 1e-4
    assert np.allclose(np.median(found, axis=(1, 2)), (2, 1), atol=0.1)


def test_resizing_is_opencvs_portable_one():
    image = np.random.default_rng(0).uniform(0, 255, (120, 160)).astype(np.float32)
    small = np.empty((85, 128), np.float32)
    flow_kernels.resize(image, 160, np.float32(1), small, 113)
    small = small[:, :113]
    two = cv2.resize(np.dstack([image, image]), (113, 85))[..., 0]  # which has no faster code
    assert np.abs(small - two).max() <= 4e-5
    assert np.abs(small - cv2.resize(image, (113, 85))).max() < 0.01


@pytest.mark.parametrize(
    ("size", "count", "smallest"), [((120, 160), 4, (42, 57)), ((240, 320), 6, (42, 57)),
                                    ((256, 340), 7, (32, 43)), ((1080, 1920), 8, (95, 170)),
                                    ((32, 40), 1, (32, 40))],
)  # fmt: skip
def test_levels_shrink_by_the_root_of_two_down_to_a_patch(size, count, smallest):
    sizes = level_sizes(*size, TrackParameters())
    assert len(sizes) == count
    assert sizes[0] == size and sizes[-1] == smallest


@pytest.mark.parametrize(("size", "values"), [((120, 160), 256), ((41, 57), 256), ((33, 30), 2)])
def test_corners_are_opencvs(size, values):
    rng = np.random.default_rng(6)
    gray = rng.integers(0, values, size, np.uint8)
    mask = np.full(size, 255, np.uint8)
    mask[10:20, 5:25] = 0
    for allowed in (None, mask):
        theirs = cv2.goodFeaturesToTrack(gray, 1000, 0.001, 3.0, mask=allowed, blockSize=3)
        np.testing.assert_array_equal(find_corners(gray, allowed), theirs.reshape(-1, 2))
    assert find_corners(np.zeros_like(gray), None).shape == (0, 2)
    assert find_corners(gray, np.zeros_like(gray)).shape == (0, 2)


def test_a_homography_is_found_among_outliers_and_too_few_matches_are_no_camera():
    rng = np.random.default_rng(0)
    truth = np.array([[1.01, 0.02, 3], [-0.01, 0.99, -2], [1e-5, 0, 1]])
    before = rng.uniform(0, 300, (100, 2)).astype(np.float32)
    after = cv2.perspectiveTransform(before[None], truth)[0]
    after[:30] += rng.uniform(20, 60, (30, 2)).astype(np.float32)
    assert np.allclose(find_homography(before, after), truth, rtol=1e-3, atol=1e-3)
    assert find_homography(before[:50], after[:50]) is None
    scattered = rng.uniform(0, 300, (60, 2)).astype(np.float32)
    assert find_homography(before[:60], scattered) is None


def test_other_numbers_change_the_columns():
    parameters = TrackParameters(
        track_length=10, patch=24, cells=3, time_cells=2, bins=6, sampling=8, matches="none"
    )
    frames = moving_texture(14, size=(64, 80), step=(3, 1))
    tracks = np.concatenate(list(track_frames(frames, parameters)))
    assert tracks.dtype == track_dtype(parameters)
    assert [tracks[name].shape[1] for name in ("trajectory", "hog", "hof", "mbhx", "mbhy")] == [
        20, 108, 126, 108, 108,
    ]  # fmt: skip
    assert len(tracks) and tracks["frame"].min() == 10
    fewer = ended(frames, track_length=10, time_cells=2, gap=4, matches="none")
    assert len(fewer) < len(ended(frames, track_length=10, time_cells=2, matches="none"))


# --- refusals ---


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"track_length": 16}, "a multiple of time_cells, got 16 and 3"),
        ({"patch": 31}, "patch to be a multiple of cells"),
        ({"sampling": 0}, "sampling of at least 1"),
        ({"quality": float("nan")}, "quality of at least 0"),
        ({"matches": "surf"}, "flow, flow\\+sift, none, got 'surf'"),
    ],
)
def test_numbers_that_make_no_track_are_refused(numbers, words):
    with pytest.raises(UsageError, match=words):
        TrackParameters(**numbers)


def test_frames_under_a_patch_and_of_two_sizes_are_refused():
    with pytest.raises(FlowkitError, match="at least 32 px a side, got 40 x 31"):
        list(track_frames([np.zeros((31, 40), np.uint8)]))
    with pytest.raises(FlowkitError, match="of one size"):
        list(track_frames([np.zeros((40, 40), np.uint8), np.zeros((40, 41), np.uint8)]))


def test_boxes_are_read_by_frame_and_odd_lines_named(tmp_path):
    file = tmp_path / "a.bb"
    file.write_text("0 1 2 3 4 0.9 5 6 7 8 0.5\n\n2\n")
    boxes = read_boxes(file)
    assert boxes[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]] and len(boxes[2]) == 0
    for line in ("0 1 2 3 4", "x 1 2 3 4 5", "-1", "2\n2", "0 1 2 3 nan 1"):
        file.write_text(line)
        with pytest.raises(UsageError, match=r"line \d: expected a new frame number"):
            read_boxes(file)
