"""Gradient descent, held to torch.optim's."""

import pytest
import torch
from torch import nn

from flowkit.training.descent import Descent, Group


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("decay", [5e-4, 0.0])
def test_updates_are_those_of_torchs_optimizer_bit_for_bit(momentum, decay):
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(7), torch.randn(2)]
    own, other = ([nn.Parameter(one.clone()) for one in start] for _ in range(2))
    descent = Descent([Group(own[:2], 0.2, decay), Group(own[2:], 1.0, 0.1)], momentum)
    groups = [
        {"params": other[:2], "share": 0.2},
        {"params": other[2:], "share": 1.0, "weight_decay": 0.1},
    ]
    expected = torch.optim.SGD(groups, 1.0, momentum=momentum, weight_decay=decay)
    for step in range(4):
        rate, gradients = 0.1 / (step + 1), [torch.randn_like(one) for one in start]
        for some in (own, other):
            for place, gradient in enumerate(gradients):
                some[place].grad = None if place == 1 and step < 2 else gradient.clone()
        for group in expected.param_groups:
            group["lr"] = rate * group["share"]
        expected.step()
        descent.step(rate)
        assert all(torch.equal(one, two) for one, two in zip(own, other, strict=True))
    buffers = {place: expected.state[one].get("momentum_buffer") for place, one in enumerate(other)}
    for place, one in enumerate(own):
        found = descent.momentum.get(one)
        assert (found is None) == (buffers[place] is None) == (momentum == 0)
        assert found is None or torch.equal(found, buffers[place])
    descent.clear()
    assert all(one.grad is None for one in own)


@pytest.mark.parametrize("decay", [5e-4, 0.0])
def test_rmsprop_is_torchs_with_the_numbers_of_keras(decay):
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(7), torch.randn(2)]
    own, other = ([nn.Parameter(one.clone()) for one in start] for _ in range(2))
    descent = Descent([Group(own[:2], 1.0, decay), Group(own[2:], 0.5, 0.0)], 0.9, squares=True)
    groups = [
        {"params": other[:2], "lr": 1e-3},
        {"params": other[2:], "lr": 5e-4, "weight_decay": 0.0},
    ]
    expected = torch.optim.RMSprop(groups, alpha=0.9, eps=1e-7, weight_decay=decay)
    for step in range(4):
        gradients = [torch.randn_like(one) for one in start]
        for some in (own, other):
            for place, gradient in enumerate(gradients):
                some[place].grad = None if place == 1 and step < 2 else gradient.clone()
        expected.step()
        descent.step(1e-3)
        assert all(torch.equal(one, two) for one, two in zip(own, other, strict=True))
    for one, two in zip(own, other, strict=True):
        assert torch.equal(descent.momentum[one], expected.state[two]["square_avg"])
