"""Flow that other tools wrote, opened as flow records once it is said what it is.

Planes in the folders of other tools do not say which px value a code stands for, which frame an
image is, or what comes first. So nothing is guessed: the caller names the layout and, where no
range is stored, the bound.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowkit._cv2 import cv2
from flowkit.errors import RecordError, UsageError
from flowkit.quantize import CODES, ZERO_CODE
from flowkit.records import Record, StoredSeries


@dataclass(frozen=True)
class Layout:
    """Where the files of one video lie, as printf templates from the video's folder.

    ``{video}`` is the folder's name. `planes` are alternatives of (x, y); the first that is there
    is taken. The first file of each kind has number `first`; frame 0 would have `frame_zero`.
    """

    planes: tuple[tuple[str, str], ...]
    images: str
    first: int = 1
    frame_zero: int = 1
    ranges: str | None = None  # a file of min x, max x, min y, max y of each field


_FLOW_XY = (("flow_x_%05d.jpg", "flow_y_%05d.jpg"), ("x_%05d.jpg", "y_%05d.jpg"))
LAYOUTS = {
    "mmaction2": Layout(_FLOW_XY, "img_%05d.jpg"),
    "tsn": Layout(_FLOW_XY, "img_%05d.jpg", frame_zero=0),  # img_k is the second frame of pair k
    "denseflow": Layout(_FLOW_XY, "img_%05d.jpg", first=0, frame_zero=0),
    "twostreamfusion": Layout(
        (("../u/{video}/frame%06d.jpg", "../v/{video}/frame%06d.jpg"),),
        "../jpegs_256/{video}/frame%06d.jpg",
        ranges="../u/{video}.bin",
    ),
    "pytorch-i3d": Layout((("{video}-%06dx.jpg", "{video}-%06dy.jpg"),), "img_%05d.jpg"),
}


@dataclass(frozen=True)
class ForeignRecord(Record):
    """A `Record` of planes that another tool wrote; its sidecar says only what was told."""

    told: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)  # template -> number of file 0

    @property
    def sidecar(self) -> dict[str, Any]:
        """What `open_foreign` was told of the planes."""
        return {"foreign": self.told}

    def file_name(self, template: str, index: int) -> str:
        """The name of file `index`, from 0, of a template, by the other tool's numbers."""
        return template % (index + self.numbers[template])


def open_foreign(
    path: str | os.PathLike[str],
    *,
    layout: str,
    bound: float | None = None,
    zero: float = ZERO_CODE,
    step: int = 1,
) -> ForeignRecord:
    """Open the planes of one video as a record of forward fields over `step` frames.

    `path` is the video's folder; for "twostreamfusion", ROOT/VIDEO, whether or not it exists: the
    planes are ROOT/u/VIDEO and ROOT/v/VIDEO. A code c stands for (c - zero) 2 bound / 255 px;
    `zero` is 127 for tools that truncate (mmaction2's script), 128 for those that round (denseflow,
    dense_flow, gpu_flow). Without a bound the ranges are read from the layout's file of ranges,
    ROOT/u/VIDEO.bin. RecordError where files are missing or counts do not agree, UsageError for an
    unknown layout or one that needs a bound.
    """
    path = Path(path)
    files = _layout(layout)
    if bound is None and files.ranges is None:
        raise UsageError(f"layout {layout} stores no ranges: give the bound in px, usually 20")
    if bound is not None and not 0 < bound < float("inf"):
        raise UsageError(f"expected a bound above 0 px, got {bound}")
    pair = _planes(path, files)
    if pair is None:
        wanted = [_escape(x, path) % files.first for x, _ in files.planes]
        raise RecordError(f"{path}: expected planes of layout {layout}: no {' or '.join(wanted)}")
    counts = [_count(path, template, files.first) for template in pair]
    if counts[0] != counts[1]:
        raise RecordError(
            f"{path}: expected as many x as y planes, got {counts[0]} and {counts[1]}"
        )
    if bound is None:
        ranges = _stored_ranges(_place(path, _escape(files.ranges or "", path) % ()), counts[0])
    else:
        unit = 2 * bound / CODES
        ranges = np.tile([-zero * unit, (CODES - zero) * unit], (counts[0], 2, 1))
    images = _escape(files.images, path)
    frames = _count(path, images, max(files.frame_zero, files.first))
    if frames and not counts[0] <= frames <= counts[0] + step:
        raise RecordError(
            f"{path}: expected {counts[0]} to {counts[0] + step} frames beside {counts[0]} fields, "
            f"got {frames}"
        )
    series = StoredSeries("forward", step, counts[0], dict(zip("xy", pair, strict=True)), ranges)
    return ForeignRecord(
        path=path,
        size=_size(_place(path, pair[0] % files.first)),
        fps=None,
        frame_count=counts[0] + step,
        format="jpg",
        series=(series,),
        images=images if frames else None,
        told={"layout": layout, "bound": bound, "zero": zero, "step": step},
        numbers={pair[0]: files.first, pair[1]: files.first, images: files.frame_zero},
    )


