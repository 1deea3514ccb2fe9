"""Image files to pixels: the size that one declares, and its pixels or what is wrong with it.

Damage is an exception here, never a line of a decoder's own on standard error: OpenCV's JPEG and
PNG readers print what they meet, and hand out what is left as if it were whole.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from typing import Any

import numpy as np

JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers SOF0 to SOF15
JPEG = b"\xff\xd8"
ORIENTATION = 0x0112  # the tag of EXIF
TURNED = (5, 6, 7, 8)  # its values where rows are columns
MIRRORED_X, MIRRORED_Y = (2, 3, 6, 7), (3, 4, 7, 8)  # once they are turned
PILLOW_ERRORS = (KeyError, SyntaxError, OSError, ValueError, EOFError, struct.error)


def image_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """The size (H, W) that the header of an image declares; None if it is no JPEG, PNG or BMP."""
    if (plain := _jpeg_size(data)) is not None:
        return plain
    try:
        width, height = _opened(data).size
    except PILLOW_ERRORS:
        return None
    return height, width


def decode_image(
    data: bytes | memoryview, *, gray: bool = False, damaged: bool = False, upright: bool = False
) -> np.ndarray:
    """The uint8 pixels of a JPEG, PNG or BMP file: (H, W, 3) BGR, or with `gray` (H, W).

    As OpenCV decodes them, but for the gray of a PNG's or BMP's colors, which may differ by 1.
    ValueError says what is wrong with a file, where anything is; the pixels of a JPEG that is
    `damaged` are given as far as they go, if they may be so. `upright` turns them as EXIF says.
    """
    image = _decode_jpeg(data, gray, damaged) if bytes(data[:2]) == JPEG else None
    if image is None:
        image = _decode_with_pillow(data, gray)
    return _turned(image, data) if upright else image


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """The size (H, W) of a JPEG whose segments lie end to end, as encoders write them.

    None for all else, which Pillow's reader is for; it takes a third of the time of decoding.
    """
    at = 2 if bytes(data[:2]) == JPEG else len(data)
    while at + 9 <= len(data):
        start, marker, length, _, height, width = struct.unpack_from(">BBHBHH", data, at)
        if start != 0xFF or not 0xC0 <= marker < 0xFF or 0xD0 <= marker <= 0xDA:
            return None
        if marker in JPEG_SIZES:
            return (height, width) if height and width else None
        at += 2 + length
    return None


def _opened(data: bytes | memoryview) -> Any:
    """Pillow's image of a JPEG, PNG or BMP file, its header read; one of PILLOW_ERRORS if none."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    readers: dict[bytes, Any] = {
        JPEG: JpegImagePlugin.JpegImageFile,
        b"\x89P": PngImagePlugin.PngImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
    }
    with warnings.catch_warnings(action="ignore"):
        # Not Image.open, which has a limit of its own.
        return readers[bytes(data[:2])](BytesIO(data))


def _decode_jpeg(data: bytes | memoryview, gray: bool, damaged: bool) -> np.ndarray | None:
    """The pixels of a JPEG; None for one of a kind that only Pillow can read.

    ValueError for every warning of libjpeg, unless it may be `damaged`.
    """
    import simplejpeg

    try:
        image = simplejpeg.decode_jpeg(data, "GRAY" if gray else "BGR", strict=not damaged)
    except ValueError as error:
        if "subsampling" in str(error):  # none that libjpeg-turbo has a name for, or no header
            return None
        raise
    return image[..., 0] if gray else image


def _decode_with_pillow(data: bytes | memoryview, gray: bool) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="ignore"):
            _opened(data).verify()  # the checksums of a PNG
            image = _opened(data)
            if image.mode.startswith("I"):  # 16 bits of gray, of which the upper ones are taken
                plane = (np.asarray(image) >> 8).astype(np.uint8)
                return plane if gray else np.repeat(plane[..., None], 3, axis=2)
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except PILLOW_ERRORS as error:
        raise ValueError(f"{error}".partition("\n")[0] or type(error).__name__) from error
    return pixels if gray else np.ascontiguousarray(pixels[..., ::-1])


def _turned(image: np.ndarray, data: bytes | memoryview) -> np.ndarray:
    """The image as EXIF says that it is to be seen; as it is where that is damaged."""
    if b"Exif" not in bytes(data) and b"eXIf" not in bytes(data):
        return image
    try:
        with warnings.catch_warnings(action="ignore"):
            orientation = _opened(data).getexif().get(ORIENTATION)
    except PILLOW_ERRORS:
        return image
    if orientation in TURNED:
        image = image.swapaxes(0, 1)
    if orientation in MIRRORED_X:
        image = image[:, ::-1]
    if orientation in MIRRORED_Y:
        image = image[::-1]
    return np.ascontiguousarray(image)
