"""A flow method that is another program: pairs of images into a pipe, fields out of another."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.errors import FlowkitError, UsageError
from flowkit.fields import FLO_MAGIC, decode_flo
from flowkit.flow.method import check_parameters, parameter
from flowkit.flow.pairs import Pair, check_pair
from flowkit.workers.children import live_for

if TYPE_CHECKING:
    import numpy as np

HEADER_BYTES = 12  # of a .flo file: magic, width, height
TOLD_BYTES = 4096  # of what a program wrote on standard error, at its end


@dataclass(frozen=True)
class Program:
    """Flow by a program that reads pairs of images and writes fields.

    Its standard input has, of each pair, two binary PPM images (P6, RGB, 255), the first frame and
    the second; after the two it writes one .flo file to standard output (Middlebury's: "PIEH",
    int32 width and height, float32 x and y by rows, little endian, in px). At the end of its input
    it ends. It is started once in each worker process, with the first pair; a program that ends or
    writes anything else costs the video that is worked on, and is started again for the next.
    `command` is split as a shell would split it, and no shell runs it.
    """

    name: ClassVar[str] = "exec"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    color: ClassVar[bool] = True

    command: str = parameter("", "The program and its arguments.")

    def __post_init__(self) -> None:
        check_parameters(self)
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"exec: {self.command}: {error}") from None
        if not words or shutil.which(words[0]) is None:
            program = words[0] if words else ""
            raise UsageError(f"exec: expected a program and its arguments, found none {program!r}")

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair, gray or BGR, in order, float32 (H, W, 2) px.

        FlowkitError, which has the program's last line on standard error, where it ends too early
        or answers with anything but a field of the frames' size.
        """
        for first, second in pairs:
            check_pair(first, second, color=True)
            yield _running(self.command).field(first, second)


_programs: dict[tuple[int, str], _Running] = {}  # by process and command


def _running(command: str) -> _Running:
    """This process's program of that command, started where there is none any more."""
    key = os.getpid(), command  # a process that was forked has pipes of its parent's
    if key in _programs and _programs[key].process.poll() is not None:
        _programs.pop(key).end()
    if key not in _programs:
        _programs[key] = _Running(command)
    return _programs[key]


class _Running:
    """A program at work."""

    def __init__(self, command: str) -> None:
        self.command, parent = command, os.getpid()
        self.errors = TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.process = subprocess.Popen(
            shlex.split(command),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            preexec_fn=lambda: live_for(parent),
        )

    def field(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The field of a pair; FlowkitError where there is none, and the program is ended."""
        assert self.process.stdout is not None
        height, width = first.shape[:2]
        try:
            if select.select([self.process.stdout], [], [], 0)[0]:
                self._read(1)
                raise FlowkitError(
                    "wrote before it was given a pair: standard output is for fields"
                )
            self._write(_ppm(first) + _ppm(second))
            header = self._read(HEADER_BYTES)
            if header != FLO_MAGIC + _int32(width) + _int32(height):
                raise FlowkitError(
                    f"expected the .flo file of a field of {width}x{height} px, got {header!r}"
                )
            return decode_flo(header + self._read(8 * width * height))
        except FlowkitError as problem:
            raise FlowkitError(f"exec: {self.command}: {problem}{self.end()}") from None
        except BaseException:  # a field that was not read would be the next pair's
            self.end()
            raise

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        view = memoryview(data)
        try:
            while view:
                view = view[self.process.stdin.write(view) :]
        except BrokenPipeError:
            raise FlowkitError(f"ended with status {self.process.wait()}") from None

    def _read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        parts, missing = [], count
        while missing:
            part = self.process.stdout.read(missing)
            if not part:
                raise FlowkitError(f"ended with status {self.process.wait()}")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def end(self) -> str:
        """Kill the program; its last line on standard error, with a colon before it, or ""."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self.errors.closed:
            return ""
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - TOLD_BYTES))
        told = self.errors.read().decode(errors="replace").strip()
        self.errors.close()
        return f": {told.splitlines()[-1]}" if told else ""


def _ppm(frame: np.ndarray) -> bytes:
    """A frame, gray or BGR, as a binary PPM image, RGB."""
    from flowkit._cv2 import cv2

    code = cv2.COLOR_GRAY2RGB if frame.ndim == 2 else cv2.COLOR_BGR2RGB
    return b"P6\n%d %d\n255\n" % frame.shape[1::-1] + cv2.cvtColor(frame, code).tobytes()


def _int32(value: int) -> bytes:
    return value.to_bytes(4, "little")
