"""TV-L1 held to OpenCV's own, to ground truth and to the laws that a flow method obeys."""

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
from flowkit.flow.tvl1 import TVL1


def opencv(first: np.ndarray, second: np.ndarray, method: TVL1) -> np.ndarray:
    return cv2.optflow.DualTVL1OpticalFlow_create(
        nscales=method.nscales,
        warps=method.warps,
        epsilon=method.epsilon,
        innnerIterations=method.inner_iterations,
        outerIterations=method.outer_iterations,
        medianFiltering=method.median_filtering,
        scaleStep=method.scale_step,
        theta=method.theta,
        lambda_=method.lambda_,
        tau=method.tau,
    ).calc(first, second, None)


def one(first: np.ndarray, second: np.ndarray, method: TVL1 | None = None) -> np.ndarray:
    (field,) = (method or TVL1()).fields([(first, second)])
    return field


def mean_error(field: np.ndarray, truth: np.ndarray) -> float:
    return float(np.nanmean(fields.end_point_error(field, truth)))


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (5, 40), (40, 5), (96, 131), (64, 290)])
def test_one_warp_of_full_length_equals_opencv(size):
    first = texture(*size)
    second = shifted(first, 0.7, -0.4)
    method = TVL1(nscales=1, warps=1, epsilon=0)
    assert np.abs(one(first, second, method) - opencv(first, second, method)).max() <= 1e-5


def test_one_warp_equals_opencv_with_other_parameters_and_without_median():
    first = texture(60, 80)
    second = shifted(first, 0.5, 0.5)
    method = TVL1(
        nscales=1, warps=1, epsilon=0, tau=0.2, lambda_=0.05, theta=0.4, median_filtering=1
    )
    assert np.abs(one(first, second, method) - opencv(first, second, method)).max() <= 2e-5


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.05])
def test_several_iterations_in_one_pass_equal_one_by_one(epsilon):
    first = texture(70, 150)
    second = shifted(first, 1.3, -0.6)
    as_one, one_by_one = (
        TVL1(epsilon=epsilon, median_filtering=1, inner_iterations=inner, outer_iterations=outer)
        for inner, outer in ((30, 1), (1, 30))
    )
    assert np.array_equal(one(first, second, as_one), one(first, second, one_by_one))


def test_pyramid_and_positions_outside_the_frame_follow_opencv():
    first = texture(70, 90, grain=4)
    second = shifted(first, 6, -5)
    method = TVL1(scale_step=0.7, warps=3, outer_iterations=1, epsilon=0)
    difference = fields.end_point_error(one(first, second, method), opencv(first, second, method))
    assert np.median(difference) < 1e-3
    assert difference.mean() < 0.02


@pytest.mark.parametrize("preset", TVL1.presets)
def test_presets_equal_opencv_with_their_parameters(preset):
    first = texture(96, 131)
    second = shifted(first, 2.3, -1.4)
    method = TVL1(**TVL1.presets[preset])
    assert mean_error(one(first, second, method), opencv(first, second, method)) < 2e-3


@pytest.mark.slow
def test_real_pairs_lie_within_opencvs_own_noise(real_data):
    """OpenCV's stop test is chaotic: 0.001 gray of noise moves its own answer about as far."""
    rng = np.random.default_rng(0)
    to_opencv, noise_floor = [], []
    for name, index in REAL_PAIRS:
        first, second = (cv2.pyrDown(frame) for frame in gray_pair(real_data / name, index))
        expected = opencv(first, second, TVL1())
        noisy = [
            np.clip((frame + rng.uniform(-1e-3, 1e-3, frame.shape)) / 255, 0, 1).astype(np.float32)
            for frame in (first, second)
        ]
        to_opencv.append(mean_error(one(first, second), expected))
        noise_floor.append(mean_error(opencv(*noisy, TVL1()), expected))
    assert np.mean(to_opencv) <= 1.25 * np.mean(noise_floor)


def gray_pair(path: Path, index: int) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1] for _ in range(index + 2)]
    return [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames[-2:]]


