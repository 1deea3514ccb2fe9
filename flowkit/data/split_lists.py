"""Splits from other tools' lists: UCF-101's, HMDB-51's, and those of mmaction2 and TSN."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flowkit.data.splits import Split, Video, source_group
from flowkit.documents import read_plain_file, short
from flowkit.errors import SplitError
from flowkit.video.sources import (
    COLUMNS,
    VIDEO_EXTENSIONS,
    decode_list,
    find_column,
    table_rows,
    unquote,
)

# Names of a .csv's column of frame counts
COUNT_COLUMNS = ("count", "frames", "num_frames", "n_frames", "total_frames")
MOST_DIGITS = 18  # digits of a number: Python refuses to read 4,300
LABEL_COLUMNS = ("label", "class_id", "class")


def ucf101_split(folder: str | os.PathLike[str], number: int = 1) -> Split:
    """Split `number` of official lists in UCF-101's form; nothing is held out.

    `folder` holds ``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt`` and so on, maybe with
    a common prefix. Labels follow classInd, which is not in the order of any sort. SplitError
    where a file is missing or a line does not agree with classInd.
    """
    index = _only(folder, "*classInd.txt")
    classes, _ = read_class_names(index)
    parts = []
    for part in ("train", "test"):
        path = _only(folder, f"*{part}list{number:02d}.txt")
        videos = []
        for where, line in _lines(path):
            start, _, label = line.rpartition(" ")
            file, label = (start, label) if start and label.isdecimal() else (line, "")
            file = unquote(file.strip())
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

    `folder` holds a file per class, ``brush_hair_test_split1.txt``, of lines "NAME.avi 1": 1 for
    training, 2 for testing, 0 for neither. The classes are in the order of their names (HMDB-51
    numbers none).
    """
    ending = f"_test_split{number}.txt"
    classes = sorted(path.name.removesuffix(ending) for path in Path(folder).glob(f"*{ending}"))
    if not classes:
        absent = not Path(folder).exists()
        raise SplitError(f"{folder}: expected files named CLASS{ending}, found none", absent=absent)
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
    labels_from: int | None = None,
) -> Split:
    """The split of two list files as mmaction2 and TSN write them; nothing is held out.

    Lines are "path count label" or, for video files, "path label"; a .csv has these as columns.
    `classes` is a file of class names, one per line in the order of the labels, maybe numbered;
    without it the paths must lie in class folders, one for each label. Of absolute paths the last
    two parts are the id. `labels_from` is the label of the first class; if it is None, labels
    count as a numbered file of names does, unless there is a label 0, else from 0. SplitError
    where a label is none of a class, or a video lies in the folder of another class than its
    label says.
    """
    lists = {Path(path): _list_lines(Path(path)) for path in (train, test)}
    lines = [line for listed in lists.values() for line in listed]
    if classes is None:
        names = _folder_names(Path(train), lines, labels_from or 0)
        first = labels_from or 0
    else:
        names, number = read_class_names(Path(classes))
        first = labels_from if labels_from is not None else number or 0
        if labels_from is None and any(line.label == 0 for line in lines):
            first = 0
        for listed in lists.values():
            _check_labels(listed, lines, names, first, Path(classes))
    parts = [
        tuple(_video(line.id, names[line.label - first], line.count) for line in listed)
        for listed in (lists[Path(train)], lists[Path(test)])
    ]
    return Split(Path(train).stem, tuple(names), parts[0], (), parts[1])


@dataclass(frozen=True)
class _Listed:
    """A line of a list: where it stands, the video's id, its label and its count, if any."""

    where: str
    id: str
    label: int
    count: int | None


def _folder_names(train: Path, lines: Sequence[_Listed], first: int) -> list[str]:
    """The class names, by label, out of the folders that the videos lie in."""
    folders: dict[int, set[str]] = {}
    for line in lines:
        folders.setdefault(line.label, set()).add(PurePosixPath(line.id).parent.name)
    one_each = [folders.get(label, set()) for label in range(first, max(folders) + 1)]
    names = [next(iter(folder)) for folder in one_each if len(folder) == 1]
    if len(set(names)) != len(one_each) or "" in names or min(folders) < first:
        counted = "; if labels count from 1: --labels-from 1" if min(folders) == 1 > first else ""
        raise SplitError(
            f"{train}: expected a class folder for each label from {first} to {max(folders)}, and "
            f"one only; give the file of class names{counted}"
        )
    return names


def _check_labels(
    listed: Sequence[_Listed],
    lines: Sequence[_Listed],
    names: list[str],
    first: int,
    file: Path,
) -> None:
    """SplitError where a label of a list is of no class or contradicts the video's folder.

    `lines` are those of both lists, `file` holds the names.
    """
    wrong = next((line for line in listed if not _fits(line, names, first)), None)
    if wrong is None:
        return
    other = 1 - first
    hint = ""
    if all(_fits(line, names, other) for line in lines):
        hint = f"; labels look counted from {other}: --labels-from {other} says so"
    elif all(_fits(line, names, other) for line in listed):
        hint = f"; this list looks counted from {other}, but not the other one: make them agree"
    if not 0 <= wrong.label - first < len(names):
        raise SplitError(
            f"{wrong.where}: label {wrong.label}, but {file} has {len(names)} classes, counted "
            f"from {first}{hint}"
        )
    raise SplitError(
        f"{wrong.where}: label {wrong.label} is {names[wrong.label - first]!r} in {file}, counted "
        f"from {first}, but the folder is {_class_folder(wrong.id, names)!r}{hint}"
    )


