"""The letters of pictures: a font that comes with flowkit, and text in letters that it has.

The font is DejaVu Sans with the letters of the Latin, Greek and Cyrillic scripts alone, made by
fontTools: ``pyftsubset DejaVuSans.ttf --no-hinting --notdef-outline --layout-features= --unicodes=
20-7E,A0-24F,300-36F,370-3FF,400-4FF,1E00-1EFF,2010-2027,20AC,2116,2122,2190-2193,2212,FFFD``.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.resources import files
from io import BytesIO

from anyascii import anyascii
from PIL import ImageFont

FONT_FILE = "DejaVuSans-subset.ttf"
MISSING = "\uffff"  # a code point that is no letter, shown as a letter that the font lacks
PROBE_PX = 16  # size at which letters are told from the box of a missing one


@cache
def load_font(px: int) -> ImageFont.FreeTypeFont:
    """The font at a height of `px`."""
    data = files("flowkit.pictures").joinpath(FONT_FILE).read_bytes()
    return ImageFont.truetype(BytesIO(data), px, layout_engine=ImageFont.Layout.BASIC)


def showable(text: str) -> str:
    """`text` in letters of the font; letters that it lacks become a Latin transcript.

    "über_跳" becomes "über_Tiao". Accents are joined to their letters; control characters and bytes
    of undecodable file names become "?".
    """
    return "".join(map(_show_letter, unicodedata.normalize("NFC", text))) or "?" * bool(text)


@cache
def _show_letter(letter: str) -> str:
    if letter.isprintable() and _shape(letter) != _shape(MISSING):
        return letter
    if letter.isprintable() or unicodedata.category(letter) == "Cf":  # joiners, directions
        return anyascii(letter)
    return "?"


def _shape(letter: str) -> bytes:
    """The pixels of a letter."""
    return bytes(load_font(PROBE_PX).getmask(letter))


def fit(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Showable `text`, cut at the end so that it takes no more than `room` px."""
    text = showable(text)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
