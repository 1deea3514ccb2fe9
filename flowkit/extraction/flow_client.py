"""A worker's end of a flow process: gray pairs out and flow back, through memory that both map.

The memory is the worker's and has no name; its socket's address has no file. So whatever is killed
leaves nothing behind.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection

import numpy as np

from flowkit.errors import FlowkitError, FlowProcessDied
from flowkit.extraction.messages import Answer, Computed
from flowkit.flow.pairs import Pair, check_pair
from flowkit.records.formats import Ranges

WINDOW = 64  # pairs of a video on their way, at most: a dozen workers fill several batches
WINDOW_PX = 6 << 20  # pixels of those pairs: 64 of 340 x 256, and memory of 20 MB per worker
SMALLEST_WINDOW = 4
GROUP = 8  # pairs in a message: one each would cost the flow process more than their pixels


@dataclass(frozen=True)
class Layout:
    """Shared memory of one video: frames, then the results of the pairs on their way."""

    size: tuple[int, int]
    quantized: bool

    @property
    def window(self) -> int:
        """Pairs on their way at most; pair number n has result n modulo this."""
        fitting = WINDOW_PX // (self.size[0] * self.size[1])
        return min(WINDOW, max(SMALLEST_WINDOW, fitting))

    @property
    def frames(self) -> int:
        return self.window + 2  # as many as consecutive pairs have, and one that is read meanwhile

    @property
    def result_bytes(self) -> int:
        return self.size[0] * self.size[1] * 2 * (1 if self.quantized else 4)

    @property
    def results_at(self) -> int:
        return -(-self.frames * self.size[0] * self.size[1] // 64) * 64

    @property
    def total_bytes(self) -> int:
        return self.results_at + self.window * self.result_bytes

    def view(self, memory: mmap.mmap) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The frames, uint8 (H, W), and the results, planes uint8 (2, H, W) or fields."""
        height, width = self.size
        pixels = np.frombuffer(memory, np.uint8, self.frames * height * width)
        kind, shape = (
            (np.uint8, (2, *self.size)) if self.quantized else (np.float32, (*self.size, 2))
        )
        values = np.frombuffer(memory, kind, self.window * 2 * height * width, self.results_at)
        return (
            list(pixels.reshape(self.frames, *self.size)),
            list(values.reshape(self.window, *shape)),
        )


@dataclass(frozen=True)
class RemoteFlow:
    """Flow from the process at an `address`: fields, or planes that it quantized."""

    address: str
    quantized: bool

    def compute(self, pairs: Iterable[Pair]) -> Iterator[Computed]:
        """The field, or planes and ranges, of each pair of gray frames, in order.

        Reads up to a window of pairs ahead. What is yielded is overwritten after the next is asked
        for. FlowProcessDied where that process is no more, FlowkitError for what it refused.
        """
        pairs = iter(pairs)
        first = next(pairs, None)
        if first is None:
            return
        size = (first[0].shape[0], first[0].shape[1])
        with closing(_Line(self.address, Layout(size, self.quantized))) as line:
            for pair in chain([first], pairs):
                while not line.take(pair):
                    yield line.next_result()
            while line.sent > line.given:
                yield line.next_result()


class _Line:
    """A connection for one video, and its pairs on their way, which are numbered from 0."""

    def __init__(self, address: str, layout: Layout) -> None:
        self.layout = layout
        handle = os.memfd_create("flowkit")
        try:
            os.ftruncate(handle, layout.total_bytes)
            self.frames, self.results = layout.view(mmap.mmap(handle, layout.total_bytes))
            with socket.socket(socket.AF_UNIX) as connected:
                connected.connect(f"\0{address}")
                socket.send_fds(connected, [pickle.dumps(layout)], [handle])
                self.socket = Connection(connected.detach())
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise _died() from error
            raise
        finally:
            os.close(handle)
        self.sent = self.given = 0  # pairs
        self.group: list[tuple[int, int, int]] = []  # to be sent: numbers of a pair and its frames
        self.computed: dict[int, Ranges | None] = {}
        self.pairs: dict[int, tuple[int, int]] = {}  # on their way: number of a pair -> its frames
        self.places: dict[int, int] = {}  # of a frame, known by its identity
        self.held: dict[int, np.ndarray] = {}  # which keeps the frame in a place alive
        self.uses = [0] * layout.frames  # pairs on their way that a place is part of
        self.oldest = deque(range(layout.frames))

    def close(self) -> None:
        self.socket.close()

    def take(self, pair: Pair) -> bool:
        """Send a pair on its way; False if there is no room before a further result."""
        check_pair(*pair)
        if pair[0].shape != self.layout.size:
            raise FlowkitError(
                f"expected frames of {self.layout.size} throughout, instead got {pair[0].shape}"
            )
        if self.sent - self.given == self.layout.window:
            return False
        first = self._place(pair[0])
        if first is None:
            return False
        self.uses[first] += 1
        second = self._place(pair[1])
        if second is None:
            self.uses[first] -= 1
            return False
        self.uses[second] += 1
        self.pairs[self.sent] = first, second
        self.group.append((self.sent, first, second))
        self.sent += 1
        if len(self.group) == GROUP:
            self._flush()
        return True

    def _place(self, frame: np.ndarray) -> int | None:
        """Where the frame is, after copying it to a place that no pair on its way needs."""
        if id(frame) in self.places:
            return self.places[id(frame)]
        for _ in range(len(self.oldest)):
            place = self.oldest[0]
            self.oldest.rotate(-1)
            if self.uses[place] == 0:
                break
        else:
            return None
        if place in self.held:
            del self.places[id(self.held[place])]
        self.frames[place][:] = frame
        self.held[place], self.places[id(frame)] = frame, place
        return place

    def _flush(self) -> None:
        try:
            self.socket.send(self.group)
        except OSError as error:
            raise _died() from error
        self.group = []

    def next_result(self) -> Computed:
        """The result of the next pair in order; waits for it."""
        if self.group and self.given not in self.computed:
            self._flush()
        while self.given not in self.computed:
            try:
                answer: Answer = self.socket.recv()
            except (EOFError, OSError) as error:
                raise _died() from error
            if isinstance(answer, str):
                raise FlowkitError(answer)
            for number, ranges in answer:
                self.computed[number] = ranges
                for place in self.pairs.pop(number):
                    self.uses[place] -= 1
        ranges = self.computed.pop(self.given)
        result = self.results[self.given % self.layout.window]
        self.given += 1
        return result if ranges is None else (result, ranges)


def _died() -> FlowProcessDied:
    return FlowProcessDied("the flow process died before it had computed this video: run again")
