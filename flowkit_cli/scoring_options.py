"""Options of commands that ask trained networks: which views of a video, on what device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flowkit.data.clips import VIEWS

if TYPE_CHECKING:
    from flowkit.evaluation.scoring import TestViews


def scoring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `test_views` reads, and --device and --batch-size."""
    options = [
        click.option(
            "--moments",
            type=click.IntRange(1),
            default=25,
            show_default=True,
            help="Moments of a video, at equal spacing.",
        ),
        click.option(
            "--views",
            "crops",
            type=click.Choice(tuple(VIEWS)),
            default="ten",
            show_default=True,
            help="Of each moment: "
            + "; ".join(f"{name}, {one.about}" for name, one in VIEWS.items())
            + ".",
        ),
        click.option(
            "--average",
            type=click.Choice(["softmax", "logits"]),
            default="softmax",
            show_default=True,
            help="What is averaged over the views.",
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


def test_views(options: dict[str, Any]) -> TestViews:
    """The views that the options ask for."""
    from flowkit.evaluation.scoring import TestViews

    return TestViews(options["moments"], options["crops"], options["average"])
