"""OpenCV's CUDA methods: what they ask of the binding, by a double; on a GPU if there is one."""

import itertools
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from cuda_double import CudaDouble

from flowkit.errors import UsageError
from flowkit.flow.methods import (
    describe_method,
    device_of,
    make_method,
    methods_on,
    prepare_method,
)
from flowkit.flow.opencv_cuda import HELD
from flowkit.flow.pairs import series_pairs
from flowkit.series import Series


def texture(size=(64, 80), seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture
def double(monkeypatch) -> CudaDouble:
    double = CudaDouble()
    monkeypatch.setattr(cv2, "cuda", double)
    return double


def uploads(double) -> list[np.ndarray]:
    return [entry[1] for entry in double.log if entry[0] == "upload"]


def steps(double) -> list[str]:
    return [entry[0] for entry in double.log]


@pytest.mark.slow
@pytest.mark.parametrize("name", methods_on("opencv-cuda"))
def test_each_frame_of_a_video_is_uploaded_once(double, name):
    frames = [texture(seed=seed) for seed in range(4)]
    fields = list(make_method(name)(frames))
    assert len(fields) == 3 and not any(np.isnan(field).any() for field in fields)
    assert steps(double) == ["upload", "upload", "calc", "download"] + [
        "upload", "calc", "download"] * 2  # fmt: skip


def test_both_directions_and_several_steps_share_the_uploads(double):
    frames = [texture(seed=seed) for seed in range(9)]
    series = [Series("forward", 1), Series("backward", 1), Series("forward", 5)]
    pairs = [pair[2:] for pair in series_pairs(frames, series)]
    fields = list(make_method("farneback-opencv-cuda").fields(pairs))
    assert (len(fields), len(uploads(double))) == (8 + 8 + 4, 9)


def test_memory_of_the_gpu_is_used_again(double):
    frames = [texture((40, 40), seed) for seed in range(2 * HELD)]
    method = make_method("farneback-opencv-cuda")
    fields = list(method(frames))
    assert double.memories == HELD + 1  # and that of the field
    for (first, second), field in zip(itertools.pairwise(frames), fields, strict=True):
        assert (field == cv2.FarnebackOpticalFlow_create().calc(first, second, None)).all()


def test_an_array_of_the_same_place_is_no_frame_seen_before(double):
    """A frame that is gone leaves its id to another one."""

    def pairs():
        for seed in range(40):
            yield texture((40, 40), seed), texture((40, 40), seed + 100)

    expected = [cv2.FarnebackOpticalFlow_create().calc(*pair, None) for pair in pairs()]
    fields = list(make_method("farneback-opencv-cuda").fields(pairs()))
    assert np.array_equal(fields, expected)


def test_brox_gets_floats_of_unit_range_the_others_bytes(double):
    frames = [np.full((40, 40), value, np.uint8) for value in (0, 255)]
    list(make_method("brox-opencv-cuda")(frames))
    assert [(one.dtype, one.max()) for one in uploads(double)] == [(np.float32, 0), (np.float32, 1)]
    double.log.clear()
    list(make_method("tvl1-opencv-cuda")(frames))
    assert all(sent is frame for sent, frame in zip(uploads(double), frames, strict=True))


def test_frames_that_are_views_are_sent_in_one_piece(double):
    wide = [texture((40, 80), seed) for seed in (0, 1)]
    views = [frame[:, ::2] for frame in wide]
    [field] = make_method("farneback-opencv-cuda").fields([tuple(views)])
    expected = cv2.FarnebackOpticalFlow_create().calc(*[view.copy() for view in views], None)
    assert (field == expected).all()


def test_a_new_size_has_a_new_algorithm_and_new_memory(double):
    large, small = ([texture(size, seed) for seed in (0, 1)] for size in ((64, 80), (24, 24)))
    method = make_method("tvl1-opencv-cuda")
    before, _, after = method.fields([tuple(large), tuple(small), tuple(large)])
    assert len(double.created) == 3
    assert (before == after).all()


@pytest.mark.parametrize(
    ("name", "parameters", "there"),
    [
        ("tvl1-opencv-cuda", {"tau": 0.1, "iterations": 7, "gamma": 0.2}, {"iterations": 7}),
        ("tvl1-opencv-cuda", {}, {"tau": 0.25, "nscales": 5, "iterations": 300, "gamma": 0.0}),
        (
            "farneback-opencv-cuda",
            {"win_size": 9, "gaussian": True},
            {"winSize": 9, "flags": 256},
        ),
        ("brox-opencv-cuda", {}, {"alpha": 0.197, "gamma": 50.0, "outer": 150}),
        ("brox-opencv-cuda", {"alpha": 0.3, "outer_iterations": 77}, {"alpha": 0.3, "outer": 77}),
    ],
)
def test_parameters_reach_opencv_and_the_identity(double, name, parameters, there):
    method = make_method(name, **parameters)
    list(method([texture((32, 40)), texture((32, 40), seed=1)]))
    assert there.items() <= double.created[-1].items()
    assert {"name": name, **parameters}.items() <= describe_method(method).items()
    assert device_of(method) == "cuda"


@pytest.mark.parametrize("name", methods_on("opencv-cuda"))
def test_an_opencv_without_cuda_is_told_before_any_work(monkeypatch, name):
    class Plain:  # what the wheels of PyPI have
        def getCudaEnabledDeviceCount(self):
            return 0

    monkeypatch.setattr(cv2, "cuda", Plain())
    with pytest.raises(UsageError, match=f"--method {name} needs an OpenCV built with CUDA, .* ma"):
        prepare_method(make_method(name))
    with pytest.raises(UsageError, match="make opencv-cuda"):
        next(make_method(name)([texture(), texture()]))


@pytest.mark.parametrize("gpus", [0, -1])  # -1: the driver does not fit
def test_a_machine_without_a_gpu_is_told(monkeypatch, gpus):
    monkeypatch.setattr(cv2, "cuda", CudaDouble(gpus))
    with pytest.raises(UsageError, match="finds no NVIDIA GPU that it can use"):
        prepare_method(make_method("tvl1-opencv-cuda"))


def test_a_driver_that_fails_is_told_in_one_line(monkeypatch):
    failure = cv2.error("OpenCV: system has unsupported display driver\nin function 'count'")
    monkeypatch.setattr(cv2, "cuda", CudaDouble(failure))
    with pytest.raises(UsageError, match=r"cannot use the GPU \(.*display driver\): .*nvidia-smi"):
        prepare_method(make_method("brox-opencv-cuda"))


def test_a_gpu_that_opencv_was_not_built_for_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(cv2, "cuda", CudaDouble(compatible=False))
    with pytest.raises(UsageError, match=r"other GPUs .* CUDA_ARCH_BIN=8\.6 make opencv-c"):
        prepare_method(make_method("tvl1-opencv-cuda"))


@pytest.mark.parametrize("part", ["Stream", "FarnebackOpticalFlow_create"])
def test_what_opencv_cannot_make_on_the_gpu_is_told(double, part):
    def make(**parameters):
        raise SystemError("returned a result with an exception set") from cv2.error(
            "OpenCV: out of memory\nmore"
        )

    setattr(double, part, make)
    with pytest.raises(UsageError, match=r"farneback-opencv-cuda: .* GPU \(OpenCV: out of mem"):
        next(make_method("farneback-opencv-cuda")([texture(), texture(seed=1)]))


def test_nothing_is_made_on_the_gpu_before_the_first_field(double):
    """A GPU may take one process only: that of the worker, not its parent's as well."""
    double.Stream = double.FarnebackOpticalFlow_create = None
    prepare_method(make_method("farneback-opencv-cuda"))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("tvl1-opencv-cuda", {"iterations": 0}, "expected iterations of at least 1, got 0"),
        ("farneback-opencv-cuda", {"poly_n": 6}, "expected poly_n 5 or 7, got 6"),
        ("farneback-opencv-cuda", {"fast_pyramids": True, "pyr_scale": 0.7}, "needs pyr_scale 0.5"),
        ("brox-opencv-cuda", {"alpha": 0}, "expected alpha of at least 1e-06, got 0"),
        ("brox-opencv-cuda", {"scale_factor": 1}, "expected scale_factor below 1, got 1"),
    ],
)
def test_unfit_requests_are_refused(name, parameters, message):
    with pytest.raises(UsageError, match=message):
        make_method(name, **parameters)


