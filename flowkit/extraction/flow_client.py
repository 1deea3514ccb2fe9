"""A worker's end of a flow process: gray pairs out and flow back, through memory that both map.

The memory is the worker's and has no name; its socket's address has no file. So whatever is killed
leaves nothing behind.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
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
        return self.window + 2  # those of consecutive pairs, and one that is read meanwhile

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
    """A connection for one video: pairs, numbered from 0, go there, and results come back."""

    def __init__(self, address: str, layout: Layout) -> None:
        self.layout = layout
        self.socket, memory = _connect(address, layout)
        frames, self.results = layout.view(memory)
        self.places = _Places(frames)
        self.sent = self.given = 0  # pairs taken on their way, and results handed on
        # Pairs to be sent: number, places of the two frames
        self.group: list[tuple[int, int, int]] = []
        self.places_of: dict[int, tuple[int, int]] = {}  # a pair on its way -> those of its frames
        self.computed: dict[int, Ranges | None] = {}  # a pair that is back -> its ranges

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
        first = self.places.take(pair[0])
        if first is None:
            return False
        second = self.places.take(pair[1])
        if second is None:
            self.places.leave(first)
            return False
        self.places_of[self.sent] = first, second
        self.group.append((self.sent, first, second))
        self.sent += 1
        if len(self.group) == GROUP:
            self._send_group()
        return True

    def _send_group(self) -> None:
        try:
            self.socket.send(self.group)
        except OSError as error:
            raise _died() from error
        self.group = []

    def next_result(self) -> Computed:
        """The result of the next pair in order; waits for it."""
        if self.group and self.given not in self.computed:
            self._send_group()
        while self.given not in self.computed:
            self._receive()
        ranges = self.computed.pop(self.given)
        result = self.results[self.given % self.layout.window]
        self.given += 1
        return result if ranges is None else (result, ranges)

    def _receive(self) -> None:
        """Wait for the answer to pairs of any numbers, whose frames then are free."""
        try:
            answer: Answer = self.socket.recv()
        except (EOFError, OSError) as error:
            raise _died() from error
        if isinstance(answer, str):
            raise FlowkitError(answer)
        for number, ranges in answer:
            self.computed[number] = ranges
            for place in self.places_of.pop(number):
                self.places.leave(place)


class _Places:
    """The places for frames in shared memory: which frame lies in each, and how many pairs need it.

    A frame is known by its identity, so that one that two pairs share is copied once.
    """

    def __init__(self, memory: list[np.ndarray]) -> None:
        self.memory = memory
        self.frames: list[np.ndarray | None] = [None] * len(memory)  # kept alive: no id comes twice
        self.place_of: dict[int, int] = {}  # the id of a frame -> its place
        self.uses = [0] * len(memory)
        self.next = 0  # the place that was written longest ago

    def take(self, frame: np.ndarray) -> int | None:
        """The place of the frame, which one more pair needs; None where all others are needed."""
        place = self.place_of.get(id(frame))
        if place is None:
            place = self._free()
            if place is None:
                return None
            self.place_of.pop(id(self.frames[place]), None)
            self.memory[place][:] = frame
            self.frames[place], self.place_of[id(frame)] = frame, place
        self.uses[place] += 1
        return place

    def leave(self, place: int) -> None:
        """One pair less needs the frame that lies there."""
        self.uses[place] -= 1

    def _free(self) -> int | None:
        count = len(self.memory)
        for place in (*range(self.next, count), *range(self.next)):
            if self.uses[place] == 0:
                self.next = (place + 1) % count
                return place
        return None


def _connect(address: str, layout: Layout) -> tuple[Connection, mmap.mmap]:
    """A connection to the flow process at `address`, and memory that both map from now on."""
    handle = os.memfd_create("flowkit")
    try:
        os.ftruncate(handle, layout.total_bytes)
        memory = mmap.mmap(handle, layout.total_bytes)
        with socket.socket(socket.AF_UNIX) as connected:
            connected.connect(f"\0{address}")
            socket.send_fds(connected, [pickle.dumps(layout)], [handle])
            return Connection(connected.detach()), memory
    except ConnectionError as error:
        raise _died() from error
    finally:
        os.close(handle)


def _died() -> FlowProcessDied:
    return FlowProcessDied("the flow process died before it had computed this video: run again")
