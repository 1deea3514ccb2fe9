"""The charts of the report page, each one inline SVG that takes its colors from the page's CSS.

Nothing is drawn by script. Across, all is in percent of the width that the page leaves, so that
letters and marks keep their size on every screen. Values are hovered in titles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from flowkit.pictures.curves import COLORS
from flowkit.report.figures import Rate, Report, class_rates

SHAPES = (  # paths of marks around (0, 0), px: s0 to s8 on the page
    "M-4.6,0a4.6,4.6 0 1,0 9.2,0a4.6,4.6 0 1,0 -9.2,0z",  # circle
    "M-4.1,-4.1h8.2v8.2h-8.2z",  # square
    "M0,-5.4L5.2,4H-5.2z",  # triangle
    "M0,-5.8L5.8,0L0,5.8L-5.8,0z",  # diamond
    "M0,5.4L5.2,-4H-5.2z",  # triangle upside down
    "M-1.7,-5.2h3.4v3.5h3.5v3.4h-3.5v3.5h-3.4v-3.5h-3.5v-3.4h3.5z",  # plus
    "M-4.8,-2.4L-2.4,-4.8L0,-2.4L2.4,-4.8L4.8,-2.4L2.4,0L4.8,2.4L2.4,4.8L0,2.4L-2.4,4.8"
    "L-4.8,2.4L-2.4,0z",  # cross
    "M0,-6.2L1.6,-2.2L5.9,-1.9L2.6,0.8L3.6,5L0,2.7L-3.6,5L-2.6,0.8L-5.9,-1.9L-1.6,-2.2z",  # star
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
    "M-2.2,0a2.2,2.2 0 1,1 4.4,0a2.2,2.2 0 1,1 -4.4,0z",  # ring
)
TWO_COLUMNS = 30  # classes that one column of bars takes, at most
PITCH = (13.0, 36.0)  # px, least and most, of a row of the confusion matrix
MATRIX_ROOM = 560.0  # px that the rows share between these
NARROW_CELLS, WIDE_CELLS = 210.0, 560.0  # px that all columns share at least, on phones and beyond
CELL = 90.0  # px, the width of a cell at most
DIGIT = 6.2  # px of a digit in the matrix


class Mark(NamedTuple):
    """How a method is drawn: the classes of its color and the id of its shape."""

    color: str
    shape: str


@dataclass(frozen=True)
class ClassRow:
    """A row of the accuracy by class: the chart shows all methods, `value` that of the report."""

    name: str
    value: float
    chart: str


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix: `pitch`, px between rows, and a chart of all of them, `top` px down."""

    pitch: float
    top: int
    chart: str


def method_marks(report: Report) -> dict[str, Mark]:
    """The mark of each method; the report's own has the first. No two of 72 are alike."""
    others = [name for name in report.methods if name != report.method]
    return {
        name: Mark(f"m{number % COLORS}", f"s{number % len(SHAPES)}")
        for number, name in enumerate([report.method, *others])
    }


def swatch(mark: Mark) -> str:
    """A method's mark by itself."""
    return f'<svg class="swatch {mark.color}" aria-hidden="true">{_use(mark, 50, 7)}</svg>'


def interval_chart(rate: Rate, mark: Mark, limits: tuple[float, float]) -> str:
    """A mark on its 95% interval, on a line from limits[0] to limits[1]."""

    def x(value: float) -> float:
        return 3 + 94 * (value - limits[0]) / (limits[1] - limits[0])

    return (
        f'<svg class="interval {mark.color}" role="img" aria-label="{_percent(rate)}">'
        '<line class="track" x1="3%" x2="97%" y1="12" y2="12"/>'
        f'<line class="whisker" x1="{x(rate.low):.2f}%" x2="{x(rate.high):.2f}%" y1="12" y2="12"/>'
        f"{_use(mark, x(rate.value), 12)}<title>{_percent(rate)}</title></svg>"
    )


def gains_chart(gained: int, lost: int, count: int, largest: int) -> str:
    """Two bars from a middle line: videos lost to the left, gained to the right."""
    minus, plus = "−" * (lost > 0), "+" * (gained > 0)
    left, right = (34 * videos / max(largest, 1) for videos in (lost, gained))
    return (
        f'<svg class="gains" role="img" aria-label="{gained} gained, {lost} lost">'
        f'<rect class="lost" x="{50 - left:.2f}%" y="4" width="{left:.2f}%" height="18"/>'
        f'<rect class="gained" x="50%" y="4" width="{right:.2f}%" height="18"/>'
        '<line class="axis" x1="50%" x2="50%" y1="0" y2="26"/>'
        f'<text x="{50 - left:.2f}%" dx="-5" y="17" text-anchor="end">{minus}{lost}</text>'
        f'<text x="{50 + right:.2f}%" dx="5" y="17">{plus}{gained}</text>'
        f"<title>{gained} gained, {lost} lost of {count} videos</title></svg>"
    )


