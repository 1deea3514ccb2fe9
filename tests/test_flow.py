"""One conformance suite over every flow method, then OpenCV's own answers."""

import pickle

import cv2
import numpy as np
import pytest
from cuda_double import CudaDouble
from made_raft import save_raft

from flowkit.errors import FlowkitError, UsageError
from flowkit.fields import end_point_error, mirror, read_flo
from flowkit.flow.methods import describe_method, make_method, methods_on
from flowkit.flow.pairs import consecutive, series_pairs
from flowkit.series import Series

# Mean end-point error in px of OpenCV 5.0 at its defaults, rounded up.
ERROR_LIMITS = {
    "farneback": {"Dimetrodon": 0.94, "Grove2": 0.59, "RubberWhale": 0.37, "Venus": 1.45},
    "tvl1": {"Dimetrodon": 0.181, "Grove2": 0.158, "RubberWhale": 0.158, "Venus": 0.309},
    "tvl1-opencv": {"RubberWhale": 0.158},  # the others take OpenCV seconds each
}  # TV-L1 has a quick test of two scenes in test_tvl1.py


def texture(size=(56, 72), seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(size[0] + 16, size[1] + 16)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def cropped_texture(size, seed=0) -> np.ndarray:
    """A texture of exactly this size (H, W)."""
    return texture(size, seed)[: size[0], : size[1]].copy()


def shifted(dx: int, dy: int, count=3) -> list[np.ndarray]:
    """Frames of a texture that moves dx px right and dy px down a frame."""
    whole = texture()
    return [whole[8 - dy * t : 64 - dy * t, 8 - dx * t : 80 - dx * t].copy() for t in range(count)]


@pytest.fixture(scope="session")
def random_raft(tmp_path_factory) -> str:
    """A file of raft_small's tensors, as they are before any training."""
    return save_raft(tmp_path_factory.mktemp("raft") / "random.pth")


@pytest.fixture(params=methods_on("cpu", "torch", "opencv-cuda"))
def method(request, monkeypatch):
    if request.param in methods_on("opencv-cuda"):
        monkeypatch.setattr(cv2, "cuda", CudaDouble())
    if request.param in methods_on("torch"):
        weights = request.getfixturevalue("random_raft")
        return make_method(request.param, weights=weights, updates=2)
    return make_method(request.param)


@pytest.fixture
def trained_method(method):
    """A method whose answer has something to do with the motion."""
    if method.name in methods_on("torch"):
        pytest.skip("random weights know no motion")
    return method


def test_fields_have_their_count_shape_and_type(method):
    fields = list(method(shifted(2, -1)))
    assert [(one.shape, one.dtype) for one in fields] == [((56, 72, 2), np.float32)] * 2
    assert all(one.flags.c_contiguous and one.flags.writeable for one in fields)


def test_known_shift_has_its_sign_and_order(trained_method):
    for field in trained_method(shifted(2, -1)):
        assert np.abs(np.median(field[16:-16, 16:-16], axis=(0, 1)) - [2, -1]).max() < 0.15


def test_no_motion_is_no_flow(trained_method):
    frame = texture()
    [field] = trained_method([frame, frame.copy()])
    assert np.abs(field[12:-12, 12:-12]).max() < 0.01  # Farneback drifts at the borders


def test_mirrored_frames_give_the_mirrored_field(trained_method):
    frames = shifted(2, 1, count=2)
    [plain] = trained_method(frames)
    [flipped] = trained_method([np.ascontiguousarray(frame[:, ::-1]) for frame in frames])
    inside = np.s_[12:-12, 12:-12]  # no method treats its two borders quite alike
    assert np.median(end_point_error(mirror(plain), flipped)[inside]) < 0.1


def test_inputs_are_left_alone_and_results_are_new_and_the_same_again(method):
    frames = shifted(1, 1)
    before = [frame.copy() for frame in frames]
    first, second = list(method(frames)), list(method(frames))
    assert all((a == b).all() for a, b in zip(frames, before, strict=True))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert not np.shares_memory(first[0], first[1])


def test_it_travels_to_a_worker(method):
    copy = pickle.loads(pickle.dumps(method))
    assert copy == method and describe_method(copy) == describe_method(method)
    frames = shifted(1, 0, count=2)
    assert (next(iter(copy(frames))) == next(iter(method(frames)))).all()


def test_fields_come_lazily(method):
    def endless():
        while True:
            yield from shifted(1, 0, count=2)

    fields = method(endless())
    assert next(fields).shape == next(fields).shape


def test_a_small_frame_does_not_change_what_follows(method):
    """OpenCV's TV-L1 object keeps fewer levels for good after one small frame."""
    large, small = shifted(2, 0, count=2), [texture((24, 24), seed) for seed in (1, 2)]
    [alone] = method(large)
    after = list(method.fields([(small[0], small[1]), (large[0], large[1])]))[1]
    assert (alone == after).all()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros((56, 73), np.uint8), r"got \(56, 72\) and \(56, 73\)"),
        (np.zeros((56, 72), np.float32), r"uint8 .* got float32"),
    ],
)
def test_unfit_pairs_are_refused(method, second, message):
    with pytest.raises(FlowkitError, match=message):
        list(method.fields([(np.zeros((56, 72), np.uint8), second)]))


