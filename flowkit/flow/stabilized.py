"""Flow less the camera's motion: a second flow, to the second frame as the first camera sees it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from flowkit.errors import UsageError
from flowkit.flow.pairs import Pair, to_gray
from flowkit.flow.parameters import MATCHES, Matches

if TYPE_CHECKING:
    import numpy as np

Motion = Literal["homography"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)
CAMERA_MATCHES: tuple[Matches, ...] = tuple(one for one in MATCHES if one != "none")
FRAMES_KEPT = 8  # whose keypoints are kept: pairs of a video come frame after frame


@dataclass(frozen=True)
class Stabilization:
    """How the camera's motion is told from the flow of two frames; its fields identify it.

    `name` is what it is taken for: a homography, the motion of a plane or of all that a camera
    sees that only turns. `matches` are the points that it is fitted to: corners and where the flow
    leads them, or those and SIFT's. UsageError for a value that there is not.
    """

    name: Motion = "homography"
    matches: Matches = "flow"

    def __post_init__(self) -> None:
        for field, there in (("name", MOTIONS), ("matches", CAMERA_MATCHES)):
            if (value := getattr(self, field)) not in there:
                raise UsageError(
                    f"stabilize: expected {field} of {', '.join(there)}, got {value!r}"
                )

    def identity(self) -> dict[str, Any]:
        """What the sidecar keeps under "stabilize"; JSON values."""
        return dataclasses.asdict(self)


class StabilizedFlow:
    """The flow of pairs less the camera's motion: "warped flow" (Wang et al. 2016, TSN).

    `compute` gives the float32 field (H, W, 2) of each pair, as a method's ``fields`` does; it is
    asked twice for each, and may give the second time whatever is stored. For a pair whose camera
    is not found, since too few matches agree, that is the plain flow; `plain` counts these.
    """

    def __init__(
        self, compute: Callable[[Iterator[Pair]], Iterable[Any]], stabilization: Stabilization
    ) -> None:
        self.compute = compute
        self.by_sift = stabilization.matches == "flow+sift"
        self.plain = 0
        self._keypoints: deque[tuple[np.ndarray, Any]] = deque(maxlen=FRAMES_KEPT)

    def fields(self, pairs: Iterable[Pair]) -> Iterator[Any]:
        """What `compute` gives for each pair, its second frame warped, in order and lazily."""
        return iter(self.compute(self._warped(pairs)))

    def _warped(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """The pairs, the second frame of each as the first one's camera would see it."""
        from flowkit.flow.camera import warp_back

        ahead: deque[Pair] = deque()  # pairs whose flow is being computed

        def noted() -> Iterator[Pair]:
            for pair in pairs:
                ahead.append(pair)
                yield pair

        for field in self.compute(noted()):
            first, second = ahead.popleft()
            homography = self._find(first, second, field)
            if homography is None:
                self.plain += 1
                yield first, second
            else:
                yield first, warp_back(first, second, homography)

    def _find(self, first: np.ndarray, second: np.ndarray, field: np.ndarray) -> np.ndarray | None:
        """The camera's motion between two frames whose flow is `field`; None where not found."""
        import numpy as np

        from flowkit.flow import camera

        before, after = camera.matches_along_flow(to_gray(first), field.transpose(2, 0, 1), None)
        if self.by_sift:
            more = camera.matches_of_keypoints(
                self._keypoints_of(first), self._keypoints_of(second)
            )
            before, after = np.concatenate([before, more[0]]), np.concatenate([after, more[1]])
        return camera.find_homography(before, after)

    def _keypoints_of(self, frame: np.ndarray) -> Any:
        """SIFT's keypoints of a frame, which is known by its identity."""
        from flowkit.flow.camera import find_keypoints

        for known, keypoints in self._keypoints:
            if known is frame:
                return keypoints
        found = find_keypoints(to_gray(frame), None)
        self._keypoints.append((frame, found))
        return found