# OpenCV 5.0's mean end-point error at its defaults, px (benchmarks/tvl1_cpu.py measures it)
@pytest.mark.parametrize(
    ("scene", "opencv_error"),
    [
        pytest.param("Dimetrodon", 0.1795, marks=pytest.mark.slow),
        ("Grove2", 0.1566),
        ("RubberWhale", 0.1562),
        pytest.param("Venus", 0.3057, marks=pytest.mark.slow),
    ],
)
def test_ground_truth_error_is_opencvs_within_one_percent_and_presets_are_near(
    real_data, scene, opencv_error
):
    folder = real_data / "middlebury" / scene
    first, second = (
        cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
        for name in ("frame10.png", "frame11.png")
    )
    truth = fields.read_flo(folder / "flow10.flo")
    assert mean_error(one(first, second), truth) <= 1.01 * opencv_error
    for preset, most in (("fast", 1.08), ("faster", 1.36)):
        field = one(first, second, TVL1(**TVL1.presets[preset]))
        assert mean_error(field, truth) <= most * opencv_error


def test_no_motion_gives_exactly_zero():
    frame = texture(40, 50)
    assert not one(frame, frame.copy()).any()


def test_flat_frames_give_zero_and_no_nan():
    assert not one(np.full((20, 30), 10, np.uint8), np.full((20, 30), 200, np.uint8)).any()


def test_extreme_frames_stay_finite():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2, (2, 33, 47), dtype=np.uint8) * 255
    assert np.isfinite(one(first, second, TVL1(lambda_=5.0))).all()


def test_frames_give_the_fields_of_consecutive_pairs_in_order():
    frames = [texture(40, 60, seed=seed) for seed in range(3)]
    expected = [one(frames[0], frames[1]), one(frames[1], frames[2])]
    assert np.array_equal(list(TVL1()(frames)), expected)
    assert np.array_equal(list(TVL1()(cv2.merge([frame] * 3) for frame in frames)), expected)


def test_what_came_before_changes_nothing():
    """Swapped pairs, another size in between, a frame of its own in the next pair's place."""
    a, b = texture(40, 60), shifted(texture(40, 60), 1, 1)
    c, d = texture(30, 90), shifted(texture(30, 90), -1, 0)
    expected = [one(*pair) for pair in [(a, b), (b, a), (c, d), (a, b), (a, b)]]
    for got, want in zip(
        TVL1().fields([(a, b), (b, a), (c, d), (a, b), (a, b)]), expected, strict=True
    ):
        assert np.array_equal(got, want)


def test_fields_come_one_at_a_time():
    def pairs():
        yield texture(20, 20), texture(20, 20, seed=1)
        raise AssertionError("the second pair was asked for")

    assert next(TVL1().fields(pairs())).shape == (20, 20, 2)


def test_frames_need_not_be_contiguous():
    frames = np.stack([texture(40, 60), texture(40, 60, seed=1)], axis=2)  # (H, W, 2)
    strided = one(frames[..., 0], frames[..., 1])
    assert np.array_equal(strided, one(frames[..., 0].copy(), frames[..., 1].copy()))


def test_threads_do_not_disturb_each_other():
    pairs = [(texture(60, 80, seed=s), texture(60, 80, seed=s + 1)) for s in range(3)]
    expected = list(TVL1().fields(pairs))
    got: dict[int, list[np.ndarray]] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: list(TVL1().fields(pairs))}))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[n], expected) for n in range(3))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"theta": 0}, "tvl1: expected theta of at least 1e-06, got 0"),
        ({"scale_step": 1}, "tvl1: expected scale_step below 1, got 1"),
        ({"gamma": 0.5}, "gamma 0, got 0.5: tvl1-opencv"),
        ({"median_filtering": 3}, "median_filtering 5 or 1, got 3: tvl1-opencv"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(UsageError, match=message):
        TVL1(**parameters)


def test_importing_the_method_imports_nothing_heavy():
    code = "import sys, flowkit.flow.tvl1; print({'numba', 'cv2', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
