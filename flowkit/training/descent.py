"""Gradient descent with momentum: the computation of torch.optim.SGD without its class.

The first optimizer of a process imports torch._dynamo, which takes 1.6 s of processor time, as long
as torch itself does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.optim.sgd import sgd


class Group(NamedTuple):
    """Parameters that have a share of the learning rate, and their weight decay."""

    parameters: Sequence[torch.Tensor]
    share: float
    weight_decay: float


class Descent:
    """Updates groups of parameters by their gradients.

    `momentum` holds the buffer of each parameter that has been updated, `factor` what is left of it
    at every step.
    """

    def __init__(self, groups: Sequence[Group], factor: float) -> None:
        self.groups, self.factor = groups, factor
        self.momentum: dict[torch.Tensor, torch.Tensor] = {}

    def clear(self) -> None:
        """Drop all gradients."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters that have a gradient."""
        for group in self.groups:
            moved = [one for one in group.parameters if one.grad is not None]
            buffers = [self.momentum.get(one) for one in moved]
            sgd(
                moved,
                [one.grad for one in moved if one.grad is not None],
                buffers,
                weight_decay=group.weight_decay,
                momentum=self.factor,
                lr=rate * group.share,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            found = zip(moved, buffers, strict=True)
            self.momentum |= {one: buffer for one, buffer in found if buffer is not None}
