"""What changes a training clip at random: its crop, its flip, and the colors of its frame.

Everything is drawn once a clip, so both streams and every field of a stack see one crop and one
flip. Flow is never treated as color: the jitter is for frames alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from flowkit.data.clips import (
    CROP,
    SCALES,
    SHORT_SIDE,
    View,
    center_view,
    corner_view,
    jittered_view,
    random_view,
)
from flowkit.errors import UsageError

Crops = Literal["random", "corner", "multi-scale", "jittered", "center"]
CROPS: tuple[Crops, ...] = get_args(Crops)
# Principal components of the RGB values, in 0..1, of ImageNet's pixels: their variances, and their
# directions, a column each (Krizhevsky et al. 2012, section 4.1, which scales by the variances).
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_DIRECTIONS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
RGB_MEAN = np.array(
    [0.485, 0.456, 0.406], np.float32
)  # principal components of ImageNet's colors, as torchvision's weights expect
RGB_STD = np.array([0.229, 0.224, 0.225], np.float32)


class Draw(NamedTuple):
    """One clip's random changes: its view, and what is added to the R, G and B of its frame."""

    view: View
    color: np.ndarray  # float32 (3,), of values in 0..1


@dataclass(frozen=True)
class Augmentation:
    """How training clips are changed at random.

    `crops`: "random" from anywhere in the frame, "corner" (four corners and the center),
    "multi-scale" (corner crops of sides 1, 7/8, 3/4 and 21/32 of the short side), "jittered" (near
    the border, of sides that differ by up to 25%), "center". `flip` mirrors half of the clips:
    leave it out where left and right tell classes apart. `jitter` is the deviation of the color
    change along each principal component, 0 for none. Frames are rescaled to `short_side` px first;
    `crop` px is the side of a crop.
    """

    crops: Crops = "random"
    flip: bool = True
    jitter: float = 0.1
    crop: int = CROP
    short_side: int = SHORT_SIDE

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise UsageError(f"expected crops of {', '.join(CROPS)}, got {self.crops!r}")
        if not 0 < self.crop <= self.short_side:
            raise UsageError(
                f"expected a crop within the short side of {self.short_side} px, got {self.crop}"
            )
        if not 0 <= self.jitter < float("inf"):
            raise UsageError(f"expected a jitter of at least 0, got {self.jitter}")

    def draw(self, size: tuple[int, int], random: np.random.Generator) -> Draw:
        """The changes of one clip of a video of `size` (H, W)."""
        short_side = self.short_side
        match self.crops:
            case "random":
                view = random_view(size, random, crop=self.crop, short_side=short_side)
            case "corner":
                view = corner_view(size, random, sides=(self.crop,), short_side=short_side)
            case "multi-scale":
                sides = [side * short_side // SCALES[0] for side in SCALES]
                view = corner_view(size, random, sides=sides, short_side=short_side)
            case "jittered":
                view = jittered_view(size, random, crop=self.crop, short_side=short_side)
            case "center":
                view = center_view(size, crop=self.crop, short_side=short_side)
                view = replace(view, flip=bool(random.integers(2)))
        weights = random.normal(0, 1, 3) * self.jitter * PCA_VALUES
        color = (PCA_DIRECTIONS @ weights).astype(np.float32)
        return Draw(view if self.flip else replace(view, flip=False), color)


def frame_input(
    frame: np.ndarray, view: View, size: tuple[int, int], color: np.ndarray | None = None
) -> np.ndarray:
    """A frame as the spatial stream takes it: uint8 (H, W, 3) BGR -> float32 (3, h, w) RGB.

    Rescaled to the view's frame, cropped, rescaled to `size` (H, W), flipped; `color` is added to
    its values in 0..1, which are then normalized by ImageNet's mean and deviation.
    """
    cut = _resize(frame, view.frame)
    cut = cut[view.top : view.top + view.height, view.left : view.left + view.width]
    cut = _resize(cut, size)
    cut = cut[:, ::-1] if view.flip else cut
    rgb = cut[..., ::-1].transpose(2, 0, 1) * np.float32(1 / 255)  # (h, w, BGR) -> (RGB, h, w)
    if color is not None:
        rgb += color[:, None, None]
    rgb -= RGB_MEAN[:, None, None]
    rgb /= RGB_STD[:, None, None]
    return np.ascontiguousarray(rgb)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from flowkit._cv2 import cv2

    if image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=way)
