"""The words of docs, help, messages and comments: the field's own, for readers everywhere."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RETIRED = {
    "cards?": "GPU",
    "mend(s|ed|ing)?": "fix",
    "anew": "again",
    "likelier": "more likely",
    "likeliest": "most likely",
    "(files?|bytes|px|frames|iterations?) an? (video|plane|second|core|class|warp|level)"
    "(?! (has|is|of|may|that))": "one X per Y",
}
WORDS = re.compile("|".join(rf"\b{word}\b" for word in RETIRED), re.IGNORECASE)
PYTHON = [
    path
    for folder in ("flowkit", "flowkit_cli", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]
TEXTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "flowkit").rglob("*.html")),
    ROOT / "Makefile",
    ROOT / "benchmarks/README.md",
]


def prose(path: Path) -> str:
    """The comments and strings of a Python file, messages and help among them; all of a text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py" or not WORDS.search(text):  # tokens take their time
        return text
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(token.string for token in tokens if token.type in kinds)


def test_retired_words_stay_retired():
    found = {
        f"{path.relative_to(ROOT)}: {match.group(0)}"
        for path in (*PYTHON, *TEXTS)
        for match in WORDS.finditer(prose(path))
    }
    assert not found, f"write {', '.join(dict.fromkeys(RETIRED.values()))} instead"


@pytest.mark.parametrize("text", ["an NVIDIA card", "Cards", "made anew", "one file a video"])
def test_the_words_are_found(text):
    assert WORDS.search(text)
