"""What the cores do beside a GPU, in processor time: a start, a frame and a training clip, by step.

usage: python benchmarks/host.py [RECORDS] [--videos 10] [--rounds 5] [--json FILE]

Beside a plain script of cv2 and multiprocessing, and torch's DataLoader with a stack of 20 JPEGs.
Takes flow records of any format, or makes its own from videos that it makes (340x256, DIS); planes
of TV-L1 with bound 20 have 2 to 5 KB, and the table says what those at hand have. Steps take turns
in one process, and medians count, so that their ratios hold on a busy machine. Prints a Markdown
table, and what 16 cores would do if they did nothing else: that is reckoned, not measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clips import run_benchmark
from loader import BATCH, LENGTH, SIZE, STORES, PlainClips, make_source, open_clips, store_records
from torch.utils.data import default_collate

from flowkit._cv2 import cv2
from flowkit.data.datasets import Collate, start_worker
from flowkit.data.kept_memory import KeptMemory
from flowkit.records import formats
from flowkit.records.layout import Storage
from flowkit.records.reading import find_records, open_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.synthetic import write_videos
from flowkit.training.loading import PIECE
from flowkit.video.reading import open_video

CORES = 16
BOUND = 20.0  # px
FORWARD = Series("forward", 1)
PLAIN = """
import multiprocessing, sys
import cv2, numpy
def work(path):
    video, flow = cv2.VideoCapture(path), cv2.DISOpticalFlow_create()
    _, before = video.read()
    while (read := video.read())[0]:
        pair = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in (before, read[1])]
        for plane in cv2.split(flow.calc(*pair, None)):
            cv2.imencode(".jpg", numpy.clip(plane * 6.4 + 128, 0, 255).astype(numpy.uint8))
        before = read[1]
with multiprocessing.Pool(1) as pool:
    pool.map(work, sys.argv[1:])
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


