"""What the cores do beside a GPU, in processor time: a start, a frame and a training clip, by step.

usage: python benchmarks/host.py [RECORDS] [--clip FILE] [--videos 10] [--rounds 5] [--json FILE]
       python benchmarks/host.py --page docs/gpu.md

Beside a plain script of cv2 and multiprocessing, and torch's DataLoader with a stack of 20 JPEGs.
Takes flow records of any format, or makes its own from videos that it makes (340x256, DIS); planes
of TV-L1 with bound 20 have 2 to 5 KB, and the table says what those at hand have. No flow is
computed: the plain script and the flow process have planes at hand. Steps take turns, and medians
count, so that their ratios hold on a busy machine. Prints a Markdown table, and what cores could do
that do nothing else: that is reckoned, not measured. With --page both are written into the page,
of the reports in results/: of a quiet machine, and of a busy one, whose virtual cores share
physical ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import run_benchmark, write_json
from loader import (
    BATCH,
    LENGTH,
    SIZE,
    STORES,
    PlainClips,
    make_source,
    open_clips,
    open_split,
    store_records,
)
from torch.utils.data import default_collate

from flowkit._cv2 import cv2
from flowkit.data.augment import Augmentation
from flowkit.data.datasets import Collate, start_worker
from flowkit.data.kept_memory import KeptMemory
from flowkit.data.stacks import StackForm
from flowkit.records import formats
from flowkit.records.layout import Storage
from flowkit.records.reading import find_records, open_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.synthetic import write_videos
from flowkit.training.loading import PIECE, PassLoader
from flowkit.training.sampling import MicroBatches, StepClips, Task
from flowkit.video.reading import open_video

PROJECT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
REPORTS = ("host-cpu.json", "host-cpu-busy.json")
FROM, TO = "<!-- From here on written by benchmarks/host.py. -->\n", "<!-- To here. -->\n"
CORES = 16
FRAMES_PER_S, CLIPS_PER_S = 3000, 3600  # what is asked of that machine: to packs, of JPEG planes
BOUND = 20.0  # px
FORWARD = Series("forward", 1)
COPIES = 4  # of the clip, for a whole command
PASSES, WARM_UP = 6, 4  # of 256 clips, of a loader; before they count
WORKER = "a loader's worker, all of it"
RECKONED = """\
Planes have {bytes:,} bytes. What {cores} such cores and one GPU can do is reckoned from the table,
not measured, for cores that do nothing else:
"""
PLAIN = """
import multiprocessing, pathlib, sys
import cv2, numpy
def work(path):
    planes, video, number = numpy.load(sys.argv[1]), cv2.VideoCapture(str(path)), 0
    out = pathlib.Path(sys.argv[2], path.stem)
    out.mkdir(parents=True)
    while (read := video.read())[0]:
        number += 1
        frame = cv2.resize(read[1], planes.shape[:0:-1])
        cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        cv2.imwrite(f"{out}/img_{number:05d}.jpg", frame)
        for name, plane in zip("xy", planes):
            quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
            cv2.imwrite(f"{out}/flow_{name}_{number:05d}.jpg", plane, quality)
with multiprocessing.Pool(1) as pool:
    pool.map(work, sorted(pathlib.Path(sys.argv[3]).iterdir()))
"""


def command_s(command: list[str]) -> float:
    """The processor time of a command and its processes, s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def process_ms(call: Callable[[], Any]) -> float:
    """The processor time of a call, ms."""
    begin = time.process_time()
    call()
    return 1000 * (time.process_time() - begin)


def medians(steps: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, float]:
    """The median of what each step says, after one that does not count; the steps take turns."""
    told = [{name: step() for name, step in steps.items()} for _ in range(rounds + 1)][1:]
    return {name: round(statistics.median(one[name] for one in told), 3) for name in steps}


