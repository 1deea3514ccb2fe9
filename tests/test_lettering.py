"""Letters in pictures: which the font has, and what stands for those that it lacks."""

import unicodedata
from importlib.resources import files

import pytest

from flowkit.pictures.lettering import fit, load_font, showable

FONT = load_font(16)
BOX = bytes(FONT.getmask("\uffff"))


def test_the_box_of_a_missing_letter_has_ink():
    assert any(BOX)


@pytest.mark.parametrize(
    "text",
    ["über", "Größe", "naïve café", "Łódź", "İstanbul", "Việt Nam", "Привет", "Αθήνα", "−5 °C · …"],
)
def test_letters_of_european_scripts_are_shown_as_they_are(text):
    assert showable(text) == text
    assert all(bytes(FONT.getmask(letter)) != BOX for letter in text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("über_跳", "über_Tiao"),
        ("日本", "RiBen"),
        ("한국", "HanGug"),
        ("ab\u200dcd", "abcd"),
        ("a\tb\x1b[31m\n", "a?b?[31m?"),
        ("undecodable \udcff", "undecodable ?"),
    ],
)
def test_other_letters_are_transcribed(text, shown):
    assert showable(text) == shown
    assert all(bytes(FONT.getmask(letter)) != BOX for letter in shown)


def test_accents_of_their_own_are_joined_to_their_letters():
    apart = unicodedata.normalize("NFD", "über")
    assert len(apart) == 5
    assert showable(apart) == "über"


def test_no_name_shows_as_nothing():
    assert showable("\U0001f3fd") == "?"  # a shade of skin with no face
    assert showable("") == ""


def test_long_text_is_cut_to_its_room():
    assert fit("跳" * 90, FONT, 120).startswith("TiaoTiao")
    assert fit("跳" * 90, FONT, 120).endswith("…")
    assert FONT.getlength(fit("跳" * 90, FONT, 120)) <= 120
    assert fit("ab", FONT, 120) == "ab"


def test_the_font_s_licence_lies_beside_it():
    folder = files("flowkit").joinpath("pictures")
    assert "DejaVu" in folder.joinpath("DejaVuSans-LICENSE.txt").read_text()
    assert len(folder.joinpath("DejaVuSans-subset.ttf").read_bytes()) < 200_000
