"""The passes of a training from loader processes: planes in pieces, through memory that is kept.

In pieces the first pass comes sooner, and workers need memory for a piece, not for a batch.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from flowkit.data.datasets import Collate, start_worker
from flowkit.data.kept_memory import ALIGNMENT, MOST_BYTES, KeptMemory
from flowkit.data.plane_batches import PlaneBatch, join_batches
from flowkit.errors import FlowkitError
from flowkit.stores.objects import close_stores
from flowkit.training.sampling import MicroBatches, StepClips
from flowkit.workers.machine import SHARED_MEMORY

log = logging.getLogger(__name__)

PIECE = 32  # samples that a worker reads at a time, at most
PREFETCH = 2  # batches or pieces of each worker on their way
HELD = 2  # passes whose planes are in use: one is computed, the next is copied to the device
GRACE_S = 60  # seconds that a loader process lives on after SIGTERM, for the step to end

Batches = Iterator[dict[str, Any]]


class Pieces:
    """The samples of each pass in parts of at most `size`, as a loader's ``batch_sampler``."""

    def __init__(self, passes: Iterable[list[int]], size: int) -> None:
        self.passes, self.size = passes, size

    def __iter__(self) -> Iterator[list[int]]:
        for samples in self.passes:
            for start in range(0, len(samples), self.size):
                yield samples[start : start + self.size]


class Given(NamedTuple):
    """What a network is given in one pass, on its device."""

    inputs: list[torch.Tensor]  # of each stream, float32 (B K, C, h, w) of K segments
    labels: list[torch.Tensor]  # for each task's head, int64 (B,)


class PassesAhead:
    """Passes of which the next is loaded and made into inputs while a GPU computes one.

    An iterator like the one it is made of; `fetch` is for the moment after the work of a pass has
    been handed to the GPU. What makes the next has a stream of its own, so that the GPU does not
    wait for this process between two passes.
    """

    def __init__(self, passes: Iterator[Given], device: torch.device) -> None:
        self._passes, self._device = passes, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._fetched: list[Given | Exception] = []

    def __iter__(self) -> Iterator[Given]:
        return self

    def fetch(self) -> None:
        """Take the next pass; errors are for later."""
        try:
            with torch.cuda.stream(self._stream):  # None: that of the caller
                self._fetched.append(next(self._passes))
        except Exception as error:  # StopIteration, too
            self._fetched.append(error)

    def __next__(self) -> Given:
        if not self._fetched:
            self.fetch()
        found = self._fetched.pop()
        if isinstance(found, Exception):
            raise found
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in (*found.inputs, *found.labels):
                tensor.record_stream(current)
        return found


class PassLoader:
    """Loads the passes of a training, of at most `samples`; the same ones however many `workers`.

    Its processes, if any, are started at once: before a GPU is opened and before it is known which
    passes there will be. `close` ends them.
    """

    def __init__(self, clips: StepClips, samples: int, device: torch.device, workers: int) -> None:
        self.device, self.memory = device, None
        plan = plan_memory(clips.clip_bytes(), samples, workers) if clips.as_planes else None
        if plan is not None:
            self.size, *slots = plan
            self.memory = KeptMemory(workers, *slots)
        pins = device.type == "cuda" and not clips.as_planes
        self.loader = Loader(clips, workers, self.memory, pins=pins)
        self.close = self.loader.close

    @contextmanager
    def reading(self, passes: MicroBatches) -> Iterator[Batches]:
        """The passes, until the block ends.

        Planes of a pass are to be used before the next but one is asked for.
        """
        if self.memory is None:
            with self.loader.reading(passes) as batches:
                yield batches
            return
        with (
            self.loader.reading(Pieces(passes, self.size)) as pieces,
            self.memory.pinned() if self.device.type == "cuda" else nullcontext(),
        ):
            yield _joined(pieces, passes, self.size, self.memory, self.device)


