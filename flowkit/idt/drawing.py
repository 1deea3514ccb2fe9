"""Tracks drawn on the frames of their video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from flowkit._cv2 import cv2
from flowkit.documents import MADE_BY, replacing
from flowkit.errors import UsageError, VideoError
from flowkit.idt.records import TrackRecord
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.reading import open_video
from flowkit.video.writing import write_video

LINE, HEAD = (0, 255, 0), (0, 0, 255)  # BGR
FPS = 25.0  # frames per second where the video states none
FRACTION_BITS = 4  # fractional bits of the coordinates that OpenCV draws at


def paths(tracks: np.ndarray) -> np.ndarray:
    """The points of tracks, rows of `track_dtype`, in px of the video: float32 (N, L + 1, 2).

    What a record keeps is the motion less the camera's, about the mean of the points as they were
    seen: with a still camera these are the points, with a moving one the path relative to it.
    """
    moves = tracks["trajectory"].astype(np.float32) * tracks["travel"][:, None]
    moves = moves.reshape(len(tracks), -1, 2)  # (N, 2 L) -> (N, L, 2)
    points = np.concatenate(
        [np.zeros((len(tracks), 1, 2), np.float32), moves.cumsum(axis=1)], axis=1
    )
    return points + (tracks["mean"] - points.mean(axis=1))[:, None]


def draw_tracks(frames: Iterable[np.ndarray], tracks: np.ndarray) -> Iterator[np.ndarray]:
    """The frames, uint8 (H, W, 3) BGR, with what each track that runs then has passed so far."""
    points = np.rint(paths(tracks) * 2**FRACTION_BITS).astype(np.int32)
    steps = points.shape[1] - 1
    for index, frame in enumerate(frames):
        picture = frame.copy()
        ages = index - (tracks["frame"] - steps)
        for row in np.flatnonzero((ages >= 0) & (ages <= steps)):
            line = points[row, : ages[row] + 1]
            cv2.polylines(picture, [line], False, LINE, 1, cv2.LINE_AA, FRACTION_BITS)
            x, y = line[-1].tolist()
            cv2.circle(picture, (x, y), 1 << FRACTION_BITS, HEAD, -1, cv2.LINE_AA, FRACTION_BITS)
        yield picture


def write_track_video(
    record: TrackRecord,
    video: Path,
    out: Path,
    *,
    fps: float | None,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> None:
    """Write the frames of `video` with the record's tracks on them as an .mp4.

    UsageError where `out` is no .mp4; VideoError, and nothing written, where the video is not the
    one of the record by its size and its frames.
    """
    if out.suffix.lower() != ".mp4":
        raise UsageError(f"{out}: expected a name that ends in .mp4 for a video of tracks")
    tracks = record.tracks()
    keep_damaged = record.header["request"]["keep_damaged"]
    with open_video(video, keep_damaged=keep_damaged, max_frame_mpx=max_frame_mpx) as opened:
        size = tuple(record.header["size"])
        if opened.size != size:
            raise VideoError(
                f"{video}: its frames are {opened.size} (height, width), those of {record.path} "
                f"{size}: give the video that it was made from"
            )
        count = 0

        def pages() -> Iterator[np.ndarray]:
            nonlocal count
            for page in draw_tracks(opened.frames(), tracks):
                count += 1
                bottom, right = page.shape[0] % 2, page.shape[1] % 2
                yield cv2.copyMakeBorder(page, 0, bottom, 0, right, cv2.BORDER_REPLICATE)

        with replacing(out) as part:
            rate = fps or record.header["fps"] or FPS
            write_video(
                part,
                pages(),
                fps=rate,
                container_format="mp4",
                options={"crf": "18"},
                comment=MADE_BY,
            )
            if count != record.header["frames"]:
                raise VideoError(
                    f"{video}: it has {count} frames, {record.path} is of a video of "
                    f"{record.header['frames']}: give the video that it was made from"
                )
