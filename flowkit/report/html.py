"""The report as one HTML page that stands alone: no script, no network, light and dark."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import flowkit
from flowkit.report.charts import (
    Curve,
    class_charts,
    confusion_chart,
    curve_chart,
    gains_chart,
    interval_chart,
)
from flowkit.report.extras import Pictures
from flowkit.report.figures import (
    Comparison,
    Mistake,
    Report,
    confusions,
    data_set,
    mean_table,
    mistakes,
)
from flowkit.report.style import CSS
from flowkit.report.text import interval, mean_text, p_text

COLORS = 6  # m0 to m5 in the CSS; further methods begin again
SHOWN_CONFUSIONS = 12
SET_NAMES = {"ucf101": "UCF-101", "hmdb51": "HMDB-51"}  # as they are written
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # fetches nothing, ever


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
    name = ", ".join(_set_name(one) or "Unnamed data set" for one in sets)
    if len(reports) == 1:
        name = _split_name(reports[0])
    body = []
    if len(reports) > 1:
        links = " ".join(
            f'<a href="#split-{k}">{escape(_split_name(report))}</a>'
            for k, report in enumerate(reports)
        )
        body.append(f"<nav>{links}</nav>{_mean_section(reports, sets)}")
    body += [
        _report_section(k, report, extras, titled=len(reports) > 1)
        for k, report in enumerate(reports)
    ]
    body.append(_curves_section(extras.curves))
    sources = "".join(f"<li><code>{escape(source)}</code></li>" for source in extras.sources)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(name)} – flowkit report</title>
<style>
{CSS}</style>
</head>
<body>
<header><p class="brand">flowkit report</p><h1>{escape(name)}</h1></header>
<main>
{"".join(body)}
</main>
<footer>
<p>Brackets and whiskers are 95% intervals: Wilson’s score interval, for mean class accuracy with
the variance within classes. They treat videos as independent; clips cut from one source are alike,
so the real uncertainty is larger. Differences between two methods are tested on the same videos by
McNemar’s exact test.</p>
{f"<details><summary>Read from</summary><ul>{sources}</ul></details>" if sources else ""}
<p>flowkit {escape(flowkit.__version__)}</p>
</footer>
</body>
</html>
"""


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page; replaces what is there in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # names of files may hold what is no Unicode; a page cannot
        part.write_bytes(text.encode("utf-8", errors="backslashreplace"))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _report_section(number: int, report: Report, extras: Extras, *, titled: bool) -> str:
    colors = _colors(report)
    bars = "".join(class_charts(report, colors))
    part = {"test": "test part", "heldout": "held-out part", "train": "training part"}
    facts = [
        part.get(report.part, "part unknown"),
        f"{len(report.videos):,} videos",
        f"{len(report.classes)} classes",
        f"chance {100 / len(report.classes):.1f}%",
    ]
    if report.unlabeled:
        facts.append(f"{report.unlabeled:,} videos without a label left out")
    return f"""<section id="split-{number}" class="split">
{f"<h2>{escape(_split_name(report))}</h2>" if titled else ""}
<p class="facts">{" · ".join(facts)}</p>
{_tiles(report)}
{_methods_table(report, colors)}
{_gains(report)}
<article><h3>Accuracy by class</h3>
<p class="hint">{_legend(report, colors)}</p>
<div class="columns">{bars}</div></article>
<article><h3>Confusion matrix of {escape(report.method)}</h3>
<p class="hint">True classes down, predicted classes across; the stronger, the larger the
share of the true class.</p>
<div class="wide">{confusion_chart(report)}</div>
{_confusion_list(report)}</article>
{_mistakes(report, colors, extras)}
</section>
"""


