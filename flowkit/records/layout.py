"""How a record is stored: its format, and the place and the names of its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any, TypeVar

from flowkit.errors import UsageError
from flowkit.series import Series

P = TypeVar("P", bound=PurePath)


@dataclass(frozen=True)
class Format:
    """A storage format of one field.

    `components` are its files: a plane each for "x" and "y", or both in one file, "xy". `values`
    is what reading gives back: formats of the same word decode to the same fields.
    """

    text: str  # what help says of it
    components: tuple[str, ...]
    values: str

    @property
    def is_planes(self) -> bool:
        """Whether it holds 8-bit planes, which need a range; the others hold floats."""
        return self.values != "floats"


FORMATS = {
    "jpg": Format("8-bit planes as JPEG", ("x", "y"), "jpg"),
    "png": Format("8-bit planes, lossless", ("x", "y"), "lossless planes"),
    "lz4": Format("8-bit planes, lossless, quick to read", ("xy",), "lossless planes"),
    "npy": Format("floats, for NumPy", ("xy",), "floats"),
    "flo": Format("floats, as Middlebury has them", ("xy",), "floats"),
}


@dataclass(frozen=True)
class Layout:
    """How the files of one video are named: by flowkit, or by a tool whose planes can be read.

    `written`: `flowkit extract` writes it, a folder per video, or with `apart` in folders beside
    each other: those of x, of y and of frames below the output folder, where {series} stands for
    what tells a further series. The rest is for reading a tool's planes, as printf templates from
    the video's folder, where ``{video}`` is the folder's name; planes end in .jpg or .png. `planes`
    are alternatives of (x, y); the first that is there is taken. The first file of each kind has
    number `first`; frame 0 would have `frame_zero`.
    """

    text: str  # what help says of it
    planes: tuple[tuple[str, str], ...] = ()
    images: str = ""
    first: int = 1
    frame_zero: int = 1
    ranges: str | None = None  # a file of min x, max x, min y, max y of each field
    frame_per_field: bool = False  # one image per field, the second frame of its pair
    named_steps: bool = False  # _p2 and _m2 before the number: 2 frames on, 2 frames back
    written: bool = False
    apart: tuple[str, str, str] | None = None


_FLOW_XY = (("flow_x_%05d", "flow_y_%05d"), ("x_%05d", "y_%05d"))
LAYOUTS = {
    "flowkit": Layout("one folder per video with a sidecar, as TSN names files", written=True),
    "mmaction2": Layout("img_, flow_x_ and flow_y_ from 1", _FLOW_XY, "img_%05d.jpg"),
    "tsn": Layout(
        "as many images as fields", _FLOW_XY, "img_%05d.jpg", frame_zero=0, frame_per_field=True
    ),
    "denseflow": Layout(
        "numbered from 0, steps named", _FLOW_XY, "img_%05d.jpg",
        first=0, frame_zero=0, named_steps=True, written=True,
    ),
    "twostreamfusion": Layout(
        "u/, v/ and jpegs_256/ beside each other",
        (("../u/{video}/frame%06d", "../v/{video}/frame%06d"),),
        "../jpegs_256/{video}/frame%06d.jpg",
        ranges="../u/{video}.bin",
        written=True,
        apart=(
            "u{series}/{video}/frame%06d",
            "v{series}/{video}/frame%06d",
            "jpegs_256/{video}/frame%06d",
        ),
    ),
    "pytorch-i3d": Layout(
        "flow/ and rgb/ beside each other, the video's name before each number",
        (("{video}-%06dx", "{video}-%06dy"),),
        "{video}-%06d.jpg",
        written=True,
        apart=(
            "flow{series}/{video}/{video}-%06dx",
            "flow{series}/{video}/{video}-%06dy",
            "rgb/{video}/{video}-%06d",
        ),
    ),
}  # fmt: skip


def written_layouts() -> tuple[str, ...]:
    """The layouts that `flowkit extract` writes."""
    return tuple(name for name, layout in LAYOUTS.items() if layout.written)


def read_layouts() -> tuple[str, ...]:
    """The layouts of other tools' planes, which `open_foreign` reads."""
    return tuple(name for name, layout in LAYOUTS.items() if layout.planes)


