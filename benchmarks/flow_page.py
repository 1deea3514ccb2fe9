"""The tables of docs/methods.md and its picture, of flow_methods.py's reports and reproduced rows.

    python benchmarks/flow_page.py docs/methods.md

Reads benchmarks/results/flow-methods-*.json and, for the accuracy of recognition, the rows that
compare flow methods in benchmarks/results/reproduce-*/flow-*.json. What stands above the mark in
the page stays as it is.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from clips import run_benchmark

from flowkit.errors import UsageError
from flowkit.pictures.curves import PICTURE_STYLE, round_values

RESULTS = Path(__file__).with_name("results")
MARK = "<!-- From here on written by benchmarks/flow_page.py. -->\n"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 460, 60, 160, 40, 75  # px
LETTER, LINE, BESIDE = 7.4, 15, 9  # px: of a label, and from a dot to its label
STYLE = PICTURE_STYLE + ".dots { fill: currentColor; } .m2 { color: #b3541e; }"


class Accuracy(NamedTuple):
    """Of the temporal stream with a method's flow, and its 95% interval, from 0 to 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (100 * one for one in self)
        return f"{value:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    if len(sys.argv) != 2:
        raise UsageError(f"usage: {sys.argv[0]} PAGE.md")
    write_page(Path(sys.argv[1]))


def write_page(page: Path) -> None:
    """Write the tables below the mark in `page`, and the picture beside it."""
    reports, accuracies = read_reports(RESULTS), read_accuracies(RESULTS)
    kept = page.read_text(encoding="utf-8").partition(MARK)[0]
    page.write_text(kept + MARK + tables_of(reports, accuracies), encoding="utf-8")
    page.with_suffix(".svg").write_text(picture_of(reports, accuracies), encoding="utf-8")


def read_reports(results: Path) -> list[dict[str, Any]]:
    """The reports of flow_methods.py, that of the CPU first."""
    files = sorted(
        results.glob("flow-methods-*.json"), key=lambda file: ("cpu" not in file.stem, file)
    )
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def read_accuracies(results: Path) -> dict[str, Accuracy]:
    """The accuracy of each method that has a row."""
    found = {}
    for file in sorted(results.glob("reproduce-*/flow-*.json")):
        test = json.loads(file.read_text(encoding="utf-8"))["test"]
        name = file.stem.removeprefix("flow-").replace("-fast", ":fast")
        found.setdefault(name, Accuracy(test["accuracy"], *test["interval_95"]))
    return found


def tables_of(reports: list[dict[str, Any]], accuracies: dict[str, Accuracy]) -> str:
    """A section for each report."""
    parts = []
    for report in reports:
        parts.append(f"\n## {report['machine'][0].upper()}{report['machine'][1:]}\n")
        parts.append(
            f"{report['clips']} clips timed, {commit_of(report)}; the load average was "
            f"{report['load_average'][0]} on {report['cores']} cores.\n"
        )
        parts.append(table_of(report, accuracies))
        if report["same"]:
            parts.append("\nMean differences between methods that should agree, px (worst pair):\n")
            parts += [
                f"* {names}: {one['mean']:.2g} ({one['worst']:.2g})"
                for names, one in report["same"].items()
            ]
    return "\n".join(parts) + "\n"


def commit_of(report: dict[str, Any]) -> str:
    return f"commit {report['commit'][:7]}" if report["commit"] else "of no known commit"


