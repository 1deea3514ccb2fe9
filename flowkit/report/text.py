"""A report to read in a terminal, in percent, and as JSON values, in fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flowkit.report.figures import (
    TOP,
    MeanRow,
    Method,
    Rate,
    Report,
    class_rates,
    confusions,
    data_set,
    group_by_class,
    mean_table,
    mistakes,
)

SHOWN = 5  # classes of a list of videos
SHOWN_CONFUSIONS = 10


def as_json(reports: Sequence[Report]) -> dict[str, Any]:
    """All figures of the reports as JSON values."""
    return {
        "splits": [_report_json(report) for report in reports],
        "mean_over_splits": [
            asdict(row) | {"mean": {name: row.mean(name) for name in row.by_set}}
            for row in mean_table(reports)
        ],
    }


def _report_json(report: Report) -> dict[str, Any]:
    rates = {name: class_rates(report, name) for name in report.methods}
    counts = report.class_counts.tolist()
    return {
        "split": report.split,
        "part": report.part,
        "videos": len(report.videos),
        "unlabeled": report.unlabeled,
        "classes": report.classes,
        "chance": 1 / len(report.classes),
        "methods": {
            name: {
                "about": method.about,
                "top1": asdict(method.top1),
                "top5": asdict(method.top5),
                "mean_class": asdict(method.mean_class),
            }
            for name, method in report.methods.items()
        },
        "method": report.method,
        "reason": report.reason,
        "comparisons": [asdict(comparison) for comparison in report.comparisons],
        "per_class": [
            {
                "class": class_name,
                "videos": counts[k],
                "top1": {name: asdict(rates[name][class_name]) for name in rates},
            }
            for k, class_name in enumerate(report.classes)
            if counts[k]
        ],
        "confusion": report.confusion.tolist(),
        "mistakes": [asdict(mistake) for mistake in mistakes(report)],
    }


def as_text(reports: Sequence[Report]) -> str:
    """The reports to read in a terminal; percentages."""
    blocks = [_report_text(report) for report in reports]
    if len(reports) > 1:
        blocks.append(_mean_text(reports))
    return "\n\n".join(blocks)


def methods_text(report: Report) -> str:
    """The table of the methods alone, with a line above it that says of what; percentages."""
    names = max(map(len, (*report.methods, "method")))
    heads = "".join(f"{head:21}" for head, _ in method_rates(report, report.methods[report.method]))
    lines = [title(report), f"{'method':{names}}  {heads}about"]
    for name, method in report.methods.items():
        cells = [
            f"{100 * rate.value:5.1f} {interval(rate):15}"
            for _, rate in method_rates(report, method)
        ]
        lines.append(f"{name:{names}}  {''.join(cells)}{method.about}".rstrip())
    return "\n".join(lines)


def method_rates(report: Report, one: Method) -> list[tuple[str, Rate]]:
    """The rates of a method that tell something: of five classes or fewer, top-5 is always 1."""
    rates = [("top-1", one.top1), ("top-5", one.top5), ("mean class", one.mean_class)]
    return [rate for rate in rates if rate[0] != "top-5" or len(report.classes) > TOP]


def title(report: Report) -> str:
    """What a report is of: split, part, videos, classes, chance."""
    what = f"{report.split or 'unnamed split'}, {report.part or 'unnamed'} part"
    unlabeled = f", {report.unlabeled:,} without a label left out" if report.unlabeled else ""
    return (
        f"{what}: {len(report.videos):,} videos of {len(report.classes)} classes{unlabeled}, "
        f"chance {100 / len(report.classes):.1f}%"
    )


def interval(rate: Rate) -> str:
    """The 95% interval of a rate in percent: "[72.2, 75.0]"."""
    return f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def p_text(p_value: float) -> str:
    """A p-value to read: "p = 0.013", "p < 0.0001"."""
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def _report_text(report: Report) -> str:
    lines = [methods_text(report), "", f"in detail: {report.method}, {report.reason}"]
    for one in report.comparisons:
        lines.append(
            f"{one.method} against {one.other}: {len(one.gained)} gained, {len(one.lost)} lost, "
            f"McNemar {p_text(one.p_value)}"
        )
        lines += _videos_text(report, "+", one.gained) + _videos_text(report, "-", one.lost)
    names = max(map(len, (*report.classes, "class")))
    widths = {name: max(len(name), 5) for name in report.methods}
    heads = "  ".join(f"{name:>{width}}" for name, width in widths.items())
    lines += ["", f"{'class':{names}}  videos  {heads}"]
    by_class = {name: class_rates(report, name) for name in report.methods}
    for class_name, count in zip(report.classes, report.class_counts.tolist(), strict=True):
        if count:
            cells = "  ".join(
                f"{100 * by_class[name][class_name].value:{width}.1f}"
                for name, width in widths.items()
            )
            lines.append(f"{class_name:{names}}  {count:6}  {cells}")
    found = confusions(report)
    if found:
        lines += ["", f"confused by {report.method} most often:"]
        lines += [
            f"  {truth} taken for {predicted}: {count}"
            for truth, predicted, count in found[:SHOWN_CONFUSIONS]
        ]
    return "\n".join(lines)


def _videos_text(report: Report, sign: str, videos: Sequence[str]) -> list[str]:
    """A line for each class of the videos, with their number and the first of them."""
    groups = group_by_class(report, videos)
    lines = [
        f"  {sign} {class_name}: {len(own):,} ({own[0]}{', ...' if len(own) > 1 else ''})"
        for class_name, own in groups[:SHOWN]
    ]
    if left := groups[SHOWN:]:
        count, classes = sum(len(own) for _, own in left), "class" if len(left) == 1 else "classes"
        lines.append(f"  {sign} and {count:,} of {len(left)} more {classes}")
    return lines


def _mean_text(reports: Sequence[Report]) -> str:
    table = mean_table(reports)
    sets = list(dict.fromkeys(data_set(report.split) for report in reports))
    names = max(len(row.name) for row in table)
    lines = [f"{'mean top-1 over splits':{names}}  " + "  ".join(f"{name:>12}" for name in sets)]
    for row in table:
        cells = "  ".join(f"{mean_text(row, name):>12}" for name in sets)
        lines.append(
            f"{row.name:{names}}  {cells}" + (f"  ({note})" if (note := row_note(row)) else "")
        )
    return "\n".join(lines)


def row_note(row: MeanRow) -> str:
    """What is to be known of a row of the table over splits, if anything, beside its figures."""
    if row.published:
        return "published"
    return f"{', '.join(row.other_nets)}: not the network of 2014" if row.other_nets else ""


def mean_text(row: MeanRow, name: str) -> str:
    """A cell of the table over splits: the mean in percent, and of how many splits."""
    mean = row.mean(name)
    if mean is None:
        return "-"
    count = "" if row.published else f" ({len(row.by_set[name])})"
    return f"{100 * mean:.1f}{count}"