def test_unfit_frames_are_refused(method):
    with pytest.raises(FlowkitError, match=r"expected a frame, uint8 \(H, W\) or \(H, W, 3\)"):
        list(method([np.zeros((8, 8, 4), np.uint8)] * 2))


def opencv_by_hand(name):
    match name:
        case "tvl1-opencv":
            return cv2.optflow.DualTVL1OpticalFlow_create()
        case "farneback" | "farneback-opencv":
            return cv2.FarnebackOpticalFlow_create()
        case "dis":
            return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)


@pytest.mark.parametrize("name", ["tvl1-opencv", "farneback", "farneback-opencv", "dis"])
def test_defaults_are_opencvs_bit_for_bit(name):
    first, second = shifted(3, 1, count=2)
    [field] = make_method(name)([first, second])
    assert (field == opencv_by_hand(name).calc(first, second, None)).all()


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_dis_presets_are_opencvs(preset):
    first, second = shifted(3, 1, count=2)
    number = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}")
    wanted = cv2.DISOpticalFlow_create(number).calc(first, second, None)
    [field] = make_method("dis", preset=preset)([first, second])
    assert (field == wanted).all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        pytest.param(
            *("tvl1-opencv", {"lambda_": 0.05, "warps": 2, "median_filtering": 1}),
            marks=pytest.mark.slow,
        ),
        ("farneback-opencv", {"win_size": 21, "gaussian": True, "poly_n": 7, "poly_sigma": 1.5}),
        ("farneback", {"win_size": 21, "gaussian": True, "poly_n": 7, "poly_sigma": 1.5}),
        ("dis", {"patch_size": 12, "refinement_alpha": 5.0, "mean_normalization": False}),
    ],
)
def test_parameters_reach_the_algorithm(name, parameters):
    frames = [texture(seed=seed) for seed in (0, 1)]
    [default], [changed] = make_method(name)(frames), make_method(name, **parameters)(frames)
    assert (default != changed).any()
    assert parameters.items() <= describe_method(make_method(name, **parameters)).items()


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        pytest.param(name, scene, marks=pytest.mark.slow if name != "farneback" else ())
        for name, limits in ERROR_LIMITS.items()
        for scene in limits
    ],
)
def test_ground_truth(real_data, name, scene):
    folder = real_data / "middlebury" / scene
    frames = [cv2.imread(str(folder / f"frame{n}.png"), cv2.IMREAD_GRAYSCALE) for n in (10, 11)]
    [field] = make_method(name)(frames)
    error = np.nanmean(end_point_error(field, read_flo(folder / "flow10.flo")))
    assert error < ERROR_LIMITS[name][scene]