def build(folder: Path, *commands: str) -> subprocess.CompletedProcess:
    """Run the build where of all commands only these are there, and end at once."""
    for name in commands:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    script = Path(__file__).parents[1] / "build_opencv_cuda.sh"
    return subprocess.run(
        ["/bin/sh", script, folder], env={"PATH": str(folder)}, cwd=folder, capture_output=True,
        text=True,
    )  # fmt: skip


def test_the_build_says_what_it_needs_before_it_begins(tmp_path):
    done = build(tmp_path)
    assert (done.returncode, "install a C++ compiler" in done.stderr) == (2, True)
    done = build(tmp_path, "g++", "nvidia-smi", "sort", "paste")
    assert (done.returncode, "set CUDA_ARCH_BIN" in done.stderr) == (2, True)
    assert not (tmp_path / "build").exists()


@pytest.fixture
def gpu() -> None:
    for name in methods_on("opencv-cuda"):
        try:
            prepare_method(make_method(name))
        except UsageError as error:
            pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize("name", methods_on("opencv-cuda"))
def test_on_a_gpu_a_shift_has_its_sign_and_every_run_the_same_answer(gpu, name):
    whole = texture((272, 356))
    frames = [whole[8 - t : 264 - t, 8 - 2 * t : 348 - 2 * t].copy() for t in range(4)]
    fields = list(make_method(name)(frames))
    for field in fields:
        assert (field.shape, field.dtype) == ((256, 340, 2), np.float32)
        assert np.abs(np.median(field[32:-32, 32:-32], axis=(0, 1)) - [2, 1]).max() < 0.15
    assert np.allclose(fields, list(make_method(name)(frames)), atol=1e-3)


@pytest.mark.gpu
def test_on_a_gpu_farneback_is_near_the_processors(gpu):
    first, second = texture((256, 340)), np.roll(texture((256, 340)), 2, axis=1)
    [field] = make_method("farneback-opencv-cuda").fields([(first, second)])
    expected = cv2.FarnebackOpticalFlow_create().calc(first, second, None)
    assert np.median(np.abs(field - expected)[32:-32, 32:-32]) < 0.1