def whole_commands(folder: Path, planes: np.ndarray, clip: Path, rounds: int) -> dict[str, Any]:
    """Commands on one small video, s, and what a frame of further ones adds to them, ms."""
    folder.mkdir()
    script, stored = folder / "plain.py", folder / "planes.npy"
    script.write_text(PLAIN)
    np.save(stored, planes)
    small, large = folder / "small", folder / "large"
    [video, *_] = [one.path for one in write_videos(folder / "made", videos_per_class=1)]
    for videos, source, count in ((small, video, 1), (large, clip, COPIES)):
        videos.mkdir()
        for number in range(count):
            shutil.copy(source, videos / f"{number}{source.suffix}")
    height, width = planes.shape[1:]
    pretended = [sys.executable, str(PROJECT / "tests" / "pretended_gpu.py"), "InstantFarneback"]
    options = ["--gpu", "--method", "farneback", "--bound", str(BOUND), "-j", "1"]
    options += ["--resize", f"{width}x{height}", "--out"]
    numbers = itertools.count()

    def out() -> str:  # not the same again: ext4 steps over inodes that were freed lately
        return str(folder / f"out{next(numbers)}")

    def extract(of: Path, *more: str) -> list[str]:
        return [*pretended, "extract", str(of), *options, out(), *more]

    commands = {
        "the plain script": lambda of: [sys.executable, str(script), str(stored), out(), str(of)],
        "extract --gpu": extract,
        "extract --gpu --pack": lambda of: extract(of, "--pack"),
    }
    steps = {
        (name, of.name): lambda command=command, of=of: command_s(command(of))
        for name, command in commands.items()
        for of in (small, large)
    }
    told = medians(steps, rounds)
    more = COPIES * count_frames(clip) - count_frames(video)
    return {
        "start": {name: told[name, "small"] for name in commands},
        "whole frame": {
            name: round(1000 * (told[name, "large"] - told[name, "small"]) / more, 3)
            for name in commands
        },
    }


def count_frames(video: Path) -> int:
    """The frames of a video."""
    with open_video(video) as opened:
        return sum(1 for _ in opened.frames())


def write_ms(root: Path, frames: list[bytes], planes: list[list[bytes]], *, pack: bool) -> float:
    """Writing and committing a record whose files are encoded already, ms per frame."""
    storage = Storage(bound=BOUND, pack=pack)
    id = f"record{len(list(root.glob('*')))}"  # not the same again, as above

    def write() -> None:
        with RecordWriter(root, id, storage, (FORWARD,)) as writer:
            for index, frame in enumerate(frames):
                writer.add_image(frame, (256, 340))
                if index:
                    writer.add_files(FORWARD, planes[index % len(planes)], [(-BOUND, BOUND)] * 2)
            writer.commit({"fps": 25.0, "request": storage.identity()})

    return process_ms(write) / len(frames)


def read_planes_of(records: Path) -> list[list[np.ndarray]]:
    """The planes of the first fields of the first record below a folder, x and y of each."""
    record = open_record(next(find_records(records)))
    series = record.series[0]
    files = record.read_fields(series, list(range(min(series.count, 50))))
    return [
        formats.decode_planes(data, record.format, record.size, where=where)
        for data, where in files
    ]


def frame_steps(
    folder: Path, clip: Path, pairs: list[list[np.ndarray]], rounds: int
) -> dict[str, float]:
    """The steps of a frame in a worker of ``extract --gpu``, ms; the flow itself is the GPU's."""
    images = list(open_video(clip).frames())
    width, height = map(int, SIZE.split("x"))
    scaled = [cv2.resize(image, (width, height)) for image in images]
    planes = [formats.encode_planes(pair, "jpg") for pair in pairs]
    frames = [formats.encode_image(image, "jpg", 95) for image in scaled]

    def per(items: list[Any], call: Callable[[Any], Any]) -> Callable[[], float]:
        return lambda: process_ms(lambda: [call(item) for item in items]) / len(items)

    steps = {
        "decode": lambda: process_ms(lambda: list(open_video(clip).frames())) / len(images),
        "resize": per(images, lambda image: cv2.resize(image, (width, height))),
        "rgb JPEG": per(scaled, lambda image: formats.encode_image(image, "jpg", 95)),
        "two plane JPEGs": per(pairs, lambda pair: formats.encode_planes(pair, "jpg")),
        "write to a folder": lambda: write_ms(folder / "written", frames, planes, pack=False),
        "write to a pack": lambda: write_ms(folder / "written", frames, planes, pack=True),
    }
    return medians(steps, rounds)