@dataclass(frozen=True)
class Storage:
    """How a record is stored; all but `pack` is part of what a record was asked to be.

    `bound` in px fixes the range of the 8-bit planes, None takes each component's own; `quality`
    and `rgb_quality` are JPEG's, 1 to 100, for the planes and for the frames, which `rgb` stores.
    UsageError for a format or layout that there is not, and for what does not go together.
    """

    format: str = "jpg"
    quality: int = 90
    bound: float | None = None
    rgb: bool = True
    rgb_quality: int = 95
    layout: str = "flowkit"
    pack: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"expected a format of {', '.join(FORMATS)}, got {self.format}")
        if self.layout not in written_layouts():
            layouts = ", ".join(written_layouts())
            raise UsageError(f"expected a layout of {layouts}, got {self.layout}")
        for name in ("quality", "rgb_quality"):
            if not 1 <= getattr(self, name) <= 100:
                raise UsageError(f"expected {name} within 1..100, got {getattr(self, name)}")
        if self.bound is not None and not 0 < self.bound < float("inf"):
            raise UsageError(f"expected a bound above 0 px, got {self.bound}")
        if self.bound is not None and not FORMATS[self.format].is_planes:
            raise UsageError(f"--bound goes with 8-bit planes: format {self.format} holds floats")
        if self.layout == "flowkit":
            return
        if self.pack or FORMATS[self.format].components == ("xy",):
            raise UsageError(f"layout {self.layout} holds jpg or png files, without --pack")
        if self.bound is None and LAYOUTS[self.layout].ranges is None:
            raise UsageError(
                f"layout {self.layout} has one range for all planes: give --bound, usually 20"
            )

    @property
    def is_planes(self) -> bool:
        """Whether fields are stored as 8-bit planes with ranges, not as floats."""
        return FORMATS[self.format].is_planes

    def identity(self) -> dict[str, Any]:
        """What the sidecar says of it: all but the container, which conversion may change."""
        fields = asdict(self)
        del fields["pack"]
        return fields


def record_folder(id: str, storage: Storage) -> PurePosixPath:
    """The folder of a record below the output folder; a pack has ``.zip`` behind it instead."""
    if LAYOUTS[storage.layout].apart:  # a layout without class folders
        return PurePosixPath("records", PurePosixPath(id).name)
    return PurePosixPath(id)


def record_parts(id: str, storage: Storage, series: Sequence[Series]) -> list[PurePosixPath]:
    """The folders and files below the output folder that a record is made of, its place last."""
    folder = record_folder(id, storage)
    if storage.pack:
        return [folder.with_name(folder.name + ".zip")]
    templates = [image_template(folder, storage)] if storage.rgb else []
    planes = [field_templates(folder, storage, one, first_step=series[0].step) for one in series]
    templates += [template for files in planes for template in files.values()]
    parents = [PurePosixPath(template.replace("%%", "%")).parent for template in templates]
    others = dict.fromkeys(parent.relative_to("../..") for parent in parents if parent.parts)
    tables = [PurePosixPath(range_table(one)) for one in others if one.parts[0].startswith("u")]
    return [*others, *tables, folder]


def range_table(folder: P) -> P:
    """The file of layout twostreamfusion with min x, max x, min y, max y of a folder's fields."""
    return folder.with_name(folder.name + ".bin")


def image_template(folder: PurePosixPath, storage: Storage) -> str:
    """The printf template of the frames' files, as a path from the record's folder."""
    if apart := LAYOUTS[storage.layout].apart:
        return f"../../{_name(apart[2], folder)}.jpg"
    return "img_%05d.jpg"


def field_templates(
    folder: PurePosixPath, storage: Storage, one: Series, *, first_step: int
) -> dict[str, str]:
    """The printf template of each component of a series, as paths from the record's folder."""
    layout, back = LAYOUTS[storage.layout], one.direction == "backward"
    step = "" if one.step == first_step else f"_step{one.step}"
    if layout.apart:
        series = ("_backward" if back else "") + step
        return {
            component: f"../../{_name(name, folder, series)}.{storage.format}"
            for component, name in zip("xy", layout.apart, strict=False)
        }
    prefix, name = ("backward" if back else "flow") + step, ""
    if layout.named_steps:
        prefix, plain = "flow", one.step == 1 and not back
        name = "" if plain else f"{'m' if back else 'p'}{one.step}_"
    return {
        component: f"{prefix}_{name}%05d.{storage.format}"
        if component == "xy"
        else f"{prefix}_{component}_{name}%05d.{storage.format}"
        for component in FORMATS[storage.format].components
    }


def first_number(template: str, layout: str) -> int:
    """The number of the first file of a template that flowkit writes in a layout.

    Where steps are named, backward fields are numbered by the frame that they start from.
    """
    facts = LAYOUTS[layout]
    back = re.search(r"_m([0-9]+)_%0", template) if facts.named_steps else None
    return int(back[1]) if back else facts.first


def _name(name: str, folder: PurePosixPath, series: str = "") -> str:
    return name.replace("{video}", folder.name.replace("%", "%%")).replace("{series}", series)
