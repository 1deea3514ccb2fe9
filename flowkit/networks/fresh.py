"""Fresh weights."""

from __future__ import annotations

import torch
from torch import nn


def draw_normal(weights: torch.Tensor, deviation: float) -> None:
    """Fill weights with normal numbers of mean 0.

    A meta tensor has none, and is left alone: torch would import its compiler, which takes 1.6 s of
    processor time.
    """
    if not weights.is_meta:
        nn.init.normal_(weights, std=deviation)
