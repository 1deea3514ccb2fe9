"""Writes the reference of the command line, docs/cli.md, from the commands' own help.

usage: python -m flowkit_cli.reference docs/cli.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from flowkit_cli.main import cli

WIDTH = 100  # columns of the help texts


def reference() -> str:
    """The Markdown text: the help of the group and of every command, sub-commands included."""
    parts = ["# Command line\n\nWritten by `make docs` from `flowkit COMMAND --help`.\n"]
    for path, command, context in walk(cli, "flowkit", max_content_width=WIDTH):
        context.terminal_width = WIDTH
        parts.append(f"## {path}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def walk(
    command: click.Command, path: str, parent: click.Context | None = None, **settings: Any
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """A command and all below it: its words, itself, and the context that its help is made in."""
    settings |= command.context_settings
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent, **settings)
    yield path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, f"{path} {name}", context, **settings)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
