"""The contract of a displacement field and its algebra, free of any flow method.

A *displacement field* is a float32 array (H, W, 2) in pixels per frame step. ``field[y, x, 0]`` is
the displacement to the right and ``field[y, x, 1]`` the displacement down of the point that lies at
column x, row y of the first frame: it lies at (x, y) + field[y, x] in the second one.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from flowkit.documents import read_plain_file
from flowkit.errors import FlowkitError

FLO_MAGIC = b"PIEH"  # the float 202021.25 in little endian, first in every Middlebury .flo file
UNKNOWN_FLOW = 1e9  # Middlebury marks pixels without ground truth by values above this


def check_field(field: np.ndarray) -> np.ndarray:
    """Return `field` if it is a float32 (H, W, 2) array, else raise FlowkitError."""
    if field.ndim != 3 or field.shape[2] != 2 or field.dtype != np.float32:
        raise FlowkitError(
            f"expected a field, float32 (H, W, 2), instead got {field.dtype} {field.shape}"
        )
    return field


def mirror(field: np.ndarray) -> np.ndarray:
    """The field of the horizontally mirrored video: columns reversed, x negated; same shape."""
    mirrored = check_field(field)[:, ::-1].copy()
    np.negative(mirrored[..., 0], out=mirrored[..., 0])
    return mirrored


def subtract_mean(field: np.ndarray) -> np.ndarray:
    """The field minus its own mean vector, two numbers a field, summed in double.

    Takes out a camera that moves as a whole (Simonyan & Zisserman 2014, section 3.1).
    """
    return check_field(field) - field.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)


def resize(field: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The field on a grid of another size (H, W), its values scaled as vectors are.

    Bilinear, half-pixel centres; twice as wide a grid has twice as large x displacements.
    """
    from flowkit._cv2 import cv2

    height, width = check_field(field).shape[:2]
    resized = cv2.resize(field, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized * np.array([size[1] / width, size[0] / height], np.float32)  # (h, w, 2)


def end_point_error(field: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance in px between two fields of one size, float32 (H, W).

    NaN where `truth` is unknown (above 1e9, as Middlebury marks it): take ``np.nanmean`` of it.
    """
    if check_field(field).shape != check_field(truth).shape:
        raise FlowkitError(f"expected fields of one size, got {field.shape} and {truth.shape}")
    known = (np.abs(truth) < UNKNOWN_FLOW).all(axis=2)  # (H, W)
    difference = np.where(known[..., None], field - truth, np.float32(np.nan))
    return np.hypot(difference[..., 0], difference[..., 1])


def read_flo(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a Middlebury .flo file: float32 (H, W, 2), px.

    FlowkitError if it is none or its length is not that of its size, OSError if it is not there.
    """
    return decode_flo(read_plain_file(path, error=FlowkitError), where=os.fspath(path))


def write_flo(path: str | os.PathLike[str], field: np.ndarray) -> None:
    """Write `field`, float32 (H, W, 2) px, as a Middlebury .flo file; FlowkitError for others."""
    Path(path).write_bytes(encode_flo(field))


def encode_flo(field: np.ndarray) -> bytes:
    """The bytes of a .flo file: "PIEH", int32 width, int32 height, then x y pairs by rows."""
    height, width = check_field(field).shape[:2]
    return FLO_MAGIC + np.array([width, height], "<i4").tobytes() + field.astype("<f4").tobytes()


def decode_flo(data: bytes | memoryview, *, where: str = ".flo data") -> np.ndarray:
    """The field in the bytes of a .flo file; `where` names them in the error."""
    if data[:4] != FLO_MAGIC or len(data) < 12:
        raise FlowkitError(f"{where}: expected a .flo file that starts with {FLO_MAGIC.decode()}")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, offset=4))
    if width < 1 or height < 1 or len(data) != 12 + 8 * width * height:
        raise FlowkitError(
            f"{where}: expected {12 + 8 * width * height} bytes for a {width}x{height} field, "
            f"got {len(data)}"
        )
    values = np.frombuffer(data, "<f4", offset=12)
    return values.reshape(height, width, 2).astype(np.float32)
