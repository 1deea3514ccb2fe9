"""The engine of a Dask cluster, tried: workers killed, poison videos, its cost, and its memory.

usage: python benchmarks/cluster.py [kills|poison|cost|speed|memory ...] [--seeds 20] [--rounds 5]
           [--videos 8] [--frames 20] [--short 2000] [--json FILE]

On a cluster of two worker processes of this machine, on videos that it makes. `kills`: a worker is
killed with SIGKILL at a random moment, with each seed, before the last four videos; the records are
compared with the pool's, byte by byte. `poison`: videos of which one aborts, one loops, one takes
4 GB and one kills its worker, among others. `cost`: processor time by two workers; the engine's own
is what client, scheduler and workers took, without the children that do the work. Some of it goes
by the clock, so that a busy machine makes it seem more. `speed`: one worker and two in turn, wall
clock. `memory`: many short videos, and the memory of client and workers on the way. The load is
printed beside. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from clips import run_benchmark

from flowkit._cv2 import cv2
from flowkit.extraction.extract import extract
from flowkit.extraction.outcomes import Outcome
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method, prepare_method
from flowkit.flow.pairs import Pair
from flowkit.records.layout import Storage
from flowkit.video.sources import Source, find_videos
from flowkit.video.writing import write_video
from flowkit.workers.children import PAGE_BYTES
from flowkit.workers.cluster import Cluster, connected

WORKERS = 2
REST_S, ITEMS = 20.0, 100  # of `cost`
UCF101_S = 15.0  # processor time of TV-L1 for a video of UCF-101, of 186 frames: flowkit plan


def main() -> None:
    """The parts that are asked for, all without any, into one object."""
    arguments = _arguments()
    parts = {"kills": kills, "poison": poison, "cost": cost, "speed": speed, "memory": memory}
    report: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.parts or parts:
            work = Path(folder) / name
            work.mkdir()
            report[name] = parts[name](work, arguments)
            report[name]["load"] = round(os.getloadavg()[0], 1)
            print(f"{name}: {json.dumps(report[name])}", file=sys.stderr)
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="ascii")
    print(json.dumps(report, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=8, help="of `cost` and `speed`")
    parser.add_argument("--frames", type=int, default=20, help="of each of them")
    parser.add_argument("--short", type=int, default=2000, help="videos of `memory`")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def kills(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """With each seed, one of two workers is killed at a moment by chance."""
    for number in range(16):
        make_video(work / "videos" / f"{number}.avi", (72, 96), 8 + number)
    sources = find_videos([work / "videos"]).sources
    request = Request(make_method("tvl1"))
    for outcome in extract(sources, work / "pool", request, workers=WORKERS):
        assert outcome.status != "failed", outcome
    expected = contents(work / "pool")
    seeds = []
    for seed in range(arguments.seeds):
        out, draw = work / f"seed-{seed}", random.Random(seed)
        with connected("local", workers=WORKERS) as cluster:
            victim = draw.choice(sorted(cluster._client.run(os.getpid).values()))
            moment, delay_s = draw.randrange(1, len(sources) - 4), draw.uniform(0, 0.2)
            killer = threading.Timer(delay_s, os.kill, (victim, signal.SIGKILL))
            outcomes = []
            for outcome in extract(sources, out, request, workers=4, engine=cluster.run):
                outcomes += [outcome] * (outcome.status != "running")
                if len(outcomes) == moment and outcome.status != "running":
                    killer.start()
            killer.join()
        seeds.append(
            {
                "seed": seed,
                "killed_after": moment,
                "done": sum(one.status == "done" for one in outcomes),
                "failed": [one.reason for one in outcomes if one.status == "failed"],
                "same_bytes": contents(out) == expected,
            }
        )
        print(seeds[-1], file=sys.stderr, flush=True)
    return {
        "videos": len(sources),
        "seeds": len(seeds),
        "all_done": sum(one["done"] == len(sources) for one in seeds),
        "same_bytes": sum(one["same_bytes"] for one in seeds),
        "failed": sum(len(one["failed"]) for one in seeds),
    }


@dataclass(frozen=True)
class Poisonous:
    """A flow method that does harm to its process, by the width of the frames."""

    name: ClassVar[str] = "poisonous"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """Zeros; or an abort, a loop, 4 GB, or the end of the Dask worker."""
        for first, _ in pairs:
            match HARM.get(first.shape[1]):
                case "aborts":
                    os.abort()
                case "loops":
                    while True:
                        pass
                case "takes 4 GB":
                    held = [np.ones(10_000_000) for _ in range(50)]
                    raise AssertionError(f"{len(held)} arrays are held")
                case "kills the worker":
                    os.kill(os.getppid(), signal.SIGKILL)
                    time.sleep(60)
            yield np.zeros((*first.shape, 2), np.float32)


HARM = {64: "aborts", 80: "loops", 96: "takes 4 GB", 112: "kills the worker"}  # width, px -> what


def poison(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One video of each harm among twelve others."""
    for number, width in enumerate([*HARM, *[128] * 12]):
        make_video(work / "videos" / f"{HARM.get(width, number)}.avi", (48, width), 5)
    sources = find_videos([work / "videos"]).sources
    limits = {"timeout_s": 20.0, "memory_bytes": 1_000_000_000}
    with connected("local", workers=WORKERS) as cluster:
        outcomes = run(sources, work / "out", Request(Poisonous()), cluster, **limits)
    return {
        "done": sum(one.status == "done" for one in outcomes),
        "failed": {one.source.id: one.reason for one in outcomes if one.status == "failed"},
    }


