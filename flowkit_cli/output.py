"""The only writer of standard output and of progress, and what may be written where it is asked.

Names of files may hold anything: no control character of theirs reaches the terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click

from flowkit.documents import MADE_BY, ZIP_ERRORS, is_record, kind_of_file, make_folders, sync
from flowkit.errors import UsageError
from flowkit.stores.urls import Place

QUIET_LINE_S = 30  # seconds between two lines of progress where no terminal shows a bar
# Controls of ASCII and Latin-1; line ends
CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]
# Marks of right-to-left writing and of its end
TURNS = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
ESCAPED = {
    code: {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(chr(code))
    or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
    for code in [*CONTROLS, *TURNS]
}
ESCAPED_BUT_LINES = {code: text for code, text in ESCAPED.items() if code != ord("\n")}

END_BYTES = 1 << 20  # of a file, that hold its mark
ENDING = re.compile(r"\.\w+")  # in the name of a kind of file
LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # how each line of a log begins

quiet, verbose = 0, 0  # how often -q and -v were given: errors only, and more
log_path: Path | None = None  # the file of --log
command = ""  # the command that runs


def open_closed_streams() -> None:
    """Give a program that was started without standard streams ones that lead nowhere.

    Else the next file that it opens takes the number of the missing one, and is written to.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def stdin() -> BinaryIO:
    """Standard input as bytes."""
    return sys.stdin.buffer


def open_log(path: Path) -> None:
    """Add to this file, from now on, what the terminal shows, each line with its time."""
    global log_path
    check_out("--log", path, "a log")
    try:
        path.open("ab").close()
    except OSError as problem:
        raise UsageError(f"--log {path}: cannot be written: {problem.strerror}") from None
    log_path = path.absolute()


def note(text: str) -> None:
    """Write what is shown to the log, if there is one; that it cannot be written is said once."""
    global log_path
    if log_path is None:
        return
    now = time.strftime("%Y-%m-%d %H:%M:%S ")
    lines = "".join(f"{now}{line}\n" for line in text.translate(ESCAPED_BUT_LINES).split("\n"))
    try:
        with log_path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)
    except OSError as problem:
        path, log_path = log_path, None
        error(f"flowkit: warning: --log {path}: {problem.strerror}; nothing more is added")


def _echo(text: str, *, err: bool = False) -> None:
    """Write a line; a bar that stands on the terminal makes room for it."""
    bars = sys.modules.get("tqdm")
    with bars.tqdm.external_write_mode() if bars else nullcontext():
        click.echo(text, err=err)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error; not with -q."""
    if not quiet:
        note(text.translate(ESCAPED))
        _echo(text.translate(ESCAPED), err=True)


def detail(text: str) -> None:
    """A line that is said with -v only."""
    if verbose:
        say(text)


def error(text: str) -> None:
    """One line, whatever names are in it, of what has failed, on standard error."""
    note(text.translate(ESCAPED))
    _echo(text.translate(ESCAPED), err=True)


def result(text: str, **style: Any) -> None:
    """A line of a command's result, on standard output; in a style of `click.style`."""
    result_lines(text.translate(ESCAPED), **style)


def result_lines(text: str, **style: Any) -> None:
    """A text of several lines, in which no name has a line end, as `result` writes one."""
    text = text.translate(ESCAPED_BUT_LINES)
    note(text)
    _echo(click.style(text, **style) if style else text)


def wrote(text: str) -> None:
    """A line on standard output of what was written; not with -q."""
    if not quiet:
        result(text)


def json_line(value: dict[str, Any]) -> None:
    """One JSON object on a line of standard output, at once, so that a pipeline can follow."""
    note(json.dumps(value))
    _echo(json.dumps(value))
    sys.stdout.flush()


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 video", "13,320 videos"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """A time to read: "8.1 s", "12 min", "4 h 12 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _is_zip_with(member: str) -> Callable[[Path], bool]:
    def test(path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(member) for name in archive.namelist())
        except (OSError, *ZIP_ERRORS):
            return False

    return test


def _begins(*beginnings: bytes, at: int = 0, mark: str = "") -> Callable[[Path], bool]:
    """Whether a file begins so, in small letters, and has the mark near its begin or its end."""

    def test(path: Path) -> bool:
        with path.open("rb") as file:
            begin = file.read(END_BYTES)
            file.seek(-min(path.stat().st_size, END_BYTES), os.SEEK_END)
            is_marked = mark.encode() in begin or mark.encode() in file.read()
        return is_marked and begin[at:].lower().startswith(beginnings)

    return test


def _is_failures(path: Path) -> bool:
    with path.open("rb") as file:
        return all(b"\t" in line for line in file.read(1 << 16).splitlines())


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return LOG_LINE.match(file.read(20)) is not None


