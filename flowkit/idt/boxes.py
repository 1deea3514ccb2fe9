"""Boxes of people, whose motion is not the camera's: files as the authors' program reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flowkit.documents import read_plain_file
from flowkit.errors import UsageError

Boxes = Mapping[int, np.ndarray]  # frame -> its boxes, float (N, 4): x1, y1, x2, y2 in px
NUMBERS = 5  # numbers of a box: x1, y1, x2, y2 in px, and a confidence


def box_file(place: Path, id: str) -> Path:
    """The file of a source's boxes: `place` itself, or in that folder the id with .bb behind it.

    UsageError where there is none.
    """
    path = place / f"{id}.bb" if place.is_dir() else place
    if not path.is_file():
        raise UsageError(f"--boxes: expected the people of {id} in {path}, which is not there")
    return path


def check_box_files(place: Path, ids: Sequence[str]) -> None:
    """Raise UsageError where a source has no file of boxes, or several would share one."""
    if place.is_file() and len(ids) > 1:
        raise UsageError(
            f"--boxes: the file {place} is of one video, got {len(ids)}: give a folder"
        )
    for id in ids:
        box_file(place, id)


def read_boxes(path: Path) -> Boxes:
    """The boxes by frame, from lines ``frame x1 y1 x2 y2 confidence [x1 y1 ...]``.

    Frames count from 0; one that is not there has no box. UsageError for any other line.
    """
    boxes: dict[int, np.ndarray] = {}
    data = read_plain_file(path, error=UsageError)
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            frame, values = int(words[0]), np.array(words[1:], float)
        except ValueError:
            frame, values = -1, np.zeros(0)
        if frame < 0 or frame in boxes or len(values) % NUMBERS or not np.isfinite(values).all():
            raise UsageError(
                f"{path}, line {number}: expected a new frame number from 0 and five numbers a "
                f"box, x1 y1 x2 y2 confidence, got {line.strip()[:60]!r}"
            )
        boxes[frame] = values.reshape(-1, NUMBERS)[:, :4]
    return boxes


def box_mask(shape: tuple[int, ...], boxes: np.ndarray | None) -> np.ndarray:
    """255 where no box is, uint8 (H, W); a box holds the pixels whose centers are in it."""
    mask = np.full(shape, 255, np.uint8)
    for x1, y1, x2, y2 in [] if boxes is None else boxes:
        rows = slice(max(0, int(np.ceil(y1))), max(0, int(np.floor(y2)) + 1))
        columns = slice(max(0, int(np.ceil(x1))), max(0, int(np.floor(x2)) + 1))
        mask[rows, columns] = 0
    return mask
