"""Sound videos, frames, fields and records, and what reads them, for hostile_files.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hostile_tries import Change, Kind

from flowkit._cv2 import cv2
from flowkit.data.images import ImageRecord
from flowkit.errors import FlowkitError
from flowkit.fields import write_flo
from flowkit.records.foreign import open_foreign
from flowkit.records.layout import Storage
from flowkit.records.ownership import UNFINISHED, readable_claim
from flowkit.records.reading import find_records, open_record
from flowkit.records.verify import find_unfinished, verify_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.video.reading import open_video
from flowkit.video.writing import write_video

FRAMES = np.random.default_rng(7).integers(0, 255, (3, 24, 32, 3), np.uint8)
FIELDS = np.random.default_rng(7).normal(0, 2, (2, 24, 32, 2)).astype(np.float32)


def make_record(out: Path, storage: Storage, id: str = "a") -> Path:
    """A record of three frames and two fields."""
    with RecordWriter(out, id, storage, (Series("forward", 1),)) as writer:
        for frame in FRAMES:
            writer.add_frame(frame)
        for field in FIELDS:
            writer.add_field(Series("forward", 1), field)
        writer.commit({"request": storage.identity(), "fps": 25.0}, overwrite=True)
    return out / id if storage.pack else out / writer.folder


def read_record(record: Path) -> str:
    """What `flowkit verify`, `info`, `stack` and `extract` do with a record."""
    kinds = [verify_record(path).kind for path in find_records(record.parent)]
    list(find_unfinished(record.parent))
    readable_claim(record)
    with suppress(FlowkitError):
        open_record(record).fields(0, 2)
        open_record(record).frame(1)
    return kinds[0] if kinds else "passed over"


def of_record(name: str, change: Change, **storage: Any) -> Kind:
    """A file of a record."""

    def make(folder: Path) -> Path:
        place = make_record(folder, Storage(**storage))
        return place.with_name("a.zip") if storage.get("pack") else place / name

    def read(file: Path) -> str:
        return read_record(file if storage.get("pack") else file.parent)

    return Kind(make, read, change)


def make_table(folder: Path) -> Path:
    make_record(folder, Storage(format="png", layout="twostreamfusion"))
    return folder / "u" / "a.bin"


def read_table(file: Path) -> str:
    open_foreign(file.parent.parent / "a", layout="twostreamfusion").fields(0, 2)
    return verify_record(file.parent.parent / "records" / "a").kind


def make_unfinished(folder: Path) -> Path:
    place = make_record(folder, Storage(format="png", layout="twostreamfusion"))
    sidecar = json.loads((place / "record.json").read_bytes())
    (place / "record.json").unlink()
    document = {"format": "flowkit unfinished record", "version": 1, "sidecars": [sidecar]}
    (place / UNFINISHED).write_text(json.dumps(document))
    return place / UNFINISHED


def read_unfinished(file: Path) -> None:
    list(find_unfinished(file.parent.parent.parent))
    readable_claim(file.parent)


def make_foreign(folder: Path) -> Path:
    (folder / "v").mkdir()
    for k in (1, 2, 3):
        for name in ("img", "flow_x", "flow_y"):
            cv2.imwrite(str(folder / "v" / f"{name}_{k:05d}.jpg"), FRAMES[0, ..., 0])
    return folder / "v" / "flow_x_00001.jpg"


def read_foreign(file: Path) -> None:
    record = open_foreign(file.parent, layout="tsn", bound=20)
    record.fields(0, 3)
    record.frame(1)


def make_flo(folder: Path) -> Path:
    write_flo(folder / "a.flo", FIELDS[0])
    return folder / "a.flo"


def make_video(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_video(folder / f"a{suffix}", FRAMES, fps=25.0)
        return folder / f"a{suffix}"

    return make


def make_gif(folder: Path) -> Path:
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in FRAMES)
    first.save(folder / "a.gif", save_all=True, append_images=rest)
    return folder / "a.gif"


def read_video(path: Path) -> None:
    with open_video(path) as video:
        for _ in video.frames():
            pass


def make_frames(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "v").mkdir()
        for number, frame in enumerate(FRAMES, start=1):
            cv2.imwrite(str(folder / "v" / f"img_{number:05d}{suffix}"), frame)
        return folder / "v" / f"img_00002{suffix}"

    return make


def read_frames(file: Path) -> None:
    with suppress(FlowkitError):
        ImageRecord(file).frames([0])
    read_video(file.parent)
