"""Memory of a run between buckets, of its client and its workers, and of a long listing.

usage: python benchmarks/stores.py [--videos 2000] [--keys 1000000] [--json FILE]

Starts moto's S3 server (pip install 'flowkit-video[test]'), puts so many small videos into a bucket
and runs `flowkit extract` from there to another, with two workers and DIS. Looks at the resident
memory of the client and of its children all the while; the table has the most of each tenth of the
run. Then a file system of fsspec that has so many keys is listed (nothing of them is kept),
searched for videos (a source of each is kept), and planned. 0 videos leave the first part out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from made_stores import running_store  # noqa: E402
from made_videos import moving_texture, write_video  # noqa: E402

WATCH_S = 0.2
TENTHS = 10

LIST = """
import gc, resource, sys, time
import fsspec
from flowkit.extraction.plan import plan
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.records.layout import Storage
from flowkit.stores.objects import list_objects
from flowkit.stores.urls import parse_url
from flowkit.video.sources import find_videos

KEYS, PER_FOLDER = int(sys.argv[1]), 1000

class Keys(fsspec.AbstractFileSystem):
    "So many keys, a thousand in a folder, none of which is anywhere in memory."
    protocol = "keys"

    def ls(self, path, detail=True, **_):
        folder = path.strip("/").split("/")[2:]
        if not folder:
            folders = range(-(-KEYS // PER_FOLDER))
            return [{"name": f"{path}/c_{k:04d}", "type": "directory"} for k in folders]
        first = int(folder[0][2:]) * PER_FOLDER
        keys = range(first, min(first + PER_FOLDER, KEYS))
        facts = {"type": "file", "size": 123_456}
        return [{"name": f"{path}/v_{k:07d}.mp4", "ETag": f"{k:032x}", **facts} for k in keys]

def memory():
    now = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, now / 2**20

def tell(what, count, start):
    gc.collect()
    most, now = (after - before for before, after in zip(at_first, memory()))
    print(what, count, most, now, time.process_time() - start, flush=True)

fsspec.register_implementation("keys", Keys)
url = parse_url("keys://bucket/videos")
next(list_objects(url))  # libraries are loaded
request = Request(make_method("dis"), storage=Storage(pack=True))
at_first = memory()
start = time.process_time()
tell("listed", sum(1 for _ in list_objects(url)), start)
start = time.process_time()
sources = find_videos([url]).sources
tell("found", len(sources), start)
start = time.process_time()
todo = plan(sources, parse_url("memory://nothing-there"), request)
tell("planned", len(todo), start)
"""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {"videos": asked.videos, "keys": asked.keys}
    if asked.videos:
        with running_store() as store:
            found["tenths"] = watch_run(store, asked.videos)
        print(f"| of {asked.videos:,} videos | client, MB | largest worker, MB |\n|---|---|---|")
        for tenth, (client, worker) in enumerate(found["tenths"], 1):
            print(f"| {tenth} of {TENTHS} | {client:.0f} | {worker:.0f} |")
    command = [sys.executable, "-c", LIST, str(asked.keys)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    print(f"| {asked.keys:,} keys | most, MB | kept, MB | s of processor time |\n|---|---|---|---|")
    for line in done.stdout.splitlines():
        what, count, *figures = line.split()
        most, kept, seconds = map(float, figures)
        found[what] = {"keys": int(count), "mb": most, "kept_mb": kept, "processor_s": seconds}
        print(f"| {what} | {most:.0f} | {kept:.0f} | {seconds:.0f} |")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


def watch_run(store, count: int) -> list[tuple[float, float]]:
    """The most resident memory, MB, of client and largest worker in each tenth of the records."""
    for bucket in ("videos", "flow"):
        store.make_bucket(bucket)
    with tempfile.TemporaryDirectory() as folder:
        clips = [
            write_video(Path(folder, f"{k}.mp4"), moving_texture(4 + k, size=(48, 64), seed=k))
            for k in range(5)
        ]
        for k in range(count):
            store.put(f"videos/v_{k:06d}.mp4", clips[k % len(clips)].read_bytes())
        command = [sys.executable, "-m", "flowkit_cli", "extract", "s3://videos", "--json"]
        command += ["--out", "s3://flow", "--method", "dis", "-j", "2", "--scratch", folder]
        client = subprocess.Popen(
            command, stdout=subprocess.PIPE, env=store.environment(), text=True
        )
        seen: list[tuple[int, float, float]] = []
        done = 0

        def watch() -> None:
            process = psutil.Process(client.pid)
            while client.poll() is None:
                try:
                    own = process.memory_info().rss
                    others = [one.memory_info().rss for one in process.children(recursive=True)]
                except psutil.NoSuchProcess:
                    continue
                seen.append((done, own / 2**20, max(others, default=0) / 2**20))
                time.sleep(WATCH_S)

        thread = threading.Thread(target=watch)
        thread.start()
        for line in client.stdout:
            done += json.loads(line)["status"] == "done"
        thread.join()
        if client.wait():
            sys.exit("flowkit extract failed")
    tenths = []
    for tenth in range(TENTHS):
        first, last = tenth * count / TENTHS, (tenth + 1) * count / TENTHS
        own = [(client, worker) for at, client, worker in seen if first <= at <= last and worker]
        tenths.append((max(c for c, _ in own), max(w for _, w in own)) if own else (0.0, 0.0))
    return tenths


if __name__ == "__main__":
    main()
