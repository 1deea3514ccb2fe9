"""The flow records of a split's videos: found below a folder, matched by id, opened, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar, cast

from flowkit.data.images import ImageRecord, find_images
from flowkit.data.splits import PARTS, Split, Video
from flowkit.documents import listed
from flowkit.errors import RecordError, SplitError
from flowkit.records.foreign import ZERO, find_foreign, open_foreign
from flowkit.records.reading import Record, common_flow, find_records, open_record
from flowkit.stores.urls import Place, Url, relative_to
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit.video.sources import find_videos

Missing = Literal["error", "skip"]
IMAGES = "images"
P = TypeVar("P", bound=Place)


@dataclass(frozen=True)
class RecordFolder:
    """A folder of flow records, and what they are if flowkit did not write them.

    `layout`, `bound` and `zero` are those of `flowkit.records.foreign.open_foreign`; the layout
    IMAGES is of images in class folders, each a video of one frame. What has frames of more than
    `max_frame_mpx` megapixels is not opened.
    """

    root: Place
    layout: str | None = None
    bound: float | None = None
    zero: float = ZERO
    max_frame_mpx: float = MAX_FRAME_MPX

    def find(self) -> dict[str, Place]:
        """The place of every record below the folder, by id; RecordError if there is none."""
        places: list[Place]
        if self.layout is None:
            places = list(find_records(self.root))
        elif isinstance(self.root, Url):
            raise RecordError(f"{self.root}: expected flowkit's own records in a store")
        elif self.layout == IMAGES:
            return dict(find_images(self.root))
        else:
            places = list(find_foreign(self.root, layout=self.layout))
        if not places:
            raise RecordError(
                f"{self.root}: no flow records there: flowkit extract makes them",
                absent=isinstance(self.root, Url),  # a store has no empty folders
            )
        found: dict[str, Place] = {}
        for place in places:
            id = relative_to(place, self.root).as_posix()
            id = id.removesuffix(".zip") if self.layout is None else id
            if found.setdefault(id, place) != place:
                raise RecordError(f"{found[id]} and {place}: two records of one video")
        return found

    def open(self, place: Place) -> Record:
        """Open what `find` found."""
        if self.layout == IMAGES:
            return cast(
                Record, ImageRecord(Path(str(place)), self.max_frame_mpx)
            )  # what the spatial stream needs of a record
        if self.layout is None:
            return open_record(place, max_frame_mpx=self.max_frame_mpx)
        return open_foreign(
            str(place),
            layout=self.layout,
            bound=self.bound,
            zero=self.zero,
            max_frame_mpx=self.max_frame_mpx,
        )


def folder_ids(folder: RecordFolder) -> list[str]:
    """The ids below a folder: of its flow records or, if it holds none, of its videos."""
    if folder.layout is None and next(find_records(folder.root), None) is None:
        return [source.id for source in find_videos([folder.root]).sources]
    return list(folder.find())


def match_records(
    videos: Iterable[Video],
    available: Mapping[str, P],
    *,
    missing: Literal["error", "skip"] = "error",
    kind: str = "flow record",
    maker: str = "flowkit extract",
) -> dict[str, P]:
    """The record of each video, by video id, out of those `available` by record id.

    An id fits if it is the same; else if it is the same but for upper and lower case and for "#"
    and "&" written as "@"; else, among records outside class folders, by its last part, likewise.
    Videos without a record are one SplitError that counts and names them, or, with "skip", absent;
    it says what `kind` of record is missing and which command is its `maker`.
    """
    spelled: dict[str, list[P]] = {}
    for id, record in available.items():
        spelled.setdefault(_spelling(id), []).append(record)
    found: dict[str, P] = {}
    absent = []
    for video in videos:
        candidates = (
            [available[video.id]]
            if video.id in available
            else spelled.get(_spelling(video.id))
            or spelled.get(_spelling(PurePosixPath(video.id).name), [])
        )
        if len(candidates) > 1:
            raise SplitError(f"{video.id}: {len(candidates)} records are spelled like it")
        if candidates:
            found[video.id] = candidates[0]
        else:
            absent.append(video.id)
    if absent and missing == "error":
        raise SplitError(
            f"{len(absent)} of {len(absent) + len(found)} listed videos have no {kind}: "
            f"{listed(absent)} ({maker} makes them; --missing skip goes on without)"
        )
    return found


@dataclass(frozen=True)
class SplitCheck:
    """What the records of a split are like: counts of videos."""

    missing: int
    without_frames: int
    without_backward: int
    looped: int  # too short for a clip of the length asked about
    sizes: dict[tuple[int, int], int]  # (H, W) of the fields -> videos


def check_split(
    split: Split, folder: RecordFolder, *, length: int = 10, missing: Missing = "error"
) -> SplitCheck:
    """Open the record of every video of a split and compare the two; `length` is L of a clip.

    SplitError where records are missing (`match_records`), a source group has videos in two parts,
    or a list's counts are neither all frames nor all fields; RecordError where one cannot be read,
    or where they were not all made by the same method with the same parameters.
    """
    if straddling := split.straddling_groups():
        raise SplitError(
            f"{split.name}: {len(straddling)} source groups have videos in two parts: "
            f"{listed(straddling)}"
        )
    videos = [video for part in PARTS for video in split.part(part)]
    found = match_records(videos, folder.find(), missing=missing)
    records = {id: folder.open(place) for id, place in found.items()}
    _check_counts([video for video in videos if video.id in records], records)
    if records:
        common_flow(list(records.values()))
    sizes: dict[tuple[int, int], int] = {}
    for record in records.values():
        sizes[record.size] = sizes.get(record.size, 0) + 1
    return SplitCheck(
        missing=len(videos) - len(found),
        without_frames=sum(not record.has_frames for record in records.values()),
        without_backward=sum("backward" not in record.directions for record in records.values()),
        looped=sum(record.field_count() < length for record in records.values()),
        sizes=dict(sorted(sizes.items())),
    )


def _check_counts(videos: Iterable[Video], records: Mapping[str, Record]) -> None:
    """SplitError unless the counts that a list gives are all frames or all fields."""
    counted = [video for video in videos if video.listed_count is not None]
    by_meaning = [
        [v for v in counted if v.listed_count != records[v.id].frame_count],
        [v for v in counted if v.listed_count != records[v.id].field_count()],
    ]
    wrong = min(by_meaning, key=len)
    if wrong:
        record = records[wrong[0].id]
        raise SplitError(
            f"{len(wrong)} of {len(counted)} listed counts are not those of the records: "
            f"{wrong[0].id} has {record.frame_count} frames and {record.field_count()} fields, "
            f"the list says {wrong[0].listed_count}"
        )


def _spelling(id: str) -> str:
    return id.replace("#", "@").replace("&", "@").casefold()
