"""The charts of the report page, each one inline SVG that takes its colors from the page's CSS.

Nothing is drawn by script. A method's color is its class m0, m1, ...; values are hovered in titles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from flowkit.report.figures import Rate, Report, class_rates

TWO_COLUMNS = 30  # classes that one column of bars takes, at most
COUNTED = 40  # classes up to which a cell of the confusion matrix is large enough for its number
NAME_LENGTH = 22  # letters of a class name in a chart; its title has all
Curve = Sequence[tuple[float, float]]  # (step, value)


def interval_chart(rate: Rate, color: str, limits: tuple[float, float]) -> str:
    """A dot on its 95% interval, on a line from limits[0] to limits[1]."""
    width, middle = 220, 12

    def x(value: float) -> float:
        return 6 + (width - 12) * (value - limits[0]) / (limits[1] - limits[0])

    return (
        f'<svg class="interval {color}" viewBox="0 0 {width} 24" width="{width}" height="24" '
        f'role="img" aria-label="{_percent(rate)}">'
        f'<line class="track" x1="6" x2="{width - 6}" y1="{middle}" y2="{middle}"/>'
        f'<line class="whisker" x1="{x(rate.low):.1f}" x2="{x(rate.high):.1f}" '
        f'y1="{middle}" y2="{middle}"/>'
        f'<circle cx="{x(rate.value):.1f}" cy="{middle}" r="5"/>'
        f"<title>{_percent(rate)}</title></svg>"
    )


def gains_chart(gained: int, lost: int, count: int, largest: int) -> str:
    """Two bars from a middle line: videos lost to the left, gained to the right."""
    half = 150
    scale = (half - 44) / max(largest, 1)
    left, right = lost * scale, gained * scale
    return (
        f'<svg class="gains" viewBox="0 0 {2 * half} 26" role="img" '
        f'aria-label="{gained} gained, {lost} lost">'
        f'<rect class="lost" x="{half - left:.1f}" y="4" width="{left:.1f}" height="18" rx="2"/>'
        f'<rect class="gained" x="{half}" y="4" width="{right:.1f}" height="18" rx="2"/>'
        f'<line class="axis" x1="{half}" x2="{half}" y1="0" y2="26"/>'
        f'<text x="{half - left - 5:.1f}" y="17" text-anchor="end">−{lost}</text>'
        f'<text x="{half + right + 5:.1f}" y="17">+{gained}</text>'
        f"<title>{gained} gained, {lost} lost of {count} videos</title></svg>"
    )


def class_charts(report: Report, colors: Mapping[str, str]) -> list[str]:
    """Accuracy by class, best first: bars of the report's method, dots of the others.

    One chart, or two of half of the classes each where they are many.
    """
    rates = {name: class_rates(report, name) for name in report.methods}
    counts = dict(zip(report.classes, report.class_counts.tolist(), strict=True))
    order = sorted(rates[report.method], key=lambda name: (-rates[report.method][name].value, name))
    half = math.ceil(len(order) / 2) if len(order) > TWO_COLUMNS else len(order)
    parts = [order[:half], order[half:]] if order[half:] else [order]
    width = 1060 // len(parts) - 10 * len(parts)
    return [_class_chart(report, part, rates, counts, colors, width) for part in parts]


def confusion_chart(report: Report) -> str:
    """The confusion matrix, true classes down and predicted ones across, shaded by share of row."""
    count = len(report.classes)
    cell = min(44.0, 830 / count)
    font = min(12.0, max(5.5, cell * 0.86))
    margin = 12 + 0.6 * font * min(NAME_LENGTH, max(map(len, report.classes)))
    side = margin + cell * count
    counted = count <= COUNTED
    totals = report.class_counts.tolist()
    parts = [
        f'<svg class="matrix" viewBox="0 0 {side + 20:.1f} {side + 6:.1f}" '
        f'style="max-width:{max(side + 20, 360):.0f}px" role="img" aria-label="Confusion matrix">',
        f'<rect class="ground" x="{margin:.1f}" y="{margin:.1f}" '
        f'width="{cell * count:.1f}" height="{cell * count:.1f}"/>',
    ]
    for k, name in enumerate(report.classes):
        middle = margin + (k + 0.5) * cell
        label = escape(_short(name))
        parts.append(
            f'<text x="{margin - 6:.1f}" y="{middle + font * 0.35:.1f}" text-anchor="end" '
            f'font-size="{font:.1f}">{label}<title>{escape(name)}</title></text>'
            f'<text transform="translate({middle + font * 0.35:.1f},{margin - 6:.1f}) rotate(-90)" '
            f'font-size="{font:.1f}">{label}<title>{escape(name)}</title></text>'
        )
    for row, counts in enumerate(report.confusion.tolist()):
        for column, videos in enumerate(counts):
            if not videos:
                continue
            share = videos / totals[row]
            kind = "right" if row == column else "wrong"
            x, y = margin + column * cell, margin + row * cell
            hover = (
                f"{report.classes[row]} taken for {report.classes[column]}: {videos} of "
                f"{totals[row]} ({100 * share:.0f}%)"
            )
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 0.5:.2f}" '
                f'height="{cell - 0.5:.2f}" fill-opacity="{0.12 + 0.88 * share:.2f}">'
                f"<title>{escape(hover)}</title></rect>"
            )
            if counted:
                strong = " strong" if share > 0.5 else ""
                parts.append(
                    f'<text class="number{strong}" x="{x + cell / 2:.1f}" '
                    f'y="{y + cell / 2 + font * 0.35:.1f}" text-anchor="middle" '
                    f'font-size="{font:.1f}">{videos}</text>'
                )
    return "".join(parts) + "</svg>"


def curve_chart(curves: Mapping[str, Curve], *, percent: bool) -> str:
    """Lines of values over training steps, named in a legend; from 0 to 100% where `percent`."""
    width, height, left, top, bottom = 520, 250, 46, 30, 30
    points = [point for curve in curves.values() for point in curve]
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    ticks = _ticks(0.0, 1.0 if percent else max(value for _, value in points))

    def x(step: float) -> float:
        return left + (width - left - 12) * (step - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value / ticks[-1])

    parts = [f'<svg class="curves" viewBox="0 0 {width} {height}" role="img">']
    for tick in ticks:
        text = f"{100 * tick:.0f}%" if percent else f"{tick:g}"
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/>'
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for step in dict.fromkeys((first, last)):
        anchor = "start" if step == first else "end"
        parts.append(
            f'<text x="{x(step):.1f}" y="{height - 10}" text-anchor="{anchor}">'
            f"{'step ' if step == first else ''}{step:,.0f}</text>"
        )
    place = float(left)
    for number, (name, curve) in enumerate(curves.items()):
        line = " ".join(f"{x(step):.1f},{y(min(value, ticks[-1])):.1f}" for step, value in curve)
        shape = f'<polyline class="curve" points="{line}"/>'
        if len(curve) == 1:
            shape = f'<circle cx="{x(curve[0][0]):.1f}" cy="{y(curve[0][1]):.1f}" r="3"/>'
        parts.append(
            f'<g class="m{number % 6}">{shape}'
            f'<rect x="{place:.0f}" y="8" width="14" height="4" rx="2"/>'
            f'<text x="{place + 20:.0f}" y="14">{escape(name)}</text></g>'
        )
        place += 44 + 6.6 * len(name)
    return "".join(parts) + "</svg>"


def _class_chart(
    report: Report,
    names: Sequence[str],
    rates: Mapping[str, Mapping[str, Rate]],
    counts: Mapping[str, int],
    colors: Mapping[str, str],
    width: int,
) -> str:
    row, left, right, top = 22, 168, 58, 22
    height = top + row * len(names) + 4
    span = width - left - right
    parts = [f'<svg class="classes" viewBox="0 0 {width} {height}" role="img">']
    for tick in (0, 25, 50, 75, 100):
        x = left + span * tick / 100
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{height}"/>'
            f'<text class="faint" x="{x:.1f}" y="{top - 9}" text-anchor="middle">{tick}'
            f"{'%' if tick == 100 else ''}</text>"
        )
    for k, name in enumerate(names):
        middle = top + row * k + row / 2
        chosen = rates[report.method][name]
        said = [f"{name}, {counts[name]} videos"]
        said += [f"{method}: {_percent(rates[method][name])}" for method in rates]
        parts.append(
            f"<g><title>{escape(chr(10).join(said))}</title>"
            f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end">{escape(_short(name))}</text>'
            f'<rect class="track" x="{left}" y="{middle - 7}" width="{span}" height="14" rx="2"/>'
            f'<rect class="{colors[report.method]} bar" x="{left}" y="{middle - 7}" '
            f'width="{span * chosen.value:.1f}" height="14" rx="2"/>'
        )
        parts += [
            f'<circle class="{colors[method]} dot" cx="{left + span * one[name].value:.1f}" '
            f'cy="{middle}" r="4"/>'
            for method, one in rates.items()
            if method != report.method
        ]
        parts.append(
            f'<text class="value" x="{width - right + 10}" y="{middle + 4}">'
            f"{100 * chosen.value:.0f}%</text></g>"
        )
    return "".join(parts) + "</svg>"


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.1f}% (95%: {100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _ticks(low: float, high: float) -> list[float]:
    """Up to six round values from `low` to `high` or just beyond."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-9)))
    while (high - low) / step < 3:
        step /= 2
    while (high - low) / step > 6:
        step *= 2
    return [low + step * k for k in range(math.ceil((high - low) / step - 1e-9) + 1)]
