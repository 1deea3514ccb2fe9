"""A kind of file, changed by hypothesis, read, and what went wrong of it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from flowkit.errors import FlowkitError

MOST_S = 1.0  # of processor time, for a file
MOST_BYTES = 256 << 20  # of memory, for a file
MOST_TEXT = 1500  # letters of an error
Change = Callable[[bytes], st.SearchStrategy[bytes]]


@dataclass(frozen=True)
class Kind:
    """A kind of file: what makes a sound one in a folder, what reads it, how it is changed.

    `read` gives "sound" where it says that a file is as it was written.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    change: Change
    costs: int = 1  # times what others cost: so many fewer are tried


def what_went_wrong(kind: Kind, file: Path) -> str:
    """Of reading a hostile file: "" for a FlowkitError of one line, or an answer, soon enough."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would not be counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins here
    before, start = _peak_bytes(), time.process_time()
    try:
        answer = kind.read(file)
        wrong = "called sound" if isinstance(answer, str) and answer == "sound" else ""
    except FlowkitError as error:
        text = str(error)
        wrong = "" if "\n" not in text and len(text) < MOST_TEXT else f"no line: {text!r:.200}"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    took_s, more = time.process_time() - start, _peak_bytes() - before
    if took_s > MOST_S:
        wrong = wrong or f"took {took_s:.1f} s"
    return wrong or (f"took {more:,} bytes" if more > MOST_BYTES else "")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def tried(kind: Kind, folder: Path, examples: int) -> list[str]:
    """What went wrong with each of so many hostile files, "" for what did not."""
    file = kind.make(folder)
    data, found = file.read_bytes(), list[str]()
    with suppress(Exception):
        kind.read(file)  # what is imported once, and takes its time

    @seed(7)
    @settings(
        max_examples=max(1, examples // kind.costs),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.change(data))
    def try_one(hostile: bytes) -> None:
        assume(hostile != data)
        file.write_bytes(hostile)
        found.append(what_went_wrong(kind, file))

    try_one()
    return found
