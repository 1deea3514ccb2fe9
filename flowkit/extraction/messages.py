"""What workers, flow processes and their parent tell each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowkit.flow.cuda.batches import Size
from flowkit.flow.method import FlowMethod
from flowkit.records.formats import Ranges

Computed = np.ndarray | tuple[np.ndarray, Ranges]  # a field, or planes uint8 (2, H, W) with ranges


Answer = list[tuple[int, Ranges | None]] | str  # numbers of pairs computed; or why one failed


@dataclass(frozen=True)
class Work:
    """What a flow process computes: fields, or planes under `bound` (None: their own ranges)."""

    method: FlowMethod
    quantized: bool
    bound: float | None


@dataclass
class Usage:
    """What a flow process did: seconds are from the first pair to the last result (`span_s`), and
    those of them in which it had a batch to work on; and its processor time within `span_s`.
    """

    pairs: int = 0
    batches: int = 0
    span_s: float = 0.0
    busy_s: float = 0.0
    processor_s: float = 0.0


@dataclass(frozen=True)
class Halved:
    """Memory ran out: batches now hold no more than so many pairs of frames of this size (H, W)."""

    pairs: int
    size: Size