def clip_steps(root: Path, rounds: int) -> dict[str, float]:
    """A training clip in a loader's worker, by step, for each way of storing, ms."""
    steps: dict[str, Callable[[], float]] = {}
    plain, turn = PlainClips(root / "jpg folder"), iter(range(0, BATCH * 1000, PIECE))

    def plain_piece() -> float:
        first = next(turn)
        made = lambda: default_collate([plain[draw] for draw in range(first, first + PIECE)])  # noqa: E731
        return process_ms(made) / PIECE

    steps["torch's DataLoader, a stack of 20 JPEGs"] = plain_piece
    for name in STORES:
        clips, _ = open_clips(root, name)
        collate = Collate(KeptMemory(1, 2, PIECE * (2 * LENGTH * 256 * 256 + 64)))

        def draw(clips: Any = clips) -> float:
            first = next(turn)
            return process_ms(lambda: [clips[n] for n in range(first, first + PIECE)]) / PIECE

        def read(clips: Any = clips) -> float:
            some = drawn(clips, next(turn))
            return process_ms(lambda: [files_of(*one) for one in some]) / PIECE

        def decode(clips: Any = clips) -> float:
            read = [(one[0], files_of(*one)) for one in drawn(clips, next(turn))]
            return process_ms(lambda: [decode_alone(*one) for one in read]) / PIECE

        def piece(clips: Any = clips, collate: Collate = collate) -> float:
            first = next(turn)
            made = [clips[draw] for draw in range(first, first + PIECE)]
            return process_ms(lambda: collate(made)) / PIECE

        steps |= {f"{name}: draw": draw, f"{name}: read": read, f"{name}: decode alone": decode}
        steps[f"{name}: read, decode, mean, crop"] = piece
    return medians(steps, rounds)


def drawn(clips: Any, first: int) -> list[tuple[Any, Any]]:
    """The record and the clip of each of a piece's draws."""
    samples = [clips[number]["temporal"] for number in range(first, first + PIECE)]
    return [(one.record, one.clip) for sample in samples for one in sample.clips]


def files_of(record: Any, clip: Any) -> list[Any]:
    """The bytes of the files of a clip's fields."""
    return record.read_fields(record.series[0], clip.fields(record.field_count()))


def decode_alone(record: Any, files: list[Any]) -> None:
    """Decode a clip's files as the libraries do it, and keep nothing."""
    from lz4.frame import decompress

    for data, _ in files:
        for one in data:
            if record.format == "lz4":
                decompress(one)
            else:
                cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_GRAYSCALE)


def loader_ms(root: Path, name: str) -> dict[str, float]:
    """A clip of a training's own loader with two workers, ms: theirs and its consumer's part.

    Passes that do not count come first, by which all of the workers' memory has been touched.
    """
    task = Task("main", *open_split(root, name))
    inputs = {"temporal": StackForm(LENGTH)}
    steps = StepClips([task], inputs, augmentation=Augmentation(), seed=0)
    steps.send_planes()
    passes = MicroBatches(0, WARM_UP + 2 * PASSES, BATCH, BATCH, 0, 1)
    with (
        closing(PassLoader(steps, BATCH, torch.device("cpu"), 2)) as loader,
        loader.reading(passes) as batches,
    ):
        for _ in range(WARM_UP):
            next(batches)
        before = children_s()
        took = process_ms(lambda: [next(batches) is None for _ in range(PASSES)])
        workers = children_s() - before
    count = PASSES * BATCH
    return {
        f"{name}: {WORKER}": round(1000 * workers / count, 3),
        f"{name}: the one process that trains": round(took / count, 3),
    }


