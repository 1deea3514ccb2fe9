"""How a video is asked: at which moments, by which crops, and what is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flowkit.data.clips import MOMENTS, view_set
from flowkit.data.moments import TOWER_MOMENTS
from flowkit.errors import UsageError

if TYPE_CHECKING:
    from flowkit.networks.checkpoints import Checkpoint


@dataclass(frozen=True)
class TestViews:
    """How a video is asked: moments of equal spacing, crops of each, and what is averaged.

    `crops` is a name of `clips.VIEWS`: "ten" (corners and center, and their flips) or "center".
    `average`: the mean of the
    views' "softmax" scores or of their "logits".
    """

    __test__ = False  # no test of pytest's

    moments: int = MOMENTS
    crops: str = "ten"
    average: Literal["softmax", "logits"] = "softmax"

    def __post_init__(self) -> None:
        if self.moments < 1:
            raise UsageError(f"expected at least one moment, got {self.moments}")
        view_set(self.crops)
        if self.average not in ("softmax", "logits"):
            raise UsageError(f"expected an average of softmax or logits, got {self.average!r}")


def default_views(checkpoint: Checkpoint) -> TestViews:
    """How a video is asked unless told otherwise: as in the paper of 2014, or of 2016."""
    if checkpoint.towers is None:
        return TestViews()
    return TestViews(TOWER_MOMENTS, "flip", "logits")
