"""A video of a record with what networks see in it written below."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flowkit.documents import MADE_BY, replacing
from flowkit.errors import UsageError
from flowkit.pictures.colors import FAINT_INK, INK, PAPER
from flowkit.pictures.lettering import fit, load_font
from flowkit.pictures.sheets import Look, video_pages
from flowkit.records.reading import Record
from flowkit.video.writing import write_video

FPS = 25.0  # frames per second of an overlay, where the video does not say
LINE, TEXT_PX, MARGIN = 22, 13, 8  # px, of the strip below the pages
NUMBERS, NAMES = 56, 68  # px after the margin: where probabilities end and names begin
BAR = (86, 130, 200)  # RGB


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
