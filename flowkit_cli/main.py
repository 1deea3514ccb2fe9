"""The `flowkit` command: its group, the log level, and errors turned into exit statuses."""

from __future__ import annotations

import difflib
import importlib
import logging
import shlex
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

import flowkit
from flowkit.errors import FlowkitError, InstallError, UsageError
from flowkit.stores.urls import without_secrets
from flowkit_cli import output
from flowkit_cli.store_options import LocalPath

# name -> what `flowkit --help` says of it; the command is in flowkit_cli/<name>.py and is imported
# only when it is run, so that help comes at once.
COMMANDS = {
    "extract": "Videos to flow records: decode, compute flow, store it.",
    "plan": "Hours, gigabytes and files of an extraction, before it is begun.",
    "trajectories": "Videos to improved dense trajectories, the hand-made features.",
    "fisher": "Fisher vectors of trajectories: a codebook, then one vector per video.",
    "doctor": "What this machine can do, how fast, and what to fix.",
    "info": "What flow records hold, a line each.",
    "stats": "What all records below a folder hold together, and which are worth a look.",
    "verify": "Check that every record below a folder is as it was written.",
    "view": "Show a record as a video or a contact sheet.",
    "convert": "Records in another format, layout or bound, without computing flow again.",
    "pack": "Turn record folders into packs, one stored zip per video.",
    "unpack": "Turn packs back into record folders.",
    "split": "Divide videos into training and test part; check and list such a split.",
    "stack": "Write the flow stack of a clip, as a network takes it, to a file.",
    "train": "Train the spatial or the temporal stream, or an SVM on Fisher vectors.",
    "adopt": "A run of weights that others trained and published: TSN's, I3D's.",
    "eval": "Score the test videos with trained streams.",
    "fuse": "Several streams' scores to one.",
    "report": "Scores to accuracies, tables and a page with pictures.",
    "features": "What a layer of a trained network says of clips or videos, as files.",
    "predict": "Name the classes of raw videos.",
    "export": "A trained network as ONNX or TorchScript.",
    "completion": "The script with which a shell completes commands and paths.",
}

HELP_COLUMNS = 120  # of a wider terminal, so that lines stay readable

# What a command does when it is run again after a stop; one that is not here begins again.
GOES_ON = "the same command goes on with what is left"
AFTER_A_STOP = {
    **dict.fromkeys(("extract", "trajectories", "eval", "pack", "unpack"), GOES_ON),
    "train": "the same command with --resume goes on",
}


class _HelpFormatter(click.HelpFormatter):
    """Help that leaves room for the options' text in a narrow terminal, and breaks long choices."""

    def write_heading(self, heading: str) -> None:
        """As click does, but broken where it names many choices."""
        super().write_heading(_break_choices(heading, self.width - self.current_indent - 1))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """As click does, with at most a third of the width for names, none beyond the width."""
        room = self.width - self.current_indent
        broken = [(_break_choices(name, room), text) for name, text in rows]
        super().write_dl(broken, min(col_max, self.width // 3), col_spacing)


def _break_choices(name: str, width: int) -> str:
    """An option's name and its [a|b|c] in lines of at most `width` columns, broken behind a |."""
    lines = textwrap.wrap(
        name.replace("|", "| "),
        width,
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(line.replace("| ", "|") for line in lines)


class _Context(click.Context):
    """The context of every command, for its help."""

    formatter_class = _HelpFormatter


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    context_class = _Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command in it of the same name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"flowkit_cli.{cmd_name}")
        return _as_ours(getattr(module, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but a mistyped command is answered with those that it may be."""
        close = difflib.get_close_matches(args[0], COMMANDS)
        if close and args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(close)}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, but an option that is missing is named with what it is for."""
        try:
            return super().invoke(ctx)
        except click.MissingParameter as error:
            purpose = getattr(error.param, "help", None)
            raise click.MissingParameter(purpose, error.ctx, error.param) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands for --help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _set_level(context: click.Context, option: click.Parameter, value: int) -> None:
    """What -q and -v mean: before and behind the command the same, and both together the more."""
    name = option.name or ""
    before = 0 if context.parent is None else getattr(output, name)
    setattr(output, name, max(before, int(value)))
    level = logging.ERROR if output.quiet else logging.INFO
    logging.getLogger("flowkit").setLevel(logging.DEBUG if output.verbose > 1 else level)


LEVEL_OPTIONS = {
    "verbose": {"count": True, "help": "Say more; twice: tracebacks of failures, too."},
    "quiet": {"is_flag": True, "help": "Say errors only."},
}


def _open_log(context: click.Context, option: click.Parameter, value: Path | None) -> None:
    if value is not None:
        output.open_log(value)
        shown = shlex.join(["flowkit", *without_secrets(sys.argv[1:])])
        output.note(f"flowkit {flowkit.__version__}: {shown}")


def _level_options(*, hidden: bool) -> list[click.Option]:
    log = click.Option(
        ["--log"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        expose_value=False,
        callback=_open_log,
        hidden=hidden,
        help="Add what is shown to a file, each line with its time.",
    )
    levels = [
        click.Option(
            [f"-{name[0]}", f"--{name}"],
            expose_value=False,
            callback=_set_level,
            hidden=hidden,
            **facts,  # type: ignore[arg-type]
        )
        for name, facts in LEVEL_OPTIONS.items()
    ]
    return [*levels, log]


def _as_ours(command: click.Command) -> click.Command:
    """The command, with -q, -v and help as the group's; once, for it may be asked for again.

    Its paths are of this machine, unless a parameter says otherwise (`PlacePath`).
    """
    if not any(option.name == "log" for option in command.params):
        command.params += _level_options(hidden=True)
    for parameter in command.params:
        if type(parameter.type) is click.Path:
            parameter.type = LocalPath.like(parameter.type)
    command.context_class = _Context
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _as_ours(one)
    return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS},
)
@click.version_option(flowkit.__version__, prog_name="flowkit")
@click.pass_context
def cli(context: click.Context) -> None:
    """Optical flow for action recognition, from a folder of videos to a two-stream model.

    \b
    flowkit extract videos/                    -> flow/<class>/<video>/
    flowkit view flow/jump/a --out a.mp4       -> look at it
    """
    output.command = context.invoked_subcommand or ""


cli.params += _level_options(hidden=False)


class _Formatter(logging.Formatter):
    """Messages that name files, without their control characters, for terminal and log alike.

    Tracebacks keep their lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).translate(output.ESCAPED_BUT_LINES)
        output.note(text)
        return text


def main() -> None:
    """Run the command line; the exit status is 0, 1 (some failed), 2 (usage), 75 or 130."""
    output.open_closed_streams()
    if sys.platform == "win32":
        output.error("flowkit: error: runs on Linux; on Windows in WSL2 (wsl --install)")
        sys.exit(2)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("flowkit: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("flowkit").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    from flowkit.workers.signals import Stopped, stop_signals

    try:
        with stop_signals():
            cli(prog_name="flowkit")
    except Stopped as stopped:
        after = AFTER_A_STOP.get(output.command, "")
        output.error(f"flowkit: {stopped}{after and f'; {after}'}")
        sys.exit(stopped.status)
    except FlowkitError as error:
        output.error(f"flowkit: error: {error}")
        sys.exit(2 if error.absent or isinstance(error, UsageError | InstallError) else 1)
    except OSError as error:
        output.error(f"flowkit: error: {error}")
        sys.exit(1)
    except Exception as error:
        logging.getLogger("flowkit").debug("traceback", exc_info=True)
        output.error(
            f"flowkit: internal error: {type(error).__name__}: {error} "
            "(flowkit -vv shows the traceback)"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
