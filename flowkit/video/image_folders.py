"""Which images of a folder are the numbered frames of one video, and what size they declare."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from io import BytesIO
from typing import Any

MAX_FRAME_MPX = 40.0  # megapixels of a frame that are allowed unless told: 8K has 33
JPEG_SIZES = {*range(0xC0, 0xD0)} - {
    0xC4,
    0xC8,
    0xCC,
}  # markers SOF0 to SOF15
FRAME_NAME = re.compile(r"(.*?)([0-9]+)\.(jpe?g|png|bmp)", re.IGNORECASE | re.DOTALL)


def frame_files(names: Iterable[str]) -> list[tuple[int, str]]:
    """The frames among the file `names` of one folder: (number, name), in order of the number.

    Frames share one prefix and one extension: img_00001.jpg, frame000001.jpg, 00001.png. Where
    the planes of a flow record (flow_x_*, flow_y_*) lie beside, they are the images called img_*.
    Empty where the names are not those of one video's frames.
    """
    groups = image_groups(names)
    return groups[0] if len(groups) == 1 else []


def image_groups(names: Iterable[str]) -> list[list[tuple[int, str]]]:
    """The numbered images among the file `names` of a folder that share prefix and extension.

    Each group is in order of the number, the largest comes first. One group is a video's frames
    (`frame_files`); of more, nobody can say which are.
    """
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in names:
        if (match := FRAME_NAME.fullmatch(name)) and not name.startswith("."):
            prefix, number, extension = match.groups()
            groups.setdefault((prefix, extension.lower()), []).append((int(number), name))
    if any(prefix.startswith(("flow_x", "flow_y")) for prefix, _ in groups):
        groups = {key: files for key, files in groups.items() if key[0] == "img_"}
    return sorted(map(sorted, groups.values()), key=len, reverse=True)


def describe_groups(groups: Iterable[list[tuple[int, str]]]) -> str:
    """Groups of images in words: "5 images like img_00001.jpg and cover1.jpg"."""
    words = [
        files[0][1] if len(files) == 1 else f"{len(files)} images like {files[0][1]}"
        for files in groups
    ]
    return " and ".join(words) or "none"


def image_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """The size (H, W) that the header of an image declares; None if it is no JPEG, PNG or BMP."""
    if (plain := _jpeg_size(data)) is not None:
        return plain
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    readers: dict[bytes, Any] = {
        b"\xff\xd8": JpegImagePlugin.JpegImageFile,
        b"\x89P": PngImagePlugin.PngImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
    }
    try:
        # Not Image.open, which has a limit of its own.
        width, height = readers[bytes(data[:2])](BytesIO(data)).size
    except (KeyError, SyntaxError, OSError, ValueError):
        return None
    return height, width


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """The size (H, W) of a JPEG whose segments lie end to end, as encoders write them.

    None for all else, which Pillow's reader is for; it takes a third of the time of decoding.
    """
    at = 2 if bytes(data[:2]) == b"\xff\xd8" else len(data)
    while at + 9 <= len(data):
        start, marker, length, _, height, width = struct.unpack_from(">BBHBHH", data, at)
        if start != 0xFF or not 0xC0 <= marker < 0xFF or 0xD0 <= marker <= 0xDA:
            return None
        if marker in JPEG_SIZES:
            return (height, width) if height and width else None
        at += 2 + length
    return None
