"""Options that several commands share, each defined once."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from flowkit.errors import UsageError
from flowkit.flow.method import FlowMethod
from flowkit.flow.methods import METHODS, OWN, PROGRAM, make_method, method_class
from flowkit.flow.stabilized import CAMERA_MATCHES, MOTIONS, Stabilization
from flowkit.video.image_folders import MAX_FRAME_MPX
from flowkit_cli.store_options import PlacePath

# The parameters of every flow method are options of their own: "--tvl1-tau", "--dis-patch-size".
PREFIXES = {
    "tvl1": ("tvl1", "tvl1-opencv", "tvl1-cuda", "tvl1-opencv-cuda"),
    "farneback": ("farneback", "farneback-opencv", "farneback-cuda", "farneback-opencv-cuda"),
    "dis": ("dis",),
    "brox": ("brox-opencv-cuda",),
    "raft": ("raft",),
}

FILES = ("raft_weights",)  # parameters that name files

scored_runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of the runs, where no SCORES are given.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output.")
workers_option = click.option(
    "-j",
    "--workers",
    type=click.IntRange(1),
    help="Worker processes, one thread each.  [default: all cores this process may use]",
)

max_frame_option = click.option(
    "--max-frame-mpx",
    type=click.FloatRange(0, min_open=True),
    default=MAX_FRAME_MPX,
    show_default=True,
    metavar="MP",
    help="Refuse frames of more megapixels, before any is decoded: it costs that video.",
)

root_option = click.option(
    "--root",
    type=PlacePath(path_type=Path, file_okay=False),
    help="Keep the path below this folder for files named one by one: videos/jump/a.avi "
    "becomes jump/a with --root videos, else a.",
)

timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Give a video up after S seconds.  [default: never]",
)


BYTES = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BYTES |= {f"{letter}I": 1024**power for power, letter in enumerate("KMGT", 1)}


def read_bytes(context: click.Context, option: click.Parameter, size: str | None) -> int | None:
    """The bytes that a size says: "2GB", "1.5 GiB", "500MB"."""
    if size is None:
        return None
    found = re.fullmatch(r"(\d+\.?\d*) ?([KMGT]I?)B?", size.upper())
    if not found or float(found[1]) == 0:
        raise UsageError(f"{option.opts[0]}: expected a size such as 2GB or 500MB, got {size!r}")
    return int(float(found[1]) * BYTES[found[2]])


max_memory_option = click.option(
    "--max-memory",
    "memory_bytes",
    metavar="SIZE",
    callback=read_bytes,
    help="Give a video up whose worker takes more memory, such as 2GB; files that it reads do not "
    "count, the worker itself does, some 0.15GB.  [default: never]",
)


dask_option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Do the work on a Dask cluster, whose scheduler is at tcp://HOST:PORT or wrote this file; "
    "local: one of -j processes here. There, -j is how many videos are under way at most.",
)


def read_shard(context: click.Context, option: click.Parameter, shard: str | None) -> Any:
    """The share that --shard names, (index from 1, count); None for all."""
    from flowkit.extraction.plan import slurm_shard

    if shard is None:
        return None
    if shard == "slurm":
        return slurm_shard(os.environ)
    index, _, count = shard.partition("/")
    if index == "slurm" and count.isdecimal():
        return slurm_shard(os.environ, int(count))
    if not (index.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard: expected I/N such as 1/8, slurm or slurm/N, got {shard!r}")
    return int(index), int(count)


shard_option = click.option(
    "--shard",
    "share",
    metavar="I/N",
    callback=read_shard,
    help="Do only the I-th of N shares of the videos (I from 1); slurm: the share of this SLURM "
    "task; slurm/N: likewise, where only some tasks of an array of N run again.",
)

failures_option = click.option(
    "--failures",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write each failed video here as it fails, a line each: path, tab, reason. The next run "
    "takes a .txt or .tsv of them as a list.",
)


class MethodName(click.Choice[str]):
    """The name of a method in the table, or of one's own code, which holds a colon."""

    def __init__(self, own_only: bool = False) -> None:
        super().__init__(OWN if own_only else (*METHODS, *OWN))

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; a BadParameter for what is in no table and is no code's."""
        return value if ":" in value else super().convert(value, param, ctx)


parameter_option = click.option(
    "--parameter",
    "own_parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the class that --method MODULE:CLASS names.",
)


class MethodCommand(click.Command):
    """A command with the options of `method_options`; its help lists them by method, last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then a section for each method's parameters."""
        records = {
            param.name or "": record
            for param in self.get_params(ctx)
            if (record := param.get_help_record(ctx)) is not None
        }
        with formatter.section("Options"):
            formatter.write_dl([r for name, r in records.items() if _prefix(name) is None])
        for prefix, methods in PREFIXES.items():
            with formatter.section(f"Parameters of --method {'|'.join(methods)}"):
                formatter.write_dl([r for name, r in records.items() if _prefix(name) == prefix])