def table_of(report: dict[str, Any], accuracies: dict[str, Accuracy]) -> str:
    """The methods of a report, with speeds beside that of OpenCV's TV-L1, the first of them."""
    lines = [
        "| method | pairs/s | times OpenCV's TV-L1 | to TV-L1, px | Middlebury, px | accuracy, % |",
        "|---|---|---|---|---|---|",
    ]
    slowest = report["methods"][0].get("pairs_per_s")
    for row in report["methods"]:
        speed, away = row.get("pairs_per_s"), row.get("to_tvl1_px")
        cells = [
            f"`{row['method']}`",
            number(speed) if speed else f"not measured: {row.get('error', '')}",
            number(speed / slowest) if speed and slowest else "",
            f"{away['mean']:.3f} ({away['worst']:.3f})" if away else "",
            f"{error_of(row):.3f}" if row.get("ground_truth_px") else "",
            str(accuracies.get(row["method"], "")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits, none of them behind the point where it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def error_of(row: dict[str, Any]) -> float:
    """Mean over the scenes, px."""
    return statistics.mean(row["ground_truth_px"].values())


# --- the picture ---


class Point(NamedTuple):
    """A method in a panel; of `low` and `high` a line is drawn."""

    speed: float
    value: float
    name: str
    color: int
    low: float
    high: float


@dataclass(frozen=True)
class Plane:
    """Where a panel has a speed, on a logarithmic scale, and a value, px from left and top."""

    speeds: tuple[float, float]  # the lowest and the highest pairs/s
    ticks: list[float]  # of the values, from 0

    def across(self, speed: float) -> float:
        low, high = (math.log10(one) for one in self.speeds)
        share = (math.log10(speed) - low) / ((high - low) or 1)
        return LEFT + 20 + share * (WIDTH - LEFT - RIGHT - 20)

    def down(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / self.ticks[-1])


def picture_of(reports: list[dict[str, Any]], accuracies: dict[str, Accuracy]) -> str:
    """An SVG file: speed across, and up the error on Middlebury, then the accuracy."""
    errors, rates = [], []
    for color, report in enumerate(reports):
        for row in report["methods"]:
            speed, name = row.get("pairs_per_s"), row["method"]
            if speed and row.get("ground_truth_px"):
                errors.append(Point(speed, error_of(row), name, color, *[error_of(row)] * 2))
            if speed and name in accuracies:
                value, low, high = (100 * one for one in accuracies[name])
                rates.append(Point(speed, value, name, color, low, high))
    panels = {"mean error on Middlebury, px": errors}
    if rates:
        panels["accuracy of the temporal stream, %, and its 95% interval"] = rates
    speeds = [point.speed for points in panels.values() for point in points]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
        f'height="{HEIGHT * len(panels)}" role="img"><style>{STYLE}</style>'
        '<rect width="100%" height="100%" fill="white"/>'
    ]
    for place, (title, points) in enumerate(panels.items()):
        plane = Plane((min(speeds), max(speeds)), round_values(max(one.high for one in points)))
        parts.append(f'<svg y="{place * HEIGHT}" width="{WIDTH}" height="{HEIGHT}">')
        parts += [*grid(plane, title), *legend(reports), *drawn(plane, points), "</svg>"]
    return "".join(parts) + "</svg>\n"


def grid(plane: Plane, title: str) -> Iterator[str]:
    """Lines and numbers of both scales, and what they count."""
    bottom = HEIGHT - BOTTOM
    yield f'<text x="{LEFT}" y="22" font-weight="bold">{title}</text>'
    yield f'<text x="{WIDTH - 10}" y="{bottom + 40}" text-anchor="end">pairs/s at 340x256</text>'
    for tick in plane.ticks:
        y = plane.down(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.2g}</text>'
    low, high = (math.log10(one) for one in plane.speeds)
    for power in range(math.ceil(low), math.floor(high) + 1):
        x = plane.across(10.0**power)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{10.0**power:,g}</text>'


def legend(reports: list[dict[str, Any]]) -> Iterator[str]:
    for color, report in enumerate(reports):
        y = HEIGHT - BOTTOM + 40 + LINE * color
        yield dot(LEFT + 5, y - 4, color, report["machine"], y)


def drawn(plane: Plane, points: list[Point]) -> Iterator[str]:
    """Each method's dot, its name beside it where there is room, and the line of its interval."""
    points = sorted(points)
    taken = []  # by the dots, then by labels too
    for point in points:
        x = plane.across(point.speed)
        taken.append((x - BESIDE, x + BESIDE, plane.down(point.value) + 4))
    for point in points:
        x, y = plane.across(point.speed), plane.down(point.value)
        if point.low < point.high:
            ends = f'y1="{plane.down(point.high):.1f}" y2="{plane.down(point.low):.1f}"'
            yield f'<line class="curve m{point.color}" x1="{x:.1f}" x2="{x:.1f}" {ends}/>'
        yield dot(x, y, point.color, point.name, free_line(taken, x, point.name, y + 4))


def dot(x: float, y: float, color: int, label: str, baseline: float) -> str:
    return (
        f'<circle class="dots m{color}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        f'<text x="{x + BESIDE:.1f}" y="{baseline:.1f}">{escape(label)}</text>'
    )


def free_line(
    taken: list[tuple[float, float, float]], x: float, label: str, wanted: float
) -> float:
    """The baseline nearest to `wanted` at which a label beside `x` meets nothing in `taken`.

    That has (left, right, baseline), px, of what is drawn already; the label's is added.
    """
    left, right = x + BESIDE, x + BESIDE + LETTER * len(label)
    near = [side for side in taken if left < side[1] and side[0] < right]
    tries = [wanted + way * step * LINE / 3 for step in range(20) for way in (1, -1)]
    free = [line for line in tries if all(abs(line - other) >= LINE for *_, other in near)]
    taken.append((left, right, free[0] if free else wanted))
    return taken[-1][2]


if __name__ == "__main__":
    run_benchmark(main)
