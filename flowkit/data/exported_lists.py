"""A split's records as the lists that other tools train from: a line per video, or per image."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flowkit.data.record_folders import Missing, RecordFolder, match_records
from flowkit.data.splits import PARTS, Split
from flowkit.documents import replacing
from flowkit.errors import SplitError, UsageError
from flowkit.records.reading import Record
from flowkit.stores.urls import absolute, relative_to

log = logging.getLogger(__name__)

FRAME_LIST_HEADER = "original_vido_id video_id frame_id path labels"  # as its readers spell it


@dataclass(frozen=True)
class Listed:
    """A record to list: its id, the path that the tool is to find it by, and its label from 0."""

    id: str
    path: str
    label: int
    record: Record


@dataclass(frozen=True)
class ListTool:
    """What lists a tool reads: in words, and the names of a record's list files with its lines.

    `lines` gives, for a record and the name of its part, pairs of a file's name and a line;
    `header` is the first line of each file. Paths are those below the records' folder or, with
    `absolute`, from the root of the file system.
    """

    text: str
    lines: Callable[[Listed, str], Iterator[tuple[str, str]]]
    header: str | None = None
    absolute: bool = False


def export_lists(
    split: Split,
    folder: RecordFolder,
    out: str | os.PathLike[str],
    *,
    tool: str = "mmaction2",
    missing: Missing = "error",
) -> dict[str, int]:
    """Write the lists of a split's records for a tool of LIST_TOOLS; the lines of each file.

    Of n frames a record has n - 1 fields, and each list has the count of what it lists. Beside the
    lists goes ``classes.txt``, the class names by label; labels count from 0. SplitError where
    records are missing (`match_records`), and where one is no folder of images of these tools'
    names or has blanks in its path; UsageError for another tool and, before anything is written,
    where a list is there already.
    """
    if tool not in LIST_TOOLS:
        raise UsageError(f"expected a tool of {', '.join(LIST_TOOLS)}, got {tool!r}")
    kind = LIST_TOOLS[tool]
    found = match_records(
        [video for part in PARTS for video in split.part(part)], folder.find(), missing=missing
    )
    lists: dict[str, list[str]] = {"classes.txt": list(split.classes)}
    own_ranges = 0
    for part in PARTS:
        videos = [video for video in split.part(part) if video.id in found]
        for video, label in zip(videos, split.labels(videos), strict=True):
            place = found[video.id]
            path = absolute(place) if kind.absolute else str(relative_to(place, folder.root))
            listed = Listed(video.id, path, label, folder.open(place))
            _refuse_unlistable(listed.record, listed.path)
            own_ranges += not _has_one_range(listed.record)
            for name, line in kind.lines(listed, part):
                lists.setdefault(name, [kind.header] if kind.header else []).append(line)
    if own_ranges:
        log.warning(
            "%s planes of different ranges, which %s reads as one: flowkit extract --bound 20 "
            "gives all the same",
            "1 record has" if own_ranges == 1 else f"{own_ranges:,} records have",
            tool,
        )
    for name in lists:
        if Path(out, name).exists():
            raise UsageError(
                f"{Path(out, name)}: there already, and not replaced: move it away, or choose "
                "another folder for the lists"
            )
    for name, lines in lists.items():
        with replacing(Path(out, name)) as file:
            text = "".join(f"{line}\n" for line in lines)
            file.write_text(text, encoding="utf-8", errors="surrogateescape")
    return {name: len(lines) for name, lines in lists.items()}


def _counted(listed: Listed, part: str) -> Iterator[tuple[str, str]]:
    """``train_rgb.txt`` and ``train_flow.txt``: "path n label", of flow n - 1."""
    record = listed.record
    for kind, count in (("rgb", record.frame_count), ("flow", record.field_count())):
        if kind == "flow" or record.has_frames:
            yield f"{part}_{kind}.txt", f"{listed.path} {count} {listed.label}"


def _by_image(listed: Listed, part: str) -> Iterator[tuple[str, str]]:
    """``rgb/train.csv``, ``flow_x/train.csv``, ``flow_y/train.csv``: a line per image.

    The test part is ``val.csv``, for the readers of such lists know no other.
    """
    record = listed.record
    series = record.find_series("forward")
    images = {f"flow_{name}": (file, series.count) for name, file in series.files.items()}
    if record.images is not None:
        images["rgb"] = record.images, record.frame_count
    file = "val" if part == "test" else part
    for kind, (template, count) in images.items():
        for index in range(count):
            image = f"{listed.path}/{record.file_name(template, index)}"
            yield f"{kind}/{file}.csv", f'{listed.id} 0 {index} {image} "{listed.label}"'


def _has_one_range(record: Record) -> bool:
    ranges = record.find_series("forward").ranges
    return ranges is None or bool((ranges == ranges[0]).all())


def _refuse_unlistable(record: Record, path: str) -> None:
    """SplitError unless tools that split a list's lines at blanks find and read the record."""
    if len(path.split()) != 1:
        raise SplitError(f"{path}: a blank in its path, where the lists' columns end: rename it")
    templates = [name for one in record.series for name in one.files.values()]
    if record.places is not None:
        raise SplitError(f"{record.path}: a pack: flowkit unpack makes a folder of it")
    if record.format not in ("jpg", "png") or any(name.startswith("..") for name in templates):
        raise SplitError(
            f"{record.path}: expected a folder of images named as TSN's (flowkit extract makes "
            f"them with --format jpg and --layout flowkit), got {record.format} files such as "
            f"{templates[0] % 1}"
        )


LIST_TOOLS = {
    "mmaction2": ListTool("PATH N LABEL, paths below the records' folder", _counted),
    "tsn": ListTool("the same with absolute paths", _counted, absolute=True),
    "pyslowfast": ListTool(
        "a line per image, as its Charades loader reads them", _by_image, FRAME_LIST_HEADER
    ),
    "pytorchvideo": ListTool(
        "the same, as its Charades data set reads them", _by_image, FRAME_LIST_HEADER
    ),
}