TOO_SMALL = [  # (H, W), the least shorter side and the patch, in px
    ((8, 64), 16, 8),
    ((8, 8), 12, 8),
    ((8, 1000), 256, 8),
    ((24, 100), 32, 8),
    ((7, 200), 12, 8),
]


@pytest.mark.parametrize(("size", "least", "patch"), TOO_SMALL)
def test_dis_refuses_frames_on_which_opencv_crashes(size, least, patch):
    """24 x 100 px among them: what counts is the height at the coarsest scale of the width."""
    height, width = size
    message = rf"dis: .* at least {least} px on the .*of {patch} px.*, got {width}x{height} px"
    with pytest.raises(FlowkitError, match=message):
        list(make_method("dis").fields([(np.zeros(size, np.uint8),) * 2]))


@pytest.mark.parametrize("size", [(16, 64), (12, 12), (64, 8), (32, 100), (256, 1000), (240, 320)])
def test_dis_takes_the_smallest_frames_that_opencv_takes(size):
    first, second = (cropped_texture(size, seed) for seed in (1, 2))
    [field] = make_method("dis")([first, second])
    assert (field == opencv_by_hand("dis").calc(first, second, None)).all()


def test_dis_gives_a_pair_the_same_field_wherever_it_stands():
    """On small frames OpenCV changes scales and patch, and its object keeps them."""
    pair = (cropped_texture((28, 40), 1), cropped_texture((28, 40), 2))
    first, second = make_method("dis").fields([pair] * 2)
    assert (first == second).all()


def test_dis_refuses_a_stride_beyond_the_patch_that_opencv_takes_on_small_frames():
    method = make_method("dis", patch_size=16, patch_stride=12)
    with pytest.raises(FlowkitError, match="patch_stride of at most 8"):
        list(method.fields([(cropped_texture((32, 48)),) * 2]))


def test_one_pass_serves_every_series():
    frames = [np.full((4, 4), value, np.uint8) for value in range(4)]
    series = [Series("forward", 1), Series("backward", 1), Series("forward", 3)]
    got = [
        (one.direction, one.step, index, int(first[0, 0]), int(second[0, 0]))
        for one, index, first, second in series_pairs(iter(frames), series)
    ]
    assert got == [
        ("forward", 1, 0, 0, 1),
        ("backward", 1, 0, 1, 0),
        ("forward", 1, 1, 1, 2),
        ("backward", 1, 1, 2, 1),
        ("forward", 1, 2, 2, 3),
        ("backward", 1, 2, 3, 2),
        ("forward", 3, 0, 0, 3),
    ]


def test_color_frames_are_turned_gray_as_opencv_does():
    color = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
    [(first, _)] = consecutive(color)
    assert (first == cv2.cvtColor(color[0], cv2.COLOR_BGR2GRAY)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_method("brox"), "expected a method of tvl1, .*, got 'brox'"),
        (lambda: make_method("dis", preset="slow"), "no preset 'slow'; it has: ultrafast, fast"),
        (lambda: make_method("dis", tau=1), "method dis has no parameter tau"),
        (lambda: make_method("farneback", levels=0), "levels of at least 1, got 0"),
        (lambda: make_method("farneback-opencv", poly_n=10**6), "poly_n of at most 101, got 1000"),
        (lambda: make_method("farneback-opencv", win_size=2**31), "win_size of at most 1001"),
        (lambda: make_method("farneback", poly_sigma=float("nan")), "at least 0, got nan"),
        (lambda: make_method("farneback", poly_sigma=float("inf")), "at most 1000, got inf"),
        (lambda: make_method("dis", patch_stride=100), "patch_stride from 1 to the 8 px of patch"),
        (lambda: make_method("dis", refinement_epsilon=0), "epsilon of at least 0.0001, got 0"),
        (
            lambda: make_method("dis", refinement_alpha=1e38),
            "alpha of at most 10000.0, got 1e",
        ),
        (lambda: make_method("dis", coarsest_scale=1), "coarsest_scale -1 or of at least 2, the"),
    ],
)
def test_unfit_requests_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
