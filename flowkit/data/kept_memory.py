"""Memory that loaders' workers write planes to, mapped once and used for batch after batch.

A batch of 256 stacks of 20 whole planes is 445 MB. In new shared memory for every batch, as torch
hands tensors over, that is 110,000 page faults in the worker and as many in the one thread that
takes it. Kept memory has no name and is no part of /dev/shm.
"""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

log = logging.getLogger("flowkit")

ALIGNMENT = 64  # bytes
MOST_BYTES = 2 << 30  # bytes of all slots together


class Kept(NamedTuple):
    """Where an array of bytes is in kept memory; what a worker sends of it."""

    offset: int
    shape: tuple[int, ...]


class KeptMemory:
    """Slots of `slot_bytes`, `slots` for each of the `workers` of a loader, which take turns.

    A worker that is given its next batch when one of its batches is taken, as torch's DataLoader
    does it, needs a slot for each batch on its way and each that is still read. Map it before the
    workers are forked.
    """

    def __init__(self, workers: int, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = -(-slot_bytes // ALIGNMENT) * ALIGNMENT
        self._memory = mmap.mmap(-1, workers * slots * self.slot_bytes)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._turn = 0  # batches that this worker has made
        self._at = self._end = 0  # what is left of its slot

    # --- in a worker ---

    def begin_batch(self) -> None:
        """Take the worker's next slot."""
        worker = get_worker_info()
        slot = (worker.id if worker else 0) * self.slots + self._turn
        self._turn = (self._turn + 1) % self.slots
        self._at, self._end = slot * self.slot_bytes, (slot + 1) * self.slot_bytes

    def take(self, shape: tuple[int, ...]) -> tuple[np.ndarray, Kept] | None:
        """Room for uint8 of a shape in the slot, and its place; None where too little is left."""
        start, size = -(-self._at // ALIGNMENT) * ALIGNMENT, math.prod(shape)
        if start + size > self._end:
            return None
        self._at = start + size
        return np.frombuffer(self._memory, np.uint8, size, start).reshape(shape), Kept(start, shape)

    # --- in their parent ---

    def open(self, kept: Kept) -> torch.Tensor:
        """The bytes at a place, until the worker has its slot again; nothing is copied."""
        return self._bytes[kept.offset : kept.offset + math.prod(kept.shape)].view(kept.shape)

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Page-locked for a GPU until the block ends, so that copies need no thread that waits."""
        driver = torch.cuda.cudart()
        status = int(driver.cudaHostRegister(self._bytes.data_ptr(), self._bytes.numel(), 0))
        if status:
            log.warning("the loader's memory cannot be page-locked (CUDA error %d)", status)
        try:
            yield
        finally:
            if not status:
                torch.cuda.synchronize()
                driver.cudaHostUnregister(self._bytes.data_ptr())