def medians(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each step says, after one that does not count; the steps take turns."""
    told = [{name: step() for name, step in steps.items()} for _ in range(rounds + 1)][1:]
    return {name: round(statistics.median(one[name] for one in told), 3) for name in steps}


def starts(folder: Path, video: Path, rounds: int) -> dict[str, float]:
    """Whole commands on one small video, s: the same flow, DIS, to planes."""
    script, out = folder / "plain.py", folder / "started"
    script.write_text(PLAIN)
    own = [sys.executable, "-m", "flowkit_cli.main", "extract", str(video), "--out", str(out)]
    own += ["--method", "dis", "--no-rgb", "--bound", "20", "-j", "1", "--overwrite"]
    return medians(
        {
            "the plain script": lambda: command_s([sys.executable, str(script), str(video)]),
            "flowkit extract": lambda: command_s(own),
        },
        rounds,
    )


def write_ms(root: Path, frames: list[bytes], planes: list[list[bytes]], *, pack: bool) -> float:
    """Writing and committing a record whose files are encoded already, ms per frame."""
    storage = Storage(bound=BOUND, pack=pack)

    def write() -> None:
        with RecordWriter(root, f"{pack}", storage, (FORWARD,)) as writer:
            writer.size = (256, 340)
            for index, frame in enumerate(frames):
                writer.frame_count += 1
                writer.checks[writer.images].add(frame)
                writer._write([(writer.images % (index + 1), frame)], index, 0)
                if index:
                    writer.add_files(FORWARD, planes[index % len(planes)], [(-BOUND, BOUND)] * 2)
            writer.commit({"fps": 25.0, "request": storage.identity()}, overwrite=True)

    return process_ms(write) / len(frames)


def frame_steps(folder: Path, video: Path, records: Path, rounds: int) -> dict[str, float]:
    """The steps of a frame in a worker of ``extract --gpu``, ms; the flow itself is the GPU's."""
    images = list(open_video(video).frames())
    width, height = map(int, SIZE.split("x"))
    scaled = [cv2.resize(image, (width, height)) for image in images]
    record = open_record(next(find_records(records)))
    series = record.series[0]
    wanted = list(range(min(series.count, 50)))
    files = record.read_fields(series, wanted)
    pairs = [
        formats.decode_planes(data, record.format, record.size, where=where)
        for data, where in files
    ]
    planes = [formats.encode_planes(pair, "jpg") for pair in pairs]
    frames = [formats.encode_image(image, "jpg", 95) for image in scaled]

    def per(items: list[Any], call: Callable[[Any], Any]) -> Callable[[], float]:
        return lambda: process_ms(lambda: [call(item) for item in items]) / len(items)

    steps = {
        "decode": lambda: process_ms(lambda: list(open_video(video).frames())) / len(images),
        "resize": per(images, lambda image: cv2.resize(image, (width, height))),
        "rgb JPEG": per(scaled, lambda image: formats.encode_image(image, "jpg", 95)),
        "two plane JPEGs": per(pairs, lambda pair: formats.encode_planes(pair, "jpg")),
        "write to a folder": lambda: write_ms(folder / "written", frames, planes, pack=False),
        "write to a pack": lambda: write_ms(folder / "written", frames, planes, pack=True),
    }
    return medians(steps, rounds)


def clip_steps(root: Path, rounds: int) -> dict[str, float]:
    """A training clip in a loader's worker, ms: all of it for each way of storing, and its read."""
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

        def piece(clips: Any = clips, collate: Collate = collate) -> float:
            first = next(turn)
            made = [clips[draw] for draw in range(first, first + PIECE)]
            return process_ms(lambda: collate(made)) / PIECE

        def draw(clips: Any = clips) -> float:
            first = next(turn)
            return process_ms(lambda: [clips[n] for n in range(first, first + PIECE)]) / PIECE

        def read(clips: Any = clips) -> float:
            drawn = [clips[n]["temporal"] for n in range(PIECE)]
            made = [one for some in drawn for one in some]
            files = lambda record, clip: record.read_fields(  # noqa: E731
                record.series[0], clip.fields(record.field_count())
            )
            return process_ms(lambda: [files(one.record, one.clip) for one in made]) / PIECE

        steps |= {f"{name}: draw": draw, f"{name}: read": read, f"{name}: all but draw": piece}
    return medians(steps, rounds)


def show(report: dict[str, Any]) -> None:
    """The table, and the reckoning."""
    print("| | processor time |\n|---|---|")
    for title, unit in (("start", "s"), ("frame", "ms"), ("clip", "ms")):
        for name, value in report[title].items():
            print(f"| {title}: {name} | {value} {unit} |")
    frame, clip = report["frame"], report["clip"]
    common = sum(value for name, value in frame.items() if not name.startswith("write"))
    print(f"\n{report['bytes_a_plane']:,} bytes per plane. Reckoned, {CORES} such cores alone:")
    for kind in ("folder", "pack"):
        rate = 1000 * CORES / (common + frame[f"write to a {kind}"])
        print(f"* {rate:,.0f} frames/s to {kind}s")
    for name in STORES:
        one = clip[f"{name}: draw"] + clip[f"{name}: all but draw"]
        print(f"* {1000 * CORES / one:,.0f} clips/s of {2 * LENGTH} planes from a {name}")


def main() -> None:
    """Make the records, run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("records", nargs="?", type=Path, help="a folder of flow records")
    parser.add_argument("--videos", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start_worker(0)
    with tempfile.TemporaryDirectory(prefix="flowkit-") as name:
        root = Path(name)
        [video, *_] = [one.path for one in write_videos(root / "videos", videos_per_class=1)]
        stored = store_records(
            options.records or make_source(root / "made"), root, options.videos, BOUND
        )
        report = {
            "bytes_a_plane": stored["bytes_a_field"]["jpg pack"] // 2,
            "start": starts(root, video, options.rounds),
            "frame": frame_steps(root, video, root / "lz4 pack", options.rounds),
            "clip": clip_steps(root, options.rounds),
        }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
