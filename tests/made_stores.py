"""An S3 server of moto's on this machine, and a proxy before it that fails as networks do."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CANARY = "canary-51b7e2-never-shown"  # the secret key of every run
START_S = 120
NAMES = "{http://s3.amazonaws.com/doc/2006-03-01/}"
HOP = {"connection", "transfer-encoding", "expect", "content-length", "host"}


@dataclass
class Store:
    """A server, and what lies in it."""

    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What a command needs to reach the server, or the proxy at `port`."""
        return os.environ | {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        self.ask("PUT", f"/{name}")

    def put(self, key: str, data: bytes) -> None:
        self.ask("PUT", f"/{key}", data)

    def get(self, key: str) -> bytes:
        return self.ask("GET", f"/{key}")

    def delete(self, key: str) -> None:
        self.ask("DELETE", f"/{key}")

    def list(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of a bucket that begin with a prefix."""
        query = urllib.parse.urlencode({"list-type": 2, "prefix": prefix})
        page = ET.fromstring(self.ask("GET", f"/{bucket}?{query}"))
        return [key.text or "" for key in page.iter(f"{NAMES}Key")]

    def ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        quoted = urllib.parse.quote(path, safe="/?=&%")
        signed = "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request"
        headers = {"Authorization": signed, "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.address + quoted, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


@contextmanager
def running_store() -> Iterator[Store]:
    """moto's S3 server, in a process of its own, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store, deadline = Store(port), time.monotonic() + START_S
    try:
        while True:
            try:
                store.ask("GET", "/")
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "no server"
                time.sleep(0.05)
        yield store
    finally:
        server.kill()
        server.wait()


@dataclass
class Faults:
    """What a proxy does to requests, by chance from a seed, and what it has seen.

    `busy`: answers 503; `reset`: hangs up, before the server hears of it or when it has answered;
    `cut`: sends half of the body; `delay_s`: waits so long before one of ten. Keys in `forbidden`
    are answered with 403. `victim` is killed at its `kill_at`-th put: before the server hears of it
    or, with `kill_after`, when it has answered.
    """

    busy: float = 0.0
    reset: float = 0.0
    cut: float = 0.0
    delay_s: float = 0.0
    seed: int = 0
    forbidden: frozenset[str] = frozenset()
    kill_at: int = 0
    kill_after: bool = False
    victim: subprocess.Popen | None = None
    seen: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance, self.lock = random.Random(self.seed), threading.Lock()

    def choose(self) -> str:
        """What becomes of the next request."""
        with self.lock:
            slow, number = self.chance.random() < 0.1, self.chance.random()
        if self.delay_s and slow:
            self.seen["delay"] += 1
            time.sleep(self.delay_s)
        for kind in ("busy", "reset", "cut"):
            number -= getattr(self, kind)
            if number < 0:
                return kind
        return ""

    def is_due(self) -> bool:
        """Whether this put is the one at which the victim is killed."""
        with self.lock:
            self.seen["put"] += 1
            return self.victim is not None and self.seen["put"] == self.kill_at

    def kill(self) -> None:
        """Kill the victim, whose workers die with it."""
        if self.victim is not None:
            self.victim.kill()
            self.victim.wait()


@contextmanager
def proxy(store: Store, faults: Faults) -> Iterator[int]:
    """The port of a proxy before a store, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
            faults.asked.append((self.command, key))
            if key in faults.forbidden:
                self.answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
                return
            kind = faults.choose()
            faults.seen[kind] += 1
            if kind == "busy":
                self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if kind == "reset" and faults.chance.random() < 0.5:
                self.hang_up()
                return
            due = self.command == "PUT" and faults.is_due()
            if due and not faults.kill_after:
                faults.kill()
                self.hang_up()
                return
            status, headers, data = forward(store.port, self.command, self.path, self.headers, body)
            if due:
                faults.kill()
            if kind == "reset":
                self.hang_up()
            elif kind == "cut" and self.command == "GET" and len(data) > 1:
                self.answer(status, headers, data, sent=len(data) // 2)
                self.hang_up()
            else:
                self.answer(status, headers, data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

        def answer(self, status, headers, data, sent=None):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command != "HEAD" or "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:sent])

        def hang_up(self):
            self.wfile.flush()
            self.close_connection = True
            linger = b"\x01\0\0\0\0\0\0\0"  # closing sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

        def log_message(self, *_):
            pass

        def finish(self):
            with suppress(OSError, ValueError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_):
            pass  # clients that are killed hang up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def forward(port, method, path, headers, body):
    """The status, headers and body with which the server at `port` answers."""
    passed = {name: value for name, value in headers.items() if name.lower() not in HOP}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body or None, passed | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        data = answer.read()
        kept = {n: v for n, v in answer.getheaders() if n.lower() not in HOP - {"content-length"}}
        if method != "HEAD":
            kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
        return answer.status, kept, data
    finally:
        connection.close()
