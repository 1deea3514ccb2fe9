"""A series of fields: which frames of a video each moves to which; no NumPy, for ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Series:
    """One sequence of fields in a record: from every frame t to t + step, or back."""

    direction: Direction
    step: int
