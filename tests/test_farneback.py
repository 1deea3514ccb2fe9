"""Farneback's method held to OpenCV's own, bit for bit, and to the laws that a method obeys."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from made_textures import REAL_PAIRS, shifted, texture

from flowkit import fields
from flowkit._cv2 import cv2
from flowkit.errors import UsageError
from flowkit.flow.farneback import Farneback

# OpenCV's defaults, the settings that other tools use, and the default with a Gaussian window
SETTINGS = {
    "default": {},
    "dense_flow": {
        "pyr_scale": 0.702,
        "win_size": 10,
        "iterations": 2,
        "poly_n": 7,
        "poly_sigma": 1.5,
        "gaussian": True,
    },
    "mmaction2": {"levels": 3, "win_size": 15, "iterations": 3, "poly_sigma": 1.2},
    "gaussian": {"gaussian": True},
}
ODD_SETTINGS = [
    {"win_size": 1, "iterations": 2},
    {"win_size": 1, "gaussian": True, "iterations": 2},
    {"win_size": 2},
    {"win_size": 60, "poly_sigma": 0.0, "iterations": 3},
    {"win_size": 33, "gaussian": True, "pyr_scale": 0.9, "levels": 9, "iterations": 1},
]
Pair = tuple[np.ndarray, np.ndarray]


def moved(height: int, width: int, dx: float, dy: float) -> Pair:
    """A texture, and the same moved right by dx and down by dy px."""
    first = texture(height, width)
    return first, shifted(first, dx, dy)


def opencv(first: np.ndarray, second: np.ndarray, method: Farneback) -> np.ndarray:
    return cv2.FarnebackOpticalFlow_create(
        numLevels=method.levels,
        pyrScale=method.pyr_scale,
        winSize=method.win_size,
        numIters=method.iterations,
        polyN=method.poly_n,
        polySigma=method.poly_sigma,
        flags=cv2.OPTFLOW_FARNEBACK_GAUSSIAN if method.gaussian else 0,
    ).calc(first, second, None)


def one(first: np.ndarray, second: np.ndarray, method: Farneback | None = None) -> np.ndarray:
    (field,) = (method or Farneback()).fields([(first, second)])
    return field


def gray_pair(path: Path, index: int) -> Pair:
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(index + 2)]
    first, second = (cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames[-2:])
    return first, second


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "size",
    [
        *((16, 16), (17, 33), (16, 200), (64, 32), (63, 97), (240, 320)),
        pytest.param((480, 640), marks=pytest.mark.slow),
    ],
)
def test_moved_textures_give_opencvs_field_bit_for_bit(size, name):
    pair = moved(*size, 2.7, -1.4)
    method = Farneback(**SETTINGS[name])
    assert np.array_equal(one(*pair, method), opencv(*pair, method))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("clip", "index"),
    [*REAL_PAIRS[:4], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REAL_PAIRS[4:])],
)
def test_real_pairs_give_opencvs_field_bit_for_bit(real_data, clip, index, name):
    pair = gray_pair(real_data / clip, index)
    method = Farneback(**SETTINGS[name])
    assert np.array_equal(one(*pair, method), opencv(*pair, method))


@pytest.mark.parametrize("parameters", ODD_SETTINGS)
def test_windows_of_any_size_follow_opencv(parameters):
    pair = moved(70, 90, 1.5, 2.5)
    method = Farneback(**parameters)
    assert np.array_equal(one(*pair, method), opencv(*pair, method))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 7), (5, 4), (9, 12), (12, 8), (10, 11)])
def test_frames_smaller_than_their_borders_follow_opencv(size):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, *size), dtype=np.uint8)
    for parameters in SETTINGS.values():
        method = Farneback(**parameters)
        assert np.array_equal(one(first, second, method), opencv(first, second, method))


def test_positions_far_outside_the_frame_follow_opencv():
    """Noise and no window throw pixels off by more than the frame's size."""
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 256, (2, 60, 80), dtype=np.uint8)
    method = Farneback(win_size=1, iterations=3, gaussian=True)
    expected = opencv(first, second, method)
    assert np.abs(expected).max() > 80
    assert np.array_equal(one(first, second, method), expected)


def test_black_and_white_frames_stay_finite():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, (2, 33, 47), dtype=np.uint8) * 255
    field = one(first, second)
    assert np.isfinite(field).all()
    assert np.array_equal(field, opencv(first, second, Farneback()))


