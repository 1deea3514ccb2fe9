"""A video of a record with what networks see in it written below."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flowkit.documents import MADE_BY, replacing
from flowkit.errors import UsageError
from flowkit.pictures.colors import FAINT_INK, INK, PAPER
from flowkit.pictures.lettering import fit, load_font
from flowkit.pictures.sheets import Look, full_scale, video_pages
from flowkit.records.reading import Record
from flowkit.video.writing import write_video

FPS = 25.0  # frames per second of an overlay, where the video does not say
LINE, TEXT_PX, MARGIN = 22, 13, 8  # px, of the strip below the pages
NUMBERS, NAMES = 56, 68  # px after the margin: where probabilities end and names begin
BAR = (86, 130, 200)  # RGB
CURVE = 84  # px, height of a film's curve with its line of text
CURVE_PARTS = 120  # parts of a film that its curve goes back


def write_overlay(
    record: Record, top: Sequence[tuple[str, float]], out: str | os.PathLike[str]
) -> None:
    """Write an .mp4 of a record's frames beside their fields, with what was predicted below.

    `top` has the most likely classes and their probabilities, 0 to 1. The record holds all of its
    frames and forward fields. UsageError for another ending.
    """
    out = Path(out)
    if out.suffix.lower() != ".mp4":
        raise UsageError(f"{out}: expected a name that ends in .mp4")
    with replacing(out) as part:
        write_video(
            part,
            _overlay_pages(record, top),
            fps=record.fps or FPS,
            container_format="mp4",
            options={"crf": "18"},
            comment=MADE_BY,
        )


def write_film(
    parts: Iterable[tuple[Record, float, Sequence[tuple[str, float]]]],
    out: str | os.PathLike[str],
    *,
    top: int = 5,
) -> None:
    """Write an .mp4 of a video that comes in parts, with what was predicted of each below it.

    A part is a record of all its frames and forward fields, the time when it begins, in s, and its
    classes with their probabilities, most likely first. It is shown until the next one begins.
    Below are the first `top` classes, and the curve of the first one over the last minutes. Parts
    are taken as they are needed, and two are held. UsageError for another ending.
    """
    out = Path(out)
    if out.suffix.lower() != ".mp4":
        raise UsageError(f"{out}: expected a name that ends in .mp4")
    parts = iter(parts)
    first = next(parts)
    rate = first[0].fps or FPS
    with replacing(out) as place:
        write_video(
            place,
            _film_pages(chain([first], parts), rate, top),
            fps=rate,
            container_format="mp4",
            options={"crf": "18"},
            comment=MADE_BY,
        )


def _film_pages(
    parts: Iterable[tuple[Record, float, Sequence[tuple[str, float]]]], rate: float, top: int
) -> Iterator[np.ndarray]:
    """The pages of the parts of a film, uint8 (H, W, 3) BGR."""
    history: deque[tuple[float, dict[str, float]]] = deque(maxlen=CURVE_PARTS)
    look = None
    for (record, start_s, classes), following in pairwise(chain(parts, [None])):  # type: ignore[misc]
        look = look or Look(max_px=full_scale(record))  # one scale for the whole film
        history.append((start_s, dict(classes)))
        count = None if following is None else round((following[1] - start_s) * rate)
        strip = None
        for page in islice(video_pages(record, look, first=round(start_s * rate)), count):
            if strip is None:
                width = page.shape[1]
                curve = draw_curve(history, classes[0][0], width)
                strip = np.concatenate([curve, draw_classes(classes[:top], width)])
            yield np.concatenate([page, strip])


def draw_curve(
    history: Iterable[tuple[float, Mapping[str, float]]], name: str, width: int
) -> np.ndarray:
    """The curve of a class's probability, 0 to 1, over the times of a history, in s.

    uint8 (h, width, 3) BGR, h even.
    """
    strip = Image.new("RGB", (width, CURVE), PAPER)
    draw, font = ImageDraw.Draw(strip), load_font(TEXT_PX)
    points = [(time, chances.get(name, 0.0)) for time, chances in history]
    first, last = points[0][0], points[-1][0]
    low, high = CURVE - LINE, MARGIN  # px, where 0 and 1 lie
    draw.line((MARGIN, low, width - MARGIN, low), FAINT_INK)
    line = [
        (
            MARGIN + (width - 2 * MARGIN) * (time - first) / ((last - first) or 1),
            low - (low - high) * chance,
        )
        for time, chance in points
    ]
    draw.line([line[0], *line], BAR, 2)
    draw.text((MARGIN, CURVE - LINE / 2), f"{first:.1f} s", FAINT_INK, font, anchor="lm")
    draw.text((width - MARGIN, CURVE - LINE / 2), f"{last:.1f} s", FAINT_INK, font, anchor="rm")
    shown = fit(name, font, width // 2)
    draw.text((width / 2, CURVE - LINE / 2), shown, INK, font, anchor="mm")
    return np.asarray(strip)[..., ::-1]


def draw_classes(top: Sequence[tuple[str, float]], width: int) -> np.ndarray:
    """A line for each class: its probability, its name, and a bar.

    uint8 (h, width, 3) BGR, h even.
    """
    strip = Image.new("RGB", (width, 2 * MARGIN + LINE * len(top)), PAPER)
    draw, font = ImageDraw.Draw(strip), load_font(TEXT_PX)
    bars = width // 2  # left end of the bars, px
    for number, (name, probability) in enumerate(top):
        y = MARGIN + number * LINE
        ink = FAINT_INK if number else INK
        draw.text((MARGIN + NUMBERS, y + LINE / 2), f"{probability:.1%}", ink, font, anchor="rm")
        shown = fit(name, font, bars - 2 * MARGIN - NAMES)
        draw.text((MARGIN + NAMES, y + LINE / 2), shown, ink, font, anchor="lm")
        length = (width - bars - MARGIN) * probability
        draw.rectangle((bars, y + 3, bars + length, y + LINE - 4), BAR)
    return np.asarray(strip)[..., ::-1]


def _overlay_pages(record: Record, top: Sequence[tuple[str, float]]) -> Iterator[np.ndarray]:
    """The pages of a record with a strip of the classes below, uint8 (H, W, 3) BGR."""
    strip = None
    for page in video_pages(record, Look()):
        if strip is None:
            strip = draw_classes(top, page.shape[1])
        yield np.concatenate([page, strip])
