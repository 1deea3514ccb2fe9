"""Draws curves over training steps as a picture, one panel above another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PANEL = (300, 720)  # px, (H, W) of a panel with its margins
MARGINS = (30, 20, 40, 60)  # px: top, right, bottom, left
COLORS = ("#1f5fa8", "#d1541f", "#2f8f4e", "#7a4fa3")
TICKS = 5  # about so many numbers along an axis
FONT_PX = 13


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), in order of x; a lone point is drawn as a dot."""

    name: str
    points: Sequence[tuple[float, float]]


def draw_curves(panels: Sequence[tuple[str, Sequence[Curve]]]) -> Image.Image:
    """A picture of the panels, each a title and its curves; curves without points are left out."""
    height, width = PANEL
    picture = Image.new("RGB", (width, height * len(panels)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_PX)
    for number, (title, curves) in enumerate(panels):
        _draw_panel(draw, font, number * height, title, [c for c in curves if c.points])
    return picture


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten apart) within low..high."""
    if not high > low:
        return [low]
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    top: int,
    title: str,
    curves: Sequence[Curve],
) -> None:
    height, width = PANEL
    above, right, below, left = MARGINS
    box = (left, top + above, width - right, top + height - below)
    draw.rectangle(box, outline="#888888")
    draw.text((left, top + above / 2), title, "black", font, anchor="lm")
    points = [point for curve in curves for point in curve.points]
    if not points:
        return
    x_low, x_high = (limit(x for x, _ in points) for limit in (min, max))
    y_low, y_high = min(0.0, *(y for _, y in points)), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            box[0] + (x - x_low) / ((x_high - x_low) or 1) * (box[2] - box[0]),
            box[3] - (y - y_low) / ((y_high - y_low) or 1) * (box[3] - box[1]),
        )

    for x in ticks(x_low, x_high):
        at = place(x, y_low)
        draw.line([at, (at[0], at[1] + 4)], "#888888")
        draw.text((at[0], at[1] + 6), f"{x:,g}", "black", font, anchor="ma")
    for y in ticks(y_low, y_high):
        at = place(x_low, y)
        draw.line([at, (box[2], at[1])], "#e4e4e4")
        draw.text((at[0] - 6, at[1]), f"{y:g}", "black", font, anchor="rm")
    across = float(box[2])
    for number, curve in enumerate(curves):
        color = COLORS[number % len(COLORS)]
        line = [place(x, y) for x, y in curve.points]
        draw.line(line, color, width=2)
        if len(line) == 1:
            draw.circle(line[0], 3, color)
        draw.text((across, top + above / 2), curve.name, color, font, anchor="rm")
        across -= font.getlength(curve.name) + 20
