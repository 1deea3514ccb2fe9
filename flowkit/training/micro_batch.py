"""How many clips go through a network at once: what a pass needs, and what the device has."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from flowkit.errors import UsageError
from flowkit.networks.streams import count_parameters
from flowkit.networks.towers import Net, TowersNet
from flowkit.workers.machine import free_bytes

COPIES = 5  # copies of the weights, 4 bytes each: they, gradients, momentum, a checkpoint to write
Shapes = Sequence[tuple[int, ...]]  # (C, h, w) of each input of a network, or (T, C, h, w)
# Share of a CPU's free memory that a pass may take: the loader and the system need the rest
SHARE = 0.6


def activation_bytes(net: Net, shapes: Shapes) -> int:
    """Bytes that the backward pass of one clip of `shapes` keeps.

    Two clips are computed, but of towers, which see many frames: for meta tensors, which have no
    values, torch imports its compiler, which takes longer (1.6 s of processor time). The network
    and random numbers stay as they are.
    """
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        kept.append(tensor)  # a tensor that is not kept would give its place to the next
        return tensor

    kept: list[torch.Tensor] = []
    if isinstance(net, TowersNet):
        net = copy.deepcopy(net).to("meta")
    device = next(net.parameters()).device
    weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    with (
        torch.random.fork_rng(devices=()),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        net(*(torch.zeros(2, *shape, device=device) for shape in shapes))
    for name, value in net.named_buffers():  # batch statistics have seen zeros
        value.copy_(buffers[name])
    return sum(size for key, size in saved.items() if key not in weights) // 2


def fitting_micro_batch(
    net: Net, shapes: Shapes, share: int, device: torch.device, *, bf16: bool
) -> int:
    """The most clips of `shapes` in a pass, at most `share`, that `device` has memory for.

    On a CUDA device by trying; on a CPU by what the tensors take. The halves of `share` are tried
    in turn. UsageError where not even one fits.
    """
    if device.type == "cuda":
        return _try_micro_batch(net, shapes, share, device, bf16=bf16)
    free = SHARE * _free_bytes() - 4 * COPIES * count_parameters(net)
    each = 2 * activation_bytes(net, shapes)  # activations and their gradients
    size = share
    while size > 1 and size * each > free:
        size = -(-size // 2)
    if size * each > free:
        raise UsageError(
            f"{net.name}: one clip of {_text(shapes)} needs {each / 2**30:.1f} GB beside the "
            f"weights, {max(free, 0) / 2**30:.1f} GB are free: take a smaller network or crop"
        )
    return size


def _try_micro_batch(
    net: Net, shapes: Shapes, share: int, device: torch.device, *, bf16: bool
) -> int:
    state = torch.cuda.get_rng_state(device)
    momentum = [torch.zeros_like(parameter) for parameter in net.parameters()]
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    size = share
    try:
        while True:
            try:
                with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                    inputs = (torch.zeros(size, *shape, device=device) for shape in shapes)
                    loss = net(*inputs).sum()
                # What the inputs of the next pass are made of and are meanwhile
                ahead = [torch.empty(2, size, *shape, device=device) for shape in shapes]
                loss.backward()
                del ahead
                torch.cuda.synchronize(device)
                return size
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise UsageError(
                        f"{net.name}: not even one clip of {_text(shapes)} fits on {device}: "
                        "take a smaller network or crop"
                    ) from error
            size = -(-size // 2)
            torch.cuda.empty_cache()
    finally:
        del momentum
        net.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.set_rng_state(state, device)
        for name, value in net.named_buffers():  # batch statistics have seen zeros
            value.copy_(buffers[name])


def _text(shapes: Shapes) -> str:
    return " and ".join(map(str, shapes))


def _free_bytes() -> int:
    """Bytes of memory that this machine can still give; what a container allows, if it is less."""
    free = free_bytes()
    if free is None:
        raise UsageError("the free memory of this system is not known: give --micro-batch")
    return free
