"""Faults, tried and counted: kills, flipped bits, two at once, full disks, hostile files.

usage: python benchmarks/faults.py [--write docs/reliability.md]

Prints a table of what was tried and how often the outcome was wrong; exit status 1 if it ever was.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_files import KINDS
from hostile_tries import Kind, tried

from flowkit import documents
from flowkit._cv2 import cv2
from flowkit.data.frames import FrameForm
from flowkit.data.splits import Split, Video, read_split, write_split
from flowkit.errors import FlowkitError, RecordError
from flowkit.evaluation.soundness import find_files, verify_file
from flowkit.extraction.extract import extract_video
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.networks.checkpoints import (
    BEST,
    LAST,
    Checkpoint,
    read_checkpoint,
    read_tensors,
    write_checkpoint,
)
from flowkit.records import ownership, writing
from flowkit.records.layout import Storage
from flowkit.records.packing import pack_record, unpack_record
from flowkit.records.reading import find_records, open_record
from flowkit.records.unfinished import DEAD_S, INCOMPLETE
from flowkit.records.verify import delete_broken, find_unfinished, verify_record
from flowkit.records.writing import RecordWriter
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.series import Series
from flowkit.video.sources import Source
from flowkit.video.writing import write_video

FORWARD = Series("forward", 1)
CALLS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
STORAGES = {
    "folder": Storage(format="jpg"),
    "pack": Storage(format="jpg", pack=True),
    "twostreamfusion": Storage(format="png", layout="twostreamfusion"),
}
FLIPS = 300  # of each kind of file
RACES = 20
HOSTILE = 60  # of each kind of file
FREE_KB = range(0, 64, 4)  # on a disk that is about to be full
DISK_KB = 1024
SYNC_PAIRS = 40
NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
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


def in_child(call: Callable[[], object], kill_at: int = 0, *, at: str = "names") -> int:
    """Run in a forked process, killed at its n-th change of names or its n-th sync.

    The status, -9 for killed. A kill at a sync comes before it is done.
    """
    child = os.fork()
    if not child:
        left = kill_at

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        if at == "names":
            sys.addaudithook(lambda event, _: count() if event in CALLS else None)
        else:
            fsync, libc = os.fsync, ctypes.CDLL(None, use_errno=True)
            syncfs = libc.syncfs

            def counted_fsync(handle: int) -> None:
                count()
                fsync(handle)

            def counted_syncfs(handle: int) -> int:
                count()
                return int(syncfs(handle))

            os.fsync = counted_fsync  # type: ignore[assignment]
            documents.ctypes.CDLL = lambda *_, **__: types.SimpleNamespace(  # type: ignore[attr-defined]
                syncfs=counted_syncfs
            )
        try:
            call()
        except FlowkitError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(folder: Path, name: str, old: bool, at: str) -> Iterator[bool]:
    """Killed at each call: the old record, the new one or none, and the next run makes it whole."""
    for number in range(1, 1000):
        out = folder / f"{name}{old}{at}{number}"
        if old:
            write(out, 1, STORAGES[name])
        status = in_child(lambda out=out: write(out, 2, STORAGES[name]), number, at=at)
        right = values(out) in ([], [2], [1] if old else [])
        write(out, 2, STORAGES[name])
        yield right and values(out) == [2]
        if status == 0:
            return


def conversions(folder: Path, pack: bool, at: str) -> Iterator[bool]:
    """Killed at each call of pack or unpack: a sound record is always there."""
    for number in range(1, 1000):
        out = folder / f"convert{pack}{at}{number}"
        write(out, 1, STORAGES["folder"])
        if not pack:
            pack_record(out / "a")
        convert = (lambda out=out: pack_record(out / "a")) if pack else (
            lambda out=out: unpack_record(out / "a.zip")
        )  # fmt: skip
        status = in_child(convert, number, at=at)
        found = values(out)
        yield bool(found) and set(found) == {1}
        if status == 0:
            return


def flips(folder: Path, storage: Storage) -> Iterator[bool]:
    """A flipped bit anywhere in a record, sidecar included, is found."""
    out, chance = folder / f"flip{storage.format}{storage.pack}", random.Random(7)
    write(out, 1, storage)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for _ in flipping(files, chance):
        yield [verify_record(path).kind for path in find_records(out)] == ["broken"]


def flipping(files: list[Path], chance: random.Random) -> Iterator[None]:
    """Flip a bit of one of the files, and flip it back when the next is asked for."""
    for _ in range(FLIPS):
        file = chance.choice(files)
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        yield
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


# --- scores, splits, checkpoints ------------------------------------------------------------------


def write_documents(folder: Path, value: int) -> dict[str, Callable[[], None]]:
    """By name, what writes a document that says `value` into `folder`."""
    videos = [f"run/v{number}" for number in range(20)]
    scores = Scores(videos, ("run", "golf"), np.full((20, 2), value), meta={"kind": "logits"})
    train = tuple(Video(video, "run", video) for video in videos)
    split = Split(f"split-{value}", ("run", "golf"), train, (), ())
    tensors = {"a": torch.full((30, 40), float(value))}
    checkpoint = Checkpoint(
        value, "small", {"spatial": FrameForm()}, 0.5, {"main": ("run", "golf")}, 36, 32
    )
    return {
        "scores file": lambda: write_scores(folder / "scores.npz", scores),
        "split": lambda: write_split(folder / "split.json", split),
        "checkpoint": lambda: write_checkpoint(
            folder / "run", [BEST, LAST], checkpoint, tensors, tensors
        ),
    }


def read_scores_file(folder: Path) -> str:
    """All that a scores file says."""
    scores = read_scores(folder / "scores.npz")
    said = (scores.videos, scores.classes, scores.values.tolist(), scores.labels.tolist())
    return repr((said, scores.meta))


def read_run(folder: Path) -> str:
    """All that the two checkpoints of a run say, and their tensors: a line each."""
    lines = []
    for name, kinds in ((BEST, ("weights",)), (LAST, ("weights", "state"))):
        place = folder / "run" / name
        tensors = [read_tensors(place, kind)["a"].tolist() for kind in kinds]
        lines.append(repr((tensors, vars(read_checkpoint(place)))))
    return "\n".join(lines)


READERS: dict[str, Callable[[Path], str]] = {
    "scores file": read_scores_file,
    "split": lambda folder: repr(vars(read_split(folder / "split.json"))),
    "checkpoint": read_run,
}


def document_kills(folder: Path, name: str, at: str) -> Iterator[bool]:
    """Killed at each call: all of the old document or all of the new one."""
    for number in range(1, 1000):
        place = folder / f"kill {name} {at} {number}"
        place.mkdir()
        write_documents(place, 1)[name]()
        old = READERS[name](place)
        status = in_child(write_documents(place, 2)[name], number, at=at)
        found, is_sound = READERS[name](place), all_sound(place)
        write_documents(place, 2)[name]()
        new = READERS[name](place)
        lines = zip(*(text.split("\n") for text in (found, old, new)), strict=True)
        yield is_sound and all(one in either for one, *either in lines)
        if status == 0:
            return


def all_sound(folder: Path) -> bool:
    """Whether `verify` calls every document sound."""
    return {verify_file(path).kind for path in find_files(folder)} == {"sound"}


def document_flips(folder: Path, name: str, pattern: str) -> Iterator[bool]:
    """A flipped bit is found by `verify`, and a reader refuses it or gives the same values."""
    folder, chance, read = folder / f"flip {name} {pattern}"[:-1], random.Random(7), READERS[name]
    folder.mkdir()
    write_documents(folder, 1)[name]()
    right = read(folder)
    files, documents_there = sorted(folder.rglob(pattern)), len(list(find_files(folder)))
    for _ in flipping(files, chance):
        found = not all_sound(folder) and len(list(find_files(folder))) == documents_there
        try:
            yield found and read(folder) == right
        except FlowkitError:
            yield found


# --- a full disk ----------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of DISK_KB in memory; None where mounting is not allowed."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def on_full_disk(
    folder: Path,
    disk: Path | None,
    make: Callable[[Path, int], object],
    read: Callable[[Path], object],
) -> Iterator[bool]:
    """What was there stays or is replaced, and with room again the next run replaces it."""
    make(folder / "right", 2)
    new = read(folder / "right")
    for free_kb in FREE_KB:
        place = (disk or folder) / "place"
        make(place, 1)
        old = read(place)
        failed = in_child(lambda p=place, free=free_kb: fill_and_make(make, p, disk, free))
        found = read(place)
        (place.parent / "filler").unlink(missing_ok=True)
        make(place, 2)
        yield found == (old if failed else new) and read(place) == new
        shutil.rmtree(place)
    shutil.rmtree(folder / "right")


def fill_and_make(
    make: Callable[[Path, int], object], place: Path, disk: Path | None, free_kb: int
) -> None:
    """Make a 2 with `free_kb` left on the disk; without one no file may grow beyond these."""
    if disk is None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (free_kb << 10, resource.RLIM_INFINITY))
    else:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(max(0, free - (free_kb << 10))))
    try:
        make(place, 2)
    except OSError as error:
        raise RecordError(str(error)) from error


def full_disks(folder: Path) -> Iterator[tuple[str, list[bool]]]:
    """Records and documents, each with less and less room."""
    with small_disk(folder) as disk:
        what = "no file may grow" if disk is None else "a full disk"
        for name, storage in STORAGES.items():
            make = lambda out, value, storage=storage: write(out, value, storage)  # noqa: E731
            yield f"{what}: a {name} replaced", [*on_full_disk(folder, disk, make, values)]
        for name, read in READERS.items():

            def make(out: Path, value: int, name: str = name) -> None:
                out.mkdir(parents=True, exist_ok=True)
                write_documents(out, value)[name]()

            yield f"{what}: a {name} replaced", [*on_full_disk(folder, disk, make, read)]


# --- verify beside a run --------------------------------------------------------------------------


def beside_runs(folder: Path, runs: int, prefix: list[str]) -> Iterator[bool]:
    """`verify --delete-broken` beside `extract`, its heartbeat long ago: nothing is lost."""
    videos = folder / "videos"
    videos.mkdir(exist_ok=True)
    noise = np.random.default_rng(7).integers(0, 255, (20, 96, 128, 3), np.uint8)
    for number in range(3):
        write_video(videos / f"v{number}.mp4", noise, fps=25.0)
    for number in range(runs):
        out = folder / f"beside{len(prefix)}{number}"
        command = [sys.executable, "-m", "flowkit_cli", "extract", str(videos), "--out", str(out)]
        command += ["--method", "farneback", "-j", "1"]
        run = subprocess.Popen([*prefix, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        looked, deleted = 0, False
        while run.poll() is None:
            with suppress(FileNotFoundError):  # a record that is finished meanwhile
                for lock in out.glob(f"{INCOMPLETE}/*/lock"):
                    os.utime(lock, times=(time.time() - 2 * DEAD_S,) * 2)
            for verdict in find_unfinished(out):
                looked += 1
                deleted |= verdict.kind != "in progress" and not delete_broken(verdict)
            time.sleep(0.005)
        run.communicate()
        kinds = [verify_record(path).kind for path in find_records(out)]
        yield looked > 0 and run.returncode == 0 and not deleted and kinds == ["sound"] * 3


# --- hostile files --------------------------------------------------------------------------------


def hostile(folder: Path) -> Iterator[tuple[str, list[bool]]]:
    """Files of each kind, changed with some understanding of what they say."""
    for number, (name, kind) in enumerate(KINDS.items()):
        place = folder / f"hostile{number}"
        place.mkdir()
        yield f"hostile: {name}", tried_apart(kind, place)


def tried_apart(kind: Kind, place: Path) -> list[bool]:
    """The tries of a kind of file in a process of their own; a crash is a wrong one."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        printed = place / "printed"
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 2)
        with os.fdopen(writing, "w") as pipe:
            found = tried(kind, place, HOSTILE)
            if lines := printed.read_text(errors="replace").splitlines():  # a decoder's own words
                found[-1] = found[-1] or f"printed {lines[0]}"
            pipe.write("\n".join(found) + "\n")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = pipe.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for wrong in filter(None, [*found, f"ended with {status}" if status else ""]):
        print(f"wrong: {wrong}", file=sys.stderr)
    return [not wrong for wrong in found] + [False] * bool(status)


