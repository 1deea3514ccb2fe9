"""Options of commands that read flow records: what they are, what is missing, a clip's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flowkit.data.stacks import STACKINGS
from flowkit.records.layout import read_layouts
from flowkit.stores.urls import Place
from flowkit_cli.options import max_frame_option

if TYPE_CHECKING:
    from flowkit.data.record_folders import RecordFolder

length_option = click.option(
    "--L",
    "length",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Fields of a clip, for 2L channels.",
)

stacking_option = click.option(
    "--stacking",
    type=click.Choice(tuple(STACKINGS)),
    default=next(iter(STACKINGS)),
    show_default=True,
    help="; ".join(f"{name}: {text}" for name, text in STACKINGS.items()) + ".",
)

bidirectional_option = click.option(
    "--bidirectional", is_flag=True, help="L/2 fields forward and L/2 back; L is even."
)

mean_subtract_option = click.option(
    "--mean-subtract/--no-mean-subtract",
    default=True,
    show_default=True,
    help="Take each field's mean vector off its values.",
)

step_option = click.option(
    "--step", type=click.IntRange(1), default=1, show_default=True, help="Frames a field spans."
)

missing_option = click.option(
    "--missing",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Of listed videos that have no record: stop, or go on and say how many.",
)

layout_option = click.option(
    "--layout",
    type=click.Choice(read_layouts()),
    help="The records are planes that this tool wrote.  [default: flowkit's own records]",
)


def record_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a `RecordFolder`: --max-frame-mpx, and --layout, --bound and --zero."""
    command = max_frame_option(command)
    command = click.option(
        "--zero",
        type=float,
        default=127.5,
        show_default=True,
        help="With --bound, the code of no motion: 127.5 for tools that round (denseflow, "
        "gpu_flow), 127 for scripts that truncate.",
    )(command)
    command = click.option(
        "--bound",
        type=click.FloatRange(0, min_open=True),
        help="With --layout, the px that the ends of the codes stand for, usually 20.",
    )(command)
    return layout_option(command)


def record_folder(root: Place, options: dict[str, Any]) -> RecordFolder:
    """The folder of records at `root` that the options of `record_options` describe."""
    from flowkit.data.record_folders import RecordFolder

    named = ("layout", "bound", "zero", "max_frame_mpx")
    return RecordFolder(root, **{name: options[name] for name in named})
