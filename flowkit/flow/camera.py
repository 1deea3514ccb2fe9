"""The camera's motion between two frames: matched points, a homography, the second frame warped."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from flowkit._cv2 import cv2
from flowkit.flow.parameters import Matches

CORNERS = 1000  # most corners in a frame
CORNER_QUALITY = 0.001  # least eigenvalue against the frame's largest
CORNER_DISTANCE = 3.0  # px between two corners
SIFT_WINDOW = 25.0  # px along x and along y within which keypoints are matched
LEAST_MATCHES, LEAST_INLIERS = 51, 26  # fewest of each for a homography to be believed
INLIER = 1.0  # px
MARGIN = 5.0  # px inside the frame that a warped pixel must come from


class Keypoints(NamedTuple):
    """Points in px, float32 (N, 2) as x, y, and their SIFT descriptors, float32 (N, 128)."""

    points: np.ndarray
    descriptors: np.ndarray


def find_keypoints(gray: np.ndarray, mask: np.ndarray | None) -> Keypoints:
    """SIFT's keypoints of a frame, uint8 (H, W), where the mask, of the same kind, is not zero."""
    keypoints, descriptors = cv2.SIFT_create().detectAndCompute(gray, mask)
    if descriptors is None:
        return Keypoints(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    return Keypoints(np.array([one.pt for one in keypoints], np.float32), descriptors)


def find_corners(gray: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The strongest corners of a frame, uint8 (H, W), strongest first: float32 (N, 2), px.

    The points of `cv2.goodFeaturesToTrack` with blocks of 3 x 3 px, in less time.
    """
    kernels = _compiled()
    eigenvalues = cv2.cornerMinEigenVal(gray, 3)
    allowed = np.empty((0, 0), np.uint8) if mask is None else mask
    largest = (eigenvalues if mask is None else eigenvalues[mask != 0]).max(initial=0)
    limit = np.float32(float(largest) * CORNER_QUALITY)
    keys = np.empty(gray.size, np.uint64)
    keys = np.sort(keys[: kernels.peaks(eigenvalues, allowed, limit, keys)])
    corners = np.empty((CORNERS, 2), np.float32)
    near = np.zeros(gray.shape, np.bool_)
    return corners[: kernels.keep_apart(keys, gray.shape[1], near, CORNER_DISTANCE, corners)]


def matches_along_flow(
    previous: np.ndarray, field: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the previous frame and where the field leads them: float32 (N, 2), px, both.

    field: float32 (2, H, W), px. A corner's match starts from the nearest pixel, as in the authors'
    program.
    """
    corners = find_corners(previous, mask)
    height, width = previous.shape
    pixels = np.rint(corners).astype(int).clip(0, (width - 1, height - 1))
    return corners, (pixels + field[:, pixels[:, 1], pixels[:, 0]].T).astype(np.float32)


def matches_of_keypoints(previous: Keypoints, current: Keypoints) -> tuple[np.ndarray, np.ndarray]:
    """Each current keypoint and the previous one near it that is most like it: (N, 2), px, both."""
    if not len(previous.points) or not len(current.points):
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    away = np.abs(current.points[:, None] - previous.points)  # -> (current, previous, 2)
    mask = (away < SIFT_WINDOW).all(axis=2).astype(np.uint8)
    pairs = cv2.BFMatcher(cv2.NORM_L2).match(current.descriptors, previous.descriptors, mask)
    before = previous.points[[pair.trainIdx for pair in pairs]].reshape(-1, 2)
    return before, current.points[[pair.queryIdx for pair in pairs]].reshape(-1, 2)


def find_homography(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """The homography that takes points `before` to points `after`, float64 (3, 3).

    By RANSAC, the same for the same points; None where too few agree.
    """
    if len(before) < LEAST_MATCHES:
        return None
    homography, inliers = cv2.findHomography(before, after, cv2.RANSAC, INLIER)
    if homography is None or np.count_nonzero(inliers) < LEAST_INLIERS:
        return None
    return homography


def warp_back(previous: np.ndarray, current: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """The current frame as the previous camera would see it, uint8 (H, W) or (H, W, 3) as it is.

    Pixels that do not come from well inside the current frame are the previous frame's.
    """
    height, width = current.shape[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(current, homography, (width, height), flags=flags)
    channels = current.size // (height * width)
    rows = [np.ascontiguousarray(frame).reshape(height, -1) for frame in (warped, previous)]
    _compiled().keep_previous(*rows, channels, homography, MARGIN)
    return warped


def warm_up() -> None:
    """Compile, or load from disk, what following runs: once in a parent, before its workers."""
    _compiled()


def _compiled() -> ModuleType:
    from flowkit.flow import camera_kernels as kernels
    from flowkit.flow.compiled import ensure_compiled

    for name, kind in kernels.ENTRIES.items():
        ensure_compiled(getattr(kernels, name), kind, title=f"the camera's {name}", seconds=1)
    return kernels


class Camera:
    """Follows the camera through a video; holds SIFT's keypoints of the latest frame."""

    def __init__(self, matches: Matches) -> None:
        self.matches = matches
        self._keypoints: Keypoints | None = None

    def begin(self, gray: np.ndarray, mask: np.ndarray | None) -> None:
        """Take the first frame."""
        if self.matches == "flow+sift":
            self._keypoints = find_keypoints(gray, mask)

    def follow(
        self, previous: np.ndarray, current: np.ndarray, field: np.ndarray, mask: np.ndarray | None
    ) -> np.ndarray:
        """The homography from the previous frame to the current one, whose flow is `field`.

        The identity where it is not found.
        The current frame's mask keeps corners and keypoints off people, as in the authors' program.
        """
        if self.matches == "none":
            return np.eye(3)
        before, after = matches_along_flow(previous, field, mask)
        if self._keypoints is not None:
            current_keypoints = find_keypoints(current, mask)
            more = matches_of_keypoints(self._keypoints, current_keypoints)
            before, after = np.concatenate([before, more[0]]), np.concatenate([after, more[1]])
            self._keypoints = current_keypoints
        found = find_homography(before, after)
        return np.eye(3) if found is None else found
