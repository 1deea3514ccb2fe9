"""Fresh weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

HE_GAIN = 2.0  # variance of fresh weights times their number of inputs (He et al. 2015)
Layer = TypeVar("Layer", bound=nn.Module)


def fresh_sequence(layers: Mapping[str, nn.Module], gain: float = HE_GAIN) -> nn.Sequential:
    """Layers one after the other by their names, with the weights of `init_normal`."""
    sequence = nn.Sequential(OrderedDict(layers))
    for layer in sequence.modules():
        init_normal(layer, gain)
    return sequence


def undrawn(kind: type[Layer], *sizes: int) -> Layer:
    """A layer of a kind whose weights have no values yet, for `draw_normal` to give.

    torch draws some itself first, which for the 2014 network takes longer than drawing its own.
    """
    layer = kind(*sizes, device="meta")
    for name, weights in [*layer.named_parameters(recurse=False)]:
        setattr(layer, name, nn.Parameter(torch.empty(weights.shape)))
    return layer


def draw_normal(weights: torch.Tensor, deviation: float) -> None:
    """Fill weights with normal numbers of mean 0.

    A meta tensor has none, and is left alone: torch would import its compiler, which takes 1.6 s of
    processor time.
    """
    if not weights.is_meta:
        nn.init.normal_(weights, std=deviation)


def init_normal(layer: nn.Module, gain: float = HE_GAIN) -> None:
    """Normal weights of variance gain / inputs and no bias, where a layer has weights.

    The papers of 2014 state neither.
    """
    if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
        draw_normal(layer.weight, math.sqrt(gain / layer.weight[0].numel()))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
