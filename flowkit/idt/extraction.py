"""Videos to track records, one at a time or many in worker processes, as flow is extracted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import flowkit
from flowkit._cv2 import cv2
from flowkit.documents import differences
from flowkit.errors import RecordError, UsageError, VideoError
from flowkit.extraction.outcomes import Outcome, run_videos
from flowkit.idt.boxes import Boxes, box_file, check_box_files, read_boxes
from flowkit.idt.parameters import TrackParameters
from flowkit.idt.records import TEXT_SUFFIX, TrackWriter, is_text, open_tracks, record_path
from flowkit.idt.tracking import ensure_compiled_kernels, track_frames
from flowkit.stores.urls import local_path
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.reading import open_video
from flowkit.video.sources import Source, source_bytes
from flowkit.workers.engine import Engine
from flowkit.workers.pool import run_pool


@dataclass(frozen=True)
class TrackRequest:
    """What is asked of every video.

    `float32` stores descriptors in single instead of half precision; `text` also writes the
    authors' format; `boxes` is the file or folder of people's boxes (`flowkit.idt.boxes`);
    `keep_damaged` makes a record of the frames that a damaged video still gives; a video with
    frames of more than `max_frame_mpx` megapixels fails, which is no part of the identity.
    """

    parameters: TrackParameters = field(default_factory=TrackParameters)
    float32: bool = False
    text: bool = False
    boxes: Path | None = None
    keep_damaged: bool = False
    max_frame_mpx: float = MAX_FRAME_MPX

    def identity(self, source: Source) -> dict[str, Any]:
        """What the header keeps of the request for a source, and a rerun compares; JSON values."""
        boxes = None if self.boxes is None else _checksum(box_file(self.boxes, source.id))
        return json.loads(
            json.dumps(
                {
                    "parameters": dataclasses.asdict(self.parameters),
                    "float32": self.float32,
                    "boxes": boxes,
                    "keep_damaged": self.keep_damaged,
                }
            )
        )


@dataclass(frozen=True)
class Tracked:
    """What became of one video; `written` is False where another run had finished it meanwhile."""

    frames: int
    tracks: int
    damage: str | None
    seconds: float
    written: bool


def extract_video_tracks(
    source: Source,
    out: Path,
    request: TrackRequest,
    *,
    overwrite: bool = False,
    report: Callable[[int], None] = lambda frames: None,
    owner: str = "",
) -> Tracked:
    """Make the track record of one video below `out`; `report` is told the frames so far.

    VideoError where the video is damaged, FlowkitError where it is smaller than a patch: nothing
    is left of it then. A video too short for a track has a record without tracks.
    """
    start = perf_counter()
    path, identity = local_path(source.path), request.identity(source)
    boxes = None if request.boxes is None else read_boxes(box_file(request.boxes, source.id))
    with (
        open_video(
            path, keep_damaged=request.keep_damaged, max_frame_mpx=request.max_frame_mpx
        ) as video,
        TrackWriter(
            out,
            source.id,
            request.parameters,
            float32=request.float32,
            text=request.text,
            owner=owner,
        ) as writer,
    ):
        count = 0
        for tracks in track_frames(video.frames(), request.parameters, boxes=boxes):
            writer.add(tracks)
            count += 1
            report(count)
        _check_boxes(boxes, count)
        header = {
            "flowkit": flowkit.__version__,
            "libraries": {"opencv": cv2.__version__, "numpy": np.__version__},
            "source": {
                "name": path.name,
                "bytes": source_bytes(path),
                "sha256": None if path.is_dir() else _checksum(path),
                "damage": video.damage,
            },
            "fps": video.fps,
            "size": list(video.size),
            "frames": count,
            "request": identity,
        }
        written = writer.commit(header, overwrite=overwrite)
        return Tracked(count, writer.count, video.damage, perf_counter() - start, written)


def plan_tracks(
    sources: Sequence[Source], out: Path, request: TrackRequest, *, overwrite: bool = False
) -> list[Source]:
    """The sources whose record is still to be made: those finished as asked for are left out.

    UsageError, before any work, where a record of other parameters, or a file that is no record,
    stands in a record's place.
    """
    if request.boxes is not None:
        check_box_files(request.boxes, [source.id for source in sources])
    todo, foreign = [], []
    different: dict[str, list[Path]] = {}  # how they differ -> the records that do
    for source in sources:
        place = record_path(out, source.id)
        for path in (place, place.with_suffix(TEXT_SUFFIX)):
            if path.resolve() == local_path(source.path):
                raise UsageError(f"{source.path}: its record would replace it: choose --out")
        if request.text and not is_text(place.with_suffix(TEXT_SUFFIX), request.parameters):
            foreign.append(place.with_suffix(TEXT_SUFFIX))
        if not place.exists():
            todo.append(source)
            continue
        try:
            found = _differences(source, place, request)
        except RecordError:
            foreign.append(place)
            continue
        if overwrite:
            todo.append(source)
        elif found:
            different.setdefault(found, []).append(place)
    if foreign:
        raise UsageError(
            f"not written by flowkit, but in the place of a track record: {len(foreign)} files, "
            f"first {foreign[0]}; move them away, or choose another --out"
        )
    if different:
        ways = "; ".join(
            f"{how} ({len(places)} of them, first {places[0]})"
            for how, places in list(different.items())[:3]
        )
        raise UsageError(
            f"made from other parameters: {ways}; --overwrite makes them again, another --out "
            "keeps them"
        )
    return todo


def extract_tracks(
    sources: Sequence[Source],
    out: Path,
    request: TrackRequest,
    *,
    workers: int,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    overwrite: bool = False,
    engine: Engine = run_pool,
) -> Generator[Outcome[Tracked]]:
    """Make the track records of `sources` in worker processes; yields what became of each.

    Workers are those of `engine`. A video that fails, takes longer than `timeout_s` or more than
    `memory_bytes`, or kills its worker costs itself only. After a full disk no further video is
    begun: those have no outcome.
    """
    if sources:
        ensure_compiled_kernels()
    owner = secrets.token_hex(8)
    if request.boxes is not None:  # workers may be in another folder
        request = dataclasses.replace(request, boxes=request.boxes.absolute())
    task = _Task(out.absolute(), request, overwrite, owner)
    yield from run_videos(
        task,
        sources,
        out,
        owner=owner,
        engine=engine,
        workers=workers,
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
    )


@dataclass(frozen=True)
class _Task:
    """What a worker does with one source: picklable."""

    out: Path
    request: TrackRequest
    overwrite: bool
    owner: str

    def __call__(self, source: Source, report: Callable[[int], None]) -> Tracked:
        return extract_video_tracks(
            source,
            self.out,
            self.request,
            overwrite=self.overwrite,
            report=report,
            owner=self.owner,
        )


def _differences(source: Source, place: Path, request: TrackRequest) -> str:
    """How a record differs from what is asked for; "" if it does not."""
    header = open_tracks(place).header
    found = differences(header["request"], request.identity(source))
    now = {"name": source.path.name, "bytes": source_bytes(local_path(source.path))}
    found += differences(header["source"], {**header["source"], **now})
    if request.text and not place.with_suffix(TEXT_SUFFIX).exists():
        found.append("no text beside it")
    return "; ".join(found)


def _check_boxes(boxes: Boxes | None, frames: int) -> None:
    if boxes and max(boxes) >= frames:
        raise VideoError(
            f"boxes are given of frame {max(boxes)}, but there are {frames} frames, which count "
            "from 0"
        )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