def cost(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine's own part of the processor time, of two workers.

    In two parts that hold on a busy machine: for an item, of items that do nothing, and for a
    second, of items that rest; and at once, of videos whose flow is computed.
    """
    request = Request(make_method("tvl1"))
    with _warm_cluster(request, WORKERS) as cluster:
        start, before = time.monotonic(), processor_times(cluster)[0]
        list(cluster.run(_rest, [REST_S] * WORKERS, workers=WORKERS))
        second_s = (processor_times(cluster)[0] - before) / (time.monotonic() - start)
        start, before = time.monotonic(), processor_times(cluster)[0]
        list(cluster.run(_nothing, range(ITEMS), workers=4 * WORKERS))
        own = processor_times(cluster)[0] - before - second_s * (time.monotonic() - start)
    item_s = own / ITEMS
    reckoned = item_s + second_s * UCF101_S / WORKERS
    found = {
        "own_s_for_a_second": round(second_s, 4),
        "own_s_for_an_item": round(item_s, 4),
        "videos_of_15_s_on_a_quiet_machine": round(reckoned / (reckoned + UCF101_S), 4),
    }
    print(found, file=sys.stderr, flush=True)
    sources = _videos_like_ucf101(work / "videos", arguments)
    shares = []
    for number in range(arguments.rounds):
        with _warm_cluster(request, WORKERS) as cluster:
            times = processor_times(cluster)
            run(sources, work / f"{number}", request, cluster, workers=WORKERS)
            own, children = (b - a for a, b in zip(times, processor_times(cluster), strict=True))
        shares.append(round(own / (own + children), 4))
        print(shares[-1], file=sys.stderr, flush=True)
    return found | {
        "videos": len(sources),
        "frames": arguments.videos * arguments.frames,
        "own_share": shares,
        "own_share_median": statistics.median(shares),
    }


def speed(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds that one worker and two take in turn; for a machine with nothing else to do."""
    sources = _videos_like_ucf101(work / "videos", arguments)
    request = Request(make_method("tvl1"))
    walls: dict[int, list[float]] = {1: [], WORKERS: []}
    for number in range(arguments.rounds):
        for workers, times in walls.items():
            with _warm_cluster(request, workers) as cluster:
                start = time.monotonic()
                run(sources, work / f"{workers}-{number}", request, cluster, workers=workers)
                times.append(time.monotonic() - start)
            print(workers, round(times[-1], 2), file=sys.stderr, flush=True)
    medians = {workers: statistics.median(times) for workers, times in walls.items()}
    return {
        "videos": len(sources),
        "frames": arguments.videos * arguments.frames,
        "seconds": {str(workers): [round(s, 2) for s in times] for workers, times in walls.items()},
        "ratio_of_medians": round(medians[1] / medians[WORKERS], 2),
    }


def _videos_like_ucf101(folder: Path, arguments: argparse.Namespace) -> tuple[Source, ...]:
    """Videos of the size to which those of UCF-101 are brought."""
    for number in range(arguments.videos):
        make_video(folder / f"{number}.avi", (256, 340), arguments.frames)
    return find_videos([folder]).sources


@contextmanager
def _warm_cluster(request: Request, workers: int) -> Iterator[Cluster]:
    """A cluster that has done something, and code that is compiled."""
    prepare_method(request.method)
    with connected("local", workers=workers) as cluster:
        list(cluster.run(_nothing, [0] * workers, workers=workers))
        yield cluster


def memory(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of the client and of the workers, every eighth of the way through short videos."""
    make_video(work / "videos" / "0.avi", (32, 32), 2)
    for number in range(1, arguments.short):
        os.link(work / "videos" / "0.avi", work / "videos" / f"{number}.avi")
    sources = find_videos([work / "videos"]).sources
    storage = Storage(pack=True, rgb=False)
    request = Request(make_method("farneback-opencv"), storage=storage)
    rows = []
    with connected("local", workers=WORKERS) as cluster:
        events = extract(sources, work / "out", request, workers=WORKERS, engine=cluster.run)
        done = 0
        with closing(events):
            for outcome in events:
                done += outcome.status == "done"
                if outcome.status == "done" and done % max(1, len(sources) // 8) == 0:
                    pids = cluster._client.run(os.getpid).values()
                    rows.append([done, *(resident_mb(pid) for pid in (os.getpid(), *sorted(pids)))])
                    print(rows[-1], file=sys.stderr, flush=True)
    return {"videos": len(sources), "done": done, "rows_done_client_workers_mb": rows}


def run(
    sources: Sequence[Source], out: Path, request: Request, cluster: Cluster, **options: Any
) -> list[Outcome]:
    """What became of each source on a cluster."""
    options = {"workers": 4 * WORKERS, **options}
    outcomes = list(extract(sources, out, request, engine=cluster.run, **options))
    return [outcome for outcome in outcomes if outcome.status != "running"]


def _nothing(item: Any, report: Any) -> None:
    pass


def _rest(item: float, report: Any) -> None:
    end = time.monotonic() + item
    while time.monotonic() < end:
        time.sleep(0.2)
        report(0)


def make_video(path: Path, size: tuple[int, int], frames: int) -> None:
    """A texture that moves by a pixel, Motion JPEG; `size` is (H, W)."""
    noise = np.random.default_rng(0).uniform(0, 255, (size[0] // 8 + 2, size[1] // 8 + 2 + frames))
    canvas = cv2.resize(noise, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)
    views = (canvas[: size[0], t : t + size[1]] for t in range(frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (cv2.merge([view] * 3) for view in views), fps=25, codec="mjpeg")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def processor_times(cluster: Cluster) -> tuple[float, float]:
    """Seconds of processor time so far: of client, scheduler and workers, and of ended children."""
    workers = cluster._client.run(_worker_times).values()
    return time.process_time() + sum(own for own, _ in workers), sum(child for _, child in workers)


def _worker_times() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time(), used.ru_utime + used.ru_stime


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * PAGE_BYTES / 1e6, 1)


if __name__ == "__main__":
    run_benchmark(main)
