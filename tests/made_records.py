"""Writes small finished flow records for tests, from arrays."""

from pathlib import Path

import numpy as np

from flowkit.records.layout import Storage
from flowkit.records.reading import Record, open_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series


def write_record(
    out: Path,
    id: str,
    forward: np.ndarray,
    backward: np.ndarray | None = None,
    *,
    frames: np.ndarray | None = None,
    step: int = 1,
    **storage: object,
) -> Record:
    """A record of fields, float32 (F, H, W, 2), lossless unless `storage` says otherwise."""
    series = {Series("forward", step): forward}
    if backward is not None:
        series[Series("backward", step)] = backward
    if frames is None:
        frames = np.zeros((len(forward) + step, *forward.shape[1:3], 3), np.uint8)
        storage.setdefault("rgb", False)
    asked = Storage(**{"format": "npy", **storage})
    with RecordWriter(out, id, asked, tuple(series)) as writer:
        for frame in frames:
            writer.add_frame(frame)
        for one, fields in series.items():
            for field in fields:
                writer.add_field(one, field)
        writer.commit({"request": asked.identity(), "fps": 25.0})
    return open_record(out / writer.folder)
