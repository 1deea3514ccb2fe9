"""Displacement fields as pictures: the color wheel, its legend, and arrows.

The colors are Middlebury's: hue is direction, saturation magnitude, white stands still (Baker et
al. 2011, "A Database and Evaluation Methodology for Optical Flow", doi 10.1007/s11263-010-0390-2).
Pictures are uint8 (H, W, 3) in BGR order.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from flowkit._cv2 import cv2
from flowkit.errors import UsageError
from flowkit.fields import UNKNOWN_FLOW, check_field
from flowkit.pictures.lettering import load_font

# Transitions of the wheel, by the count of hues in each: as far apart as the eye tells them apart.
RED_YELLOW, YELLOW_GREEN, GREEN_CYAN, CYAN_BLUE, BLUE_MAGENTA, MAGENTA_RED = 15, 6, 4, 11, 13, 6

ARROW_SPACING = 18  # px of the picture between arrows
ARROW_REACH = 1.5  # spacings: the length of the arrow of the full scale
INK, FAINT_INK, PAPER = (28, 28, 32), (112, 112, 120), (255, 255, 255)  # RGB, of legends and pages


def colorize(field: np.ndarray, *, max_px: float | None = None) -> np.ndarray:
    """The picture, uint8 (H, W, 3) BGR, of a field, float32 (H, W, 2) px, by Middlebury's wheel.

    Right is red, down yellow, left cyan-blue, up purple; full color at `max_px` and beyond (the
    original darkens what is beyond), by default the field's own largest magnitude. Unknown
    displacements (NaN, infinity, above 1e9) are black. FlowkitError for an array of another shape
    or dtype, UsageError for a `max_px` that is not above zero.
    """
    x, y = np.moveaxis(check_field(field), 2, 0)
    known = (np.abs(x) < UNKNOWN_FLOW) & (np.abs(y) < UNKNOWN_FLOW)  # NaN is not
    x, y = np.where(known, x, np.float32(0)), np.where(known, y, np.float32(0))
    magnitude = np.hypot(x, y)
    if max_px is None:
        max_px = float(magnitude.max(initial=0)) or 1.0
    saturation = np.minimum(magnitude / np.float32(check_max_px(max_px)), 1)
    wheel = _wheel()
    turn = (np.arctan2(-y, -x) / np.float32(np.pi) + 1) / 2 * (len(wheel) - 1)
    below = turn.astype(np.intp)
    part = (turn - below)[..., None]
    hue = (1 - part) * wheel[below] + part * wheel[(below + 1) % len(wheel)]
    picture = (255 * (1 - saturation[..., None] * (1 - hue))).astype(np.uint8)  # (H, W, 3)
    picture[~known] = 0
    return picture


def draw_arrows(
    background: np.ndarray, field: np.ndarray, *, max_px: float, spacing: int = ARROW_SPACING
) -> np.ndarray:
    """`background`, uint8 (h, w, 3), dimmed, with an arrow for every `spacing` px of it.

    `field`, float32 (H, W, 2) px, may have another size. An arrow is its patch's mean displacement,
    1.5 spacings long at `max_px` and beyond, in the color of `colorize`; none where it is unknown.
    """
    height, width = background.shape[:2]
    rows, columns = max(1, round(height / spacing)), max(1, round(width / spacing))
    gray = cv2.cvtColor(background, cv2.COLOR_BGR2GRAY)
    picture = cv2.cvtColor((gray * 0.45).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    field = np.where(np.abs(check_field(field)) < UNKNOWN_FLOW, field, np.float32(np.nan))
    means = cv2.resize(field, (columns, rows), interpolation=cv2.INTER_AREA)  # (rows, columns, 2)
    colors = colorize(means, max_px=max_px) * 0.75 + 64  # paler: pure blue is lost on dark gray
    reach = ARROW_REACH * spacing / max_px
    for row, column in np.ndindex(rows, columns):
        x, y = means[row, column].tolist()
        if math.isnan(x + y):
            continue
        shown = min(1.0, max_px / max(math.hypot(x, y), 1e-9)) * reach
        start = (column + 0.5) * width / columns, (row + 0.5) * height / rows
        end = start[0] + x * shown, start[1] + y * shown
        tail, head = ((round(16 * px), round(16 * py)) for px, py in (start, end))  # shift=4
        color = colors[row, column].tolist()
        cv2.arrowedLine(picture, tail, head, color, 1, cv2.LINE_AA, shift=4, tipLength=0.35)
    return picture


def wheel_legend(size: int, max_px: float) -> np.ndarray:
    """The wheel, uint8 (size, size, 3) BGR on white, labeled with what its rim stands for in px.

    The color at a place of the disc is that of motion from its center to there.
    """
    label = max(10, size // 7)
    disc = 4 * (size - label - 6)  # drawn four times as large, then averaged: smooth edges
    y, x = (np.mgrid[:disc, :disc].astype(np.float32) + 0.5) * 2 / disc - 1
    picture = colorize(np.stack([x, y], axis=2), max_px=1.0)
    radius = np.hypot(x, y)
    picture[radius > 1] = PAPER
    picture[(radius <= 1) & (radius > 1 - 8 / disc)] = FAINT_INK[::-1]
    picture = cv2.resize(picture, (disc // 4, disc // 4), interpolation=cv2.INTER_AREA)
    page = Image.new("RGB", (size, size), PAPER)
    page.paste(Image.fromarray(picture[..., ::-1]), ((size - disc // 4) // 2, 0))
    place = (size / 2, size - label / 2 - 1)
    draw = ImageDraw.Draw(page)
    draw.text(place, f"{max_px:g} px", INK, load_font(label), anchor="mm")
    return np.asarray(page)[..., ::-1].copy()


def check_max_px(max_px: float) -> float:
    """Return a full scale in px if it is above zero and finite, else raise UsageError."""
    if not 0 < max_px < math.inf:
        raise UsageError(f"expected a full scale above 0 px, got {max_px:g}")
    return max_px


@cache
def _wheel() -> np.ndarray:
    """The 55 hues, float32 (55, 3) BGR in 0 to 1: red, yellow, green, cyan, blue, magenta."""
    red, green, blue = np.eye(3)[::-1] * 255  # BGR
    transitions = (
        (red, green, RED_YELLOW),
        (red + green, -red, YELLOW_GREEN),
        (green, blue, GREEN_CYAN),
        (green + blue, -green, CYAN_BLUE),
        (blue, red, BLUE_MAGENTA),
        (blue + red, -blue, MAGENTA_RED),
    )
    hues = []
    for start, change, count in transitions:
        amount = np.floor(255 * np.arange(count) / count)[:, None] / 255
        hues.append(start + amount * change)
    return (np.concatenate(hues) / 255).astype(np.float32)