def plan_memory(clip_bytes: int, samples: int, workers: int) -> tuple[int, int, int] | None:
    """Samples of a piece, slots of a worker and bytes of a slot, for passes of `samples`.

    None without workers, or where passes are too large for any such memory.
    """
    size = PIECE
    while workers and size:
        pieces = -(-samples // size)
        slots = PREFETCH + -(-HELD * pieces // workers)
        slot_bytes = min(size, samples) * (clip_bytes + ALIGNMENT)
        if workers * slots * slot_bytes <= MOST_BYTES:
            return size, slots, slot_bytes
        size //= 2
    return None


def _joined(
    pieces: Batches, passes: MicroBatches, size: int, memory: KeptMemory, device: torch.device
) -> Batches:
    """The passes, each of its pieces; a worker has its memory again when the device is done."""
    used: list[Any] = []  # events after which the planes of earlier passes are used
    for samples in passes:
        yield _join([next(pieces) for _ in range(-(-len(samples) // size))], memory)
        if device.type == "cuda":
            used.append(torch.cuda.current_stream(device).record_event())
            if len(used) == HELD:
                used.pop(0).synchronize()


def _join(pieces: list[dict[str, Any]], memory: KeptMemory) -> dict[str, Any]:
    """One batch of several; the planes stay where they are."""
    joined: dict[str, Any] = {}
    for key, first in pieces[0].items():
        parts = [piece[key] for piece in pieces]
        is_planes = isinstance(first, PlaneBatch)
        joined[key] = join_batches(parts, memory) if is_planes else torch.cat(parts)
    return joined


# In torch's errors of a loader whose worker found no room for a batch.
NO_SHARED_MEMORY = ("Bus error", "shared memory", "unable to write to file </torch_")


def affordable_workers(workers: int, batch_bytes: int) -> int:
    """As many loader processes as /dev/shm has room for the batches of; a log line if not all.

    Half of what is free there: a training and its held-out part each have their processes.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return workers
    stats = os.statvfs(SHARED_MEMORY)
    free = stats.f_frsize * stats.f_bavail
    fitting = free // (2 * (PREFETCH + 1) * batch_bytes)
    if fitting < workers:
        log.warning(
            "%s has %d MB free: %d loader workers instead of %d (docker run --shm-size=8g)",
            *(SHARED_MEMORY, free >> 20, fitting, workers),
        )
    return min(workers, fitting)


class _Order:
    """What a loader reads next, which is not known when its processes are started."""

    def __init__(self) -> None:
        self.batches: Iterable[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class Loader:
    """The batches of a data set from processes that wait from now on until `close`, or from none.

    While one order of batches is read, no other is. With `pins`, which takes a thread, batches are
    page-locked.
    """

    def __init__(
        self, clips: Any, workers: int, memory: KeptMemory | None = None, *, pins: bool = False
    ) -> None:
        close_stores()  # loader processes are forked
        self.workers, self._order = workers, _Order()
        self._loader = DataLoader(
            clips,
            batch_sampler=self._order,  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
            collate_fn=Collate(memory),
            worker_init_fn=_start_worker,
            pin_memory=pins,
            # A generator of its own: the default takes a number from the global one
            generator=torch.Generator(),
        )
        self._batches: Any = iter(self._loader) if workers else None  # forks

    @contextmanager
    def reading(self, order: Iterable[list[int]]) -> Iterator[Batches]:
        """The batches of the samples that `order` names, until the block ends."""
        self._order.batches = order
        try:
            yield iter(self._loader)
        except RuntimeError as error:
            if any(words in str(error) for words in NO_SHARED_MEMORY):
                raise FlowkitError(
                    f"shared memory, /dev/shm, is too small for the batches of {self.workers} "
                    "loader workers: docker run --shm-size=8g, smaller batches, or -j 0"
                ) from error
            raise

    def close(self) -> None:
        """End the processes; does nothing the second time."""
        if self._batches is not None:  # an error's traceback would keep them
            self._batches._shutdown_workers()


def _start_worker(worker: int) -> None:
    """A loader process: one thread, and its parent, not a signal, says when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    start_worker(worker)
