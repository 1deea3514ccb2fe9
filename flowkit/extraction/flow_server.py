"""The flow process: pairs of many videos, gathered into the batches of one method on one GPU.

Its main thread takes what workers (`flowkit.extraction.flow_client`) send, further threads compute.
A batch is what waits at the moment a thread is free: the busier the GPU, the fuller the batches.
"""

from __future__ import annotations

import mmap
import os
import pickle
import selectors
import socket
import struct
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from flowkit.errors import DeviceError, DeviceMemoryError
from flowkit.extraction.messages import Answer, Computed, Halved, Usage, Work
from flowkit.flow.cuda import batches
from flowkit.flow.cuda.batches import BATCH_PX, SLOTS, Size, fetch_fields, fetch_planes
from flowkit.flow.pairs import Pair
from flowkit.workers.children import live_for, load_from_parent, one_line

HELLO_BYTES = 4096  # most bytes of a client's first message
PEER = struct.Struct("3i")  # process, user and group at the other end of a socket, unix(7)
# Seconds until a thread gives way to another: launches must not wait for messages
SWITCH_S = 0.0005
STATUS_LOST = 70  # exit status of a process that cannot go on: EX_SOFTWARE


class Solver:
    """Computes one batch at a time for one thread."""

    def __init__(self, work: Work) -> None:
        open_slot = getattr(work.method, "open_slot", None)
        self.work = work
        self.slot: Any = None
        if open_slot is not None:
            self.slot = open_slot(fetch_planes(work.bound) if work.quantized else fetch_fields)

    def compute(self, pairs: list[Pair], room: int) -> list[Computed]:
        if self.slot:
            made = batches.batches(pairs, lambda size: room)
            return [result for batch in made for result in self.slot.compute(batch, room)]
        method, bound = self.work.method, self.work.bound
        results: list[Computed] = []
        for start in range(0, len(pairs), room):
            part = pairs[start : start + room]
            if self.work.quantized:
                results += method.planes(part, bound=bound)  # type: ignore[attr-defined]
            else:
                results += method.fields(part)
        return results


