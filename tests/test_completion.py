"""Shells complete commands, options, choices and paths with the script that flowkit prints."""

import os
import pty
import re
import select
import shutil
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowkit_cli.completion import SHELLS
from flowkit_cli.main import COMMANDS, cli

COLORS = re.compile(r"\x1b\[[0-9;]*m")
SETUP = {  # of a shell without the user's own start-up files
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(flowkit completion bash)"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -U compinit; compinit -u; source <(flowkit completion zsh)",
    ),
    "fish": (["fish", "--no-config", "-i"], "flowkit completion fish | source"),
}


def until(terminal: int, words: str, seconds: float = 60) -> str:
    """What the terminal shows, read until it shows these words."""
    shown, end = "", time.monotonic() + seconds
    while words not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += COLORS.sub("", os.read(terminal, 65536).decode(errors="replace"))
    assert words in shown, f"the terminal showed {shown!r}"
    return shown


def test_every_command_is_completed() -> None:
    begun = {"_FLOWKIT_COMPLETE": "bash_complete", "COMP_WORDS": "flowkit ", "COMP_CWORD": "1"}
    answer = CliRunner().invoke(cli, [], prog_name="flowkit", env=begun).output
    assert [line.partition(",")[2] for line in answer.splitlines()] == list(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "some_videos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command, source = SETUP[shell]
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(command[0], command)
    try:
        os.write(terminal, f"{source}; echo re''ady\n".encode())
        until(terminal, "ready")
        os.write(terminal, b"flowkit extr\t")
        until(terminal, "extract ")
        os.write(terminal, b"some_v\t")
        until(terminal, "some_videos/")
        os.write(terminal, b" --method farneback-o\t")
        until(terminal, "pencv")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
