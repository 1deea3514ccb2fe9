"""Small real video files of known class and known motion, to try everything on without a download.

A class is a motion and a texture, ``spin_checks``: one frame shows the texture and never the
motion, the field shows the motion and hardly the texture, so that neither stream alone can tell all
classes apart and the two together can. No motion turns into another one under a horizontal flip
(``sideways`` goes left in one video and right in the next), so that training may flip.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowkit.errors import UsageError
from flowkit.video.writing import write_video

MOTIONS = ("up", "down", "sideways", "spin", "grow")
TEXTURES = ("stripes", "checks")
CLASSES = tuple(f"{motion}_{texture}" for motion in MOTIONS for texture in TEXTURES)

SIZES = ((120, 160), (180, 240), (240, 320))  # (H, W), by group: a size tells no class
FRAME_COUNTS = (24, 40)  # fewest and most
FPS = 25
CLIPS_PER_GROUP = 2  # clips of one group share their scene, as UCF-101's do
# Containers and codecs that the videos have in turn
FILES = (("mp4", "libx264"), ("avi", "mpeg4"), ("mp4", "mpeg4"), ("avi", "mjpeg"))
CANVAS = 512  # px, square: the largest frame at its farthest, fastest and smallest stays inside
SPEEDS = (1.0, 4.0)  # px per frame: translation, and the corners' motion is about as fast
SPINS = (0.010, 0.025)  # rad a frame
GROWTHS = (1.008, 1.020)  # factor a frame
WAVELENGTHS = (14.0, 26.0)  # px
TINTS = {"stripes": 2, "checks": 0}  # the BGR component that is strongest in the bright color


@dataclass(frozen=True)
class SyntheticVideo:
    """One video: what is seen, how it moves, and where `write_videos` put it."""

    name: str  # "v_spin_checks_g01_c02"
    class_name: str
    path: Path
    codec: str
    size: tuple[int, int]  # (H, W)
    frame_count: int
    transform: tuple[float, float, float, float, float, float]  # (a, b, e, c, d, f) by rows
    scene_seed: tuple[int, ...]

    def field(self) -> np.ndarray:
        """The true displacement field of every frame step, float32 (H, W, 2) in px.

        `transform` takes a point (x, y) measured from the picture's center in one frame to
        (a x + b y + e, c x + d y + f) in the next.
        """
        height, width = self.size
        y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
        a, b, e, c, d, f = self.transform
        return np.stack([a * x + b * y + e - x, c * x + d * y + f - y], axis=2).astype(np.float32)

    def frames(self) -> Iterator[np.ndarray]:
        """The frames before compression, uint8 (H, W, 3) BGR."""
        from flowkit._cv2 import cv2

        canvas = _canvas(self.class_name.partition("_")[2], np.random.default_rng(self.scene_seed))
        height, width = self.size
        step = np.array([*self.transform, 0, 0, 1]).reshape(3, 3)
        from_canvas = np.eye(3)  # center of the canvas at the center of the picture
        from_canvas[:2, 2] = (1 - CANVAS) / 2
        to_picture = np.eye(3)
        to_picture[:2, 2] = (width - 1) / 2, (height - 1) / 2
        for index in range(self.frame_count):
            # half-way through the video every motion shows its scene as it was painted, so that
            # `grow` looks neither coarser nor blurrier than the others on the whole
            moves = np.linalg.matrix_power(step, index - self.frame_count // 2)
            moved = to_picture @ moves @ from_canvas
            yield cv2.warpAffine(canvas, moved[:2], (width, height), flags=cv2.INTER_CUBIC)


def write_videos(
    folder: str | os.PathLike[str],
    *,
    videos_per_class: int = 4,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
) -> list[SyntheticVideo]:
    """Write ``folder/<class>/v_<class>_g01_c01.mp4`` ... and return what was written, in order.

    Files are .mp4 (H.264, MPEG-4) and .avi (MPEG-4, Motion JPEG) in turn, 25 frames/s, 24 to 40
    frames of 160x120 to 320x240. The same arguments give the same files. The two clips of a group
    show one scene at different speeds: keep a group on one side of a split.
    """
    if unknown := sorted(set(classes) - set(CLASSES)):
        raise UsageError(f"expected classes among {', '.join(CLASSES)}, got {', '.join(unknown)}")
    if videos_per_class < 1:
        raise UsageError(f"expected at least one video per class, got {videos_per_class}")
    videos = [
        _plan(Path(folder), class_name, index, seed)
        for class_name in classes
        for index in range(videos_per_class)
    ]
    for video in videos:
        video.path.parent.mkdir(parents=True, exist_ok=True)
        write_video(video.path, video.frames(), fps=FPS, codec=video.codec)
    return videos


def _plan(folder: Path, class_name: str, index: int, seed: int) -> SyntheticVideo:
    """Video `index` of a class: scene and direction by its group, speed and length by the clip."""
    motion = class_name.partition("_")[0]
    group, clip = divmod(index, CLIPS_PER_GROUP)
    number = CLASSES.index(class_name)
    sign = 1 - 2 * ((group + number) % 2)  # both signs where there are two groups
    amount = np.random.default_rng((seed, number, group, clip + 1))
    ending, codec = FILES[index % len(FILES)]
    name = f"v_{class_name}_g{group + 1:02d}_c{clip + 1:02d}"
    return SyntheticVideo(
        name=name,
        class_name=class_name,
        path=folder / class_name / f"{name}.{ending}",
        codec=codec,
        size=SIZES[group % len(SIZES)],
        frame_count=int(amount.integers(FRAME_COUNTS[0], FRAME_COUNTS[1], endpoint=True)),
        transform=_transform(motion, sign, amount),
        scene_seed=(seed, number, group),
    )


def _transform(
    motion: str, sign: int, amount: np.random.Generator
) -> tuple[float, float, float, float, float, float]:
    """One frame step of a motion, by rows, about the picture's center; x right, y down."""
    match motion:
        case "up":
            return 1, 0, 0, 0, 1, -amount.uniform(*SPEEDS)
        case "down":
            return 1, 0, 0, 0, 1, amount.uniform(*SPEEDS)
        case "sideways":
            return 1, 0, sign * amount.uniform(*SPEEDS), 0, 1, 0
        case "spin":
            angle = sign * amount.uniform(*SPINS)
            return math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle), 0
        case "grow":
            growth = amount.uniform(*GROWTHS)
            return growth, 0, 0, 0, growth, 0
    raise UsageError(f"expected a motion among {', '.join(MOTIONS)}, got {motion}")


