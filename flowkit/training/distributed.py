"""The processes of one training: one alone, or those that torchrun started, one a device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from flowkit.errors import UsageError
from flowkit.workers.machine import keep_freed_memory


@dataclass(frozen=True)
class Ranks:
    """This process among all: its `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, in place and returned."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def most(self, number: float) -> float:
        """The largest of a number over all processes."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.item()

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all processes the mean of each tensor over them, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.size

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did; leave them at the end of the block.

    `device` is "cpu", "cuda" or "cuda:1"; None takes a CUDA device where there is one. Each of
    torchrun's processes takes the device of its local rank, or, where a number is given, all of
    them that one. UsageError where there is no such device.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    if size == 1:
        yield Ranks(rank, size, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    shared = device is not None and ":" in device  # which NCCL refuses
    dist.init_process_group("nccl" if chosen.type == "cuda" and not shared else "gloo")
    try:
        yield Ranks(rank, size, chosen)
    finally:
        dist.destroy_process_group()


def choose_device(name: str | None, local_rank: int | None = None) -> torch.device:
    """The device of that name, or the best there is; UsageError where there is no such device.

    For the CPU, freed memory is kept from now on (`keep_freed_memory`).
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"expected a device such as cpu, cuda or cuda:1, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"expected a device such as cpu, cuda or cuda:1, got {name!r}")
    if device.type == "cuda" and device.index is None and local_rank is not None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"{device}: this machine has {count} CUDA devices that torch can use")
    if device.type == "cpu":
        keep_freed_memory()
    return device
