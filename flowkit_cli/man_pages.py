"""Writes the man pages of the command line, man/*.1, from the commands' own help.

usage: python -m flowkit_cli.man_pages man
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import click

from flowkit import __version__
from flowkit_cli.main import COMMANDS, cli
from flowkit_cli.reference import walk


def man_pages() -> dict[str, str]:
    """The text of each page in troff's man format, by its file's name."""
    return {
        f"{path.replace(' ', '-')}.1": _page(command, path, context)
        for path, command, context in walk(cli, "flowkit")
    }


def _page(command: click.Command, path: str, context: click.Context) -> str:
    title = path.replace(" ", "-")
    summary = COMMANDS.get(path.removeprefix("flowkit "), command.get_short_help_str(200))
    parts = [
        f'.TH "{title.upper()}" 1 "" "flowkit {__version__}" "flowkit"',
        ".ad l",  # names of choices are long
        f".SH NAME\n{_text(title)} \\- {_text(summary.rstrip('.'))}",
        f".SH SYNOPSIS\n.B {_text(path)}\n{_text(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION\n" + _paragraphs(inspect.cleandoc(command.help or "")),
    ]
    records = [
        record for option in command.get_params(context) if (record := _help(option, context))
    ]
    if records:
        parts.append(
            ".SH OPTIONS\n" + "\n".join(f".TP\n.B {_text(a)}\n{_text(b)}" for a, b in records)
        )
    if isinstance(command, click.Group):
        names = [f"{title}-{name}" for name in command.list_commands(context)]
        parts.append(".SH SEE ALSO\n" + ",\n".join(f".BR {_text(name)} (1)" for name in names))
    return "\n".join(parts) + "\n"


def _help(option: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    found = option.get_help_record(context)
    return found and (found[0], re.sub(r"\s+", " ", found[1]))


def _paragraphs(text: str) -> str:
    """Paragraphs of a docstring; those under a line of \\b keep their lines, as in --help."""
    made = []
    for part in text.split("\n\n"):
        if part.startswith("\b\n"):
            made.append(".nf\n" + _text(part[2:]) + "\n.fi")
        else:
            made.append(_text(re.sub(r"\s+", " ", part)))
    return "\n.PP\n".join(made)


def _text(text: str) -> str:
    """Text in which troff sees no command of its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", escaped)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    pages = man_pages()
    for old in folder.glob("*.1"):
        if old.name not in pages:
            old.unlink()
    for name, page in pages.items():
        (folder / name).write_text(page, encoding="utf-8")
