"""One displacement field to the bytes of its files and back, in every storage format."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np

from flowkit import quantize
from flowkit._cv2 import cv2
from flowkit.documents import NPY_ERRORS
from flowkit.errors import RecordError
from flowkit.fields import decode_flo, encode_flo
from flowkit.image_files import decode_image, image_size

LZ4_LEVEL = 3  # the lowest of the high compression coder: 9 takes 7 times as long for -10 % bytes
LZ4_BLOCK = 1 << 22  # bytes, BLOCKSIZE_MAX4MB

Ranges = list[tuple[float, float]]  # (lo, hi) of x, then of y
Data = bytes | memoryview  # content of one file


def encode_field(
    field: np.ndarray, format: str, *, bound: float | None = None, quality: int = 90
) -> tuple[list[bytes], Ranges | None]:
    """The files of a field, float32 (H, W, 2) px, in the order of its components, and its ranges.

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
    """The files of the x and y planes, uint8 (H, W), in a format of planes."""
    if format == "lz4":
        import lz4.frame

        raw = np.stack(planes).tobytes()  # x rows, then y rows
        blocks = {"block_size": lz4.frame.BLOCKSIZE_MAX4MB, "block_linked": False}
        return [lz4.frame.compress(raw, compression_level=LZ4_LEVEL, **blocks)]
    return [encode_image(plane, format, quality) for plane in planes]


def decode_field(
    files: Sequence[Data],
    format: str,
    size: tuple[int, int],
    ranges: np.ndarray | None,
    *,
    where: Sequence[str],
) -> np.ndarray:
    """The field, float32 (H, W, 2) px, that `encode_field` wrote.

    `ranges` are (2, 2), lo and hi of x and of y; None for the formats that hold floats. RecordError
    says `where`, a name for each file.
    """
    if ranges is not None:
        pair = decode_planes(files, format, size, where=where)
        tables = [quantize.code_values(lo, hi) for lo, hi in ranges]
        x, y = (cv2.LUT(plane, table) for plane, table in zip(pair, tables, strict=True))
        return cv2.merge([x, y])  # 5 times quicker than indexing the tables with NumPy
    try:
        field = decode_flo(files[0], where=where[0]) if format == "flo" else _decode_npy(files[0])
    except NPY_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise RecordError(f"{where[0]}: damaged {format} file ({reason})") from error
    if field.shape != (*size, 2):
        raise RecordError(f"{where[0]}: expected a field of {(*size, 2)}, got {field.shape}")
    return field


def _decode_npy(data: Data) -> np.ndarray:
    """The array in an .npy file of `encode_field`; its header reserves no memory."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"expected .npy version 1.0, got {version}")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    values = np.frombuffer(data, np.uint8, offset=file.tell())
    if dtype != np.dtype("<f4") or by_columns or 4 * math.prod(shape) != values.size:
        raise ValueError(f"expected float32 by rows, got {dtype} {shape} and {values.size} bytes")
    return values.view("<f4").reshape(shape)


def decode_planes(
    files: Sequence[Data], format: str, size: tuple[int, int], *, where: Sequence[str]
) -> list[np.ndarray]:
    """The x and y planes of one field in a format of planes, uint8 (H, W), maybe read-only.

    RecordError says `where`, a name for each file.
    """
    if format == "lz4":
        return list(_decompress(files[0], size, where[0]))
    return [
        decode_picture(data, size, gray=True, where=name)
        for data, name in zip(files, where, strict=True)
    ]


def _decompress(data: Data, size: tuple[int, int], where: str) -> np.ndarray:
    """The planes in an LZ4 frame, uint8 (2, H, W); no more than them or a block is unpacked."""
    from lz4.frame import create_decompression_context, decompress_chunk

    count = 2 * size[0] * size[1]
    most = max(count + 1, LZ4_BLOCK)  # with room for a whole block it is unpacked in its place
    try:
        raw, _, is_whole = decompress_chunk(create_decompression_context(), data, max_length=most)
    except RuntimeError as error:
        raise RecordError(f"{where}: damaged LZ4 data ({error})") from error
    if not is_whole and len(raw) <= count:
        raise RecordError(f"{where}: damaged LZ4 data: it is cut off")
    if len(raw) != count:
        raise RecordError(f"{where}: expected two planes of {size}, got other bytes")
    return np.frombuffer(raw, np.uint8).reshape(2, *size)


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


def decode_picture(
    data: Data, size: tuple[int, int], *, gray: bool = False, damaged: bool = False, where: str
) -> np.ndarray:
    """The uint8 image of `size` in a JPEG or PNG file, as `image_files.decode_image` has it.

    RecordError says `where`.
    """
    declared = image_size(data)
    if declared is not None and declared[0] * declared[1] != size[0] * size[1]:
        raise RecordError(f"{where}: expected an image of {size}, got {declared}")
    try:
        # What declares no size may declare any to a decoder.
        image = decode_image(data if declared else b"", gray=gray, damaged=damaged)
    except ValueError as error:
        raise RecordError(f"{where}: damaged image of {len(data)} bytes ({error})") from error
    if image.shape[:2] != size:
        raise RecordError(f"{where}: expected an image of {size}, got {image.shape[:2]}")
    return image
