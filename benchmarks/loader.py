"""Training clips per second from flow records, beside the plain reader of 20 JPEGs per clip.

usage: python benchmarks/loader.py [RECORDS] [--videos 60] [--bound 20 | --own-range]
                                   [--batch 256] [--json FILE]

Takes flow records of any format, or makes its own from videos that it makes (340x256, DIS), and
writes their fields into a temporary folder as JPEG folders, JPEG packs and LZ4 packs. Reads random
clips of L = 10 with a 224 crop. Each reader has a process of its own and they take turns, so that a
ratio compares what ran side by side; medians count.

"reading": clip after clip in one process, into memory that is used again; by the process's own
clock, which other work on the machine hardly moves. "loader": batches of 256 through the workers of
a DataLoader, once all of them run, by the wall: bytes of whole planes from flowkit, floats of the
crop from the plain reader. "MB": what a process that makes batches of 256 holds between them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from clips import run_benchmark
from torch.utils.data import DataLoader, Dataset, default_collate

from flowkit._cv2 import cv2
from flowkit.data.datasets import TrainingClips, collate, start_worker
from flowkit.data.plane_batches import PlaneSample, read_planes, stack_planes
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.extraction.extract import extract_video
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.records.layout import Storage
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.synthetic import write_videos
from flowkit.video.sources import Source

LENGTH, CROP, BATCH, SIZE = 10, 224, 256, "340x256"
STORES = {  # name -> how it is stored, the bar and the aim of its speed to the plain reader's
    "jpg folder": (Storage(rgb=False), 1.0, 1.15),
    "jpg pack": (Storage(rgb=False, pack=True), 1.0, 1.15),
    "lz4 pack": (Storage(rgb=False, format="lz4", pack=True), 3.5, 4.7),
}
TWO_TO_ONE = 1.8  # the bar of two workers
ALONE = 128  # clips of a turn of "reading"
EPOCH = 10  # batches over which memory is watched
GROWTH_MB = 32  # by which the second half of them may exceed the first: a hundredth of a batch's


class PlainClips(Dataset[tuple[torch.Tensor, int]]):
    """What everyone writes: 20 images by cv2.imread, cropped, stacked, as floats."""

    def __init__(self, root: Path) -> None:
        self.folders = sorted(path.parent for path in root.rglob("record.json"))
        self.counts = [len(list(folder.glob("flow_x_*"))) for folder in self.folders]

    def __getitem__(self, draw: int) -> tuple[torch.Tensor, int]:
        """Sample number `draw`."""
        random = np.random.default_rng(draw)
        place = random.integers(len(self.folders))
        start = random.integers(self.counts[place] - LENGTH + 1) + 1
        planes = []
        for number in range(start, start + LENGTH):
            for component in "xy":
                path = f"{self.folders[place]}/flow_{component}_{number:05d}.jpg"
                planes.append(cv2.imread(path, cv2.IMREAD_GRAYSCALE))
        height, width = planes[0].shape
        top, left = (random.integers(max(side - CROP, 0) + 1) for side in (height, width))
        crops = [plane[top : top + CROP, left : left + CROP] for plane in planes]
        return torch.from_numpy(np.stack(crops).astype(np.float32)), 0


def make_source(folder: Path) -> Path:
    """Records of made videos at 340x256, their fields as floats."""
    request = Request(make_method("dis"), resize=SIZE, storage=Storage("npy", rgb=False))
    for video in write_videos(folder / "videos", videos_per_class=2):
        extract_video(Source(video.path, f"{video.class_name}/{video.name}"), folder, request)
    return folder


def store_records(source: Path, root: Path, videos: int, bound: float | None) -> dict[str, Any]:
    """Write forward fields of records below `source` in every store; what they are."""
    folder = RecordFolder(source)
    records = {id: folder.open(place) for id, place in folder.find().items()}
    long = [id for id, record in records.items() if record.field_count() >= LENGTH]
    chosen = long[:: max(len(long) // videos, 1)][:videos]
    series, fields = Series("forward", 1), 0
    for id in chosen:
        record = records[id]
        fields += record.field_count()
        for name, (storage, *_) in STORES.items():
            asked = replace(storage, bound=bound)
            with RecordWriter(root / name, id, asked, (series,)) as writer:
                writer.size, writer.frame_count = record.size, record.frame_count
                for index in range(record.field_count()):
                    writer.add_field(series, record.fields(index, 1)[0])
                writer.commit({"request": asked.identity(), "fps": record.fps})
    return {
        "records": len(chosen),
        "fields": fields,
        "sizes": sorted({records[id].size for id in chosen}),
        "bound": bound,
        "bytes_a_field": {
            name: sum(file.stat().st_size for file in (root / name).rglob("*.zip")) // fields
            for name in ("jpg pack", "lz4 pack")
        },
    }


def open_clips(root: Path, name: str) -> tuple[Dataset[Any], Callable[[list], Any]]:
    """The data set of a reader and its collation."""
    if name == "plain":
        return PlainClips(root / "jpg folder"), default_collate
    inputs = {"temporal": StackForm(LENGTH)}
    return TrainingClips(*open_split(root, name), inputs=inputs, as_planes=True), collate


def open_split(root: Path, name: str) -> tuple[Split, RecordFolder]:
    """All records of a store as videos to train on, and their folder."""
    folder = RecordFolder(root / name)
    videos = tuple(Video(id, id.split("/")[0], id) for id in folder.find())
    classes = tuple(sorted({video.class_name for video in videos}))
    return Split("benchmark", classes, videos, (), ()), folder


def serve(pipe: Connection, root: Path, name: str, batch: int) -> None:
    """One reader's process: answers each turn that it is asked for, (measure, first draw, ...)."""
    start_worker(0)
    clips, collation = open_clips(root, name)
    spare: list[np.ndarray] = []
    while (asked := pipe.recv()) is not None:
        measure, first, *rest = asked
        if measure == "reading":
            start = time.process_time()
            read_alone(clips, range(first, first + ALONE), spare)
            pipe.send(ALONE / (time.process_time() - start))
        elif measure == "loader":
            pipe.send(loader_rate(clips, collation, first, batch, *rest))
        else:
            collation([clips[draw] for draw in range(first, first + batch)])
            pipe.send(resident_mb())