def room_for(size: Size, solvers: list[Solver]) -> int:
    """The pairs of frames of `size` that a batch of one of the solvers may hold."""
    slots = [solver.slot for solver in solvers if solver.slot]
    return batches.room_for(size, slots) if slots else max(1, BATCH_PX // (size[0] * size[1]))


@dataclass(eq=False)
class Client:
    """A worker at work on one video; `frames` and `results` are its memory."""

    socket: Connection
    size: Size
    frames: list[np.ndarray]
    results: list[np.ndarray]
    alive: bool = True
    sending: threading.Lock = field(default_factory=threading.Lock)

    def send(self, answer: Answer) -> None:
        with self.sending, suppress(OSError):  # a dead client: the main thread will see it
            if self.alive:
                self.socket.send(answer)


@dataclass(frozen=True)
class Asked:
    """A pair of a client's frames, by its number in the video."""

    client: Client
    number: int
    pair: Pair
    at: float  # when it came


class FlowServer:
    """What waits, and what the threads make of it, each with a solver."""

    def __init__(self, say: Callable[[Any], None], solvers: list[Solver]) -> None:
        self.solvers = solvers
        self._say, self.saying = say, threading.Lock()
        self.changed = threading.Condition()
        self.waiting: dict[Size, deque[Asked]] = {}
        self.size, self.room = (0, 0), 0  # of the latest batch: its frames, and pairs it might have
        self.most_px: float = float("inf")  # pixels of a batch, less after memory ran out
        self.usage = Usage()
        self.at_work, self.first_at, self.began_at, self.processor_s = 0, 0.0, 0.0, 0.0

    def say(self, message: Any) -> None:
        """To the parent, from any thread."""
        with self.saying, suppress(OSError):  # a dead parent: the main thread will see it
            self._say(message)

    # --- the main thread ---

    def ask(self, client: Client, pairs: list[tuple[int, int, int]]) -> None:
        now = time.monotonic()
        asked = [
            Asked(client, number, (client.frames[first], client.frames[second]), now)
            for number, first, second in pairs
        ]
        with self.changed:
            if not self.first_at:
                self.first_at, self.processor_s = now, time.process_time()
            self.waiting.setdefault(client.size, deque()).extend(asked)
            self.changed.notify()

    def drop(self, client: Client) -> None:
        """Forget a client that is gone and what it still waits for."""
        with client.sending:
            client.alive = False
            client.socket.close()
        with self.changed:
            left = [one for one in self.waiting.get(client.size, ()) if one.client is not client]
            self.waiting[client.size] = deque(left)
            if not left:
                del self.waiting[client.size]

    # --- the threads that compute ---

    def work(self, solver: Solver) -> None:
        """The life of a thread; what it cannot handle ends the process, so that nobody waits."""
        try:
            while True:
                batch, room = self._gather()
                self._compute(solver, batch, room)
                del batch  # so that the memory of a client that is gone is not kept
                with self.changed:
                    now = time.monotonic()
                    self.at_work -= 1
                    self.usage.span_s = now - self.first_at
                    self.usage.processor_s = time.process_time() - self.processor_s
                    if self.at_work == 0:
                        self.usage.busy_s += now - self.began_at
                    self.changed.notify()
        except Exception as error:
            self.die(error)

    def die(self, error: Exception) -> NoReturn:
        """End the process, with a last word to the parent."""
        self.say(one_line(error))
        os._exit(STATUS_LOST)

    def _gather(self) -> tuple[list[Asked], int]:
        """Wait for pairs; the longest waiting one, and what waits of its size, up to the room.

        A second batch beside one at work has to fill half the room: two small ones would take as
        many launches as two full ones.
        """
        with self.changed:
            while True:
                if self.waiting:
                    size = min(self.waiting, key=lambda one: self.waiting[one][0].at)
                    if size != self.size:
                        self.size, self.room = size, room_for(size, self.solvers)
                    room = self._limited(self.room, size)
                    if self.at_work == 0 or len(self.waiting[size]) >= room / 2:
                        break
                self.changed.wait()
            queue = self.waiting[size]
            batch = [queue.popleft() for _ in range(min(room, len(queue)))]
            if not queue:
                del self.waiting[size]
            if self.at_work == 0:
                self.began_at = time.monotonic()
            self.at_work += 1
            self.usage.batches += 1
            self.changed.notify()
        return batch, room

    def _limited(self, room: int, size: Size) -> int:
        """The room that is left of `room` after memory ran out."""
        return int(max(1, min(room, self.most_px // (size[0] * size[1]))))

    def _compute(self, solver: Solver, batch: list[Asked], room: int) -> None:
        """Compute and answer; halves where memory runs out; what fails costs its video only."""
        try:
            results = solver.compute([one.pair for one in batch], room)
        except DeviceMemoryError as error:
            again, reason = self._halves(batch, room), one_line(error)
        except DeviceError:
            raise  # the GPU is lost to this process
        except Exception as error:
            again, reason = [], one_line(error)
        else:
            self._answer(batch, results)
            return
        parts = again or by_client(batch)
        if not again and len(parts) == 1:
            batch[0].client.send(reason)
            return
        for part in parts:  # here, where the error no longer holds the memory of its frames
            self._compute(solver, part, self._limited(room, part[0].client.size))

    def _halves(self, batch: list[Asked], room: int) -> list[list[Asked]]:
        """The batch in parts for half the room, which goes for all from now on; none of one pair.

        The room, because memory was asked for as many pairs, however few there were.
        """
        if room == 1:
            return []
        half, size = room // 2, batch[0].client.size
        with self.changed:
            if half * size[0] * size[1] < self.most_px:
                self.most_px = half * size[0] * size[1]
                self.say(Halved(half, size))
        return [batch[start : start + half] for start in range(0, len(batch), half)]

    def _answer(self, batch: list[Asked], results: list[Computed]) -> None:
        answers: dict[Client, list[tuple[int, Any]]] = defaultdict(list)
        for one, result in zip(batch, results, strict=True):
            values, ranges = result if isinstance(result, tuple) else (result, None)
            one.client.results[one.number % len(one.client.results)][:] = values
            answers[one.client].append((one.number, ranges))
        for client, answer in answers.items():
            client.send(answer)
        with self.changed:
            self.usage.pairs += len(batch)


def by_client(batch: list[Asked]) -> list[list[Asked]]:
    parts: dict[Client, list[Asked]] = defaultdict(list)
    for one in batch:
        parts[one.client].append(one)
    return list(parts.values())


# --- the process ---


def serve(handle: int, parent: int) -> None:
    """The life of a flow process, whose parent is at the other end of the socket `handle`.

    It is told its address and Work, answers with what stands in the way, or "" where it listens,
    and from then on any message with its Usage. It says when it has `Halved` its batches; a text is
    what it then dies of.
    """
    if not live_for(parent):
        return
    sys.setswitchinterval(SWITCH_S)
    # Errors mean that there is no parent
    with suppress(EOFError, OSError), Connection(handle) as control:
        message = control.recv_bytes()
        try:
            (address, work), _ = load_from_parent(message)
            solvers = [Solver(work) for _ in range(SLOTS)]
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"\0{address}")
            listener.listen(socket.SOMAXCONN)
        except Exception as error:
            control.send(one_line(error))
            return
        control.send("")
        server = FlowServer(control.send, solvers)
        for solver in solvers:
            threading.Thread(target=server.work, args=(solver,), daemon=True).start()
        try:
            listen(server, listener, control)
        except Exception as error:
            server.die(error)
        os._exit(0)  # the threads may be in the middle of a batch


def listen(server: FlowServer, listener: socket.socket, control: Connection) -> None:
    """Take what comes from workers and from the parent; returns where the parent is gone."""
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    ready.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is control:
                try:
                    control.recv()
                except (EOFError, OSError):
                    return
                server.say(server.usage)
            elif key.fileobj is listener:
                ready.register(listener.accept()[0], selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                ready.unregister(key.fileobj)
                client = welcome(key.fileobj)
                if client is not None:
                    ready.register(client.socket, selectors.EVENT_READ, client)
            else:
                try:
                    server.ask(key.data, key.data.socket.recv())
                except (EOFError, OSError):
                    ready.unregister(key.fileobj)
                    server.drop(key.data)


def welcome(connected: socket.socket) -> Client | None:
    """The client that says hello; None, and hung up, if it is gone or another user's."""
    with connected:
        try:
            peer = connected.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            if struct.unpack("3i", peer)[1] != os.getuid():
                return None
            hello, handles, _, _ = socket.recv_fds(connected, HELLO_BYTES, 1)
        except OSError:
            return None
        if not hello or not handles:
            return None
        layout = pickle.loads(hello)
        memory = mmap.mmap(handles[0], layout.total_bytes)
        os.close(handles[0])
        frames, results = layout.view(memory)
        return Client(Connection(connected.detach()), layout.size, frames, results)
