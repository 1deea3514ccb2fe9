"""`flowkit completion`: the script with which a shell completes commands, options and paths."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from flowkit_cli import output

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """The script with which a shell completes commands, options, choices and paths.

    Bash needs version 4.4 or later. For this terminal only, in Bash or Zsh and in Fish:

    \b
    source <(flowkit completion bash)
    flowkit completion fish | source

    From now on, in every new terminal:

    \b
    flowkit completion bash > ~/.local/share/bash-completion/completions/flowkit
    flowkit completion zsh > ~/.zfunc/_flowkit   # a folder in fpath, before compinit
    flowkit completion fish > ~/.config/fish/completions/flowkit.fish
    """
    from flowkit_cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    output.result_lines(kind(cli, {}, "flowkit", "_FLOWKIT_COMPLETE").source())