def test_flat_frames_give_exactly_zero():
    """A difference of brightness alone has no slope to be explained by motion."""
    assert not one(np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8)).any()
    lit = one(np.full((40, 50), 10, np.uint8), np.full((40, 50), 200, np.uint8))
    assert np.abs(lit).max() < 1e-5


def test_a_shift_is_found():
    field = one(*moved(80, 100, 2, -1))
    assert np.abs(np.median(field[16:-16, 16:-16], axis=(0, 1)) - [2, -1]).max() < 0.05


# OpenCV 5.0's mean end-point error at its defaults, px, rounded up
@pytest.mark.parametrize(
    ("scene", "limit"),
    [("Dimetrodon", 0.94), ("Grove2", 0.59), ("RubberWhale", 0.37), ("Venus", 1.45)],
)
def test_ground_truth(real_data, scene, limit):
    folder = real_data / "middlebury" / scene
    first, second = (
        cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
        for name in ("frame10.png", "frame11.png")
    )
    error = fields.end_point_error(one(first, second), fields.read_flo(folder / "flow10.flo"))
    assert np.nanmean(error) < limit


def test_frames_give_the_fields_of_consecutive_pairs_in_order():
    frames = [texture(40, 60, seed=seed) for seed in range(3)]
    expected = [one(frames[0], frames[1]), one(frames[1], frames[2])]
    assert np.array_equal(list(Farneback()(frames)), expected)
    assert np.array_equal(list(Farneback()(cv2.merge([frame] * 3) for frame in frames)), expected)


def test_what_came_before_changes_nothing():
    """Swapped pairs, another size in between, a frame of its own in the next pair's place."""
    a, b = moved(40, 60, 1, 1)
    c, d = moved(70, 90, -1, 0)
    pairs = [(a, b), (b, a), (c, d), (a, b), (a, b)]
    expected = [one(*pair) for pair in pairs]
    for got, want in zip(Farneback().fields(pairs), expected, strict=True):
        assert np.array_equal(got, want)


def test_it_is_the_same_again():
    pair = moved(120, 160, 3, 2)
    first, *again = (one(*pair) for _ in range(4))
    assert all(np.array_equal(first, field) for field in again)


def test_fields_come_one_at_a_time():
    def pairs():
        yield texture(20, 20), texture(20, 20, seed=1)
        raise AssertionError("the second pair was asked for")

    assert next(Farneback().fields(pairs())).shape == (20, 20, 2)


def test_frames_need_not_be_contiguous():
    frames = np.stack([texture(40, 60), texture(40, 60, seed=1)], axis=2)  # (H, W, 2)
    strided = one(frames[..., 0], frames[..., 1])
    assert np.array_equal(strided, one(frames[..., 0].copy(), frames[..., 1].copy()))
    turned = one(frames[..., 0].T, frames[..., 1].T)
    assert np.array_equal(turned, one(frames[..., 0].T.copy(), frames[..., 1].T.copy()))


def test_threads_do_not_disturb_each_other():
    pairs = [(texture(60, 80, seed=s), texture(60, 80, seed=s + 1)) for s in range(6)]
    expected = list(Farneback().fields(pairs))
    got: dict[int, list[np.ndarray]] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: list(Farneback().fields(pairs))}))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[n], expected) for n in range(3))


def test_opencv_ignores_fast_pyramids_on_the_cpu():
    """Should this fail, the message that refuses fast_pyramids has to change."""
    pair = moved(96, 128, 2, 1)
    fast = cv2.FarnebackOpticalFlow_create(fastPyramids=True).calc(*pair, None)
    assert np.array_equal(fast, opencv(*pair, Farneback()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"win_size": 0}, "win_size of at least 1, got 0"),
        ({"pyr_scale": 1.0}, "farneback: expected pyr_scale below 1, got 1.0"),
        ({"poly_n": 6}, "poly_n 5 or 7, got 6: farneback-opencv"),
        ({"fast_pyramids": True}, "no fast_pyramids: farneback-opencv"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(UsageError, match=message):
        Farneback(**parameters)


def test_importing_the_method_imports_nothing_heavy():
    code = "import sys, flowkit.flow.farneback; print({'numba', 'cv2', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