# Kinds of files that commands write: told by what is in them, and from the user's own by a mark
# where the format has room for one
KINDS: dict[str, Callable[[Path], bool]] = {
    "a page (.html)": _begins(b"<!doctype html", mark=MADE_BY),
    "an .npz": _is_zip_with("meta.npy"),
    "an array (.npy)": _begins(b"\x93numpy"),
    # Field 1 of the protocol buffer is the version, its last one what flowkit adds
    "an ONNX file": _begins(b"\x08", mark="flowkit.json"),
    "a TorchScript file": _is_zip_with("/extra/flowkit.json"),
    "a split (.json)": _begins(b'{\n  "format": "flowkit split"'),
    "a .png": _begins(b"\x89png", mark=MADE_BY),
    "a .gif": _begins(b"gif8", mark=MADE_BY),
    "a .mp4": _begins(b"ftyp", at=4, mark=MADE_BY),
    "a list of failures": _is_failures,
    "a table of windows (.csv)": _begins(b"start_s,end_s,"),
    "a list of windows (.jsonl)": _begins(b'{"start_s": '),
    "a log": _is_log,
}


def check_out(option: str, out: Path, kind: str, inputs: Iterable[str | Path] = ()) -> None:
    """UsageError where writing `out` would replace an input, or a file that is not of this kind.

    Or put a file into a flow record, which is flowkit's as long as there is nothing else in it, or
    write one whose name does not end as its kind does, by which other commands find it.
    """
    if out.is_file():
        status = out.stat()
        for one in inputs:
            if os.path.exists(one) and os.path.samestat(status, os.stat(one)):
                raise UsageError(f"{option} {out}: is an input, and would be replaced")
        if status.st_size and not KINDS[kind](out):
            raise UsageError(
                f"{option} {out}: there is a file that is not {kind} of flowkit's; move it away, "
                "or choose another name"
            )
    elif out.exists() and not out.is_char_device():  # a pipe would wait for its reader
        got = kind_of_file(out.stat().st_mode)
        raise UsageError(f"{option} {out}: expected the name of a file, got {got}")
    elif not out.exists() and (ending := ENDING.search(kind)) and out.suffix.lower() != ending[0]:
        raise UsageError(f"{option} {out}: expected a name that ends in {ending[0]}")
    if is_record(out.parent):
        raise UsageError(f"{option} {out}: lies in a flow record, which holds its own files only")


def check_out_folder(option: str, out: Path) -> None:
    """UsageError where `out` is no folder to be, or lies in a flow record or is one."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{option} {out}: expected the name of a folder, got a file")
    if record := next(filter(is_record, (out, *out.absolute().parents)), None):
        raise UsageError(
            f"{option} {out}: lies in the flow record {record}, which holds its own files only"
        )


class Failures:
    """The file of --failures: opened before any work, and a line in it for each failed video.

    A line is path, tab, reason. Backslashes and control characters of both are escaped, so that a
    list of paths, which such a file is for the next run, has one line for each. It may lie in the
    folder `beside`, that the command writes to, before that is there. A context manager.
    """

    def __init__(
        self, path: Path | None, inputs: Iterable[str | Path], beside: Path | None = None
    ) -> None:
        self.path, self.file = path, None
        if path is None:
            return
        check_out("--failures", path, "a list of failures", inputs)
        try:
            if beside is not None and path.absolute().parent == beside.absolute():
                make_folders(beside)  # which the command is going to make
            self.file = path.open("w", encoding="utf-8", errors="surrogateescape")
        except OSError as problem:
            raise UsageError(f"--failures {path}: cannot be written: {problem.strerror}") from None

    def __enter__(self) -> Failures:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.file is not None and self.path is not None:
            self.file.close()
            sync(self.path)

    def add(self, path: Place, reason: str) -> None:
        """Write a line, at once."""
        if self.file is not None:
            texts = [text.replace("\\", "\\\\").translate(ESCAPED) for text in (str(path), reason)]
            self.file.write("\t".join(texts) + "\n")
            self.file.flush()


class ProgressBar:
    """Progress over videos on standard error: a bar on a terminal, else a line now and then.

    Where the things counted are no videos, `noun` says what they are. Of a `total` that is not
    known, None, no time left is told.
    """

    def __init__(self, total: int | None, noun: str = "video") -> None:
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread beside this one: workers are forked
        self.total, self.noun, self.quiet = total, noun, bool(quiet)
        self.videos = self.failed = 0
        self.frames = 0  # frames of all videos
        self._frames_of: dict[str, int] = {}
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(total=total, unit=noun, disable=True if quiet else None, smoothing=0.05)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def frames_of(self, video: str, frames: int) -> None:
        """`video` has come to `frames` frames."""
        self.frames += frames - self._frames_of.get(video, 0)
        self._frames_of[video] = frames
        self._show()

    def finished(self, *, failed: bool) -> None:
        """One more video is done or has failed."""
        self.videos += 1
        self.failed += failed
        self.bar.update()
        self._show()

    def _show(self) -> None:
        elapsed = time.monotonic() - self.start
        rate = f"{self.frames / max(elapsed, 1e-9):.0f} frames/s, " if self.frames else ""
        self.bar.set_postfix_str(f"{rate}{self.failed} failed", refresh=False)
        if self.quiet or not self.bar.disable or time.monotonic() - self.last_line < QUIET_LINE_S:
            return
        self.last_line = time.monotonic()
        if self.total is None:
            say(f"{count(self.videos, self.noun)}, {rate}{self.failed} failed")
            return
        left = elapsed / self.videos * (self.total - self.videos) if self.videos else None
        say(
            f"{self.videos:,} of {count(self.total, self.noun)}, {rate}{self.failed} failed"
            + (f", {duration(left)} left" if left is not None else "")
        )
