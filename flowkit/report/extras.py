"""What a report shows beside figures: frames and fields of videos, and the curves of a training."""

from __future__ import annotations

import base64
import csv
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.documents import listed
from flowkit.errors import ScoresError
from flowkit.video.image_folders import MAX_FRAME_MPX

if TYPE_CHECKING:
    import numpy as np

    from flowkit.records.reading import Record

SIDE = 240  # px, longer side of a picture
LOG = "log.csv"  # the file of a run with a row for every few steps
MEASURES = ("loss", "accuracy")  # a column whose name has one of these is a curve
POINTS = 400  # most points of a curve on the page


@dataclass(frozen=True)
class Pictures:
    """A frame from the middle of a video and the field that starts there, as data URIs.

    `frame` is None where the record has no frames.
    """

    frame: str | None
    flow: str


def read_pictures(
    records: str | os.PathLike[str],
    videos: Iterable[str],
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> tuple[dict[str, Pictures], dict[str, str]]:
    """Pictures of the videos that have a sound record below the folder; why others have none."""
    from flowkit.data.record_folders import RecordFolder, match_records
    from flowkit.data.splits import Video
    from flowkit.errors import RecordError

    folder = RecordFolder(Path(records), max_frame_mpx=max_frame_mpx)
    wanted = [Video(video, "", "") for video in videos]
    places = match_records(wanted, folder.find(), missing="skip")
    pictures, reasons = {}, {}
    for video in wanted:
        if video.id not in places:
            reasons[video.id] = f"no flow record below {records}"
            continue
        try:
            pictures[video.id] = record_pictures(folder.open(places[video.id]))
        except RecordError as error:
            reasons[video.id] = str(error)
    return pictures, reasons


def read_curves(folder: str | os.PathLike[str]) -> dict[str, list[tuple[float, float]]]:
    """The losses and accuracies in ``log.csv`` of a run's folder, by column; empty without one.

    Points are (step, value), thinned to 400. ScoresError where the file is no CSV of numbers.
    """
    path = Path(folder, LOG)
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            # a row may lack its end while a training still writes it
            rows = [row for row in reader if None not in row.values()]
            columns = list(reader.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise ScoresError(f"{path}: expected the CSV file of a training ({error})") from error
    if "step" not in columns:
        raise ScoresError(f"{path}: expected a column called step, got {listed(columns)}")
    names = [name for name in columns if any(measure in name for measure in MEASURES)]
    curves = {name: _thin(_points(path, rows, name)) for name in names}
    return {name: curve for name, curve in curves.items() if curve}


def _points(path: Path, rows: list[dict[str, str]], name: str) -> list[tuple[float, float]]:
    points = []
    for row in rows:
        if not row[name]:  # a measure that is taken now and then
            continue
        try:
            point = float(row["step"]), float(row[name])
        except ValueError:
            raise ScoresError(
                f"{path}: expected numbers as step and {name}, got {row['step']!r:.40} and "
                f"{row[name]!r:.40}"
            ) from None
        if all(map(math.isfinite, point)):
            points.append(point)
    return points


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 400 points: the means of equal runs of them."""
    if len(points) <= POINTS:
        return points
    run = math.ceil(len(points) / POINTS)
    parts = [points[start : start + run] for start in range(0, len(points), run)]
    return [
        (part[-1][0], sum(value for _, value in part) / len(part))  # losses are noisy
        for part in parts
    ]


def record_pictures(record: Record) -> Pictures:
    """The pictures of one record, of its middle; RecordError where it is damaged there."""
    from flowkit.pictures.colors import colorize

    direction, step = record.directions[0], record.steps[0]
    index = record.field_count(direction, step) // 2
    flow = colorize(record.fields(index, 1, direction=direction, step=step)[0])
    frame = _data_uri(record.frame(index)) if record.has_frames else None
    return Pictures(frame, _data_uri(flow))


def _data_uri(picture: np.ndarray) -> str:
    from flowkit._cv2 import cv2

    factor = SIDE / max(picture.shape[:2])
    if factor < 1:
        picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