def _canvas(texture: str, scene: np.random.Generator) -> np.ndarray:
    """The scene, uint8 (CANVAS, CANVAS, 3) BGR: two colors in a pattern turned at random.

    Stripes are rather red and checks rather blue, so that few scenes teach a network the texture.
    Cloudy noise lies over the pattern, for stripes alone do not show how they move along themselves
    (the aperture problem).
    """
    from flowkit._cv2 import cv2

    angle, phase = scene.uniform(0, 2 * math.pi, 2)
    wave = 2 * math.pi / scene.uniform(*WAVELENGTHS)
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
    along = np.sin(wave * (math.cos(angle) * x + math.sin(angle) * y) + phase)
    across = np.sin(wave * (math.cos(angle) * y - math.sin(angle) * x) + phase)
    pattern = np.tanh(3 * (along if texture == "stripes" else along * across))  # soft edges
    noise = scene.standard_normal((CANVAS, CANVAS), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 2.5)
    mixture = 0.5 + 0.28 * pattern + 0.14 * noise / noise.std()  # gray, about 0 to 1
    dark, bright = scene.uniform(20, 60, 3), scene.uniform(150, 190, 3)
    bright[TINTS[texture]] += 45
    colors = dark + np.clip(mixture, 0, 1)[..., None] * (bright - dark)  # (CANVAS, CANVAS, 3)
    return colors.round().astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a small set of videos of known motion.")
    parser.add_argument("folder", help="where to, by classes")
    parser.add_argument("--videos-per-class", type=int, default=4, help="two of a group")
    options = parser.parse_args()
    write_videos(options.folder, videos_per_class=options.videos_per_class)