def children_s() -> float:
    """The processor time of the children that live, s."""
    fields = [
        Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        for child in multiprocessing.active_children()
    ]
    ticks = sum(int(one[11]) + int(one[12]) for one in fields)  # utime and stime
    return ticks / os.sysconf("SC_CLK_TCK")


def table(*reports: dict[str, Any]) -> str:
    """The table, a column for each report, and what is reckoned from it, as Markdown."""
    loads = [" to ".join(map(str, one["load_average"])) for one in reports]
    lines = ["| | " + " | ".join(f"processor time, load {load}" for load in loads) + " |"]
    lines.append("|---" * (len(reports) + 1) + "|")
    for title in ("start", "whole frame", "frame", "clip"):
        unit = "s" if title == "start" else "ms"
        for name in reports[0][title]:
            cells = " | ".join(f"{one[title][name]} {unit}" for one in reports)
            lines.append(f"| {title}: {name} | {cells} |")
    lines += ["", RECKONED.format(bytes=reports[0]["bytes_a_plane"], cores=CORES)]
    rates = [
        ("frames/s to folders", "whole frame", "extract --gpu", None),
        ("frames/s to packs", "whole frame", "extract --gpu --pack", FRAMES_PER_S),
    ]
    for store, asked in zip(STORES, (CLIPS_PER_S, CLIPS_PER_S, None), strict=True):
        what = f"clips/s of {2 * LENGTH} planes from {store}s"
        rates.append((what, "clip", f"{store}: {WORKER}", asked))
    for what, title, name, asked in rates:
        times = [one[title][name] for one in reports]
        line = f"* {' to '.join(f'{1000 * CORES / ms:,.0f}' for ms in times)} {what}"
        if asked:
            cores = " to ".join(f"{asked * ms / 1000:.1f}" for ms in times)
            line += f"; {asked:,} take {cores} cores"
        lines.append(line)
    return "\n".join([*lines, ""])


def write_page(page: Path) -> None:
    """Write the table of the stored reports between the marks in `page`."""
    stored = [RESULTS / name for name in REPORTS if (RESULTS / name).exists()]
    told = table(*(json.loads(report.read_text()) for report in stored))
    before, _, rest = page.read_text(encoding="utf-8").partition(FROM)
    page.write_text(f"{before}{FROM}\n{told}\n{TO}{rest.partition(TO)[2]}", encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, by the titles of the table."""
    start_worker(0)
    load = [round(os.getloadavg()[0], 1)]
    with tempfile.TemporaryDirectory(prefix="flowkit-") as name:
        root = Path(name)
        records = options.records or make_source(root / "made")
        clip = options.clip or next(iter(write_videos(root / "clip", videos_per_class=1))).path
        stored = store_records(records, root, options.videos, BOUND)
        pairs = read_planes_of(root / "lz4 pack")
        report = {"bytes_a_plane": stored["bytes_a_field"]["jpg pack"] // 2}
        report |= whole_commands(root / "commands", np.stack(pairs[0]), clip, options.rounds)
        report["frame"] = frame_steps(root, clip, pairs, options.rounds)
        report["clip"] = clip_steps(root, options.rounds)
        for store in STORES:
            report["clip"] |= loader_ms(root, store)
    return report | {"load_average": [*load, round(os.getloadavg()[0], 1)]}


def main() -> None:
    """Make the records, run, print the table, write the JSON; or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("records", nargs="?", type=Path, help="a folder of flow records")
    parser.add_argument("--clip", type=Path, help="a video; else a small one is made")
    parser.add_argument("--videos", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write the table of the stored reports into it")
    options = parser.parse_args()
    if options.page:
        write_page(options.page)
        return
    report = measure(options)
    print(table(report))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    run_benchmark(main)
