"""The report as one HTML page that stands alone: no script, no network, light and dark.

``page.html`` and ``sections.html`` are its Jinja templates; it shares ``head.html`` and the style
sheet ``page.css`` with ``records.html``, the page of `flowkit.report.records_page`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import flowkit
from flowkit.documents import replacing
from flowkit.pictures.curves import Curve, curve_chart, curve_style
from flowkit.report.charts import (
    SHAPES,
    class_columns,
    confusion_matrix,
    gains_chart,
    interval_chart,
    method_marks,
    share_axis,
    swatch,
)
from flowkit.report.extras import Pictures
from flowkit.report.figures import (
    TOP,
    MeanRow,
    Report,
    class_gains,
    confusions,
    data_set,
    group_by_class,
    mean_table,
    mistakes,
)
from flowkit.report.text import interval, mean_text, method_rates, p_text, row_note

if TYPE_CHECKING:
    from jinja2 import Template

SHOWN_CONFUSIONS = 12
LISTED_CONFUSIONS = 500  # rows of the table of confusions, at most
SHOWN_GAINS = 5  # classes named of those with the largest gains, and of those with losses
TOP5_HEADLINE = 4 * TOP  # classes from which top-5 is a headline: chance is right once in four
PARTS = {"test": "test part", "heldout": "held-out part", "train": "training part"}
SET_NAMES = {"ucf101": "UCF-101", "hmdb51": "HMDB-51"}  # names of data sets as they are written


@dataclass(frozen=True)
class Extras:
    """What a page shows beside the figures, all of it optional.

    `curves` are by run and by what they measure, `pictures` by video id, `missing` why other videos
    have none. `mistakes` says how many a report shows and `sources` where the scores come from.
    """

    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    mistakes: int = 12
    sources: Sequence[str] = ()


def page(reports: Sequence[Report], extras: Extras | None = None) -> str:
    """The page of one or several reports, each of a split of its own."""
    extras = extras or Extras()
    sets = list(dict.fromkeys(data_set(report.split) for report in reports))
    title = ", ".join(_set_name(one) or "Unnamed data set" for one in sets)
    return template("page.html").render(
        title=_split_name(reports[0]) if len(reports) == 1 else title,
        splits=[_split_values(report, extras) for report in reports],
        orders=ORDERS,
        means=_mean_values(reports, sets) if len(reports) > 1 else None,
        curves=_curve_values(extras.curves),
        extras=extras,
        shapes=SHAPES,
        version=flowkit.__version__,
        interval=interval,
        p_text=p_text,
        swatch=swatch,
        curve_style=curve_style,
        share_axis=share_axis,
    )


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page; replaces what is there in one step."""
    with replacing(path) as part:
        # names of files may hold what is no Unicode; a page cannot
        part.write_bytes(text.encode("utf-8", errors="backslashreplace"))


@cache
def template(name: str) -> Template:
    """One of the Jinja templates that lie beside this module."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("flowkit", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _split_values(report: Report, extras: Extras) -> dict[str, Any]:
    """What the template shows of one report."""
    marks = method_marks(report)
    rates = [one.top1 for one in report.methods.values()]
    lowest, highest = min(rate.low for rate in rates), max(rate.high for rate in rates)
    limits = (int(10 * lowest) / 10, min(1.0, (int(10 * highest) + 1) / 10))
    largest = max((max(len(one.gained), len(one.lost)) for one in report.comparisons), default=0)
    found = mistakes(report)
    facts = [
        PARTS.get(report.part, "part unknown"),
        f"{len(report.videos):,} videos",
        f"{len(report.classes)} classes",
        f"chance {100 / len(report.classes):.1f}%",
    ]
    if report.unlabeled:
        facts.append(f"{report.unlabeled:,} videos without a label left out")
    return {
        "name": _split_name(report),
        "report": report,
        "marks": marks,
        "facts": facts,
        "tiles": _tiles(report),
        "limits": [f"{100 * limit:.0f}" for limit in limits],
        "methods": [
            (one, method_rates(report, one), interval_chart(one.top1, marks[name], limits))
            for name, one in report.methods.items()
        ],
        "gains": [
            (
                one,
                gains_chart(len(one.gained), len(one.lost), len(report.videos), largest),
                [
                    (what, len(videos), group_by_class(report, videos))
                    for what, videos in (("gained", one.gained), ("lost", one.lost))
                    if videos
                ],
                _gain_text(class_gains(report, one)),
            )
            for one in report.comparisons
        ],
        "columns": class_columns(report, marks),
        "matrix": confusion_matrix(report),
        "confusions": confusions(report)[:SHOWN_CONFUSIONS],
        "confusion_rows": _confusion_rows(report),
        "confusion_count": len(confusions(report)),
        "mistakes": found[: extras.mistakes],
        "mistaken": len(found),
    }


# Ways to order the table of confusions, and how each sorts a row
ORDERS = {
    "videos": lambda row: (-row.videos, row.truth, row.predicted),
    "share of the true class": lambda row: (-row.share, row.truth, row.predicted),
    "true class": lambda row: (row.truth, -row.videos, row.predicted),
    "predicted class": lambda row: (row.predicted, -row.videos, row.truth),
}


class ConfusionRow(NamedTuple):
    """A row of the table of confusions; `share` is of the true class's videos."""

    truth: str
    predicted: str
    videos: int
    share: float