def class_columns(report: Report, marks: Mapping[str, Mark]) -> list[list[ClassRow]]:
    """Accuracy by class, best first: a bar of the report's method, marks of the others.

    One column, or two of half of the classes each where they are many.
    """
    rates = {name: class_rates(report, name) for name in report.methods}
    counts = dict(zip(report.classes, report.class_counts.tolist(), strict=True))
    order = sorted(rates[report.method], key=lambda name: (-rates[report.method][name].value, name))
    rows = [
        ClassRow(
            name,
            rates[report.method][name].value,
            _class_chart(name, report.method, rates, counts[name], marks),
        )
        for name in order
    ]
    half = math.ceil(len(rows) / 2) if len(rows) > TWO_COLUMNS else len(rows)
    return [rows[:half], rows[half:]] if rows[half:] else [rows]


def share_axis() -> str:
    """The numbers above bars from 0 to 100%."""
    ticks = ((0, "start"), (50, "middle"), (100, "end"))
    return (
        '<svg class="axis" aria-hidden="true">'
        + "".join(
            f'<text class="faint" x="{tick}%" y="14" text-anchor="{anchor}">'
            f"{tick}{'%' if tick == 100 else ''}</text>"
            for tick, anchor in ticks
        )
        + "</svg>"
    )


def confusion_matrix(report: Report) -> Matrix:
    """The confusion matrix, true classes down and predicted ones across, shaded by share of row.

    Rows are named by the page and columns numbered in their order, some or all, as there is room.
    """
    count, top = len(report.classes), 20
    pitch = min(max(PITCH[0], MATRIX_ROOM / count), PITCH[1])
    width = 100 / count
    parts = [
        f'<svg class="matrix" height="{top + pitch * count:.1f}" role="img" '
        f'aria-label="Confusion matrix" style="max-width: {CELL * count:.0f}px">'
        f'<rect class="ground" y="{top}" width="100%" height="{pitch * count:.1f}"/>'
    ]
    step = _number_step(count)
    for number in range(step, count + 1, step):
        x = width * (number - 0.5)
        parts.append(
            f'<line class="grid" x1="{x:.3f}%" x2="{x:.3f}%" y1="{top - 4}" y2="100%"/>'
            f'<text class="faint" x="{x:.3f}%" y="12" text-anchor="middle">{number}'
            f"<title>{escape(report.classes[number - 1])}</title></text>"
        )
    parts += [
        _matrix_cell(report, row, column, top + pitch * row, pitch)
        for row, counts in enumerate(report.confusion.tolist())
        for column, videos in enumerate(counts)
        if videos
    ]
    return Matrix(pitch, top, "".join(parts) + "</svg>")


def _use(mark: Mark, x: float, y: float) -> str:
    return f'<use class="mark {mark.color}" href="#{mark.shape}" x="{x:.2f}%" y="{y:g}"/>'


def _class_chart(
    name: str,
    chosen: str,
    rates: Mapping[str, Mapping[str, Rate]],
    count: int,
    marks: Mapping[str, Mark],
) -> str:
    said = [f"{name}, {count} videos"]
    said += [f"{method}: {_percent(of[name])}" for method, of in rates.items()]
    others = [method for method in rates if method != chosen]
    middle = (len(others) - 1) / 2
    lane = 4 / (middle or 1)  # px from one to the next, so that equals do not hide each other
    dots = "".join(
        _use(marks[method], 100 * rates[method][name].value, 10 + lane * (number - middle))
        for number, method in enumerate(others)
    )
    return (
        f'<svg class="classes"><title>{escape(chr(10).join(said))}</title>'
        '<rect class="track" y="3" width="100%" height="14"/>'
        f'<rect class="bar {marks[chosen].color}" y="3" '
        f'width="{100 * rates[chosen][name].value:.2f}%" height="14"/>{dots}</svg>'
    )


def _matrix_cell(report: Report, row: int, column: int, y: float, pitch: float) -> str:
    """One cell of the matrix that is not empty, with its number where that fits."""
    count, total = len(report.classes), int(report.class_counts[row])
    videos = int(report.confusion[row, column])
    share = videos / total
    hover = (
        f"{report.classes[row]} taken for {report.classes[column]}: {videos} of {total} "
        f"({100 * share:.0f}%)"
    )
    kind = "right" if row == column else "wrong"
    x, width = 100 * column / count, 100 / count
    parts = (
        f'<rect class="{kind}" x="{x:.3f}%" y="{y:.1f}" width="{width:.3f}%" '
        f'height="{pitch:.1f}" fill-opacity="{0.12 + 0.88 * share:.2f}">'
        f"<title>{escape(hover)}</title></rect>"
    )
    needed = DIGIT * len(str(report.confusion.max())) + 3
    if WIDE_CELLS / count >= needed:
        roomy = " roomy" if NARROW_CELLS / count < needed else ""
        parts += (
            f'<text class="number{roomy}" x="{x + width / 2:.3f}%" y="{y + pitch / 2 + 4:.1f}" '
            f'text-anchor="middle">{videos}</text>'
        )
    return parts


def _number_step(count: int) -> int:
    """How many columns of a matrix share a number, so that two never touch."""
    needed = DIGIT * len(str(count)) + 4
    steps = (round(factor * 10**power) for power in range(6) for factor in (1, 2, 5))
    return next(step for step in steps if step * NARROW_CELLS / count >= needed)


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.1f}% (95%: {100 * rate.low:.1f} to {100 * rate.high:.1f})"
