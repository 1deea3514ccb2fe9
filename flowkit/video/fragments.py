"""The fragments of an MP4 (ISO/IEC 14496-12, section 8.8), and whether some are not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# Flags of the optional numbers that "tfhd" and "trun" hold before what is read here, with the bytes
# of each; and of the four numbers, of four bytes, of a row of "trun", the first being the duration.
TFHD, TRUN = {0x1: 8, 0x2: 4}, {0x1: 4, 0x4: 4}
ROW = {0x100: 4, 0x200: 4, 0x400: 4, 0x800: 4}
HAS_DEFAULT_DURATION, HAS_DURATIONS = 0x8, 0x100


class Run(NamedTuple):
    """What one fragment has of a track; times in ticks of the track, `start` None if not stated."""

    order: int  # place of the fragment in the file, from 0
    number: int  # the number that it states
    track: int
    start: int | None
    samples: int
    ticks: int


def missing_fragments(file: BinaryIO, end: int) -> list[str]:
    """A line if fragments are missing between others in an MP4 of `end` bytes, else nothing.

    Their numbers rise, but not always by one: tracks recorded together may be put into a file each.
    So a break in the numbers counts where the time of the track breaks, too, or is not stated.
    """
    latest: dict[int, Run] = {}  # the latest run of each track
    breaks = []
    for run in _runs(file, end):
        before = latest.get(run.track)
        is_break = before and run.number - before.number > run.order - before.order
        if before and is_break and _time_breaks(before, run):
            breaks.append(f"{before.number} is followed by {run.number}")
        latest[run.track] = run
    if not breaks:
        return []
    return [f"breaks in the numbers of fragments: {len(breaks)} (first: {breaks[0]})"]


def _time_breaks(before: Run, run: Run) -> bool:
    """True where a run starts later than the one before ends, by more than half a sample."""
    if before.start is None or run.start is None:
        return True
    gap = run.start - before.start - before.ticks
    return 2 * gap * before.samples > before.ticks


def _runs(file: BinaryIO, end: int) -> Iterator[Run]:
    """What the fragments have of each track, in the order of the file."""
    defaults: dict[int, int] = {}  # ticks of a sample of each track
    order = 0
    for kind, body, stop in _boxes(file, 0, end):
        if kind == b"moov":
            for _, inner, last in _boxes(file, body, stop, only=b"mvex"):
                for _, trex, _ in _boxes(file, inner, last, only=b"trex"):
                    defaults[_number(file, trex + 4)] = _number(file, trex + 12)
        elif kind == b"moof":
            order += 1
            number = 0
            for inner_kind, inner, last in _boxes(file, body, stop):
                if inner_kind == b"mfhd":
                    number = _number(file, inner + 4)
                elif inner_kind == b"traf":
                    yield _run(file, inner, last, order, number, defaults)


def _run(
    file: BinaryIO, body: int, stop: int, order: int, number: int, defaults: dict[int, int]
) -> Run:
    track = samples = ticks = ticks_each = 0
    start = None
    for kind, at, last in _boxes(file, body, stop):
        flags = _number(file, at) & 0xFFFFFF  # the byte above them is the version
        if kind == b"tfhd":
            track = _number(file, at + 4)
            ticks_each = defaults.get(track, 0)
            if flags & HAS_DEFAULT_DURATION:
                ticks_each = _number(file, at + 8 + _width(TFHD, flags))
        elif kind == b"tfdt":
            start = _number(file, at + 4, width=8 if _number(file, at, width=1) else 4)
        elif kind == b"trun":
            count = _number(file, at + 4)
            samples += count
            if flags & HAS_DURATIONS:
                file.seek(at + 8 + _width(TRUN, flags))
                rows = file.read(max(last - file.tell(), 0))
                places = range(0, min(count * (step := _width(ROW, flags)), len(rows)), step)
                ticks += sum(int.from_bytes(rows[i : i + 4], "big") for i in places)
            else:
                ticks += count * ticks_each
    return Run(order, number, track, start, samples, ticks)


def _boxes(
    file: BinaryIO, at: int, stop: int, *, only: bytes | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two places: name, where the content begins and where it ends."""
    while at + 8 <= stop:
        length, name, body = _number(file, at), file.read(4), at + 8
        if length == 1:  # the true one follows in 64 bits
            length, body = _number(file, at + 8, width=8), at + 16
        elif length == 0:  # 0 means to the end of the file
            length = stop - at
        if length < body - at:
            return
        if only in (None, name):
            yield name, body, min(at + length, stop)
        at += length


def _number(file: BinaryIO, at: int, *, width: int = 4) -> int:
    file.seek(at)
    return int.from_bytes(file.read(width), "big")


def _width(numbers: dict[int, int], flags: int) -> int:
    """The bytes of those optional numbers whose flags are set."""
    return sum(width for flag, width in numbers.items() if flags & flag)