def method_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --method, --preset and every method's parameters; `chosen_method` reads them."""
    for prefix, methods in reversed(PREFIXES.items()):
        parameters: dict[str, dataclasses.Field[Any]] = {}
        for name in methods:  # the first that has a parameter tells of it
            for parameter in dataclasses.fields(method_class(name)):
                parameters.setdefault(parameter.name, parameter)
        for parameter in reversed(parameters.values()):
            command = _parameter_option(prefix, parameter)(command)
    command = renamed_option("--weights", "--raft-weights")(command)
    command = click.option(
        "--preset",
        help=f"Named set of parameters, which the options below override: {_presets()}. fast and "
        "faster of tvl1 are quicker, but miss OpenCV's own regression test, which asks that 95% of "
        "the pixels of a scene lie within 0.1 px (docs/tvl1.md).",
    )(command)
    command = parameter_option(command)
    return click.option(
        "--method",
        type=MethodName(),
        default="tvl1",
        show_default=True,
        help="The flow: one of these, a class of your own by its module, or a program that reads "
        "pairs of images and writes fields (docs/methods.md).",
    )(command)


def chosen_method(method: str, preset: str | None, options: dict[str, Any]) -> FlowMethod:
    """The flow method that the options name; `options` may hold others, which are left alone.

    click.UsageError for a parameter of another method than the chosen one.
    """
    parameters = read_own_parameters(method, options.get("own_parameters", ()))
    for name, value in options.items():
        prefix = _prefix(name)
        if prefix is None or value is None:
            continue
        if method not in PREFIXES[prefix]:
            raise click.UsageError(f"{_flag(name)} does not go with --method {method}")
        parameters[name.removeprefix(f"{prefix}_")] = value
    return make_method(method, preset=preset, **parameters)


def read_own_parameters(method: str, given: Iterable[str]) -> dict[str, Any]:
    """The parameters NAME=VALUE of a class of one's own, of the kinds of their defaults."""
    if given and (method in METHODS or method.startswith(PROGRAM)):
        raise click.UsageError("--parameter goes with --method MODULE:CLASS")
    parameters: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--parameter: expected NAME=VALUE, got {text!r}")
        fields = {field.name: field for field in dataclasses.fields(method_class(method))}
        kind = type(fields[name].default) if name in fields else str
        kinds = {bool: click.BOOL, int: click.INT, float: click.FLOAT}
        try:
            parameters[name] = kinds.get(kind, click.STRING).convert(value, None, None)
        except click.BadParameter as error:
            raise click.UsageError(f"--parameter {name}: {error.message}") from None
    return parameters


def stabilize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Whether the camera's motion is taken off the flow, and by which points."""
    matches = click.option(
        "--matches",
        type=click.Choice(CAMERA_MATCHES),
        help="With --stabilize, the points that tell the camera's motion: along the flow, or those "
        "and SIFT's.  [default: flow]",
    )
    motion = click.option(
        "--stabilize",
        type=click.Choice(MOTIONS),
        help="Take the camera's motion off: find it as this, then compute the flow again, to the "
        "second frame as the first one's camera would see it. Where too few matches agree, the "
        "plain flow stays, and is counted.",
    )
    return motion(matches(command))


def read_stabilization(motion: Any, matches: Any) -> Stabilization | None:
    """What --stabilize and --matches ask for; UsageError for matches without a use."""
    if motion is None and matches is not None:
        raise UsageError(f"--matches {matches} goes with --stabilize {' or '.join(MOTIONS)}")
    return None if motion is None else Stabilization(motion, matches or "flow")


def renamed_option(old: str, new: str) -> Callable[..., Any]:
    """A hidden option that stops with the name which it has now."""

    def stop(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{old} is now {new}")

    return click.option(old, hidden=True, expose_value=False, callback=stop)


def choices_text(table: Mapping[str, Any]) -> str:
    """The help of an option whose values are the names of a table: each with its `text`."""
    return "; ".join(f"{name}: {facts.text}" for name, facts in table.items()) + "."


def cores() -> int:
    """The cores this process may use, by affinity and container limits."""
    from flowkit.workers.machine import usable_cores

    return usable_cores()


def _parameter_option(prefix: str, parameter: dataclasses.Field[Any]) -> Callable[..., Any]:
    name = f"{prefix}_{parameter.name}"
    flag = _flag(name)
    default, text = parameter.default, parameter.metadata["help"]
    if isinstance(default, bool):
        word = "yes" if default else "no"
        negative = f"--{prefix}-no-{flag.removeprefix(f'--{prefix}-')}"
        return click.option(f"{flag}/{negative}", name, default=None, help=f"{text}  [{word}]")
    kind = {int: click.INT, float: click.FLOAT}.get(type(default), click.STRING)
    shown = f"{text}  [{default}]" if default != "" else text
    metavar = "FILE" if name in FILES else None
    return click.option(flag, name, type=kind, metavar=metavar, help=shown)


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _prefix(name: str) -> str | None:
    return next((prefix for prefix in PREFIXES if name.startswith(f"{prefix}_")), None)


def _presets() -> str:
    named = ((name, method_class(name).presets) for name in METHODS)
    return "; ".join(f"{name}: {', '.join(presets)}" for name, presets in named if presets)