def find_foreign(root: str | os.PathLike[str], *, layout: str) -> Iterator[Path]:
    """What `open_foreign` takes for every video below `root`, in the order of names."""
    root = Path(root)
    if not root.is_dir():
        raise RecordError(f"{root}: no such folder of flow planes")
    files = _layout(layout)
    if layout == "twostreamfusion":
        for video in sorted(os.listdir(root / "u")) if (root / "u").is_dir() else []:
            if _planes(root / video, files):
                yield root / video
        return
    for folder, below, _ in os.walk(root):
        below[:] = sorted(below)
        if _planes(Path(folder), files):
            below.clear()
            yield Path(folder)


def _layout(layout: str) -> Layout:
    if layout not in LAYOUTS:
        raise UsageError(f"expected a layout of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout]


def _planes(path: Path, files: Layout) -> tuple[str, str] | None:
    """The templates of x and y whose first file is there."""
    for pair in files.planes:
        x, y = (_escape(template, path) for template in pair)
        if _place(path, x % files.first).exists():
            return x, y
    return None


def _count(path: Path, template: str, first: int) -> int:
    """How many files a template has; they are numbered from `first` without a gap."""
    folder = _place(path, template % first).parent
    name = Path(template).name
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    count = next(k for k in itertools.count() if name % (first + k) not in there)
    number = name.rindex("%0")  # of "%05d"
    prefix, suffix = name[:number] % (), name[number + 4 :]
    counted = {name % (first + k) for k in range(count)}
    later = [one for one in there - counted if one.startswith(prefix) and one.endswith(suffix)]
    if later:
        raise RecordError(
            f"{folder}: expected files numbered from {first} without a gap, found {min(later)} "
            f"but no {name % (first + count)}"
        )
    return count


def _stored_ranges(path: Path, count: int) -> np.ndarray:
    """The ranges (count, 2, 2), lo and hi of x and of y, in a file of little-endian floats."""
    try:
        ranges = np.fromfile(path, "<f4").astype(np.float64)
    except FileNotFoundError as error:
        raise RecordError(
            f"{path}: no ranges there; if the planes have a fixed bound, give it"
        ) from error
    if ranges.size != 4 * count or not np.isfinite(ranges).all():
        raise RecordError(
            f"{path}: expected 4 finite floats for each of {count} fields, got {ranges.size}"
        )
    return ranges.reshape(count, 2, 2)


def _size(path: Path) -> tuple[int, int]:
    data = np.fromfile(path, np.uint8)
    plane = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if plane is None:
        raise RecordError(f"{path}: damaged image")
    return plane.shape[0], plane.shape[1]


def _escape(template: str, path: Path) -> str:
    return template.replace("{video}", path.name.replace("%", "%%"))


def _place(path: Path, name: str) -> Path:
    return Path(os.path.normpath(path / name))