def _tiles(report: Report) -> str:
    """The headline figures of the report's method, and its lead over the best other one."""
    chosen = report.methods[report.method]
    tiles = [
        (label, f"{100 * rate.value:.1f}%", f"95% {interval(rate)}")
        for label, rate in (
            (f"top-1, {chosen.name}", chosen.top1),
            ("top-5", chosen.top5),
            ("mean class accuracy", chosen.mean_class),
        )
    ]
    others = [one for name, one in report.methods.items() if name != report.method]
    if others:
        best = max(others, key=lambda one: one.top1.value)
        lead = 100 * (chosen.top1.value - best.top1.value)
        p_value = next(one.p_value for one in report.comparisons if one.other == best.name)
        sign = "+" if lead >= 0 else "−"
        tiles.append((f"points over {best.name}", f"{sign}{abs(lead):.1f}", p_text(p_value)))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><p class="label">{escape(label)}</p>'
            f'<p class="figure">{value}</p><p class="small">{escape(small)}</p></div>'
            for label, value, small in tiles
        )
        + "</div>"
    )


def _methods_table(report: Report, colors: Mapping[str, str]) -> str:
    rates = [one.top1 for one in report.methods.values()]
    lowest, highest = min(rate.low for rate in rates), max(rate.high for rate in rates)
    limits = (int(10 * lowest) / 10, min(1.0, (int(10 * highest) + 1) / 10))
    rows = []
    for name, one in report.methods.items():
        cells = "".join(
            f'<td class="n"><b>{100 * rate.value:.1f}</b> '
            f'<span class="faint">{interval(rate)}</span></td>'
            for rate in (one.top1, one.top5, one.mean_class)
        )
        about = f'<br><span class="faint">{escape(one.about)}</span>' if one.about else ""
        rows.append(
            f'<tr><th scope="row"><span class="swatch {colors[name]}"></span>{escape(name)}{about}'
            f"</th>{cells}<td>{interval_chart(one.top1, colors[name], limits)}</td></tr>"
        )
    scale = f"<span>{100 * limits[0]:.0f}</span><span>{100 * limits[1]:.0f}%</span>"
    return f"""<article><h3>Methods</h3><div class="wide"><table class="methods">
<thead><tr><th scope="col">Method</th><th scope="col">Top-1</th><th scope="col">Top-5</th>
<th scope="col">Mean class</th><th scope="col"><div class="scale">{scale}</div></th></tr></thead>
<tbody>{"".join(rows)}</tbody></table></div></article>"""


def _gains(report: Report) -> str:
    if not report.comparisons:
        return ""
    largest = max(max(len(one.gained), len(one.lost)) for one in report.comparisons)
    rows = "".join(_gain_row(one, len(report.videos), largest) for one in report.comparisons)
    return f"""<article><h3>What {escape(report.method)} gains and loses</h3>
<p class="hint">Videos that only the one of two methods tells right.</p>{rows}</article>"""


def _gain_row(one: Comparison, count: int, largest: int) -> str:
    lists = "".join(
        f"<details><summary>{len(videos):,} videos {what}</summary>"
        f'<ul class="videos">{"".join(f"<li>{escape(video)}</li>" for video in videos)}</ul>'
        "</details>"
        for what, videos in (("gained", one.gained), ("lost", one.lost))
        if videos
    )
    return f"""<div class="gain"><p>against <b>{escape(one.other)}</b></p>
{gains_chart(len(one.gained), len(one.lost), count, largest)}
<p class="faint">McNemar {escape(p_text(one.p_value))}</p>{lists}</div>"""


def _legend(report: Report, colors: Mapping[str, str]) -> str:
    chosen = f'<span class="swatch bar {colors[report.method]}"></span>{escape(report.method)}'
    dots = [
        f'<span class="swatch {colors[name]}"></span>{escape(name)}'
        for name in report.methods
        if name != report.method
    ]
    return " ".join(f'<span class="key">{key}</span>' for key in [chosen, *dots])


def _confusion_list(report: Report) -> str:
    found = confusions(report)[:SHOWN_CONFUSIONS]
    items = "".join(
        f"<li><b>{escape(truth)}</b> taken for <b>{escape(predicted)}</b>"
        f'<span class="faint"> {count}</span></li>'
        for truth, predicted, count in found
    )
    return f'<h4>Most frequent</h4><ol class="pairs">{items}</ol>' if found else ""


