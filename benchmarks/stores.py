"""Memory of a run between buckets, of its client and its workers, and of a long listing.

usage: python benchmarks/stores.py [--videos 2000] [--keys 1000000] [--json FILE]

Starts moto's S3 server (pip install 'flowkit-video[test]'), puts so many small videos into a bucket
and runs `flowkit extract` from there to another, with two workers and DIS. Looks at the resident
memory of the client and of its children all the while; the table has the most of each tenth of the
run. Then a server that lists so many keys, a thousand a page, is listed through
`flowkit.stores.objects` (nothing kept) and `find_videos` (a source of each).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from made_stores import running_store  # noqa: E402
from made_videos import moving_texture, write_video  # noqa: E402

PAGE = 1000  # keys a page, as S3 lists them
WATCH_S = 0.2
TENTHS = 10

LIST = """
import resource, sys, time
from flowkit.stores.objects import list_objects
from flowkit.stores.urls import Access, parse_url
from flowkit.video.sources import find_videos
what, address = sys.argv[1:]
url = parse_url("s3://bucket/videos", Access((("endpoint_url", address),)))
next(list_objects(url))  # libraries are loaded
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
if what == "listed":
    count = sum(1 for _ in list_objects(url))
else:
    count = len(find_videos([url]).sources)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(count, (after - before) / 1024, time.monotonic() - start)
"""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {"videos": asked.videos, "keys": asked.keys}
    with running_store() as store:
        found["tenths"] = watch_run(store, asked.videos)
    print(f"| of {asked.videos:,} videos | client, MB | largest worker, MB |\n|---|---|---|")
    for tenth, (client, worker) in enumerate(found["tenths"], 1):
        print(f"| {tenth} of {TENTHS} | {client:.0f} | {worker:.0f} |")
    environment = store.environment()
    with listing(asked.keys) as address:
        for what in ("listed", "found"):
            command = [sys.executable, "-c", LIST, what, address]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            count, megabytes, seconds = map(float, done.stdout.split())
            found[what] = {"keys": int(count), "mb": megabytes, "seconds": seconds}
            print(f"{int(count):,} keys {what}: {megabytes:.0f} MB more, {seconds:.0f} s")
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


class listing:
    """The address of a server that lists so many keys, until the block ends."""

    def __init__(self, keys: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                first = int(query.get("continuation-token", ["0"])[0])
                last = min(first + PAGE, keys)
                items = "".join(
                    f"<Contents><Key>videos/{k // 1000:04d}/v_{k:07d}.mp4</Key>"
                    f'<ETag>"{k:032x}"</ETag><Size>{k}</Size></Contents>'
                    for k in range(first, last)
                )
                more = f"<NextContinuationToken>{last}</NextContinuationToken>" * (last < keys)
                truncated = "true" if last < keys else "false"
                body = (
                    '<?xml version="1.0"?><ListBucketResult '
                    'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                    f"<IsTruncated>{truncated}</IsTruncated>{items}{more}</ListBucketResult>"
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    main()
