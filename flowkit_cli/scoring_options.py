"""Options of commands that apply trained networks: which views of a video, on what device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from flowkit.data.clips import VIEWS
from flowkit.evaluation.views import AVERAGES

if TYPE_CHECKING:
    from flowkit.evaluation.views import TestViews
    from flowkit.networks.checkpoints import Checkpoint


def scoring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `test_views` reads, and --device and --batch-size."""
    options = [
        click.option(
            "--moments",
            type=click.IntRange(1),
            help="Moments of a video, at equal spacing.  [default: 25; of joined towers 10]",
        ),
        click.option(
            "--views",
            "crops",
            type=click.Choice(tuple(VIEWS)),
            help="Of each moment: "
            + "; ".join(f"{name}, {one.about}" for name, one in VIEWS.items())
            + ".  [default: ten; of joined towers flip]",
        ),
        click.option(
            "--average",
            type=click.Choice(AVERAGES),
            help="What is averaged over the views; vote: the share of moments whose most likely "
            "class it is.  [default: softmax; of joined towers logits]",
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