def _mistakes(report: Report, colors: Mapping[str, str], extras: Extras) -> str:
    found = mistakes(report)
    shown = found[: extras.mistakes]
    if not shown:
        return ""
    cards = "".join(_card(one, colors, extras) for one in shown)
    pictured = any(one.video in extras.pictures for one in shown)
    wheel = " Hue is the direction of the flow, white stands still." if pictured else ""
    return f"""<article><h3>Surest mistakes of {escape(report.method)}</h3>
<p class="hint">{len(shown):,} of {len(found):,}, by the probability of the wrong class.{wheel}</p>
<div class="cards">{cards}</div></article>"""


def _card(one: Mistake, colors: Mapping[str, str], extras: Extras) -> str:
    pictures = extras.pictures.get(one.video)
    images = ""
    if pictures:
        images = "".join(
            f'<img src="{source}" alt="{what} of {escape(one.video)}">'
            for what, source in (("frame", pictures.frame), ("flow", pictures.flow))
            if source
        )
        images = f'<div class="images">{images}</div>'
    elif one.video in extras.missing:
        images = f'<p class="absent">{escape(extras.missing[one.video])}</p>'
    says = "".join(
        f'<li><span class="swatch {colors[name]}"></span>{escape(name)}: {escape(said)} '
        f'<span class="faint">{100 * probability:.0f}%</span></li>'
        for name, (said, probability) in one.says.items()
    )
    return f"""<figure>{images}<figcaption><p><b>{escape(one.truth)}</b>
<span class="taken">taken for</span> <b class="wrong">{escape(one.predicted)}</b></p>
<ul class="says">{says}</ul><p class="id">{escape(one.video)}</p></figcaption></figure>"""


def _mean_section(reports: Sequence[Report], sets: Sequence[str]) -> str:
    """Mean accuracy over splits, a column a data set, laid out as the paper's table 4."""
    table = mean_table(reports)
    splits = {one: [r.split for r in reports if data_set(r.split) == one] for one in sets}
    heads = "".join(
        f'<th scope="col">{escape(_set_name(one))}</th>'
        + "".join(
            f'<th scope="col" class="faint">{escape(split.removeprefix(one).strip("-") or split)}'
            "</th>"
            for split in splits[one]
        )
        for one in sets
    )
    rows = []
    for k, row in enumerate(table):
        first_own = not row.published and k and table[k - 1].published
        cells = ""
        for one in sets:
            cells += f'<td class="n"><b>{mean_text(row, one).partition(" ")[0]}</b></td>'
            rates = {} if row.published else row.by_set.get(one, {})
            cells += "".join(
                f'<td class="n faint">{100 * rates[split]:.1f}</td>'
                if split in rates
                else '<td class="n faint"></td>'
                for split in splits[one]
            )
        kinds = " ".join(
            kind for kind, holds in (("published", row.published), ("first", first_own)) if holds
        )
        rows.append(f'<tr class="{kinds}"><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    published = any(row.published for row in table)
    note = " Rows in italics are published: Simonyan &amp; Zisserman 2014, table 4." * published
    return f"""<article class="mean"><h2>Mean accuracy over splits</h2>
<p class="hint">Top-1 in percent; the mean, then each split.{note}</p>
<div class="wide"><table class="paper"><thead><tr><th scope="col">Method</th>{heads}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div></article>"""


def _curves_section(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    charts = []
    for run, measures in curves.items():
        for what, percent in (("loss", False), ("accuracy", True)):
            some = {
                name.replace("_", " "): curve for name, curve in measures.items() if what in name
            }
            if some:
                charts.append(
                    f"<div><h4>{escape(run)}: {what}</h4>{curve_chart(some, percent=percent)}</div>"
                )
    if not charts:
        return ""
    return f"""<section class="split"><h2>Training</h2>
<article><div class="columns">{"".join(charts)}</div></article></section>"""


def _colors(report: Report) -> dict[str, str]:
    """The color class of each method; the report's own has the first."""
    others = [name for name in report.methods if name != report.method]
    return {name: f"m{number % COLORS}" for number, name in enumerate([report.method, *others])}


def _set_name(name: str) -> str:
    return SET_NAMES.get(name, name)


def _split_name(report: Report) -> str:
    name = data_set(report.split)
    if name == report.split:
        return name or "Unnamed split"
    return f"{_set_name(name)}, split {report.split.rpartition('-')[2]}"