def rows(folder: Path) -> Iterator[tuple[str, list[bool]]]:
    """What is tried, and for each try whether it went right."""
    for at, where in (("names", "change of names"), ("syncs", "sync")):
        for name in STORAGES:
            for old in (False, True):
                what = f"killed at each {where}, a {name} {'replaced' if old else 'written'}"
                yield what, [*kills(folder, name, old, at)]
        for name in READERS:
            yield f"killed at each {where}, a {name} replaced", [*document_kills(folder, name, at)]
        yield f"killed at each {where} of `pack`", [*conversions(folder, True, at)]
        yield f"killed at each {where} of `unpack`", [*conversions(folder, False, at)]
    for format in ("jpg", "png", "lz4", "npy", "flo"):
        yield f"a flipped bit in a record, {format}", [*flips(folder, Storage(format=format))]
    yield "a flipped bit in a pack", [*flips(folder, STORAGES["pack"])]
    for name, pattern, what in (
        ("scores file", "*.npz", "a scores file"),
        ("split", "*.json", "a split"),
        ("checkpoint", "*.safetensors", "a checkpoint's tensors"),
        ("checkpoint", "*.json", "a checkpoint's JSON"),
    ):
        yield f"a flipped bit in {what}", [*document_flips(folder, name, pattern)]
    yield from hostile(folder)
    yield from full_disks(folder)
    yield "two runs of one request at once", [*races(folder, True)]
    yield "two runs of two requests at once", [*races(folder, False)]
    yield "`verify --delete-broken` beside `extract`", [*beside_runs(folder, RACES, [])]
    there = shutil.which("unshare") and not subprocess.run([*NAMESPACE, "true"]).returncode
    what = "the same, `extract` in another PID namespace"
    yield (
        what + ("" if there else ": skipped, not allowed here"),
        ([*beside_runs(folder, RACES // 4, NAMESPACE)] if there else []),
    )


# --- what syncing costs ---------------------------------------------------------------------------


def cost_of_syncing(folder: Path) -> str:
    """In a paragraph, the time of `extract` with its syncs over that without them."""
    noise = cv2.GaussianBlur(np.random.default_rng(7).normal(128, 90, (240, 320, 3)), (0, 0), 2)
    frames = [np.roll(noise, (t, 2 * t), (0, 1)).clip(0, 255).astype(np.uint8) for t in range(100)]
    write_video(folder / "moving.mp4", frames, fps=25.0)
    request = Request(make_method("dis"))
    real, none = (writing.sync, writing.sync_all), (lambda _: None, lambda _: None)
    cv2.setNumThreads(1)
    times: dict[Any, list[tuple[float, float]]] = {real: [], none: []}
    for number in range(SYNC_PAIRS + 1):  # the first one warms up
        for one in (real, none) if number % 2 else (none, real):
            writing.sync, writing.sync_all = one
            ownership.sync = documents.sync = one[0]
            os.sync()  # what earlier runs left to be written
            start = time.perf_counter(), time.process_time()
            source = Source(folder / "moving.mp4", f"v{number}{one is real}")
            extract_video(source, folder / "synced", request)
            times[one].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    writing.sync, writing.sync_all = real
    ownership.sync = documents.sync = real[0]
    ratios = np.array(times[real][1:]) / np.array(times[none][1:])
    words = [
        "{1:.3f} times the {what} (quartiles {0:.3f} and {2:.3f})".format(
            *np.percentile(one, (25, 50, 75)), what=what
        )
        for one, what in zip(ratios.T, ("wall clock", "processor time"), strict=True)
    ]
    return (
        f"Syncing: with it `extract_video` takes {' and '.join(words)} that it takes without it:\n"
        f"the median of {SYNC_PAIRS} pairs that alternate in one process, of a video of 100 frames "
        "of 320x240,\nDIS on one core to JPEG with frames; load average "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. What the kernel\nwrites by itself is "
        "not in the processor time.\n"
    )


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
        cost = cost_of_syncing(folder)
        print(cost)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.write:
        options.write.write_text(TITLE + "\n".join(lines) + "\n\n" + cost, encoding="utf-8")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
