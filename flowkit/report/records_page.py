"""What many records hold together as one HTML page: charts, and pictures of the odd ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flowkit
from flowkit.errors import RecordError
from flowkit.pictures.curves import round_values
from flowkit.records.reading import open_record
from flowkit.records.statistics import USUAL_LENGTH, RecordFacts
from flowkit.report.charts import TWO_COLUMNS
from flowkit.report.extras import Pictures, record_pictures
from flowkit.report.html import template
from flowkit.video.image_folders import MAX_FRAME_MPX

SHOWN = 24  # odd videos with pictures
PARTS = 4  # bars between two numbers below a histogram
PLOT, NUMBERS = 150, 22  # px, height of the bars and of the numbers below them
FAR = 2  # a largest value beyond so many times the 99th percentile shares the last bar


def odd_pictures(
    facts: Sequence[RecordFacts],
    places: Mapping[str, Path],
    *,
    max_frame_mpx: float = MAX_FRAME_MPX,
) -> dict[str, Pictures | str]:
    """Pictures of the first odd records, by id, or why one has none; those only short come last.

    `places` are the records' paths by id. One frame and one field of each are read.
    """
    odd = sorted((one for one in facts if one.oddities()), key=lambda f: f.fields < USUAL_LENGTH)
    found: dict[str, Pictures | str] = {}
    for one in odd[:SHOWN]:
        try:
            record = open_record(places[one.id], max_frame_mpx=max_frame_mpx)
            found[one.id] = record_pictures(record)
        except RecordError as error:
            found[one.id] = str(error)
    return found


def records_page(
    name: str,
    facts: Sequence[RecordFacts],
    summary: Mapping[str, Any],
    pictures: Mapping[str, Pictures | str],
    failed: Mapping[str, str],
) -> str:
    """The page of the records called `name`.

    `summary` is that of `summarize`, `pictures` those of `odd_pictures`; `failed` says why records
    could not be read.
    """
    moving = [one.motion for one in facts if one.motion is not None]
    return template("records.html").render(
        name=name,
        summary=summary,
        size=None if summary["bytes"] is None else _size(summary["bytes"]),
        lengths=histogram([one.frames for one in facts], "frames", whole=True),
        motions=histogram(moving, "px") if moving else "",
        columns=_class_columns(summary["classes"]),
        pictures={id: one for id, one in pictures.items() if isinstance(one, Pictures)},
        missing={id: one for id, one in pictures.items() if isinstance(one, str)},
        failed=failed,
        share_bar=share_bar,
        version=flowkit.__version__,
    )


def histogram(values: Sequence[float], unit: str, *, whole: bool = False) -> str:
    """Bars that count videos by a value, 0 or above, as SVG; each says its range and its count.

    Values far above the others share the last bar. `whole` values get no bar narrower than 1.
    """
    far, most = float(np.percentile(values, 99)), max(values)
    cut = 0 < FAR * far < most
    width = round_values((far if cut else most) or 1)[1] / PARTS
    if whole:
        width = max(1, math.ceil(width))
    bars = math.floor((far if cut else most) / width) + 1
    last = bars if cut else bars - 1  # a bar holds its lower end, not its upper one
    places = np.minimum((np.asarray(values) / width).astype(int), last)
    counts = np.bincount(places, minlength=last + 1)
    across, most = 100 / len(counts), counts.max()
    parts = [f'<svg class="histogram m0" height="{PLOT + NUMBERS}" role="img">']
    for number, count in enumerate(counts.tolist()):
        high, x = PLOT * count / most, number * across
        is_rest = cut and number == last
        end = "and more" if is_rest else f"to below {(number + 1) * width:g}"
        reach = f"{number * width:g} {end}"
        parts.append(
            f'<g><title>{reach} {unit}: {count:,} videos</title><rect class="track" x="{x:.2f}%" '
            f'y="0" width="{0.94 * across:.2f}%" height="{PLOT}"/><rect class="bar" x="{x:.2f}%" '
            f'y="{PLOT - high:.1f}" width="{0.94 * across:.2f}%" height="{high:.1f}"/></g>'
        )
        if number % PARTS == 0 and number < last:
            parts.append(f'<text x="{x:.2f}%" y="{PLOT + 16}">{number * width:g}</text>')
    parts.append(f'<text x="100%" y="{PLOT + 16}" text-anchor="end">{unit}</text>')
    return "".join(parts) + "</svg>"


def share_bar(share: float, title: str) -> str:
    """One bar from 0 to 1, with what it says when hovered."""
    return (
        f'<svg class="classes m0" role="img"><title>{title}</title>'
        '<rect class="track" y="3" width="100%" height="14"/>'
        f'<rect class="bar" y="3" width="{100 * share:.2f}%" height="14"/></svg>'
    )


def _class_columns(classes: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, str, str]]]:
    """Name, bar and figure of each class: its motion, most first, or its videos where unknown.

    One column, or two where they are many.
    """
    key = "motion" if any(one["motion"] is not None for one in classes) else "videos"
    order = sorted(classes, key=lambda one: (-(one[key] or 0), one["class"]))
    most = max(one[key] or 0 for one in classes) or 1
    rows = []
    for one in order:
        value = one[key]
        text = "–" if value is None else f"{value:,}" if key == "videos" else f"{value:.2f}"
        title = f"{one['videos']:,} videos, {one['frames']:,} frames"
        rows.append((one["class"] or "(no class)", share_bar((value or 0) / most, title), text))
    half = math.ceil(len(rows) / 2) if len(rows) > TWO_COLUMNS else len(rows)
    return [part for part in (rows[:half], rows[half:]) if part]


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
