"""Find the videos under paths, and name the place of each one's record: folders, files, lists."""

from __future__ import annotations

import codecs
import csv
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flowkit.documents import MOST_BYTES, SIDECAR, is_record, listed, read_plain_file
from flowkit.errors import UsageError
from flowkit.stores.urls import Access, Place, Url, as_place, is_url, parse_url, relative_to
from flowkit.video.image_folders import image_groups

# What a folder is searched for; a file that is named itself may be called anything.
VIDEO_EXTENSIONS = frozenset({
    ".avi", ".divx", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".flv", ".f4v",
    ".wmv", ".asf", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".ogv",
    ".mxf", ".dv", ".rm", ".rmvb", ".gif", ".y4m", ".mjpg", ".mjpeg", ".h264", ".264", ".h265",
    ".265", ".hevc",
})  # fmt: skip
LIST_EXTENSIONS = frozenset({".txt", ".lst", ".list", ".csv", ".tsv"})
ESCAPES = re.compile(r"\\(n|t|r|\\|x[0-9a-f]{2}|u[0-9a-f]{4})")  # escapes in a file of --failures
# Names of a .csv's column of paths
COLUMNS = ("path", "file", "filename", "file_name", "video", "video_path")
MARKS = {  # byte order marks; that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be extracted, and where its record goes.

    `path` is absolute: a video file, or a folder of frames; or it is a video's address. `id` is the
    '/'-separated place of the record below the output folder: the path without the extension.
    `refusal` says why it fails whatever it holds; `redo`: its record is there and is to be
    replaced.
    """

    path: Place
    id: str
    refusal: str = ""
    redo: bool = False


@dataclass(frozen=True)
class Found:
    """Sources in natural order of their ids (v_2 before v_10), no two ids alike or nested.

    `passed_over` counts the other files that lay in the folders, by extension (".csv"), and as
    "no extension", "hidden" (names that begin with a dot), "link loop", "broken link" and "flow
    record" (a folder of one). Whatever else was named or found is a source: one that is no video
    after all fails where it is opened, with a reason.
    """

    sources: tuple[Source, ...]
    passed_over: dict[str, int]

    def __repr__(self) -> str:
        return f"Found({len(self.sources)} sources, passed_over={self.passed_over})"


def find_videos(
    inputs: Sequence[str | Place],
    *,
    root: str | Place | None = None,
    stdin: BinaryIO | None = None,
    out: Place | None = None,
    access: Access | None = None,
) -> Found:
    """Find the videos that `inputs` name.

    Each input is one of:

    - a folder: every video file below it, and every folder below it (or itself) that holds two or
      more numbered frames and no video; ids are paths relative to it, or to `root`. The output
      folder `out` and folders of flow records are not entered;
    - a video file: its id is its stem, or its path below `root`;
    - a list (.txt, .lst, .list, .tsv): one path per line, as if it were an input itself, looked
      for from the working directory and then from `root`. Quotes around a line, trailing columns of
      integers, blank lines and lines that start with # count only where a file is called so;
    - a table (.csv): the paths in its column called path, file, filename or video, else in the
      first one;
    - "-": a list from `stdin` (default: standard input), NUL-separated if it contains a NUL;
    - an address in a store, such as s3://bucket/videos: the videos below it, a video, or a list.
      Whether a video that is named is there shows when it is opened; `access` is how to reach it.

    A path that several inputs name is one source, with the id that the first of them gives it. A
    folder without any video is a source that fails, beside others that are not.
    Raises UsageError if a path or `root` does not exist, if a path lies outside `root`, if two ids
    collide or one lies inside the other's record, or if there is no video at all.
    """
    top = None if root is None else _absolute(root)
    if isinstance(top, Path) and not top.is_dir():
        raise UsageError(f"{root}: no such folder to keep the paths below")
    leave = frozenset({os.path.realpath(out)}) if isinstance(out, Path) else frozenset()
    passed_over: Counter[str] = Counter()
    sources: dict[Place, Source] = {}
    empty: list[Source] = []  # folders that were named and hold none
    for place in _places(inputs, top, stdin, access):
        if isinstance(place, Url):
            for url in _find_objects(place, passed_over):
                own = place.parent if url is place else place
                sources.setdefault(url, Source(url, _id(url, top or own)))
            continue
        base = top or (place if place.is_dir() else place.parent)
        videos = [place]
        if place.is_dir():
            videos = list(_walk(place, frozenset(), leave, passed_over))
            if not videos and os.path.realpath(place) not in leave:
                empty.append(Source(place, _id(place, base)))
        for path in videos:
            sources.setdefault(path, Source(path, _id(path, base)))
    over = {kind: count for kind, count in sorted(passed_over.items()) if count}
    if not sources:
        words = ", ".join(f"{count} {kind}" for kind, count in over.items())
        raise UsageError(
            f"expected videos or folders of numbered frames under {listed(inputs)}, found none "
            f"(passed over: {words or 'nothing'})"
            f"{_word_on_frames(inputs, over)}"
        )
    found = _without_collisions(itertools.chain(sources.values(), empty))
    del sources  # a listing may be of a million
    found.sort(key=lambda source: natural_key(source.id))
    return Found(tuple(found), over)


def _word_on_frames(inputs: Sequence[str | Place], over: Collection[str]) -> str:
    """What to do where a folder in a store holds images."""
    if not {".jpg", ".jpeg", ".png", ".bmp"} & {*over} or not any(is_url(str(x)) for x in inputs):
        return ""
    return "; folders of frames are read on this machine only: copy them here"


# --- inputs to paths ------------------------------------------------------------------------------


def _places(
    inputs: Sequence[str | Place],
    root: Place | None,
    stdin: BinaryIO | None,
    access: Access | None,
) -> Iterator[Place]:
    """The absolute path, or the address, of all that the inputs name; lists are unrolled."""
    for given in inputs:
        name, place = str(given), _absolute(given, access)
        if name == "-":
            data = (stdin or sys.stdin.buffer).read()
            yield from _listed(data, "standard input", root, access)
        elif isinstance(place, Path) and not os.path.lexists(place):
            raise UsageError(f"{name}: no such file or folder")
        elif _is_list(place):
            yield from _listed(_read_list(place), name, root, access)
        else:
            yield place


def _absolute(given: str | Place, access: Access | None = None) -> Place:
    place = as_place(given, access)
    return place if isinstance(place, Url) else Path(os.path.abspath(place))


def _is_list(place: Place) -> bool:
    is_file = isinstance(place, Url) or not place.is_dir()
    return is_file and place.suffix.lower() in LIST_EXTENSIONS


def _read_list(place: Place) -> bytes:
    if isinstance(place, Path):
        return read_plain_file(place, error=UsageError)
    from flowkit.stores.objects import read_object

    return read_object(place, MOST_BYTES)


def decode_list(data: bytes, where: str) -> str:
    """The text of a list, by its byte order mark, else UTF-8; other bytes of names are kept.

    UsageError, which names the list by `where`, if it is not what its mark says.
    """
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if encoding in (None, "utf-8-sig"):
        return os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: damaged {encoding.upper()}: save it as UTF-8") from error


def table_rows(text: str, where: str) -> list[list[str]]:
    """The rows of a .csv that say something; separated by what its first line has most of."""
    first = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        return [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    except csv.Error as error:
        raise UsageError(
            f"{where}: expected a table of comma-separated values ({error})"
        ) from error


def unquote(text: str) -> str:
    """The text without the quotes that stand around the whole of it."""
    quoted = len(text) > 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _lines(data: bytes, where: str) -> list[str]:
    text = decode_list(data, where)
    if where.lower().endswith(".csv"):
        return _path_column(table_rows(text, where))
    return text.split("\0" if "\0" in text else "\n")


def find_column(row: list[str], names: Iterable[str]) -> int | None:
    """The column that a table's header calls by one of the `names`, the first of them first."""
    header = [cell.strip().casefold() for cell in row]
    return next((header.index(name) for name in names if name in header), None)


def _path_column(rows: list[list[str]]) -> list[str]:
    """The paths of a table: the column that its header calls so, else the first one."""
    named = find_column(rows[0], COLUMNS) if rows else None
    column = named or 0
    return [row[column] for row in rows[named is not None :] if len(row) > column]


def _listed(data: bytes, where: str, root: Place | None, access: Access | None) -> Iterator[Place]:
    """The paths and addresses in a list; `where` names the list in the errors."""
    bases = [Path.cwd(), *([root] if isinstance(root, Path) else [])]
    places: list[Place] = []
    missing = []
    for line in _lines(data, where):
        place = _look_up_url(line, access) or _look_up(line, bases)
        if place is None:
            if line.strip() and not line.startswith("#"):
                missing.append(line.strip())
        elif _is_list(place):
            raise UsageError(f"{where}: names a list, {place}: give that as an input of its own")
        else:
            places.append(place)
    if missing:
        letters = all(len(line) == 1 for line in missing)
        raise UsageError(
            f"{where}: {len(missing)} of {len(missing) + len(places)} paths do not exist, looked "
            f"for from {' and '.join(map(str, bases))}: {listed(missing)}"
            + (" (if it is UTF-16 without a byte order mark: save it as UTF-8)" * letters)
        )
    yield from places


def _look_up_url(line: str, access: Access | None) -> Url | None:
    """The address that a line names, less quotes, columns of integers, a reason behind a tab."""
    name, tab, _ = line.strip().partition("\t")
    name = unquote(name.strip())
    if not is_url(name):
        return None
    shorter = re.sub(r"\s+-?[0-9]+$", "", name)
    if _extension(shorter) in VIDEO_EXTENSIONS and _extension(name) not in VIDEO_EXTENSIONS:
        name = shorter
    return parse_url(ESCAPES.sub(_unescape, name) if tab else name, access)


def _look_up(line: str, bases: list[Path]) -> Path | None:
    """The path that a line names: as it stands, else less blanks, quotes, its last columns.

    Else what stands before a tab, with its escaped characters, as in a file of --failures.
    """
    name: str | None = line
    while name:
        for base in bases:
            place = Path(os.path.abspath(base / name))
            if os.path.lexists(place):
                return place
        shorter = name.strip()
        if shorter == name:
            shorter = unquote(name)
        if shorter == name:
            shorter = re.sub(r"\s+-?[0-9]+$", "", name)
        if shorter == name:
            shorter = name.partition("\t")[0]
        if shorter == name:
            shorter = ESCAPES.sub(_unescape, name)
        name = shorter if shorter != name else None
    return None


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    return {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}.get(code) or chr(int(code[1:], 16))


# --- addresses to objects -------------------------------------------------------------------------


def _find_objects(url: Url, passed_over: Counter[str]) -> Iterator[Url]:
    """The videos below an address, or the one that it is; UsageError where there is nothing."""
    from flowkit.stores.objects import is_object, list_objects

    if _extension(url.name) in VIDEO_EXTENSIONS:
        yield url
        return
    there = False
    for found in list_objects(url):
        there = True
        if any(part.startswith(".") for part in found.relative_to(url).parts):
            passed_over["hidden"] += 1
        elif _extension(found.name) in VIDEO_EXTENSIONS:
            yield found
        else:
            passed_over[_extension(found.name) or "no extension"] += 1
    if not there:
        if not is_object(url):
            raise UsageError(f"{url}: no such object, and none below it")
        yield url


# --- folders to paths -----------------------------------------------------------------------------


def _walk(
    folder: Path, above: frozenset[str], leave: frozenset[str], passed_over: Counter[str]
) -> Iterator[Path]:
    """The video files and folders of frames under `folder`; links are followed, but not round.

    `above` holds the real paths of the folders on the way here, `leave` those not to be entered.
    """
    here = os.path.realpath(folder)
    if here in above:
        passed_over["link loop"] += 1
        return
    if above and here in leave:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if not above:
            raise UsageError(f"{folder}: cannot be read: {error.strerror}") from error
        yield folder
        return
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    passed_over["hidden"] += len(entries) - len(visible)
    folders = [entry.name for entry in visible if _is_folder(entry)]
    files = sorted({entry.name for entry in visible} - {*folders})
    if above and SIDECAR in files and is_record(folder):
        passed_over["flow record"] += 1
        return
    videos = [name for name in files if _extension(name) in VIDEO_EXTENSIONS]
    groups = [] if videos else image_groups(files)
    below = [
        path
        for name in _without_layouts(folder, folders)
        for path in _walk(folder / name, above | {here}, leave, passed_over)
    ]
    taken = {*videos}
    if _are_frames(groups) and (len(groups) == 1 or not below):
        taken |= {name for group in groups for _, name in group}
        yield folder
    yield from (folder / name for name in videos)
    passed_over.update(_kind(folder / name) for name in files if name not in taken)
    yield from below


def _are_frames(groups: list[list[tuple[int, str]]]) -> bool:
    """Whether numbered images are meant as frames: more than a picture that bears a number.

    More than one group are no frames of one video, but nor are they passed over in silence.
    """
    if len(groups) == 1:
        return len(groups[0]) > 1
    stems = Counter(re.sub(r"[0-9]+\.[^.]*$", "", name) for group in groups for _, name in group)
    return any(count > 1 for count in stems.values())


def _without_layouts(folder: Path, folders: list[str]) -> list[str]:
    """The folders within `folder`, less those of flowkit's records in layouts that part them."""
    if "records" not in folders or not {"u", "flow"} & {*folders}:
        return folders
    if not any(map(is_record, (folder / "records").glob("*"))):
        return folders
    own = re.compile(r"records|jpegs_256|rgb|([uv]|flow)(_backward)?(_step[0-9]+)?")
    return [name for name in folders if not own.fullmatch(name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _kind(path: Path) -> str:
    """What a file is counted as that was passed over."""
    return _extension(path.name) or ("no extension" if path.exists() else "broken link")


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


# --- paths to ids ---------------------------------------------------------------------------------


def _id(path: Place, base: Place) -> str:
    """The '/'-separated path below `base` without the extension; a folder's own name at `base`."""
    if path == base:
        return path.name
    try:
        relative = relative_to(path, base)
    except ValueError as error:
        raise UsageError(f"{path}: expected a path below the root {base}") from error
    is_folder = isinstance(path, Path) and path.is_dir()
    return relative.as_posix() if is_folder else os.path.splitext(relative.as_posix())[0]


def _without_collisions(sources: Iterable[Source]) -> list[Source]:
    """The sources, a file that two paths reach under one id once; no two records in one place."""
    by_id: dict[str, Source] = {}
    for source in sources:
        first = by_id.setdefault(source.id, source)
        if first is not source and _real(first.path) != _real(source.path):
            raise UsageError(
                f"{first.path} and {source.path} would both be recorded as {source.id}: rename "
                "one, or, if they lie in different folders, name their common folder as the root"
            )
    for source in by_id.values():
        above = source.id
        while above := above.rpartition("/")[0]:
            if outer := by_id.get(above):
                raise UsageError(
                    f"{source.path} would be recorded as {source.id}, inside the record "
                    f"{outer.id} of {outer.path}: rename one"
                )
    return list(by_id.values())


def _real(path: Place) -> str:
    return os.path.realpath(path) if isinstance(path, Path) else str(path)


def natural_key(text: str) -> str:
    """A text whose order is the natural one: v_2 before v_10; one string, for there are many."""
    plain = re.sub("[0-9]+", _number_key, text)
    return f"{plain}\0\0{text}"  # v before v2, and v02 and v2 apart


def _number_key(match: re.Match[str]) -> str:
    digits = match[0].lstrip("0")
    return f"\0{chr(1 + len(digits))}{digits}"  # numbers come before letters, short ones first


def source_bytes(path: Path) -> int | None:
    """The size of a video file; None for a folder of frames."""
    return None if path.is_dir() else path.stat().st_size
