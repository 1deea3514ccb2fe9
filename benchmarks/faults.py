"""Faults, tried and counted: kills at every call that changes names, flipped bits, two at once.

usage: python benchmarks/faults.py [--write docs/reliability.md]

Prints a table of what was tried and how often the outcome was wrong; exit status 1 if it ever was.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from flowkit.errors import FlowkitError, RecordError
from flowkit.records.layout import Storage
from flowkit.records.packing import pack_record, unpack_record
from flowkit.records.reading import find_records, open_record
from flowkit.records.verify import verify_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series

FORWARD = Series("forward", 1)
CALLS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
STORAGES = {
    "folder": Storage(format="jpg"),
    "pack": Storage(format="jpg", pack=True),
    "twostreamfusion": Storage(format="png", layout="twostreamfusion"),
}
FLIPS = 60  # of each format
RACES = 20
TITLE = (
    "# Reliability\n\nWritten by `make faults`: what was tried, and how often it went wrong.\n\n"
)


def write(out: Path, value: int, storage: Storage, *, overwrite: bool = True) -> bool:
    """The record "a" of two fields of one value."""
    with RecordWriter(out, "a", storage, (FORWARD,)) as writer:
        for _ in range(3):
            writer.add_frame(np.full((24, 32, 3), value, np.uint8))
        for _ in range(2):
            writer.add_field(FORWARD, np.full((24, 32, 2), value, np.float32))
        description = {"request": storage.identity(), "fps": 25.0}
        return writer.commit(description, overwrite=overwrite)


def values(out: Path) -> list[int | None]:
    """The value of each record below; None for one that is not sound."""
    found = []
    for path in find_records(out) if out.exists() else ():
        sound = verify_record(path).kind == "sound"
        found.append(round(float(open_record(path).fields(0, 2).mean())) if sound else None)
    return found


def in_child(call: Callable[[], object], kill_at: int = 0) -> int:
    """Run in a forked process, killed at its n-th change of names; the status, -9 for killed."""
    child = os.fork()
    if not child:
        left = kill_at

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in CALLS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            call()
        except FlowkitError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(folder: Path, name: str, old: bool) -> Iterator[bool]:
    """Killed at each call: the old record, the new one or none, and the next run makes it whole."""
    for number in range(1, 1000):
        out = folder / f"{name}{old}{number}"
        if old:
            write(out, 1, STORAGES[name])
        status = in_child(lambda out=out: write(out, 2, STORAGES[name]), number)
        right = values(out) in ([], [2], [1] if old else [])
        write(out, 2, STORAGES[name])
        yield right and values(out) == [2]
        if status == 0:
            return


def conversions(folder: Path, pack: bool) -> Iterator[bool]:
    """Killed at each call of pack or unpack: a sound record is always there."""
    for number in range(1, 1000):
        out = folder / f"convert{pack}{number}"
        write(out, 1, STORAGES["folder"])
        if not pack:
            pack_record(out / "a")
        convert = (lambda out=out: pack_record(out / "a")) if pack else (
            lambda out=out: unpack_record(out / "a.zip")
        )  # fmt: skip
        status = in_child(convert, number)
        found = values(out)
        yield bool(found) and set(found) == {1}
        if status == 0:
            return


def flips(folder: Path, storage: Storage) -> Iterator[bool]:
    """A flipped bit anywhere in a record, sidecar included, is found."""
    out, chance = folder / f"flip{storage.format}{storage.pack}", random.Random(7)
    write(out, 1, storage)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for _ in range(FLIPS):
        file = chance.choice(files)
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        yield [verify_record(path).kind for path in find_records(out)] == ["broken"]
        file.write_bytes(data)


def races(folder: Path, alike: bool) -> Iterator[bool]:
    """Two writers at once, of one request or of two: one record, and the other one is told."""
    for number in range(RACES):
        out = folder / f"race{alike}{number}"
        other = STORAGES["folder"] if alike else STORAGES["pack"]
        child = os.fork()
        if not child:
            os._exit(in_child(lambda out=out: write(out, 1, STORAGES["folder"], overwrite=False)))
        try:
            write(out, 1, other, overwrite=False)
            mine = 0
        except RecordError:
            mine = 1
        theirs = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield values(out) == [1] and mine + theirs == (0 if alike else 1)


def rows(folder: Path) -> Iterator[tuple[str, list[bool]]]:
    """What is tried, and for each try whether it went right."""
    for name in STORAGES:
        for old in (False, True):
            what = "replaced" if old else "written"
            yield f"killed at each change of names, a {name} {what}", [*kills(folder, name, old)]
    yield "killed at each change of names of `pack`", [*conversions(folder, True)]
    yield "killed at each change of names of `unpack`", [*conversions(folder, False)]
    for format in ("jpg", "png", "lz4", "npy", "flo"):
        yield f"a flipped bit in a record, {format}", [*flips(folder, Storage(format=format))]
    yield "a flipped bit in a pack", [*flips(folder, STORAGES["pack"])]
    yield "two runs of one request at once", [*races(folder, True)]
    yield "two runs of two requests at once", [*races(folder, False)]


def main() -> None:
    """Print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="the page to write the table to")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    lines, wrong = ["| fault | tried | wrong |", "| --- | ---: | ---: |"], 0
    try:
        for what, right in rows(folder):
            wrong += right.count(False)
            lines.append(f"| {what} | {len(right)} | {right.count(False)} |")
            print(lines[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.write:
        options.write.write_text(TITLE + "\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
