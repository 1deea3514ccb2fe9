"""Curves over training steps as SVG: a chart for a page, and a picture of several charts.

Across, a chart is in percent of its room, so that letters and lines keep their size. Colors and
dashes are classes, m0, m1, ... and d0, d1, ..., which the style sheet around it defines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS, DASHES = 8, 6  # m0 to m7 and d0 to d5: 24 curves differ
LEFT = 13  # percent of the width, for the numbers beside a chart
TOP, BOTTOM = 10, 26  # px above and below the lines of a chart
PICTURE_WIDTH, PANEL_HEIGHT, TITLE_HEIGHT = 720, 300, 34  # px
PICTURE_STYLE = """
svg { font: 13px system-ui, sans-serif; fill: #16202c; }
.grid { stroke: #dfe4ea; }
.curve { fill: none; stroke: currentColor; stroke-width: 2; vector-effect: non-scaling-stroke; }
.dot { stroke-width: 7; stroke-linecap: round; }
.m0 { color: #0a8f78; } .m1 { color: #2263ef; } .d1 { stroke-dasharray: 7 4; }
"""

Curve = Sequence[tuple[float, float]]  # (step, value), in order of the steps


def curve_chart(curves: Mapping[str, Curve], *, percent: bool, height: int = 220) -> str:
    """Lines of values, 0 or above, over training steps; from 0 to 100% where `percent`.

    `height` is in px. A lone point is drawn as a dot.
    """
    plot = height - TOP - BOTTOM
    points = [point for curve in curves.values() for point in curve]
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    ticks = round_values(1.0 if percent else max(value for _, value in points))

    def place(step: float, value: float) -> str:
        x = 100 * (step - first) / ((last - first) or 1)
        return f"{x:.2f},{100 * (1 - min(value, ticks[-1]) / ticks[-1]):.2f}"

    parts = [f'<svg class="curves" height="{height}" role="img">']
    for tick in ticks:
        y = TOP + plot * (1 - tick / ticks[-1])
        text = f"{100 * tick:.0f}%" if percent else f"{tick:g}"
        parts.append(
            f'<line class="grid" x1="{LEFT}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT}%" dx="-6" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    parts.append(f'<text x="{LEFT}%" y="{height - 6}">step {first:,.0f}</text>')
    if last > first:
        parts.append(f'<text x="100%" y="{height - 6}" text-anchor="end">{last:,.0f}</text>')
    parts.append(
        f'<svg x="{LEFT}%" y="{TOP}" width="{100 - LEFT}%" height="{plot}" viewBox="0 0 100 100" '
        'preserveAspectRatio="none" overflow="visible">'
    )
    for number, (name, curve) in enumerate(curves.items()):
        line = " ".join(place(step, value) for step, value in curve)
        is_dot = len(curve) == 1
        parts.append(
            f'<polyline class="curve {curve_style(number)}{" dot" * is_dot}" '
            f'points="{line}{f" {line}" * is_dot}"><title>{escape(name)}</title></polyline>'
        )
    return "".join(parts) + "</svg></svg>"


def curve_style(number: int) -> str:
    """The classes of the color and the dashes of a chart's curve."""
    return f"m{number % COLORS} d{number % DASHES}"


def draw_curves(panels: Mapping[str, Mapping[str, Curve]], percent: Sequence[str] = ()) -> str:
    """An SVG file of charts with their titles, one above another; `percent` are those in percent.

    Two curves a chart, at most, whose names are short; those without points are left out.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{PICTURE_WIDTH + 20}" '
        f'height="{PANEL_HEIGHT * len(panels)}"><style>{PICTURE_STYLE}</style>'
        '<rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (title, named) in enumerate(panels.items()):
        curves = {name: curve for name, curve in named.items() if curve}
        parts.append(
            f'<svg y="{number * PANEL_HEIGHT}" width="{PICTURE_WIDTH}" height="{PANEL_HEIGHT}">'
            f'<text x="{LEFT}%" y="22" font-weight="bold">{escape(title)}</text>'
        )
        for place, name in enumerate(curves):
            x = 300 + 200 * place
            parts.append(
                f'<line class="curve {curve_style(place)}" x1="{x}" x2="{x + 28}" y1="18" y2="18"/>'
                f'<text x="{x + 36}" y="22">{escape(name)}</text>'
            )
        if curves:
            chart = curve_chart(
                curves, percent=title in percent, height=PANEL_HEIGHT - TITLE_HEIGHT
            )
            parts.append(f'<g transform="translate(0, {TITLE_HEIGHT})">{chart}</g>')
        parts.append("</svg>")
    return "".join(parts) + "</svg>\n"


def round_values(high: float) -> list[float]:
    """Three to six equally spaced round values from 0 to `high` or just beyond."""
    high = max(high, 1e-9)
    step = 10.0 ** math.floor(math.log10(high))
    while high / step < 3:
        step /= 2
    while high / step > 6:
        step *= 2
    return [step * k for k in range(math.ceil(high / step - 1e-9) + 1)]
