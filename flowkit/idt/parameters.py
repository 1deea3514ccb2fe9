"""The parameters of improved dense trajectories, with the defaults of the authors' program."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from flowkit.errors import UsageError
from flowkit.flow.method import parameter
from flowkit.flow.parameters import MATCHES, Matches


@dataclass(frozen=True)
class Features:
    """What linear SVMs are trained on; the stream of their scores, and the vectors' folder."""

    text: str
    stream: str
    folder: str


FEATURES = {
    "fisher": Features("Fisher vectors of trajectories (flowkit fisher)", "idt", "fisher"),
    "hmax": Features("the mean of the C2 vectors of a video's flow", "hmax", "hmax"),
    "hmax-c3": Features("C3 of these, which looks at 7 frames at once", "hmax-c3", "hmax"),
}


@dataclass(frozen=True)
class TrackParameters:
    """What identifies a computation of tracks: every number of the method, and its matches.

    Wang & Schmid, "Action Recognition with Improved Trajectories" (ICCV 2013, doi
    10.1109/ICCV.2013.441), with the values of the authors' program. `matches` are the points by
    which the camera's motion is found: along the flow, those and SIFT's, or none (no correction).
    The authors' program adds SURF's, which no OpenCV from PyPI contains.
    """

    matches: Matches = "flow"
    track_length: int = parameter(15, "Steps of a track; it has a point more.", at_least=1)
    sampling: int = parameter(5, "Distance of new points in px, at every scale.", at_least=1)
    patch: int = parameter(32, "Side of the window around a point in px.", at_least=2)
    cells: int = parameter(2, "Cells of the window along x and along y.", at_least=1)
    time_cells: int = parameter(3, "Cells of a track along time.", at_least=1)
    bins: int = parameter(8, "Directions of a histogram; HOF has a bin more.", at_least=2)
    scales: int = parameter(8, "Scales at most, each smaller by the root of 2.", at_least=1)
    quality: float = parameter(
        0.001, "Least eigenvalue of a new point against the frame's largest.", at_least=0
    )
    gap: int = parameter(1, "Frames between samplings of new points.", at_least=1)
    epsilon: float = parameter(0.05, "Added to every bin of a histogram.", at_least=1e-6)
    zero_flow: float = parameter(
        0.4, "Displacement in px up to which HOF counts a pixel as standing still.", at_least=0
    )
    min_deviation: float = parameter(
        math.sqrt(3), "Least standard deviation of a track along x or y in px.", at_least=0
    )
    max_deviation: float = parameter(
        50.0, "Largest standard deviation of a track along x or y in px.", at_least=0
    )
    max_step: float = parameter(
        20.0, "Longest step in px, where it is over 0.7 of the track's length.", at_least=0
    )
    camera_step: float = parameter(
        1.0, "A track whose steps less the camera's motion are no longer, in px, is dropped.",
        at_least=0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            at_least = field.metadata.get("at_least")
            value = getattr(self, field.name)
            kinds = (int,) if isinstance(field.default, int) else (int, float)
            if at_least is not None and type(value) not in kinds:
                words = " or ".join(kind.__name__ for kind in kinds)
                raise UsageError(
                    f"trajectories: expected {field.name} as {words}, got {value!r:.60}"
                )
            if at_least is not None and not at_least <= value < math.inf:
                raise UsageError(
                    f"trajectories: expected {field.name} of at least {at_least}, got {value}"
                )
        if self.matches not in MATCHES:
            raise UsageError(f"expected matches of {', '.join(MATCHES)}, got {self.matches!r}")
        for whole, part in (("track_length", "time_cells"), ("patch", "cells")):
            if getattr(self, whole) % getattr(self, part):
                raise UsageError(
                    f"trajectories: expected {whole} to be a multiple of {part}, got "
                    f"{getattr(self, whole)} and {getattr(self, part)}"
                )

    @property
    def planes(self) -> dict[str, int]:
        """Bins of a cell by descriptor, in the order of the columns."""
        return {"hog": self.bins, "hof": self.bins + 1, "mbhx": self.bins, "mbhy": self.bins}

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of a track by descriptor: trajectory 30, hog 96, hof 108, mbhx 96, mbhy 96."""
        cells = self.cells**2 * self.time_cells
        return {
            "trajectory": 2 * self.track_length,
            **{name: cells * bins for name, bins in self.planes.items()},
        }
