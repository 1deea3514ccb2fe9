"""A flow record to look at: contact sheet, and video of the frames beside their fields.

Pages are uint8 (H, W, 3) in BGR order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from flowkit._cv2 import cv2
from flowkit.documents import MADE_BY, replacing
from flowkit.errors import UsageError
from flowkit.fields import UNKNOWN_FLOW
from flowkit.pictures.colors import (
    FAINT_INK,
    INK,
    PAPER,
    check_max_px,
    colorize,
    draw_arrows,
    wheel_legend,
)
from flowkit.pictures.lettering import fit, load_font
from flowkit.records.reading import Record
from flowkit.series import Direction
from flowkit.video.writing import write_video

STYLES = ("color", "arrows")
ENDINGS = (".mp4", ".gif", ".png")

# Percentile of a record's magnitudes that has the full color: a few wild vectors fade no others
PERCENTILE = 99
SCALE_FIELDS = 64  # equally spaced fields that the percentile is taken over, at most
SCALE_PIXELS = 20_000  # a field, at most, on a regular grid
SHEET_SIDE = 320  # px, longer side of a panel on the contact sheet
VIDEO_SIDES = (320, 960)  # px, least and most for the longer side of a panel in a video
MARGIN = 16  # px
PAGE_WIDTH = 480  # px, at least: room for the title
SHEET_LEGEND, VIDEO_LEGEND = 96, 72  # px
FPS = 25.0  # frames per second where neither the record nor the caller knows
GIF_SHORTEST_S = 0.02  # browsers slow down what is shorter
TITLE_PX, TEXT_PX = 18, 12


@dataclass(frozen=True)
class Look:
    """How fields are shown: which series, in which style, and what counts as full color."""

    style: str = "color"  # "color" or "arrows"
    direction: Direction = "forward"
    step: int | None = None  # None: the record's first step
    max_px: float | None = None  # None: `full_scale` of the record

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise UsageError(f"expected a style of {', '.join(STYLES)}, got {self.style!r}")
        if self.max_px is not None:
            check_max_px(self.max_px)


def full_scale(record: Record, look: Look | None = None) -> float:
    """The magnitude in px to show in full color, one for the whole record.

    That of `look` where it has one; else the 99th percentile over up to 64 equally spaced fields,
    rounded up to two digits; the largest where that is zero, and 1 px where nothing moves.
    """
    look = look or Look()
    if look.max_px is not None:
        return look.max_px
    samples = []
    for index in _moments(record.field_count(look.direction, look.step), SCALE_FIELDS):
        field = _field(record, look, index)
        stride = math.ceil(math.sqrt(field.shape[0] * field.shape[1] / SCALE_PIXELS))
        magnitude = np.hypot(field[::stride, ::stride, 0], field[::stride, ::stride, 1])
        samples.append(magnitude[magnitude < UNKNOWN_FLOW])  # NaN is not below anything
    magnitudes = np.concatenate(samples)
    if not magnitudes.any():
        return 1.0
    scale = float(np.percentile(magnitudes, PERCENTILE)) or float(magnitudes.max())
    digit = 10.0 ** (math.floor(math.log10(scale)) - 1)
    return float(f"{math.ceil(scale / digit) * digit:.2g}")


def contact_sheet(
    record: Record, look: Look | None = None, *, moments: int = 8, columns: int = 4
) -> np.ndarray:
    """Equally spaced moments of a record on one page, uint8 (H, W, 3) BGR.

    Each moment is the frame, where it is stored, above its field; a title and the legend on top.
    """
    if moments < 1 or columns < 1:
        raise UsageError(f"expected at least 1 moment and column, got {moments} and {columns}")
    look = look or Look()
    look = replace(look, max_px=full_scale(record, look))
    indices = _moments(record.field_count(look.direction, look.step), moments)
    columns = min(columns, len(indices))
    height, width = _panel_size(record.size, SHEET_SIDE, SHEET_SIDE)
    label, gap = 22, 4  # px above and between panels
    panels_height = (1 + record.has_frames) * (height + gap)
    cell = (label + panels_height + MARGIN, width + MARGIN)
    top = MARGIN + SHEET_LEGEND + 8
    rows = math.ceil(len(indices) / columns)
    page = Image.new("RGB", _page_size(MARGIN + columns * cell[1], top + rows * cell[0]), PAPER)
    _write_title(page, record, look, (MARGIN, MARGIN), SHEET_LEGEND)
    draw, font = ImageDraw.Draw(page), load_font(TEXT_PX)
    scale = (
        f"full {'color' if look.style == 'color' else 'length'} at {look.max_px:g} px and beyond"
    )
    draw.text((MARGIN, MARGIN + 47), scale, FAINT_INK, font)
    for position, index in enumerate(indices):
        row, column = divmod(position, columns)
        left, upper = MARGIN + column * cell[1], top + row * cell[0]
        field = _field(record, look, index)
        moment, largest = _label(record, look, index), f"largest {_largest(field):.3g} px"
        draw.text((left, upper), moment, INK, font)
        if font.getlength(f"{moment}  {largest}") <= width:
            draw.text((left + width, upper), largest, FAINT_INK, font, anchor="ra")
        panels = _panels(record, look, index, field, (height, width))
        for number, panel in enumerate(panels):
            page.paste(_image(panel), (left, upper + label + number * (height + gap)))
    return np.asarray(page)[..., ::-1].copy()


def video_pages(
    record: Record, look: Look | None = None, *, first: int = 0
) -> Iterator[np.ndarray]:
    """Every moment of a record, uint8 (H, W, 3) BGR of one even size: the frame, then its field.

    Frames are numbered from `first`, that of a part of a video in the whole.
    """
    look = look or Look()
    look = replace(look, max_px=full_scale(record, look))
    height, width = _panel_size(record.size, *VIDEO_SIDES)
    gap = 8  # px around panels
    page_width = (1 + record.has_frames) * (width + gap) + gap
    empty = Image.new("RGB", _page_size(page_width, height + VIDEO_LEGEND + 3 * gap), PAPER)
    _write_title(empty, record, look, (gap, height + 2 * gap), VIDEO_LEGEND)
    for index in range(record.field_count(look.direction, look.step)):
        page = empty.copy()
        panels = _panels(record, look, index, _field(record, look, index), (height, width))
        for number, panel in enumerate(panels):
            page.paste(_image(panel), (gap + number * (width + gap), gap))
        place = (gap, height + 2 * gap + VIDEO_LEGEND)
        label = _label(record, look, index, first)
        ImageDraw.Draw(page).text(place, label, INK, load_font(TEXT_PX), anchor="ls")
        yield np.asarray(page)[..., ::-1]


def write_view(
    record: Record,
    out: str | os.PathLike[str],
    look: Look | None = None,
    *,
    moments: int = 8,
    columns: int = 4,
    fps: float | None = None,
) -> None:
    """Write a record as pictures: a video (.mp4, .gif) of it all or a contact sheet (.png).

    The ending of `out` chooses; `moments` and `columns` are the contact sheet's, `fps` the video's
    (by default the record's, or 25 where it is unknown). Written under another name and moved into
    place when it is whole. UsageError for another ending.
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise UsageError(f"{out}: expected a name that ends in {', '.join(ENDINGS)}")
    if fps is not None and not 0 < fps < math.inf:
        raise UsageError(f"expected a frame rate above 0, got {fps:g}")
    fps = fps or record.fps or FPS
    with replacing(out) as part:
        match out.suffix.lower():
            case ".png":
                sheet = contact_sheet(record, look, moments=moments, columns=columns)
                save_png(_image(sheet), part)
            case ".gif":
                _write_gif(part, video_pages(record, look), fps)
            case ".mp4":
                pages = video_pages(record, look)
                write_video(
                    part,
                    pages,
                    fps=fps,
                    container_format="mp4",
                    options={"crf": "18"},
                    comment=MADE_BY,
                )


def save_png(image: Image.Image, path: Path) -> None:
    """Write a .png that says that flowkit made it."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Comment", MADE_BY)
    image.save(path, "PNG", optimize=True, pnginfo=mark)


def _moments(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` indices: the middles of equal parts."""
    wanted = min(count, wanted)
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def _panel_size(size: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """The size (H, W) scaled so that its longer side lies within `least` and `most` px."""
    longer = max(size)
    factor = min(max(longer, least), most) / longer
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _page_size(width: int, height: int) -> tuple[int, int]:
    """(W, H) of a page, even, for 4:2:0 video takes nothing else."""
    width = max(width, PAGE_WIDTH)
    return width + width % 2, height + height % 2


def _field(record: Record, look: Look, index: int) -> np.ndarray:
    return record.fields(index, 1, direction=look.direction, step=look.step)[0]


def _panels(
    record: Record, look: Look, index: int, field: np.ndarray, size: tuple[int, int]
) -> list[np.ndarray]:
    """The pictures of one moment, uint8 of `size`: the frame that the field starts from, the field.

    Without stored frames the field alone.
    """
    frames = []
    if record.has_frames:
        frames.append(_resize(record.frame(_endpoints(record, look, index)[0]), size))
    max_px = full_scale(record, look)
    if look.style == "arrows":
        background = frames[0] if frames else np.full((*size, 3), 90, np.uint8)
        return [*frames, draw_arrows(background, field, max_px=max_px)]
    picture = _resize(colorize(field, max_px=max_px), size)
    picture[[0, -1]] = picture[:, [0, -1]] = (200, 200, 200)  # white fields end somewhere, too
    return [*frames, picture]


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[0] < picture.shape[0]
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(picture, size[::-1], interpolation=interpolation)


def _endpoints(record: Record, look: Look, index: int) -> tuple[int, int]:
    """The frames that field `index` moves from and to."""
    later = index + record.find_series(look.direction, look.step).step
    return (index, later) if look.direction == "forward" else (later, index)


def _label(record: Record, look: Look, index: int, first: int = 0) -> str:
    start, end = _endpoints(record, look, index)
    return f"frame {first + start} to {first + end}"


def _largest(field: np.ndarray) -> float:
    magnitude = np.hypot(field[..., 0], field[..., 1])
    return float(magnitude[magnitude < UNKNOWN_FLOW].max(initial=0))


def _write_title(
    page: Image.Image, record: Record, look: Look, place: tuple[int, int], legend: int
) -> None:
    """The record's name and facts at `place` (x, y) of the page, the legend at its right end."""
    x, y = place
    max_px = full_scale(record, look)
    page.paste(_image(wheel_legend(legend, max_px)), (page.width - legend - x, y))
    series = record.find_series(look.direction, look.step)
    request = record.sidecar["request"]
    height, width = record.size
    facts = [
        f"{width}x{height}",
        f"{record.frame_count} frames",
        *([f"{record.fps:.4g} fps"] if record.fps else []),
        request.get("method", {"name": "unknown method"})["name"]
        + (" stabilized" if "stabilize" in request else ""),
        f"{series.direction} step {series.step}",
        record.format + (f" within ±{request['bound']:g} px" if request.get("bound") else ""),
    ]
    draw = ImageDraw.Draw(page)
    room = page.width - legend - 3 * x
    name = fit(record.name, load_font(TITLE_PX), room)
    draw.text((x, y), name, INK, load_font(TITLE_PX))
    text = fit(" · ".join(facts), load_font(TEXT_PX), room)
    draw.text((x, y + 27), text, FAINT_INK, load_font(TEXT_PX))


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., ::-1])  # BGR -> RGB


def _write_gif(path: Path, pages: Iterator[np.ndarray], fps: float) -> None:
    """All pages in one palette of 256 colors, which serves the first page and the whole wheel."""
    first = _image(next(pages))
    wheel = _image(wheel_legend(first.height, 1.0))
    samples = Image.new("RGB", (first.width + wheel.width, first.height), PAPER)
    samples.paste(first, (0, 0))
    samples.paste(wheel, (first.width, 0))
    palette = samples.quantize(256, method=Image.Quantize.FASTOCTREE)
    images = (image.quantize(palette=palette) for image in chain([first], map(_image, pages)))
    duration = max(GIF_SHORTEST_S, 1 / fps) * 1000
    next(images).save(
        path,
        "GIF",
        save_all=True,
        append_images=images,
        duration=duration,
        loop=0,
        optimize=False,
        comment=MADE_BY.encode(),
    )