def _confusion_rows(report: Report) -> list[tuple[ConfusionRow, str]]:
    """The most frequent confusions, and each one's place by every way to order them, as CSS."""
    counts = dict(zip(report.classes, report.class_counts.tolist(), strict=True))
    rows = [
        ConfusionRow(truth, predicted, videos, videos / counts[truth])
        for truth, predicted, videos in confusions(report)[:LISTED_CONFUSIONS]
    ]
    places: dict[ConfusionRow, list[str]] = {row: [] for row in rows}
    for number, key in enumerate(ORDERS.values()):
        for place, row in enumerate(sorted(rows, key=key)):
            places[row].append(f"--o{number}: {place}")
    return [(row, "; ".join(places[row])) for row in rows]


def _gain_text(gains: list[tuple[str, int]]) -> str:
    """The classes that gain most and those that lose most, in words."""
    most = [f"{name} +{videos}" for name, videos in gains if videos > 0][:SHOWN_GAINS]
    least = [f"{name} −{-videos}" for name, videos in reversed(gains) if videos < 0][:SHOWN_GAINS]
    parts = [("most gained: ", most), ("most lost: ", least)]
    return "; ".join(what + ", ".join(names) for what, names in parts if names)


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The headline figures of the report's method, and its distance from the best other one."""
    chosen = report.methods[report.method]
    tiles = [
        (label, f"{100 * rate.value:.1f}%", f"95% {interval(rate)}")
        for label, rate in (
            ("top-1", chosen.top1),
            ("top-5", chosen.top5),
            ("mean class accuracy", chosen.mean_class),
        )
        if label != "top-5" or len(report.classes) >= TOP5_HEADLINE
    ]
    others = [one for name, one in report.methods.items() if name != report.method]
    if others:
        best = max(others, key=lambda one: one.top1.value)
        lead = 100 * (chosen.top1.value - best.top1.value)
        p_value = next(one.p_value for one in report.comparisons if one.other == best.name)
        sign = "+" if lead >= 0 else "−"
        tiles.append((f"points against {best.name}", f"{sign}{abs(lead):.1f}", p_text(p_value)))
    return tiles


def _mean_values(reports: Sequence[Report], sets: Sequence[str]) -> dict[str, Any]:
    """Mean accuracy over splits, a column a data set, laid out as the paper's table 4."""
    table = mean_table(reports)
    splits = {one: [r.split for r in reports if data_set(r.split) == one] for one in sets}
    heads = []
    for one in sets:
        heads.append((_set_name(one), ""))
        heads += [(split.removeprefix(one).strip("-") or split, "faint") for split in splits[one]]
    rows = [
        {
            "name": row.name,
            "published": row.published,
            "note": "" if row.published else row_note(row),
            "first": not row.published and k and table[k - 1].published,
            "cells": [cell for one in sets for cell in _mean_cells(row, one, splits[one])],
        }
        for k, row in enumerate(table)
    ]
    return {"heads": heads, "rows": rows, "published": any(row.published for row in table)}


def _mean_cells(row: MeanRow, name: str, splits: Sequence[str]) -> list[tuple[str, str]]:
    """(label on narrow screens, text) of a row's mean on one data set and of each of its splits."""
    rates = {} if row.published else row.by_set.get(name, {})
    return [
        (_set_name(name), mean_text(row, name).partition(" ")[0]),
        *(
            (f"split {split.rpartition('-')[2]}", f"{100 * rates[split]:.1f}")
            if split in rates
            else ("", "")
            for split in splits
        ),
    ]


def _curve_values(
    curves: Mapping[str, Mapping[str, Curve]],
) -> list[tuple[str, list[str], str]]:
    """(title, names of curves, chart) of the losses and the accuracies of each run."""
    charts = []
    for run, measures in curves.items():
        for what, percent in (("loss", False), ("accuracy", True)):
            some = {
                name.replace("_", " "): curve for name, curve in measures.items() if what in name
            }
            if some:
                charts.append((f"{run}: {what}", list(some), curve_chart(some, percent=percent)))
    return charts


def _set_name(name: str) -> str:
    return SET_NAMES.get(name, name)


def _split_name(report: Report) -> str:
    name = data_set(report.split)
    if name == report.split:
        return name or "Unnamed split"
    return f"{_set_name(name)}, split {report.split.rpartition('-')[2]}"
