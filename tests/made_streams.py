"""Live streams on this machine: what serves bytes as they are due, by HTTP or RTSP."""

from __future__ import annotations

import http.server
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TS_PACKET = 188  # bytes
Source = Callable[[], Iterator[bytes]]


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """A server on a port of 127.0.0.1, which is handed out."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler, bind_and_activate=True)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def http_stream(places: dict[str, Source]) -> Iterator[str]:
    """The address of a server of what `places` have by path, each part as it comes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            source = places.get(self.path.partition("?")[0])
            self.send_response(200 if source else 404)
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                for part in source() if source else ():
                    self.wfile.write(part)
            except OSError:  # nobody looks any more
                pass

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def rtsp_stream(source: Source) -> Iterator[str]:
    """The address of a server of MPEG-TS in RTP packets on the RTSP connection (RFC 2326, 2250)."""
    sdp = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 0 RTP/AVP 33\na=control:a\n"

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                method = line.split(b" ")[0]
                headers = dict(iter(lambda: self.rfile.readline().strip().split(b": ", 1), [b""]))
                body = sdp if method == b"DESCRIBE" else b""
                answer = [b"RTSP/1.0 200 OK", b"CSeq: " + headers[b"CSeq"], b"Session: 7"]
                if method == b"SETUP":
                    answer.append(b"Transport: " + headers[b"Transport"])
                if body:
                    answer += [b"Content-Type: application/sdp", b"Content-Length: %d" % len(body)]
                self.wfile.write(b"\r\n".join([*answer, b"", body]))
                if method == b"PLAY":
                    self.play()
                    return

        def play(self) -> None:
            for number, part in enumerate(in_packets(source())):
                rtp = struct.pack(">BBHLL", 0x80, 33, number & 0xFFFF, number * 900, 7) + part
                self.wfile.write(b"$\0" + struct.pack(">H", len(rtp)) + rtp)

    with serving(Handler) as port:
        yield f"rtsp://127.0.0.1:{port}/a"


def in_packets(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Seven packets of MPEG-TS at a time."""
    rest = b""
    for part in parts:
        rest += part
        while len(rest) >= 7 * TS_PACKET:
            yield rest[: 7 * TS_PACKET]
            rest = rest[7 * TS_PACKET :]
    yield rest


def piece_by_piece(data: bytes, *, seconds: float = 0.0, then_s: float = 0.0) -> Source:
    """The bytes in 20 parts over so many seconds, then silence."""

    def parts() -> Iterator[bytes]:
        size = -(-len(data) // 20)
        for start in range(0, len(data), size):
            yield data[start : start + size]
            time.sleep(seconds / 20)
        time.sleep(then_s)

    return parts
