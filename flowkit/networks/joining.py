"""How two towers become one network (2016): where, by what, over how many moments; no torch.

Feichtenhofer, Pinz & Zisserman 2016 (arXiv:1604.06573). docs/towers.md says what is taken from the
paper, what from its authors' program, and what is flowkit's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from flowkit.data.moments import Moments
from flowkit.errors import UsageError
from flowkit.networks.table import NETS, Seams, net_facts

JOINS = {
    "sum": "their sum",
    "max": "the larger of each two",
    "cat": "both, for a next layer of twice the inputs",
    "conv": "a learned 1x1 filter on both, at first their sum",
    "bilinear": "products of all pairs of channels, for a linear SVM",
}
OVER_TIME = {
    "mean": "logits of all moments are averaged",
    "pool3d": "the pooling after relu5 takes all moments",
    "conv3d": "a learned 3x3x3 filter joins the towers, then as pool3d",
}
KEEPS = {
    "none": "the joined maps alone go on",
    "temporal": "the temporal tower goes on beside them, with its own loss",
}
SEAMS = ("relu2", "relu3", "relu4", "relu5")
LOGITS = "full8"
LOGIT_JOINS = ("sum", "max", "conv")


@dataclass(frozen=True)
class Towers:
    """How a spatial and a temporal tower are joined; UsageError for what cannot be.

    `at` is one of SEAMS, with "full8" beside it where the logits are joined, too. `join` is a name
    of JOINS, `over_time` of OVER_TIME, `keep` of KEEPS. A sample is `frames` moments, `gap` frames
    apart: from the first number to the second, drawn for each sample in training.
    """

    join: str = "conv"
    at: tuple[str, ...] = ("relu5",)
    frames: int = 1
    gap: tuple[int, int] = (1, 10)
    over_time: str = "mean"
    keep: str = "none"

    def __post_init__(self) -> None:
        for name, choices in (("join", JOINS), ("over_time", OVER_TIME), ("keep", KEEPS)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"expected {name} of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        _ = self.moments  # the property checks them
        self._check_places()
        if self.over_time != "mean" and self.frames < 2:
            raise UsageError(f"over time {self.over_time} takes two frames or more (--frames)")
        if self.over_time == "conv3d" and self.join != "conv":
            raise UsageError(f"over time conv3d is a join itself: join conv, not {self.join}")
        plain = (("relu5",), 1, "none")
        if self.join == "bilinear" and (self.at, self.frames, self.keep) != plain:
            raise UsageError(
                "a bilinear join is at relu5, of single frames, and no tower goes on: leave --at, "
                "--frames and --keep out"
            )

    def _check_places(self) -> None:
        seams = [place for place in self.at if place in SEAMS]
        if len(seams) != 1 or not {*seams, LOGITS} >= set(self.at) or len(self.at) > 2:
            raise UsageError(
                f"expected towers joined at one of {', '.join(SEAMS)}, and at {LOGITS} beside it "
                f"where wanted, got {', '.join(self.at) or 'none'}"
            )
        if LOGITS in self.at and (self.frames > 1 or self.keep == "none"):
            raise UsageError(
                f"a join at {LOGITS}, too, needs the temporal tower's logits (--keep temporal) of "
                "single frames (--frames 1)"
            )
        if LOGITS in self.at and self.join not in LOGIT_JOINS:
            raise UsageError(
                f"logits are joined by {', '.join(LOGIT_JOINS)} at {LOGITS}, not by {self.join}"
            )

    @property
    def seam(self) -> str:
        """The one of SEAMS."""
        return next(place for place in self.at if place in SEAMS)

    @property
    def joins_logits(self) -> bool:
        """Whether the logits are joined, too."""
        return LOGITS in self.at

    @property
    def about(self) -> str:
        """In words: "conv at relu5", with what is not the default."""
        text = f"{self.join} at {' and '.join(self.at)}"
        if self.over_time != "mean":
            text += f", {self.over_time}"
        if self.frames > 1:
            text += f" over {self.frames} frames"
        return text + (", temporal kept" if self.keep == "temporal" else "")

    @property
    def moments(self) -> Moments:
        """The moments of a sample."""
        return Moments(self.frames, *self.gap)


def net_names(net: str) -> tuple[str, str]:
    """The spatial and the temporal tower's network of "NET+NET"; UsageError for other names."""
    names = net.split("+")
    if len(names) != 2:
        raise UsageError(f"expected the networks of two towers, SPATIAL+TEMPORAL, got {net!r}")
    return names[0], names[1]


def tower_seams(net: str, seam: str) -> tuple[Seams, Seams]:
    """The seams of both towers of "NET+NET"; UsageError where they cannot be joined at `seam`."""
    names = net_names(net)
    found = []
    for name in names:
        seams = net_facts(name).seams
        if seams is None:
            there = ", ".join(one for one, facts in NETS.items() if facts.seams)
            raise UsageError(f"{name} cannot be cut into a tower: those that can are {there}")
        found.append(seams)
    if names[0] != names[1]:
        if seam != "relu5":
            raise UsageError(
                f"towers of two networks, {names[0]} and {names[1]}, are joined at relu5 only, "
                f"not at {seam}"
            )
        least, largest = net_facts(names[0]).sides
        if least == largest:
            raise UsageError(
                f"a spatial tower of {names[0]} takes its own size of maps alone: make the "
                f"temporal one {names[0]}, too, or the spatial one {names[1]}"
            )
    return found[0], found[1]


def towers_from_json(data: dict[str, object]) -> Towers:
    """The towers in a checkpoint; TypeError or UsageError for anything else."""
    known = {field.name for field in fields(Towers)}
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return Towers(**{name: value for name, value in {**data, **lists}.items() if name in known})  # type: ignore[arg-type]
