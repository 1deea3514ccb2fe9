"""The algebra of displacement fields: laws, values by hand, and OpenCV's own .flo files."""

import cv2
import numpy as np
import pytest

from flowkit.errors import FlowkitError
from flowkit.fields import (
    decode_flo,
    encode_flo,
    end_point_error,
    mirror,
    read_flo,
    resize,
    subtract_mean,
    write_flo,
)


@pytest.fixture
def field() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 17, 2)).astype(np.float32)


def test_mirror_reverses_columns_and_negates_x_only(field):
    mirrored = mirror(field)
    assert (mirrored[:, 0, 0] == -field[:, -1, 0]).all()
    assert (mirrored[:, 0, 1] == field[:, -1, 1]).all()
    assert (mirror(mirrored) == field).all()


def test_subtracting_the_mean_leaves_none_and_twice_is_once(field):
    once = subtract_mean(field + np.float32([3, -5]))
    assert np.abs(once.mean(axis=(0, 1))).max() < 1e-6
    assert np.abs(subtract_mean(once) - once).max() < 1e-6


def test_resizing_scales_displacements_as_vectors():
    constant = np.broadcast_to(np.float32([3, 2]), (10, 20, 2)).copy()
    assert (resize(constant, (5, 40)) == np.float32([6, 1])).all()


def test_end_point_error_by_hand_and_unknown_truth():
    field = np.float32([[[3, 4], [1, 1]]])
    truth = np.float32([[[0, 0], [1.6e9, 1.6e9]]])
    error = end_point_error(field, truth)
    assert error[0, 0] == 5 and np.isnan(error[0, 1])
    with pytest.raises(FlowkitError, match="expected fields of one size"):
        end_point_error(field, truth[:, :1])


def test_flo_files_are_opencvs(field, tmp_path):
    write_flo(tmp_path / "own.flo", field)
    assert (cv2.readOpticalFlow(str(tmp_path / "own.flo")) == field).all()
    assert cv2.writeOpticalFlow(str(tmp_path / "cv2.flo"), field)
    assert (read_flo(tmp_path / "cv2.flo") == field).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"JPEG and more of it", "expected a .flo file that starts with PIEH"),
        (encode_flo(np.zeros((2, 3, 2), np.float32))[:-1], "expected 60 bytes for a 3x2 field"),
    ],
)
def test_damaged_flo_files_are_refused(data, message):
    with pytest.raises(FlowkitError, match=message):
        decode_flo(data, where="x.flo")


@pytest.mark.parametrize("bad", [np.zeros((3, 4), np.float32), np.zeros((3, 4, 2))])
def test_what_is_no_field_is_refused(bad):
    with pytest.raises(FlowkitError, match=r"expected a field, float32 \(H, W, 2\)"):
        mirror(bad)
