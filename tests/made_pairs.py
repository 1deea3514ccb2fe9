"""Videos whose class is which of two objects moves: a red square and a blue one, alike in motion.

One frame shows both squares, whichever moves, at places that tell nothing: the one that rests does
so at a place of a path of its own. A field shows a moving square, of either color. Only what looks
at both at the same place can tell the classes apart.
"""

import sys
from pathlib import Path

import numpy as np
from made_records import write_record

from flowkit._cv2 import cv2
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.pictures.colors import colorize

SIDE = 48  # px of the square frames
SQUARE = 12  # px, the side of both squares
FIELDS = 4
CLASSES = ("blue_moves", "red_moves")
COLORS = np.array([[200, 60, 60], [60, 60, 200]])  # BGR, in the order of the classes


def write_pairs(root: Path, *, train: int, heldout: int, test: int) -> tuple[RecordFolder, Split]:
    """Records of so many videos of each class and part, with true fields, and their split."""
    random = np.random.default_rng(0)
    parts: dict[str, list[Video]] = {"train": [], "heldout": [], "test": []}
    counts = {"train": train, "heldout": heldout, "test": test}
    for part, count in counts.items():
        for number in range(count):
            for label, name in enumerate(CLASSES):
                frames, fields = make_pair(label, random)
                id = f"{name}/{part}{number}"
                write_record(root, id, fields, frames=frames, rgb=True, format="lz4")
                parts[part].append(Video(id, name, id))
    split = Split("pairs", CLASSES, *(tuple(parts[part]) for part in counts))
    return RecordFolder(root), split


def make_pair(label: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 (T, H, W, 3) and fields float32 (T - 1, H, W, 2) of one video."""
    angles, speeds = random.uniform(0, 2 * np.pi, 2), random.uniform(1.5, 2.5, 2)
    velocities = (speeds * [np.sin(angles), np.cos(angles)]).T  # px per frame: down, right
    places = np.stack(  # of both squares at mid-time, one in each half of the frame
        [random.integers(5, SIDE - SQUARE - 4, 2), random.permutation([5, SIDE - SQUARE - 5])], 1
    )
    still = random.integers(FIELDS + 1)  # a time at which the square that rests is all the time
    background = random.integers(90, 130, (SIDE, SIDE, 3))
    frames = np.empty((FIELDS + 1, SIDE, SIDE, 3), np.uint8)
    fields = np.zeros((FIELDS, SIDE, SIDE, 2), np.float32)
    for time in range(FIELDS + 1):
        frame = background + random.integers(-10, 11, background.shape)
        for square, place in enumerate(places):
            seen_at = time if square == label else still
            moved = place + velocities[square] * (seen_at - FIELDS / 2)
            top, left = np.round(moved).astype(int).clip(0, SIDE - SQUARE)
            inside = (slice(top, top + SQUARE), slice(left, left + SQUARE))
            frame[inside] = COLORS[square] + random.integers(-20, 21, (SQUARE, SQUARE, 3))
            if square == label and time < FIELDS:
                fields[time][inside] = velocities[square][::-1]
        frames[time] = frame
    return frames, fields + random.normal(0, 0.05, fields.shape).astype(np.float32)


def draw_picture(path: Path) -> None:
    """A row for each class: the first frame, the last one, and the field between in colors."""
    random, rows = np.random.default_rng(1), []
    for label in range(len(CLASSES)):
        frames, fields = make_pair(label, random)
        panels = [frames[0], frames[-1], colorize(fields[FIELDS // 2], max_px=3)]
        large = [
            cv2.resize(one, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST) for one in panels
        ]
        rows.append(np.hstack([np.pad(one, ((4, 4), (4, 4), (0, 0))) for one in large]))
    cv2.imwrite(str(path), np.vstack(rows))


if __name__ == "__main__":
    draw_picture(Path(sys.argv[1]))
