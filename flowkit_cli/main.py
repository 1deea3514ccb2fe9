"""The `flowkit` command: its group, the log level, and errors turned into exit statuses."""

from __future__ import annotations

import importlib
import logging
import sys

import click

import flowkit
from flowkit.errors import FlowkitError, InstallError, UsageError

# name -> what `flowkit --help` says of it; the command is in flowkit_cli/<name>.py and is imported
# only when it is run, so that help comes at once.
COMMANDS = {
    "extract": "Videos to flow records: decode, compute flow, store it.",
    "trajectories": "Videos to improved dense trajectories, the hand-made features.",
    "fisher": "Fisher vectors of trajectories: a codebook, then a vector a video.",
    "doctor": "What this machine can do, how fast, and what to mend.",
    "info": "What flow records hold, a line each.",
    "verify": "Check that every record below a folder is as it was written.",
    "view": "Show a record as a video or a contact sheet.",
    "pack": "Turn record folders into packs, one stored zip a video.",
    "unpack": "Turn packs back into record folders.",
    "split": "Divide videos into training and test part; check and list such a split.",
    "stack": "Write the flow stack of a clip, as a network takes it, to a file.",
    "train": "Train the spatial or the temporal stream, or an SVM on Fisher vectors.",
    "eval": "Score the test videos with trained streams.",
    "fuse": "Several streams' scores to one.",
    "report": "Scores to accuracies, tables and a page with pictures.",
    "predict": "Name the classes of raw videos.",
    "export": "A trained network as ONNX or TorchScript.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command in it of the same name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"flowkit_cli.{cmd_name}")
        return getattr(module, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands for --help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(flowkit.__version__, prog_name="flowkit")
@click.option("-v", "--verbose", count=True, help="Say more; twice: tracebacks of failures, too.")
@click.option("-q", "--quiet", is_flag=True, help="Say errors only.")
def cli(verbose: int, quiet: bool) -> None:
    """Optical flow for action recognition, from a folder of videos to a two-stream model.

    \b
    flowkit extract videos/                    -> flow/<class>/<video>/
    flowkit view flow/jump/a --out a.mp4       -> look at it
    """
    level = logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(format="flowkit: %(message)s", stream=sys.stderr)
    logging.getLogger("flowkit").setLevel(logging.ERROR if quiet else min(level, logging.INFO))


def main() -> None:
    """Run the command line; the exit status is 0, 1 (some failed), 2 (usage), 75 or 130."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    from flowkit.workers.signals import Stopped, stop_signals

    try:
        with stop_signals():
            cli(prog_name="flowkit")
    except Stopped as stopped:
        print(f"flowkit: {stopped}", file=sys.stderr)
        sys.exit(stopped.status)
    except FlowkitError as error:
        print(f"flowkit: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError | InstallError) else 1)
    except OSError as error:
        print(f"flowkit: error: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        logging.getLogger("flowkit").debug("traceback", exc_info=True)
        print(
            f"flowkit: internal error: {type(error).__name__}: {error} "
            "(flowkit -vv shows the traceback)",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