def _fits(line: _Listed, names: list[str], first: int) -> bool:
    place = line.label - first
    return (
        0 <= place < len(names)
        and (_class_folder(line.id, names) or names[place]).casefold() == names[place].casefold()
    )


def _class_folder(id: str, names: list[str]) -> str | None:
    """The folder nearest to the video that is called like a class."""
    spelled = {name.casefold() for name in names}
    folders = reversed(PurePosixPath(id).parent.parts)
    return next((folder for folder in folders if folder.casefold() in spelled), None)


def _only(folder: str | os.PathLike[str], pattern: str) -> Path:
    found = sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        absent = not Path(folder).exists()
        raise SplitError(
            f"{folder}: expected one file {pattern}, found {len(found)}", absent=absent
        )
    return found[0]


def _text(path: Path) -> str:
    try:
        return decode_list(read_plain_file(path, error=SplitError), str(path))
    except FileNotFoundError:
        raise SplitError(f"{path}: no such file", absent=True) from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that says something, without blanks at its ends, after where it stands."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if stripped := line.strip():
            yield f"{path}, line {number}", stripped


def read_class_names(path: Path) -> tuple[list[str], int | None]:
    """Class names in order, "NAME" or "NUMBER NAME" in a line, and the first of the numbers.

    Numbers go from 0 or 1 without gaps; None where there are none.
    """
    lines = [line for _, line in _lines(path)]
    numbered = [line.split(" ", 1) for line in lines]
    if not lines:
        raise SplitError(f"{path}: expected class names, got an empty file")
    if any("\0" in line for line in lines):
        raise SplitError(f"{path}: expected class names as text in UTF-8, got zero bytes")
    if not all(len(words) == 2 and _is_number(words[0]) for words in numbered):
        return lines, None
    numbers = [int(words[0]) for words in numbered]
    if numbers != list(range(numbers[0], numbers[0] + len(lines))) or numbers[0] > 1:
        raise SplitError(f"{path}: expected classes numbered from 1 (or 0) without gaps")
    return [words[1].strip() for words in numbered], numbers[0]


def _list_lines(path: Path) -> list[_Listed]:
    """The lines of a list file."""
    rows = _rows(path)
    if not rows:
        raise SplitError(f"{path}: expected a list of videos, got an empty file")
    if all(len(columns) == 3 and re.search(r"\s\d+$", columns[0]) for _, columns in rows):
        raise SplitError(
            f'{rows[0][0]}: expected "path count label", got four columns (an offset before the '
            'count is not read); of a path that ends so, write "PATH" count label'
        )
    found = []
    for where, columns in rows:
        numbers = columns[1:]
        plain = len(numbers) in (1, 2) and all(map(_is_number, numbers))
        if not columns[0] or not plain:
            line = " ".join(columns)
            raise SplitError(
                f'{where}: expected "path count label" or "path label", got {short(line)}'
            )
        count = int(numbers[0]) if len(numbers) == 2 else None
        found.append(_Listed(where, _id(unquote(columns[0])), int(numbers[-1]), count))
    if len({line.count is None for line in found}) > 1:
        raise SplitError(f'{path}: expected all lines "path count label", or all "path label"')
    return found


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= MOST_DIGITS


def _rows(path: Path) -> list[tuple[str, list[str]]]:
    """The columns of each line, after where it stands: the path and what follows it."""
    table = table_rows(_text(path), str(path)) if path.suffix.lower() == ".csv" else []
    if any(len(row) > 1 for row in table):
        wanted = _header_columns(table[0], path)
        rows = [[cell.strip() for cell in row] + [""] * len(table[0]) for row in table]
        return [
            (f"{path}, row {number}", [row[k] for k in wanted or range(len(table[number - 1]))])
            for number, row in enumerate(rows, start=1)
            if number > 1 or wanted is None
        ]
    line_form = re.compile(r"(\"[^\"]+\"|'[^']+'|.+?)((?:\s+\d+){0,2})")
    matches = [(where, line_form.fullmatch(line)) for where, line in _lines(path)]
    return [(where, [one[1], *one[2].split()]) for where, one in matches if one]


def _header_columns(row: list[str], path: Path) -> list[int] | None:
    """The columns of path, count (if any) and label that a header names; None if it is none."""
    if row[-1].strip().isdecimal():
        return None
    file, count, label = (
        find_column(row, names) for names in (COLUMNS, COUNT_COLUMNS, LABEL_COLUMNS)
    )
    if file is None or label is None:
        raise SplitError(
            f"{path}: expected a header with a column path, file, filename or video and a column "
            f"label, got {', '.join(row)}"
        )
    return [file, *([] if count is None else [count]), label]


def _id(file: str) -> str:
    """The id of a listed file or folder: no extension of a video, no leading ".", no root."""
    path = PurePosixPath(file.strip())
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        path = path.with_suffix("")
    return "/".join(path.parts[-2:]) if path.is_absolute() else path.as_posix()


def _video(id: str, class_name: str, count: int | None = None) -> Video:
    return Video(id, class_name, source_group(id), count)
