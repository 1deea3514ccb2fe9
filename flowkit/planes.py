"""One displacement field to the bytes of its files and back, in every storage format."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from flowkit import quantize
from flowkit._cv2 import cv2
from flowkit.errors import RecordError
from flowkit.fields import decode_flo, encode_flo

FORMATS = ("jpg", "png", "lz4", "npy", "flo")
PLANE_FORMATS = ("jpg", "png", "lz4")  # 8-bit planes and a range; the others hold floats
LZ4_LEVEL = 9  # the high compression coder: reads no slower, 1.5 times smaller than level 0

Ranges = list[tuple[float, float]]  # (lo, hi) of x, then of y


def components(format: str) -> tuple[str, ...]:
    """The files of one field: a plane each for "x" and "y", or both in one file, "xy"."""
    return ("x", "y") if format in ("jpg", "png") else ("xy",)


def encode_field(
    field: np.ndarray, format: str, *, bound: float | None = None, quality: int = 90
) -> tuple[list[bytes], Ranges | None]:
    """The files of a field, float32 (H, W, 2) px, in the order of `components`, and its ranges.

    `bound` in px fixes the range (`quantize.bound_range`); None takes each component's own
    (`quantize.own_range`). Formats that hold floats have no ranges.
    """
    if format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, field.astype("<f4", copy=False))
        return [buffer.getvalue()], None
    if format == "flo":
        return [encode_flo(field)], None
    planes, ranges = [], []
    for component in (field[..., 0], field[..., 1]):
        lo, hi = own = quantize.own_range(component)  # refuses NaN under a bound, too
        if bound is None:
            planes.append(quantize.quantize(component, lo, hi))
            ranges.append(own)
        else:
            planes.append(quantize.quantize_bounded(component, bound))
            ranges.append(quantize.bound_range(bound))
    return encode_planes(planes, format, quality=quality), ranges


def encode_planes(planes: Sequence[np.ndarray], format: str, *, quality: int = 90) -> list[bytes]:
    """The files of the x and y planes, uint8 (H, W), in a format of PLANE_FORMATS."""
    if format == "lz4":
        import lz4.frame

        raw = np.stack(planes).tobytes()  # x rows, then y rows
        return [lz4.frame.compress(raw, compression_level=LZ4_LEVEL)]
    return [encode_image(plane, format, quality) for plane in planes]


def decode_field(
    files: list[bytes],
    format: str,
    size: tuple[int, int],
    ranges: np.ndarray | None,
    *,
    where: str,
) -> np.ndarray:
    """The field, float32 (H, W, 2) px, that `encode_field` wrote; RecordError names `where`.

    `ranges` are (2, 2), lo and hi of x and of y; None for the formats that hold floats.
    """
    if ranges is not None:
        planes = decode_planes(files, format, size, where=where)
        tables = [quantize.code_values(lo, hi) for lo, hi in ranges]
        x, y = (cv2.LUT(plane, table) for plane, table in zip(planes, tables, strict=True))
        return cv2.merge([x, y])  # 5 times quicker than indexing the tables with NumPy
    try:
        if format == "flo":
            field = decode_flo(files[0], where=where)
        else:
            field = np.load(io.BytesIO(files[0]), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RecordError(f"{where}: damaged {format} file ({error})") from error
    if field.shape != (*size, 2):
        raise RecordError(f"{where}: expected a field of {(*size, 2)}, got {field.shape}")
    return field


def decode_planes(
    files: list[bytes], format: str, size: tuple[int, int], *, where: str
) -> list[np.ndarray]:
    """The x and y planes, uint8 (H, W), of one field in a format of PLANE_FORMATS."""
    if format == "lz4":
        import lz4.frame

        try:
            raw = lz4.frame.decompress(files[0])
        except RuntimeError as error:
            raise RecordError(f"{where}: damaged LZ4 data ({error})") from error
        if len(raw) != 2 * size[0] * size[1]:
            raise RecordError(f"{where}: expected two planes of {size}, got {len(raw)} bytes")
        return list(np.frombuffer(raw, np.uint8).reshape(2, *size))
    return [decode_image(data, size, cv2.IMREAD_GRAYSCALE, where=where) for data in files]


def encode_image(image: np.ndarray, format: str, quality: int) -> bytes:
    """A gray or BGR uint8 image as the bytes of a "jpg" or "png" file.

    Gray JPEG with optimized Huffman tables: the same pixels in fewer bytes. For color they would
    triple the time of encoding.
    """
    optimize = int(image.ndim == 2)
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, optimize]
    written, data = cv2.imencode(f".{format}", image, jpeg if format == "jpg" else [])
    if not written:
        raise RecordError(f"OpenCV could not encode an image {image.shape} as {format}")
    return data.tobytes()


def decode_image(data: bytes, size: tuple[int, int], flags: int, *, where: str) -> np.ndarray:
    """The uint8 image of `size` in a JPEG or PNG file; `flags` as cv2.imread takes them."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise RecordError(f"{where}: damaged or truncated image of {len(data)} bytes")
    if image.shape[:2] != size:
        raise RecordError(f"{where}: expected an image of {size}, got {image.shape[:2]}")
    return image
