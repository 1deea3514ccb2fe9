"""Checkpoints written by a thread, so that no step waits for a disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from flowkit.networks.checkpoints import Checkpoint, write_checkpoint


class CheckpointThread:
    """Writes one checkpoint after the other, each from a copy of its tensors.

    An error of the thread is raised by the next call.
    """

    def __init__(self) -> None:
        self._writing: Future[None] | None = None

    def write(
        self,
        folder: Path,
        names: Iterable[str],
        checkpoint: Checkpoint,
        weights: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> None:
        """Begin `networks.checkpoints.write_checkpoint`, when the one before is on the disk.

        The tensors may change when this returns; they are copied into the memory of the CPU.
        """
        self.finish()
        copies = (
            {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
            for tensors in (weights, state)
        )
        pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing = pool.submit(write_checkpoint, folder, tuple(names), checkpoint, *copies)
        pool.shutdown(wait=False)  # the thread ends with its checkpoint

    def check(self) -> None:
        """Raise what has gone wrong, if anything has."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint is on the disk; no thread is left."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