def read_alone(clips: Dataset[Any], draws: range, spare: list[np.ndarray]) -> None:
    """Read clip after clip, flowkit's into the same memory; malloc does as much for the plain."""
    for draw in draws:
        sample = clips[draw]
        if isinstance(sample, dict):
            [address] = cast(PlaneSample, sample["temporal"]).clips
            if not spare:
                spare += [np.empty((1, LENGTH, 2, *address.record.size), np.uint8)]
                spare += [np.empty((1, LENGTH, 2, 2), np.float32)]
            read_planes(address, *spare)


def loader_rate(
    clips: Dataset[Any], collation: Callable, first: int, batch: int, workers: int, batches: int
) -> float:
    """Clips/s of `batches` batches that loader workers make after their first ones."""
    loader = DataLoader(
        clips,
        batch,
        sampler=range(first, first + (batches + workers) * batch),
        num_workers=workers,
        collate_fn=collation,
        worker_init_fn=start_worker,
    )
    start = 0.0
    for number, made in enumerate(loader):
        del made
        if number == workers - 1:
            start = time.perf_counter()
    return batches * batch / (time.perf_counter() - start)


def resident_mb() -> float:
    """VmRSS of this process."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmRSS:")[1].split()[0]) / 1024


def device_part(root: Path, device: str, batch: int) -> dict[str, float]:
    """Milliseconds a clip that a device takes to make flow stacks of planes, by mode."""
    clips, _ = open_clips(root, "lz4 pack")
    batch = batch if device == "cuda" else min(batch, 32)
    planes = collate([clips[draw] for draw in range(batch)])["temporal"]
    times = {}
    for mode in ("flow", "trajectory"):
        form = StackForm(LENGTH, mode)
        make = partial(stack_planes, planes, form=form, size=(CROP, CROP), device=device)
        times[mode] = 1000 / batch * median_seconds(make, device)
    return times


def median_seconds(call: Callable[[], Any], device: str) -> float:
    """The median time of five calls, after one."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class Readers:
    """A process for each reader of the same records."""

    def __init__(self, root: Path, batch: int) -> None:
        self.batch = batch
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[str, Connection] = {}
        for name in ("plain", *STORES):
            self.pipes[name], other = context.Pipe()
            context.Process(target=serve, args=(other, root, name, batch)).start()

    def ask(self, *asked: Any) -> dict[str, float]:
        """Let every reader do a turn, one after the other; what each answers."""
        answers = {}
        for name, pipe in self.pipes.items():
            pipe.send(asked)
            answers[name] = pipe.recv()
        return answers

    def rounds(self, count: int, clips: int, measure: str, *rest: Any) -> dict[str, list[float]]:
        """The answers of every reader in `count` rounds of turns."""
        answers = [self.ask(measure, turn * clips, *rest) for turn in range(count)]
        found = {name: [answer[name] for answer in answers] for name in self.pipes}
        told = ", ".join(f"{name} {statistics.median(one):.0f}" for name, one in found.items())
        print(f"{' '.join(map(str, (measure, *rest)))}: {told}", file=sys.stderr, flush=True)
        return found

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes.values():
            pipe.send(None)


