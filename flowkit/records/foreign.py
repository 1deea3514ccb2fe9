"""Flow that other tools wrote, opened as flow records once it is said what it is.

Planes in the folders of other tools do not say which px value a code stands for, which frame an
image is, or what comes first. So nothing is guessed: the caller names the layout and, where no
range is stored, the bound. What no layout reads is refused by its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flowkit.documents import is_record, read_plain_file
from flowkit.errors import RecordError, UsageError
from flowkit.image_files import image_size
from flowkit.quantize import CODES
from flowkit.records import formats
from flowkit.records.layout import LAYOUTS, Layout, read_layouts
from flowkit.records.reading import Record, StoredSeries, check_frame_size
from flowkit.series import Direction
from flowkit.video.image_folders import MAX_FRAME_MPX

ZERO = CODES / 2  # the zero of tools that round: theirs lies between two codes
COLOR_LEVELS = 4  # largest difference between the channels of a gray plane saved in color
SHOWN = 3  # files that an error names


# Files of flow that no layout reads, and what to do about them.
UNREAD = (
    (r"flow_([pm]\d+_)?\d+\.png", "denseflow's png, both components in one: make jpg, -st=jpg"),
    (r"flow_([pm]\d+_)?\d+\.jpe?g", "one image for both components: one gray plane each is read"),
    (r".*\.(h5|hdf5)", "HDF5: make images (denseflow -st=jpg)"),
)


@dataclass(frozen=True)
class ForeignRecord(Record):
    """A `Record` of planes that another tool wrote; its sidecar says only what was told.

    Frames that the tool did not store (TSN's first, a last one) are given as their neighbor.
    """

    told: dict[str, Any] = field(default_factory=dict)
    stored_images: tuple[int, int] = (0, 0)  # the first and the last number of an image

    @property
    def sidecar(self) -> dict[str, Any]:
        """What `open_foreign` was told of the planes."""
        return {"foreign": self.told}

    def file_name(self, template: str, index: int) -> str:
        """The name of file `index`, from 0, of a template, by the other tool's numbers."""
        number = index + self.numbers[template]
        if template == self.images:
            first, last = self.stored_images
            number = min(max(number, first), last)
        return template % number


def open_foreign(
    path: str | os.PathLike[str],
    *,
    layout: str,
    bound: float | None = None,
    zero: float = ZERO,
    step: int = 1,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> ForeignRecord:
    """Open the planes of one video as a record of fields over `step` frames.

    `path` is the video's folder; for "twostreamfusion", ROOT/VIDEO, whether or not it exists: the
    planes are ROOT/u/VIDEO and ROOT/v/VIDEO. A code c stands for (c - zero) 2 bound / 255 px;
    `zero` is 127.5 for tools that round (denseflow, dense_flow, gpu_flow), whose codes are
    round(255 (v + bound) / (2 bound)), 127 for scripts that truncate (mmaction2's
    flow_extraction.py). Without a bound the ranges are read from the layout's file of ranges,
    ROOT/u/VIDEO.bin. denseflow's names say the steps themselves: those of its backward fields,
    flow_x_m2_00002.jpg, are numbered by the frame that they start from.

    RecordError where files are missing, counts do not agree, the planes have more than
    `max_frame_mpx` megapixels, or flowkit wrote them itself (its step is 2 bound / 254); UsageError
    for an unknown layout or one that needs a bound.
    """
    path = Path(path)
    files = _layout(layout)
    if bound is None and files.ranges is None:
        raise UsageError(f"layout {layout} stores no ranges: give the bound in px, usually 20")
    if bound is not None and not 0 < bound < float("inf"):
        raise UsageError(f"expected a bound above 0 px, got {bound}")
    if files.named_steps and step != 1:
        raise UsageError(f"layout {layout}: its names say the steps: leave the step out")
    if bound is not None and any(map(is_record, _own_places(path))):
        raise RecordError(f"{path}: a flow record of flowkit's own: leave the layout out")
    found = _find_planes(path, files, step)
    if not any(one.direction == "forward" for one in found):
        raise RecordError(f"{path}: {_missing(path, layout)}", absent=not path.exists())
    series = [_stored_series(path, files, one, bound, zero) for one in found]
    lengths = {one.count + one.step for one in series}
    if len(lengths) > 1:
        words = ", ".join(f"{one.count} {one.direction} of step {one.step}" for one in series)
        raise RecordError(f"{path}: expected fields of one video, got {words}")
    images = _escape(files.images, path)
    first_image = max(files.frame_zero, files.first)
    image_count = _count(path, images, first_image)
    if image_count:
        _check_images(path, layout, image_count, series[0].count)
    first = found[0]
    return ForeignRecord(
        path=path,
        size=_size(_place(path, first.templates[0] % first.first), max_frame_mpx),
        fps=None,
        frame_count=lengths.pop(),
        format=first.templates[0][-3:],
        series=tuple(series),
        images=images if image_count else None,
        told={"layout": layout, "bound": bound, "zero": zero, "step": first.step},
        numbers={
            images: files.frame_zero,
            **{template: one.first for one in found for template in one.templates},
        },
        stored_images=(first_image, first_image + image_count - 1),
    )


def find_foreign(root: str | os.PathLike[str], *, layout: str) -> Iterator[Path]:
    """What `open_foreign` takes for every video below `root`, in the order of names.

    RecordError where there is none; it names files that are there.
    """
    root = Path(root)
    if not root.is_dir():
        raise RecordError(f"{root}: no such folder of flow planes", absent=True)
    files = _layout(layout)
    folders: Iterable[tuple[Path, list[str]]]
    if layout == "twostreamfusion":
        folders = ((root / video, []) for video in _names(root / "u"))
    else:
        folders = ((Path(folder), below) for folder, below, _ in os.walk(root))
    some = False
    for folder, below in folders:
        below.sort()
        if _find_planes(folder, files, 1):
            some = True
            below.clear()
            yield folder
    if not some:
        raise RecordError(f"{root}: {_missing(root, layout)}")


def _layout(layout: str) -> Layout:
    if layout not in read_layouts():
        raise UsageError(f"expected a layout of {', '.join(read_layouts())}, got {layout!r}")
    return LAYOUTS[layout]


@dataclass(frozen=True)
class _Planes:
    """The planes of one series of fields: templates of x and y, number of the first."""

    direction: Direction
    step: int
    templates: tuple[str, str]
    first: int


def _find_planes(path: Path, files: Layout, step: int) -> list[_Planes]:
    """The series whose first x plane is there, forward ones first, smallest step first."""
    kinds: list[tuple[Direction, int, str, int]] = [("forward", step, "", files.first)]
    if files.named_steps:
        kinds += _named_steps(path)
    found = []
    for direction, span, name, first in kinds:
        for x, y in _plane_templates(path, files, name):
            if _place(path, x % first).exists():
                found.append(_Planes(direction, span, (x, y), first))
                break
    return found


def _named_steps(path: Path) -> list[tuple[Direction, int, str, int]]:
    """denseflow's series of other steps: direction, step, its name in files, first number."""
    matches = map(
        re.compile(r"(?:flow_)?x_([pm])([1-9]\d*)_\d+\.(?:jpg|png)").fullmatch, _names(path)
    )
    steps = sorted({(one[1] == "m", int(one[2])) for one in matches if one})
    return [
        ("backward", step, f"m{step}_", step) if back else ("forward", step, f"p{step}_", 0)
        for back, step in steps
    ]


def _plane_templates(path: Path, files: Layout, step: str = "") -> Iterator[tuple[str, str]]:
    """The alternatives of templates of x and y, `step` put before the number."""
    for pair in files.planes:
        x, y = (_escape(template, path).replace("%0", f"{step}%0") for template in pair)
        yield from ((f"{x}.{end}", f"{y}.{end}") for end in ("jpg", "png"))


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _missing(path: Path, layout: str) -> str:
    """What was looked for at or below `path`, and what is there instead."""
    files = _layout(layout)
    wanted = [x % files.first for x, _ in _plane_templates(path, files) if x.endswith(".jpg")]
    below = (
        Path(folder, name).relative_to(path).as_posix()
        for folder, _, names in os.walk(path)
        for name in sorted(names)
        if re.search(r"\.(jpe?g|png|h5|hdf5)$", name)
    )
    found = [path.name] if path.is_file() else list(islice(below, SHOWN))
    if (path.parent / f"{path.name}.h5").exists():
        found.append(f"../{path.name}.h5")
    hints = [
        f" ({what})"
        for pattern, what in UNREAD
        if any(re.fullmatch(pattern, PurePosixPath(name).name) for name in found)
    ]
    return (
        f"expected planes of layout {layout}, but no {' or '.join(wanted)}; there "
        + (f"is {', '.join(found)}" if found else "are no images")
        + "".join(hints)
    )


def _stored_series(
    path: Path, files: Layout, one: _Planes, bound: float | None, zero: float
) -> StoredSeries:
    """The series of planes, counted, with its ranges."""
    counts = [_count(path, template, one.first) for template in one.templates]
    if counts[0] != counts[1]:
        raise RecordError(
            f"{path}: expected as many x as y planes, got {counts[0]} and {counts[1]}"
        )
    if bound is None:
        ranges = _stored_ranges(_place(path, _escape(files.ranges or "", path) % ()), counts[0])
    else:
        unit = 2 * bound / CODES
        ranges = np.tile([-zero * unit, (CODES - zero) * unit], (counts[0], 2, 1))
    templates = dict(zip("xy", one.templates, strict=True))
    return StoredSeries(one.direction, one.step, counts[0], templates, ranges)


def _count(path: Path, template: str, first: int) -> int:
    """How many files a template has; they are numbered from `first` without a gap."""
    folder, name = _place(path, template % first).parent, Path(template).name
    number = name.rindex("%0")  # place of the "%05d"
    before, after = (re.escape(part % ()) for part in (name[:number], name[number + 4 :]))
    matches = map(re.compile(f"{before}([0-9]+){after}").fullmatch, _names(folder))
    numbers = sorted(int(one[1]) for one in matches if one and name % int(one[1]) == one[0])
    for expected, found in enumerate(numbers, start=first):
        if found < expected:
            raise RecordError(
                f"{folder}: expected files numbered from {first}, found {name % found}: is it "
                "another layout?"
            )
        if found > expected:
            raise RecordError(
                f"{folder}: expected files numbered from {first} without a gap, found "
                f"{name % found} but no {name % expected}"
            )
    return len(numbers)


def _check_images(path: Path, layout: str, images: int, fields: int) -> None:
    """RecordError unless the images can be the video's frames; more than needed do no harm."""
    if _layout(layout).frame_per_field and images != fields:
        raise RecordError(
            f"{path}: layout {layout} holds as many images as fields, got {images} beside "
            f"{fields}: layout mmaction2 takes image 1 for the first frame"
        )
    if images < fields:
        raise RecordError(
            f"{path}: expected at least {fields} images beside {fields} fields, got {images}"
        )


def _own_places(path: Path) -> tuple[Path, ...]:
    """Where flowkit's sidecar of these planes would lie: with them, or beside their folders."""
    return tuple(
        path if up == 0 else path.parents[up - 1] / "records" / path.name
        for up in range(min(3, len(path.parents) + 1))
    )


def _stored_ranges(path: Path, count: int) -> np.ndarray:
    """The ranges (count, 2, 2), lo and hi of x and of y, in a file of little-endian floats."""
    try:
        data = read_plain_file(path, error=RecordError)
    except FileNotFoundError as error:
        raise RecordError(
            f"{path}: no ranges there; if the planes have a fixed bound, give it"
        ) from error
    ranges = np.frombuffer(data[: len(data) // 4 * 4], "<f4")
    if len(data) != 16 * count or not np.isfinite(ranges).all():
        raise RecordError(
            f"{path}: expected 4 finite floats for each of {count} fields, got {len(data)} bytes"
        )
    return ranges.astype(np.float64).reshape(count, 2, 2)


def _size(path: Path, max_frame_mpx: float) -> tuple[int, int]:
    """The size (H, W) of a plane; RecordError if it is too large, damaged, or no gray one."""
    data = read_plain_file(path, error=RecordError)
    if (declared := image_size(data)) is not None:
        check_frame_size(str(path), declared, max_frame_mpx)
    plane = formats.decode_picture(data, declared or (0, 0), where=str(path))
    if np.ptp(plane, axis=2).max() > COLOR_LEVELS:
        raise RecordError(
            f"{path}: expected a gray plane of one component, got a color image: flow in the "
            "channels of one image is not read"
        )
    return plane.shape[0], plane.shape[1]


def _escape(template: str, path: Path) -> str:
    return template.replace("{video}", path.name.replace("%", "%%"))


def _place(path: Path, name: str) -> Path:
    return Path(os.path.normpath(path / name))
