"""`flowkit trajectories`: videos to track records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.flow.parameters import MATCHES
from flowkit.idt.parameters import TrackParameters
from flowkit_cli import output
from flowkit_cli.options import cores
from flowkit_cli.store_options import LocalPath
from flowkit_cli.video_runs import (
    Totals,
    VideoRun,
    done_by,
    engine_of,
    find_sources,
    follow,
    most_workers,
    place_options,
    run_options,
    tell_plan,
    tell_totals,
)

if TYPE_CHECKING:
    from flowkit.extraction.outcomes import Outcome
    from flowkit.idt.extraction import Tracked


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every number of `TrackParameters` as an option of its name."""
    for field in reversed(dataclasses.fields(TrackParameters)):
        if "help" in field.metadata:
            command = click.option(
                f"--{field.name.replace('_', '-')}",
                type=click.INT if isinstance(field.default, int) else click.FLOAT,
                default=field.default,
                show_default=f"{field.default:.4g}",
                help=field.metadata["help"],
            )(command)
    return command


@click.command()
@place_options(out="tracks", kind=LocalPath)
@click.option(
    "--matches",
    type=click.Choice(MATCHES),
    default="flow",
    show_default=True,
    help="The points that tell the camera's motion; none: it is not taken off.",
)
@click.option(
    "--boxes",
    type=click.Path(path_type=Path),
    metavar="PLACE",
    help="People, whose motion is not the camera's: a folder with CLASS/VIDEO.bb, or the file of "
    "one video; lines of frame (from 0), then x1 y1 x2 y2 confidence for each person.",
)
@click.option("--float32", is_flag=True, help="Descriptors in single precision, not half.")
@click.option("--text", is_flag=True, help="Also a .txt in the format of the authors' program.")
@run_options
@parameter_options
def trajectories(
    run: VideoRun,
    boxes: Path | None,
    float32: bool,
    text: bool,
    keep_damaged: bool,
    max_frame_mpx: float,
    **parameters: Any,
) -> None:
    """Videos to improved dense trajectories, for Fisher vectors (flowkit fisher).

    INPUT is what `flowkit extract` takes: videos, folders, lists, or - for paths on standard
    input. A rerun does only what is missing.

    \b
    flowkit trajectories videos/                    -> tracks/<class>/<video>.npz
    flowkit trajectories videos/ --text             -> and .txt, as the authors' program prints
    flowkit trajectories videos/ --shard slurm      in a SLURM array job

    Exit status: 0 all done, 1 some videos failed (the others are done), 2 usage, 75 stopped by
    SIGTERM, 130 interrupted.
    """
    from flowkit.idt.extraction import TrackRequest, extract_tracks, plan_tracks

    request = TrackRequest(
        TrackParameters(**parameters),
        float32=float32,
        text=text,
        boxes=boxes,
        keep_damaged=keep_damaged,
        max_frame_mpx=max_frame_mpx,
    )
    found, sources = find_sources(run)
    todo = plan_tracks(sources, run.folder, request, overwrite=run.overwrite)
    workers = most_workers(run, cores())
    how = f"trajectories to {run.out}{os.sep} {done_by(run, workers)}"
    tell_plan(run, found, sources, todo, how)
    if run.dry_run:
        return
    totals = Totals("track", skipped=len(sources) - len(todo), todo=len(todo), workers=workers)
    least = request.parameters.track_length + 1

    def note(outcome: Outcome[Tracked]) -> str:
        if outcome.frames >= least:
            return ""
        frames = output.count(outcome.frames, "frame")
        return f"no tracks: {outcome.source.path}: {frames}, a track needs {least}"

    with engine_of(run, totals) as engine:
        outcomes = extract_tracks(
            todo,
            run.folder,
            request,
            workers=workers,
            timeout_s=run.timeout_s,
            memory_bytes=run.memory_bytes,
            overwrite=run.overwrite,
            engine=engine,
        )
        follow(run, sources, outcomes, totals, figures=_figures, note=note)
    tell_totals(run, totals)


def _figures(tracked: Tracked) -> dict[str, Any]:
    """What --json tells of a video that is done."""
    return {
        "frames": tracked.frames,
        "tracks": tracked.tracks,
        "damage": tracked.damage,
        "seconds": round(tracked.seconds, 3),
    }
