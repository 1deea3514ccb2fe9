"""Gradient descent with momentum, or RMSprop: the computation of torch.optim without its classes.

The first optimizer of a process imports torch._dynamo, which takes 1.6 s of processor time, as long
as torch itself does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

EPSILON = 1e-7  # beside the root of the mean square, as in Keras


class Group(NamedTuple):
    """Parameters that have a share of the learning rate, and their weight decay."""

    parameters: Sequence[torch.Tensor]
    share: float
    weight_decay: float


class Descent:
    """Updates groups of parameters by their gradients.

    `momentum` holds the buffer of each parameter that has been updated, `factor` what is left of it
    at every step: the sum of gradients, or with `squares` the mean of their squares, of RMSprop.
    """

    def __init__(self, groups: Sequence[Group], factor: float, *, squares: bool = False) -> None:
        self.groups, self.factor, self.squares = groups, factor, squares
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
            grads = [one.grad for one in moved if one.grad is not None]
            if self.squares:
                self._divide(group, moved, grads, rate)
                continue
            buffers = [self.momentum.get(one) for one in moved]
            sgd(
                moved,
                grads,
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

    def _divide(
        self,
        group: Group,
        moved: list[torch.Tensor],
        grads: list[torch.Tensor],
        rate: float,
    ) -> None:
        """RMSprop's update of a group's parameters."""
        for one in moved:
            if one not in self.momentum:
                self.momentum[one] = torch.zeros_like(one)
        rmsprop(
            moved,
            grads,
            [self.momentum[one] for one in moved],
            [],
            [],
            [torch.zeros(()) for _ in moved],  # their number of steps, which plain RMSprop ignores
            lr=rate * group.share,
            alpha=self.factor,
            eps=EPSILON,
            weight_decay=group.weight_decay,
            momentum=0.0,
            centered=False,
        )
