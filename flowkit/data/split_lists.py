"""Splits out of other people's lists: UCF-101's, HMDB-51's, and those of mmaction2 and TSN."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flowkit.data.splits import Split, Video, source_group
from flowkit.errors import SplitError
from flowkit.video.sources import VIDEO_EXTENSIONS


def ucf101_split(folder: str | os.PathLike[str], number: int = 1) -> Split:
    """Split `number` of official lists in UCF-101's form; nothing is held out.

    `folder` holds ``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt`` and so on, maybe with
    a common prefix. Labels follow classInd, which is not in the order of any sort. SplitError
    where a file is missing or a line does not agree with classInd.
    """
    index = _only(folder, "*classInd.txt")
    classes = _class_names(index)
    parts = []
    for part in ("train", "test"):
        path = _only(folder, f"*{part}list{number:02d}.txt")
        videos = []
        for where, line in _lines(path):
            start, _, label = line.rpartition(" ")
            file, label = (start, label) if start and label.isdecimal() else (line, "")
            class_name = PurePosixPath(file).parent.name
            if class_name not in classes:
                raise SplitError(f"{where}: class {class_name!r} is not in {index}")
            if label and label != str(classes.index(class_name) + 1):
                raise SplitError(
                    f"{where}: label {label} for class {class_name!r}, which is number "
                    f"{classes.index(class_name) + 1} in {index}"
                )
            videos.append(_video(_id(file), class_name))
        parts.append(tuple(videos))
    prefix = index.name.removesuffix("classInd.txt").rstrip("_-") or "ucf101"
    return Split(f"{prefix}-{number}", tuple(classes), parts[0], (), parts[1])


def hmdb51_split(folder: str | os.PathLike[str], number: int = 1) -> Split:
    """Split `number` of HMDB-51's official lists; nothing is held out.

    `folder` holds a file a class, ``brush_hair_test_split1.txt``, of lines "NAME.avi 1": 1 for
    training, 2 for testing, 0 for neither. The classes are in the order of their names (HMDB-51
    numbers none).
    """
    ending = f"_test_split{number}.txt"
    classes = sorted(path.name.removesuffix(ending) for path in Path(folder).glob(f"*{ending}"))
    if not classes:
        raise SplitError(f"{folder}: expected files named CLASS{ending}, found none")
    parts: dict[str, list[Video]] = {"0": [], "1": [], "2": []}
    for class_name in classes:
        for where, line in _lines(Path(folder, class_name + ending)):
            file, _, part = line.rpartition(" ")
            if not file or part not in parts:
                raise SplitError(f"{where}: expected NAME.avi and 0, 1 or 2, got {line!r}")
            parts[part].append(_video(f"{class_name}/{_id(file)}", class_name))
    return Split(f"hmdb51-{number}", tuple(classes), tuple(parts["1"]), (), tuple(parts["2"]))


def list_split(
    train: str | os.PathLike[str],
    test: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | None = None,
) -> Split:
    """The split of two list files as mmaction2 and TSN write them; nothing is held out.

    Lines are "path count label" or, for video files, "path label", labels from 0. `classes` is a
    file of class names, one a line in the order of the labels, maybe numbered; without it the
    paths must lie in class folders, one a label. Of absolute paths the last two parts are the id.
    """
    listed = [_list_lines(Path(path)) for path in (train, test)]
    if classes is not None:
        names = _class_names(Path(classes))
    else:
        folders: dict[int, set[str]] = {}
        for id, label, _ in listed[0] + listed[1]:
            folders.setdefault(label, set()).add(PurePosixPath(id).parent.name)
        one_each = [folders.get(label, set()) for label in range(max(folders) + 1)]
        names = [next(iter(folder)) for folder in one_each if len(folder) == 1]
        if len(set(names)) != len(one_each) or "" in names:
            raise SplitError(
                f"{train}: expected a class folder for each label from 0 to {max(folders)}, and "
                "one only; give the file of class names"
            )
    parts = []
    for path, lines in zip((train, test), listed, strict=True):
        largest = max(label for _, label, _ in lines)
        if largest >= len(names):
            raise SplitError(f"{path}: label {largest}, but only {len(names)} classes (from 0)")
        parts.append(tuple(_video(id, names[label], count) for id, label, count in lines))
    return Split(Path(train).stem, tuple(names), parts[0], (), parts[1])


def _only(folder: str | os.PathLike[str], pattern: str) -> Path:
    found = sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        raise SplitError(f"{folder}: expected one file {pattern}, found {len(found)}")
    return found[0]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that says something, without blanks at its ends, after where it stands."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise SplitError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if stripped := line.strip():
            yield f"{path}, line {number}", stripped


def _class_names(path: Path) -> list[str]:
    """Class names in order: "NAME" a line, or "NUMBER NAME", from 0 or 1 without gaps."""
    lines = [line for _, line in _lines(path)]
    numbered = [line.split(" ", 1) for line in lines]
    if all(len(words) == 2 and words[0].isdecimal() for words in numbered):
        numbers = [int(words[0]) for words in numbered]
        if numbers != list(range(numbers[0], numbers[0] + len(lines))) or numbers[0] > 1:
            raise SplitError(f"{path}: expected classes numbered from 1 (or 0) without gaps")
        lines = [words[1].strip() for words in numbered]
    if not lines:
        raise SplitError(f"{path}: expected class names, got an empty file")
    return lines


def _list_lines(path: Path) -> list[tuple[str, int, int | None]]:
    """(id, label, count or None) of each line of a list file."""
    found: list[tuple[str, int, int | None]] = []
    for where, line in _lines(path):
        file, _, label = line.rpartition(" ")
        start, _, count = file.rpartition(" ")
        if not file or not label.isdecimal():
            raise SplitError(f'{where}: expected "path count label" or "path label", got {line!r}')
        if start and count.isdecimal():
            found.append((_id(start), int(label), int(count)))
        else:
            found.append((_id(file), int(label), None))
    if not found:
        raise SplitError(f"{path}: expected a list of videos, got an empty file")
    if len({count is None for _, _, count in found}) > 1:
        raise SplitError(f'{path}: expected all lines "path count label", or all "path label"')
    return found


def _id(file: str) -> str:
    """The id of a listed file or folder: no extension of a video, no leading ".", no root."""
    path = PurePosixPath(file.strip())
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        path = path.with_suffix("")
    return "/".join(path.parts[-2:]) if path.is_absolute() else path.as_posix()


def _video(id: str, class_name: str, count: int | None = None) -> Video:
    return Video(id, class_name, source_group(id), count)
