"""Pairs collected into batches, and several batches at work on a GPU at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flowkit.flow.cuda import device, images
from flowkit.flow.cuda.device import Queue
from flowkit.flow.cuda.images import Flow
from flowkit.flow.pairs import Pair, check_pair
from flowkit.quantize import bound_range

BATCH_PX = 8 << 20  # pixels of a batch: 96 pairs of 340 x 256, many waves of blocks a pass
MOST_PAIRS = 4096  # pairs of a batch of tiny frames: a grid is at most 65,535 blocks deep
SLOTS = 4  # batches at work: one fills the GPU while the last pairs of another leave it idle
MEMORY_SHARE = 0.8  # share of a GPU's free memory that all batches together may have

Size = tuple[int, int]
Ranges = list[tuple[float, float]]  # (lo, hi) in px of x, then of y
Fetch = Callable[[Queue, Flow, int], Iterable[Any]]


class Solver(Protocol):
    """Memory for batches of one size on a queue; a method's sequence of kernels."""

    size: Size
    capacity: int
    bytes_a_px: int

    def __init__(self, queue: Any, method: Any, size: Size, pairs: int) -> None: ...

    def solve(self, frames: list[np.ndarray], frame_of: np.ndarray) -> Flow: ...


@dataclass(frozen=True)
class Batch:
    """Pairs of one size: the different frames among them, and which two make each pair."""

    frames: list[np.ndarray]
    frame_of: np.ndarray  # int32 (N, 2)


def frame_capacity(pairs: int) -> int:
    """Frames for which a batch of `pairs` has room: most serve two pairs of a video."""
    return pairs + 1 + pairs // 4


def batches(pairs: Iterable[Pair], room: Callable[[Size], int]) -> Iterator[Batch]:
    """Pairs of one size, up to `room` of it in a batch; a frame is known by its identity."""
    frames: dict[int, np.ndarray] = {}  # a frame that is kept keeps its id
    number: dict[int, int] = {}
    made: list[tuple[int, int]] = []
    size, capacity = (0, 0), 0
    for first, second in pairs:
        check_pair(first, second)
        together = len(frames.keys() | {id(first), id(second)})
        full = len(made) == capacity or together > frame_capacity(capacity)
        if made and (first.shape != size or full):
            yield Batch(list(frames.values()), np.array(made, np.int32))
            frames, number, made = {}, {}, []
        if first.shape != size:
            size = (first.shape[0], first.shape[1])
            capacity = room(size)
        for frame in (first, second):
            frames.setdefault(id(frame), frame)
            number.setdefault(id(frame), len(number))
        made.append((number[id(first)], number[id(second)]))
    if made:
        yield Batch(list(frames.values()), np.array(made, np.int32))


class Slot:
    """A queue with the memory of the latest size; computes one batch at a time."""

    def __init__(self, queue: Any, method: Any, solver: type[Solver], fetch: Fetch) -> None:
        self.queue, self.method, self.make, self.fetch = queue, method, solver, fetch
        self.solver: Solver | None = None

    def held_bytes(self) -> int:
        """Memory of the GPU that it holds."""
        solver = self.solver
        if solver is None:
            return 0
        return self.make.bytes_a_px * solver.capacity * solver.size[0] * solver.size[1]

    def compute(self, batch: Batch, room: int) -> list[Any]:
        size, count = batch.frames[0].shape, len(batch.frame_of)
        with self.queue.running():
            if self.solver is None or self.solver.size != size or self.solver.capacity < count:
                self.solver = None  # its memory is free before the next one takes its own
                self.solver = self.make(self.queue, self.method, (size[0], size[1]), room)
            flow = self.solver.solve(batch.frames, batch.frame_of)
            return list(self.fetch(self.queue, flow, count))


def room_for(size: Size, slots: Sequence[Slot]) -> int:
    """The pairs of frames of `size` that a batch may hold where `slots` share a GPU."""
    px = size[0] * size[1]
    # What the slots hold now will be given back.
    free = slots[0].queue.gpu.free_bytes() + sum(slot.held_bytes() for slot in slots)
    fitting = int(free * MEMORY_SHARE / len(slots) / (slots[0].make.bytes_a_px * px))
    return max(1, min(BATCH_PX // px, fitting, MOST_PAIRS))


def computed(
    pairs: Iterable[Pair], slots: Sequence[Slot], room: Callable[[Size], int]
) -> Iterator[Any]:
    """What the slots' `fetch` gives for each pair, in order; a batch is read while others run."""
    rooms: dict[Size, int] = {}  # pairs of a batch, by size of frame

    def note_room(size: Size) -> int:
        rooms[size] = room(size)
        return rooms[size]

    waiting: deque[Future[list[Any]]] = deque()
    with ThreadPoolExecutor(len(slots), "flowkit-cuda") as threads:
        for number, batch in enumerate(batches(pairs, note_room)):
            if len(waiting) == len(slots):  # now the slot of this number is free again
                yield from waiting.popleft().result()
            height, width = batch.frames[0].shape
            slot = slots[number % len(slots)]
            waiting.append(threads.submit(slot.compute, batch, rooms[height, width]))
        while waiting:
            yield from waiting.popleft().result()


def open_slot(method: Any, source: str, solver: type[Solver], fetch: Fetch) -> Slot:
    """A slot on the current GPU, which has the kernels of `source`."""
    return Slot(device.GpuQueue(device.open_gpu(source)), method, solver, fetch)


def on_gpu(pairs: Iterable[Pair], open_one: Callable[[Fetch], Slot], fetch: Fetch) -> Iterator[Any]:
    """`computed` on the current GPU; opens it when iteration begins."""
    slots = [open_one(fetch) for _ in range(SLOTS)]
    yield from computed(pairs, slots, lambda size: room_for(size, slots))


# --- what comes back ---


def fetch_fields(queue: Queue, flow: Flow, count: int) -> Iterator[np.ndarray]:
    """The fields of a batch, each float32 (H, W, 2) px in memory of its own."""
    for field in images.read_fields(queue, flow, count)():
        yield field.copy()  # the pinned memory that it was read to is used again


def fetch_planes(bound: float | None) -> Fetch:
    """Gives planes uint8 (2, H, W) and ranges, as `records.formats`, of each pair of a batch."""

    def fetch(queue: Queue, flow: Flow, count: int) -> Iterator[tuple[np.ndarray, Ranges]]:
        planes, ranges = images.read_planes(queue, flow, count, bound)
        for plane, own in zip(planes(), ranges(), strict=True):
            if not np.isfinite(own).all():
                raise ValueError("expected finite displacements, got NaN or infinity in a field")
            both = [bound_range(bound)] * 2 if bound else [(float(lo), float(hi)) for lo, hi in own]
            yield plane.copy(), both

    return fetch
