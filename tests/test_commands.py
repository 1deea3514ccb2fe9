"""The command line as a whole: mistyped and renamed names, and the ways to start it."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from flowkit.errors import UsageError
from flowkit_cli.main import HELP_COLUMNS, cli
from flowkit_cli.options import read_bytes


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("extrat", "extract"), ("predct", "predict"), ("trajectory", "trajectories")],
)
def test_a_mistyped_command_names_the_one_that_is_meant(typed, meant):
    result = CliRunner().invoke(cli, [typed, "videos"])
    assert result.exit_code == 2
    assert f"'{typed}'" in result.output and f"Did you mean {meant}" in result.output


def test_a_command_like_no_other_is_refused_without_a_guess():
    result = CliRunner().invoke(cli, ["zzzz"])
    assert result.exit_code == 2 and "zzzz" in result.output
    assert "Did you mean" not in result.output


@pytest.mark.parametrize(
    ("command", "new"),
    [("extract", "--raft-weights"), ("doctor", "--raft-weights"), ("fuse", "--shares")],
)
def test_an_option_that_has_another_name_now_says_so(command, new):
    result = CliRunner().invoke(cli, [command, "--weights", "a"])
    assert result.exit_code == 2 and f"--weights is now {new}" in result.output
    assert "--weights " not in CliRunner().invoke(cli, [command, "--help"]).output.replace(new, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["view", "flow/a"], "Missing option '--out'. Where to: .mp4"),
        (["split", "export", "split.json"], "Missing option '--out'. The folder"),
        (["extract"], "Missing argument 'INPUT...'."),
    ],
)
def test_an_option_that_is_missing_is_named_with_what_it_is_for(arguments, words):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and words in result.output


@pytest.mark.parametrize("module", ["flowkit", "flowkit_cli"])
def test_the_package_runs_as_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Usage: flowkit [OPTIONS] COMMAND")


@pytest.mark.parametrize(
    ("size", "meant"),
    [("2GB", 2_000_000_000), ("1.5 GiB", 3 << 29), ("500m", 500_000_000), ("4K", 4000)],
)
def test_a_size_of_memory_is_read_as_it_is_written(size, meant):
    assert read_bytes(click.Context(cli), click.Option(["--max-memory"]), size) == meant


@pytest.mark.parametrize("size", ["2", "GB", "0GB", "-1GB", "1 potato", "2GBs", ""])
def test_a_size_that_is_none_is_refused(size):
    result = CliRunner().invoke(cli, ["extract", "videos", "--max-memory", size])
    assert isinstance(result.exception, UsageError)
    assert f"--max-memory: expected a size such as 2GB or 500MB, got {size!r}" in str(
        result.exception
    )


@pytest.mark.parametrize(("columns", "least", "most"), [(60, 55, 60), (160, 110, HELP_COLUMNS)])
def test_help_uses_the_width_of_the_terminal(columns, least, most, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    for path in (["extract"], ["train", "spatial"]):
        cli([*path, "--help"], standalone_mode=False)
        options = capsys.readouterr().out.partition("Options:")[2].splitlines()
        assert least <= max(map(len, options)) <= most
