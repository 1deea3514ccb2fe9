"""Writes the reference of the command line, docs/cli.md, from the commands' own help.

usage: python -m flowkit_cli.reference docs/cli.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flowkit_cli.main import cli

WIDTH = 100  # columns of the help texts


def reference() -> str:
    """The Markdown text: the help of the group and of every command, sub-commands included."""
    parts = ["# Command line\n\nWritten by `make docs` from `flowkit COMMAND --help`.\n"]
    parts += [f"## {path}\n\n```text\n{text}\n```\n" for path, text in _helps(cli, "flowkit", None)]
    return "\n".join(parts)


def _helps(
    command: click.Command, path: str, parent: click.Context | None
) -> list[tuple[str, str]]:
    context = click.Context(
        command,
        info_name=path.rpartition(" ")[2],
        parent=parent,
        max_content_width=WIDTH,
        **command.context_settings,
    )
    context.terminal_width = WIDTH
    helps = [(path, command.get_help(context))]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                helps += _helps(found, f"{path} {name}", context)
    return helps


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
