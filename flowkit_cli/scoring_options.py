"""Options of commands that apply trained networks: which views of a video, on what device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.data.clips import VIEWS
from flowkit.documents import listed
from flowkit.errors import UsageError
from flowkit.evaluation.views import AVERAGES
from flowkit.networks.table import OWN_NET, check_own
from flowkit.own_code import is_own

if TYPE_CHECKING:
    from flowkit.evaluation.views import TestViews
    from flowkit.networks.checkpoints import Checkpoint


own_net_option = click.option(
    "--net",
    "own_nets",
    multiple=True,
    metavar=OWN_NET,
    help="Of a run with a network of your own code: that code, which runs only where it is named.",
)


def scoring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `test_views` and `own_nets` read, and --device and --batch-size."""
    options = [
        own_net_option,
        click.option(
            "--moments",
            type=click.IntRange(1),
            help="Moments of a video, at equal spacing.  [default: 25; of joined towers 10, "
            "of I3D 4]",
        ),
        click.option(
            "--views",
            "crops",
            type=click.Choice(tuple(VIEWS)),
            help="Of each moment: "
            + "; ".join(f"{name}, {one.about}" for name, one in VIEWS.items())
            + ".  [default: ten; of joined towers flip, of I3D center]",
        ),
        click.option(
            "--average",
            type=click.Choice(AVERAGES),
            help="What is averaged over the views; vote: the share of moments whose most likely "
            "class it is.  [default: softmax; of joined towers and I3D logits]",
        ),
        click.option("--device", help="cpu, cuda or cuda:1.  [default: cuda if there is one]"),
        click.option(
            "--batch-size",
            "pass_inputs",
            type=click.IntRange(1),
            default=50,
            show_default=True,
            help="Views of a forward pass.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def test_views(options: dict[str, Any], checkpoint: Checkpoint) -> TestViews:
    """The views that the options ask for, else those that go with a network."""
    from flowkit.evaluation.views import default_views

    names = ("moments", "crops", "average")
    given = {name: options[name] for name in names if options[name] is not None}
    return replace(default_views(checkpoint), **given)


def own_nets(given: tuple[str, ...], runs: Mapping[Path, Checkpoint]) -> dict[Path, str | None]:
    """The own code that builds the network of each run, as it is given; None for flowkit's.

    UsageError where that of a run is not given, or where a given one is no run's.
    """
    named: dict[Path, str | None] = {}
    for path, checkpoint in runs.items():
        named[path] = None
        if is_own(net := checkpoint.net):
            named[path] = net if net in given else next(iter(given), None)
        check_own(net, named[path], where=path)
    nets = [checkpoint.net for checkpoint in runs.values()]
    if others := [name for name in given if name not in named.values()]:
        raise UsageError(
            f"--net {others[0]}: expected the own code of a run, got runs of {listed(nets)}"
        )
    return named
