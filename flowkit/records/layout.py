"""How a record is stored: its format, and the place and the names of its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from flowkit.errors import UsageError
from flowkit.records import formats
from flowkit.series import Series

LAYOUTS = ("flowkit", "twostreamfusion")


@dataclass(frozen=True)
class Storage:
    """How a record is stored; all but `pack` is part of what a record was asked to be.

    `bound` in px fixes the range of the 8-bit planes, None takes each component's own; `quality`
    and `rgb_quality` are JPEG's for the planes and for the frames, which `rgb` stores.
    """

    format: str = "jpg"
    quality: int = 90
    bound: float | None = None
    rgb: bool = True
    rgb_quality: int = 95
    layout: str = "flowkit"
    pack: bool = False

    def __post_init__(self) -> None:
        if self.format not in formats.FORMATS:
            raise UsageError(
                f"expected a format of {', '.join(formats.FORMATS)}, got {self.format}"
            )
        if self.layout not in LAYOUTS:
            raise UsageError(f"expected a layout of {', '.join(LAYOUTS)}, got {self.layout}")
        for name in ("quality", "rgb_quality"):
            if not 1 <= getattr(self, name) <= 100:
                raise UsageError(f"expected {name} within 1..100, got {getattr(self, name)}")
        if self.bound is not None and not 0 < self.bound < float("inf"):
            raise UsageError(f"expected a bound above 0 px, got {self.bound}")
        if self.bound is not None and self.format not in formats.PLANE_FORMATS:
            raise UsageError(f"--bound goes with 8-bit planes: format {self.format} holds floats")
        if self.layout == "twostreamfusion" and (self.pack or self.format not in ("jpg", "png")):
            raise UsageError("layout twostreamfusion holds jpg or png files, without --pack")

    def identity(self) -> dict[str, Any]:
        """What the sidecar says of it: all but the container, which conversion may change."""
        fields = asdict(self)
        del fields["pack"]
        return fields


def record_folder(id: str, storage: Storage) -> PurePosixPath:
    """The folder of a record below the output folder; a pack has ``.zip`` behind it instead."""
    if storage.layout == "twostreamfusion":  # which knows no class folders
        return PurePosixPath("records", PurePosixPath(id).name)
    return PurePosixPath(id)


def image_template(folder: PurePosixPath, storage: Storage) -> str:
    """The printf template of the frames' files, as a path from the record's folder."""
    if storage.layout == "twostreamfusion":
        return f"../../jpegs_256/{_escape(folder.name)}/frame%06d.jpg"
    return "img_%05d.jpg"


def field_templates(
    folder: PurePosixPath, storage: Storage, one: Series, *, first_step: int
) -> dict[str, str]:
    """The printf template of each component of a series, as paths from the record's folder."""
    step = "" if one.step == first_step else f"_step{one.step}"
    if storage.layout == "twostreamfusion":
        suffix = ("" if one.direction == "forward" else "_backward") + step
        name = f"{_escape(folder.name)}/frame%06d.{storage.format}"
        return {"x": f"../../u{suffix}/{name}", "y": f"../../v{suffix}/{name}"}
    prefix = ("flow" if one.direction == "forward" else "backward") + step
    return {
        component: f"{prefix}_%05d.{storage.format}"
        if component == "xy"
        else f"{prefix}_{component}_%05d.{storage.format}"
        for component in formats.components(storage.format)
    }


def _escape(name: str) -> str:
    return name.replace("%", "%%")
