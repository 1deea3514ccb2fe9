"""How a video is asked: at which moments, by which crops, and what is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from flowkit.data.clips import MOMENTS, view_set
from flowkit.data.moments import TOWER_MOMENTS
from flowkit.errors import UsageError
from flowkit.networks.table import OVER_TIME_MOMENTS, net_facts

if TYPE_CHECKING:
    from flowkit.networks.checkpoints import Checkpoint

Average = Literal["softmax", "logits", "vote"]
AVERAGES: tuple[Average, ...] = get_args(Average)


@dataclass(frozen=True)
class TestViews:
    """How a video is asked: moments of equal spacing, crops of each, and what is averaged.

    `crops` is a name of `clips.VIEWS`: "ten" (corners and center, and their flips) or "center".
    `average`: the mean of the views' "softmax" scores or of their "logits", or "vote", the share of
    moments whose most likely class, by the mean softmax of their views, each one is.
    """

    __test__ = False  # no test of pytest's

    moments: int = MOMENTS
    crops: str = "ten"
    average: Average = "softmax"

    def __post_init__(self) -> None:
        if self.moments < 1:
            raise UsageError(f"expected at least one moment, got {self.moments}")
        view_set(self.crops)
        if self.average not in AVERAGES:
            raise UsageError(f"expected an average of {', '.join(AVERAGES)}, got {self.average!r}")

    @property
    def kind(self) -> Literal["softmax", "logits"]:
        """What scores of these views are, as `flowkit.scores.files.Scores` tells them apart."""
        return "logits" if self.average == "logits" else "softmax"


def default_views(checkpoint: Checkpoint) -> TestViews:
    """How a video is asked unless told otherwise: as in the paper of its network."""
    if checkpoint.towers is not None:
        return TestViews(TOWER_MOMENTS, "flip", "logits")
    if net_facts(checkpoint.net).over_time:
        return TestViews(OVER_TIME_MOMENTS, "center", "logits")
    return TestViews()
