"""The filters of a network's first layer as a picture: figure 4 of the 2014 paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flowkit.documents import replacing
from flowkit.pictures.colors import FAINT_INK, INK, PAPER
from flowkit.pictures.lettering import fit, load_font
from flowkit.pictures.sheets import MARGIN, PAGE_WIDTH, TEXT_PX, TITLE_PX, save_png

TILE_PX = {1: 14, 3: 42}  # least side of a filter, by its number of color channels
GAP = 2  # px between filters
RGB_COLUMNS = 16
HEAD = 56  # px for the title and what gray stands for
CHANNEL_ROOM = 26  # px for the names of channels


def filter_sheet(filters: np.ndarray, title: str, channels: Sequence[str] = ()) -> np.ndarray:
    """First-layer filters, float32 (F, C, k, k), on one page, uint8 (H, W, 3) BGR.

    Three channels are shown as RGB, a tile for each filter. Of others each filter is a column and
    each channel a row, named by `channels`, as in figure 4 of Simonyan & Zisserman 2014. Middle
    gray is zero, and the largest weight of a filter, of either sign, has the full contrast.
    """
    count, depth, side = filters.shape[:3]
    largest = np.abs(filters).max((1, 2, 3), keepdims=True)
    shown = 127.5 + 127.5 * filters / np.where(largest > 0, largest, 1)
    levels = np.round(shown).astype(np.uint8)
    is_rgb = depth == 3
    factor = math.ceil(TILE_PX[3 if is_rgb else 1] / side)
    tile = factor * side
    columns = min(count, RGB_COLUMNS) if is_rgb else count
    rows = math.ceil(count / columns) if is_rgb else depth
    left = MARGIN + (0 if is_rgb else CHANNEL_ROOM)
    width = max(PAGE_WIDTH, left + columns * (tile + GAP) + MARGIN)
    page = Image.new("RGB", (width, MARGIN + HEAD + rows * (tile + GAP) + MARGIN), PAPER)
    draw, small = ImageDraw.Draw(page), load_font(TEXT_PX)
    large = load_font(TITLE_PX)
    draw.text((MARGIN, MARGIN), fit(title, large, width - 2 * MARGIN), INK, large)
    facts = f"{count} filters of {side}x{side}, {'RGB' if is_rgb else f'{depth} channels'}"
    about = f"{facts}; gray is 0, full contrast the largest weight of a filter"
    draw.text((MARGIN, MARGIN + 27), fit(about, small, width - 2 * MARGIN), FAINT_INK, small)
    for row in range(rows):
        top = MARGIN + HEAD + row * (tile + GAP)
        if row < len(channels) and not is_rgb:
            draw.text((MARGIN, top + tile / 2), channels[row], FAINT_INK, small, anchor="lm")
        for column in range(columns):
            number = row * columns + column if is_rgb else column
            if number >= count:
                break
            one = levels[number].transpose(1, 2, 0) if is_rgb else levels[number, row]
            picture = Image.fromarray(one).resize((tile, tile), Image.Resampling.NEAREST)
            page.paste(picture, (left + column * (tile + GAP), top))
    return np.asarray(page)[..., ::-1].copy()


def write_sheets(out: Path, sheets: Sequence[np.ndarray]) -> None:
    """Write sheets one below the other as a .png, whole or not at all."""
    width = max(sheet.shape[1] for sheet in sheets)
    page = Image.new("RGB", (width, sum(len(sheet) for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        page.paste(Image.fromarray(sheet[..., ::-1]), (0, top))
        top += len(sheet)
    with replacing(out) as part:
        save_png(page, part)
