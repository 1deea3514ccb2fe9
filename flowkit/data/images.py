"""Images in class folders, for the spatial stream: each as a record of a single frame, no flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.documents import read_plain_file
from flowkit.errors import RecordError
from flowkit.image_files import image_size
from flowkit.records.formats import decode_picture
from flowkit.records.reading import check_frame_size
from flowkit.video.image_folders import MAX_FRAME_MPX

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class ImageRecord:
    """An image file as a record of one frame; nothing is read before it is asked for."""

    path: Path
    max_frame_mpx: float = MAX_FRAME_MPX
    frame_count: int = 1
    fps: float | None = None
    series: tuple[()] = ()
    has_frames: bool = True

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def sidecar(self) -> Mapping[str, Any]:
        """None was written."""
        return {}

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), of its header; RecordError where it has none, or more megapixels than allowed."""
        size = image_size(self._data())
        if size is None:
            raise RecordError(f"{self.path}: expected an image (JPEG, PNG or BMP)")
        check_frame_size(str(self.path), size, self.max_frame_mpx)
        return size

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The image, uint8 (H, W, 3) BGR, as stored: without the camera's orientation."""
        if list(indices) != [0]:
            raise RecordError(f"{self.path}: expected frame 0 of an image, asked for {indices}")
        where = str(self.path)
        # Of photographs of the web some end early or have bytes too many: pictures all the same.
        return [decode_picture(self._data(), self.size, damaged=True, where=where)]

    def _data(self) -> bytes:
        return read_plain_file(self.path, error=RecordError)


def find_images(root: Path) -> dict[str, Path]:
    """The images below a folder by id, "class/name.jpg"; RecordError if there is none."""
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES)
    found = {
        file.relative_to(root).as_posix(): file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    }
    if not found:
        raise RecordError(
            f"{root}: expected images in class folders ({', '.join(SUFFIXES)})",
            absent=not root.exists(),
        )
    return found