def compare(readers: Readers, rounds: int, batches: int) -> dict[str, Any]:
    """All readers in turn: clips/s of every measure, ratios, memory."""
    cores = os.cpu_count() or 1
    readers.ask("reading", 0)  # warms up
    rates = {"reading": readers.rounds(5 * rounds, ALONE, "reading")}
    for workers in dict.fromkeys((1, 2, cores)):
        clips, name = (
            (batches + workers) * readers.batch,
            f"loader, {workers} worker" + "s" * (workers > 1),
        )
        rates[name] = readers.rounds(rounds, clips, "loader", workers, batches)
    resident = readers.rounds(EPOCH, readers.batch, "memory")

    def ratio(some: list[float], other: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(some, other, strict=True)), 2)

    return {
        "cores": cores,
        "clips_per_s": {
            m: {n: round(statistics.median(r)) for n, r in of.items()} for m, of in rates.items()
        },
        "to_plain": {
            m: {n: ratio(r, of["plain"]) for n, r in of.items()} for m, of in rates.items()
        },
        "two_workers_to_one": {
            n: ratio(rates["loader, 2 workers"][n], r) for n, r in rates["loader, 1 worker"].items()
        },
        "resident_mb": {
            n: [round(max(r[: EPOCH // 2])), round(max(r[EPOCH // 2 :]))]
            for n, r in resident.items()
        },
    }


def judge(report: dict[str, Any]) -> list[str]:
    """What is missed, a line each."""
    missed = []
    for name, (_, bar, aim) in STORES.items():
        found = report["to_plain"]["reading"][name]
        if found < aim:
            what = "bar" if found < bar else "aim, not the bar"
            missed.append(f"{name}: {found} times the plain reader (bar {bar}, aim {aim}): {what}")
        if (found := report["two_workers_to_one"][name]) < TWO_TO_ONE:
            missed.append(f"{name}: two workers {found} times one (bar {TWO_TO_ONE})")
        early, late = report["resident_mb"][name]
        if late > early + GROWTH_MB:
            missed.append(f"{name}: memory grows from {early} to {late} MB over {EPOCH} batches")
    return missed


def show(report: dict[str, Any]) -> None:
    """The table."""

    def line(title: str, cells: list[str]) -> None:
        print(f"{title:22}" + "".join(f"{cell:>16}" for cell in cells))

    rates, ratios = report["clips_per_s"], report["to_plain"]
    line("clips/s (to plain)", list(rates["reading"]))
    for measure, of in rates.items():
        line(measure, [f"{rate} ({ratios[measure][name]:.2f})" for name, rate in of.items()])
    line("two workers to one", [f"{r:.2f}" for r in report["two_workers_to_one"].values()])
    line("MB, half 1 / half 2", [f"{a} / {b}" for a, b in report["resident_mb"].values()])
    sizes = " ".join(f"{width}x{height}" for height, width in report["sizes"])
    stored = "own ranges" if report["bound"] is None else f"bound {report['bound']:g}"
    stored += "".join(f", {b} bytes per field in {n}s" for n, b in report["bytes_a_field"].items())
    print(f"{report['records']} records, {report['fields']} fields, {sizes}, {stored}")
    for device, of in report["device_ms_a_clip"].items():
        print(f"stacks of planes on {device}: " + ", ".join(f"{m} {v} ms" for m, v in of.items()))
    print("missed: " + ("; ".join(report["missed"]) or "nothing"))


def main() -> None:
    """Make the records, run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("records", nargs="?", type=Path, help="a folder of flow records")
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--bound", type=float, default=20.0, help="px, of the planes")
    parser.add_argument("--own-range", action="store_true", help="a range a plane, no bound")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batches", type=int, default=8, help="of a turn of the loader workers")
    parser.add_argument("--batch", type=int, default=BATCH, help="clips of a batch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = options.records or make_source(root / "made")
        bound = None if options.own_range else options.bound
        report: dict[str, Any] = {"made": options.records is None}
        report |= store_records(source, root, options.videos, bound)
        with closing(Readers(root, options.batch)) as readers:
            report |= compare(readers, options.rounds, options.batches)
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        report["device_ms_a_clip"] = {
            device: {
                mode: round(ms, 2) for mode, ms in device_part(root, device, options.batch).items()
            }
            for device in devices
        }
    report["missed"] = judge(report)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
