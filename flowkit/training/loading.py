"""The passes of a training from loader processes: planes in pieces, through memory that is kept.

In pieces the first pass comes sooner, and workers need memory for a piece, not for a batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from flowkit.data.datasets import Collate, start_worker
from flowkit.data.kept_memory import ALIGNMENT, MOST_BYTES, KeptMemory
from flowkit.errors import FlowkitError
from flowkit.stores.objects import close_stores
from flowkit.training.sampling import MicroBatches, StepClips

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


class PassesAhead:
    """Passes of which the next is fetched, and its planes copied, while a device computes one.

    An iterator like the one it is made of; `fetch` is for the moment after the work of a pass has
    been handed to the device. The copies have a stream of their own.
    """

    def __init__(self, passes: Batches, device: torch.device) -> None:
        self._passes, self._device = passes, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._fetched: list[dict[str, Any] | Exception] = []

    def __iter__(self) -> Batches:
        return self

    def fetch(self) -> None:
        """Take the next pass from the loader and begin to copy its planes; errors are for later."""
        try:
            batch = next(self._passes)
            if self._stream is not None:
                with torch.cuda.stream(self._stream):
                    _send_planes(batch, self._device)
            self._fetched.append(batch)
        except Exception as error:  # StopIteration, too
            self._fetched.append(error)

    def __next__(self) -> dict[str, Any]:
        if not self._fetched:
            self.fetch()
        batch = self._fetched.pop()
        if isinstance(batch, Exception):
            raise batch
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for group in _plane_groups(batch):
                group.codes.record_stream(current)
        return batch


def _plane_groups(batch: dict[str, Any]) -> list[Any]:
    return [group for value in batch.values() if isinstance(value, list) for group in value]


def _send_planes(batch: dict[str, Any], device: torch.device) -> None:
    for stream, groups in batch.items():
        if isinstance(groups, list):
            sent = [group.codes.to(device, non_blocking=True) for group in groups]
            pairs = zip(groups, sent, strict=True)
            batch[stream] = [group._replace(codes=codes) for group, codes in pairs]


@contextmanager
def loading_passes(
    clips: StepClips, passes: MicroBatches, device: torch.device, workers: int
) -> Iterator[Batches]:
    """The passes of a training, loaded until the block ends; the same ones however many `workers`.

    Planes of a pass are to be used before the next but one is asked for.
    """
    plan = plan_memory(clips.clip_bytes(), passes.samples, workers) if clips.as_planes else None
    if plan is None:
        with loading(clips, device, workers, batch_sampler=passes) as batches:
            yield PassesAhead(batches, device) if device.type == "cuda" else batches
        return
    size, slots, slot_bytes = plan
    memory = KeptMemory(workers, slots, slot_bytes)
    order = {"batch_sampler": Pieces(passes, size)}
    with ExitStack() as stack:
        pieces = stack.enter_context(loading(clips, device, workers, memory, **order))
        joined = _joined(pieces, passes, size, memory, device)
        if device.type == "cuda":
            stack.enter_context(memory.pinned())
            joined = PassesAhead(joined, device)
        yield joined


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
    groups, first = [], 0
    for piece in pieces:
        for group in piece.pop("temporal"):
            codes = (
                group.codes if isinstance(group.codes, torch.Tensor) else memory.open(group.codes)
            )
            places = [first + place for place in group.places]
            groups.append(group._replace(places=places, codes=codes))
        first = sum(len(group.places) for group in groups)
    joined: dict[str, Any] = {key: torch.cat([one[key] for one in pieces]) for key in pieces[0]}
    return joined | {"temporal": groups}


# In torch's errors of a loader whose worker found no room for a batch.
NO_SHARED_MEMORY = ("Bus error", "shared memory", "unable to write to file </torch_")


@contextmanager
def loading(
    clips: Any,
    device: torch.device,
    workers: int,
    memory: KeptMemory | None = None,
    **order: Any,
) -> Iterator[Batches]:
    """The batches of a loader, whose processes end with the block, even where it raises."""
    close_stores()  # loader workers are forked
    batches: Any = iter(
        DataLoader(
            clips,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            collate_fn=Collate(memory),
            worker_init_fn=_start_worker,
            pin_memory=device.type == "cuda",
            # A generator of its own: the default takes a number from the global one
            generator=torch.Generator(),
            **order,
        )
    )
    try:
        yield batches
    except RuntimeError as error:
        if any(words in str(error) for words in NO_SHARED_MEMORY):
            raise FlowkitError(
                f"shared memory, /dev/shm, is too small for the batches of {workers} loader "
                "workers: docker run --shm-size=8g, smaller batches, or -j 0"
            ) from error
        raise
    finally:
        if workers:  # an error's traceback would keep them
            batches._shutdown_workers()


def _start_worker(worker: int) -> None:
    """A loader process: one thread, and its parent, not a signal, says when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    start_worker(worker)
