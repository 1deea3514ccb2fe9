"""Command lines in README, docs and help: each one is one that flowkit takes."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import click
import pytest

from flowkit_cli.main import COMMANDS, cli

LINE = re.compile(rf"\s*(?:\$ )?(flowkit (?:{'|'.join(COMMANDS)})\b.*)")
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines():
    """(page, command line) of every line that begins with a command of flowkit."""
    found = {}
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text()).replace("$n", "1")
        for before, line in pairwise(["", *text.splitlines()]):
            before = before.strip()
            if page.name == "cli.md" and before and not before.startswith(("flowkit", "find")):
                continue  # a sentence of a help text goes on
            if match := LINE.match(line):
                found[page.name, without_remark(match[1])] = None
    return list(found)


def without_remark(line):
    """The line up to a remark, which two spaces and no dash, or a #, begin."""
    parts = re.split(r"(\s{2,})", line)
    kept = parts[0]
    for gap, part in zip(parts[1::2], parts[2::2], strict=True):
        if not part.startswith("-") or part.startswith("->"):
            break
        kept += gap + part
    return re.split(r" #|; | \| | -> | >", kept)[0].rstrip()


def parse(arguments):
    """Parse as the command line does, down to the last subcommand; nothing is run."""
    context, command = None, cli
    while True:
        context = command.make_context("flowkit", list(arguments), parent=context)
        if not isinstance(command, click.Group):
            return
        arguments = [*context._protected_args, *context.args]
        _, command, arguments = command.resolve_command(context, arguments)


def test_the_command_lines_of_the_docs_are_ones_that_flowkit_takes(monkeypatch):
    for name, value in (("ID", 1), ("MIN", 0), ("MAX", 3), ("COUNT", 4)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    refused = []
    for page, line in command_lines():
        try:
            parse(shlex.split(re.sub(r"\$\w+", "3", line))[1:])
        except (click.ClickException, ValueError) as error:
            refused.append(f"{page}: {line}: {error}")
    assert refused == []


def test_the_docs_have_command_lines_and_a_wrong_one_is_seen():
    assert len(command_lines()) > 100
    assert without_remark("flowkit extract a  --gpu   on a GPU") == "flowkit extract a  --gpu"
    for wrong in (["extract", "a", "--gpuu"], ["train", "tempral"], ["view", "a"]):
        with pytest.raises(click.UsageError):
            parse(wrong)
