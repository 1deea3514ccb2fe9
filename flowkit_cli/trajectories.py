"""`flowkit trajectories`: videos to track records."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.idt.parameters import MATCHES, TrackParameters
from flowkit_cli import output
from flowkit_cli.extract import read_shard
from flowkit_cli.options import (
    cores,
    failures_option,
    json_option,
    max_frame_option,
    root_option,
    shard_option,
    timeout_option,
    workers_option,
)

if TYPE_CHECKING:
    from flowkit.idt.extraction import Outcome
    from flowkit.video.sources import Source


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
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="tracks",
    show_default=True,
    help="Folder of the records.",
)
@root_option
@click.option(
    "--matches",
    type=click.Choice(MATCHES),
    default="flow",
    show_default=True,
    help="The points that tell the camera's motion; none: it is not taken off.",
)
@click.option(
    "--boxes",
    type=click.Path(path_type=Path, exists=True),
    metavar="PLACE",
    help="People, whose motion is not the camera's: a folder with CLASS/VIDEO.bb, or the file of "
    "one video; lines of frame (from 0), then x1 y1 x2 y2 confidence for each person.",
)
@click.option("--float32", is_flag=True, help="Descriptors in single precision, not half.")
@click.option("--text", is_flag=True, help="Also a .txt in the format of the authors' program.")
@click.option("--overwrite", is_flag=True, help="Make records again that are there already.")
@click.option(
    "--keep-damaged",
    is_flag=True,
    help="Keep the frames that a damaged video still gives; the header tells the damage.",
)
@max_frame_option
@workers_option
@timeout_option
@shard_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@failures_option
@parameter_options
def trajectories(
    inputs: tuple[str, ...],
    out: Path,
    root: Path | None,
    boxes: Path | None,
    float32: bool,
    text: bool,
    overwrite: bool,
    keep_damaged: bool,
    max_frame_mpx: float,
    workers: int | None,
    timeout_s: float | None,
    shard: str | None,
    dry_run: bool,
    as_json: bool,
    failures: Path | None,
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
    from flowkit.extraction.plan import take_shard
    from flowkit.idt.extraction import TrackRequest, extract_tracks, plan_tracks
    from flowkit.video.sources import find_videos

    request = TrackRequest(
        TrackParameters(**parameters),
        float32=float32,
        text=text,
        boxes=boxes,
        keep_damaged=keep_damaged,
        max_frame_mpx=max_frame_mpx,
    )
    share = read_shard(shard) if shard else None
    found = find_videos(inputs, root=root, stdin=output.stdin())
    sources = list(found.sources) if share is None else take_shard(found.sources, *share)
    todo = plan_tracks(sources, out, request, overwrite=overwrite)
    workers = workers or cores()
    output.say(
        f"{output.count(len(sources), 'video')}, {len(todo):,} to do: trajectories to "
        f"{out}{os.sep} with {output.count(workers, 'worker')}"
        + (f"; shard {share[0]}/{share[1]} of {len(found.sources):,}" if share else "")
    )
    if found.passed_over:
        kinds = ", ".join(f"{end or 'no ending'} ({n})" for end, n in found.passed_over.items())
        output.say(f"passed over, being no videos: {kinds}")
    if dry_run:
        for source in todo:
            if as_json:
                output.json_line(_event(source, "to do"))
            else:
                output.result(f"{source.path} -> {out / source.id}")
        return
    waiting = {source.id for source in todo}
    if as_json:
        for source in sources:
            if source.id not in waiting:
                output.json_line(_event(source, "skipped"))
    totals = _Totals(len(sources) - len(todo), len(todo), workers)
    least = request.parameters.track_length + 1
    with (
        output.Failures(failures, [*inputs, *(one.path for one in sources)]) as failed,
        output.ProgressBar(len(todo)) as progress,
    ):
        for outcome in extract_tracks(
            todo, out, request, workers=workers, timeout_s=timeout_s, overwrite=overwrite
        ):
            progress.frames_of(outcome.source.id, outcome.frames)
            if outcome.status == "running":
                continue
            progress.finished(failed=outcome.status == "failed")
            totals.add(outcome)
            if outcome.status == "failed":
                failed.add(outcome.source.path, outcome.reason)
            if line := _told(outcome, least):
                progress.line(line)
            if as_json:
                output.json_line(_event(outcome.source, outcome.status, outcome))
    output.say(totals.summary())
    if as_json:
        output.json_line(totals.event())
    if totals.failed or totals.not_begun:
        sys.exit(1)


class _Totals:
    """Counts of a run over `todo` videos; `skipped` further ones were there."""

    def __init__(self, skipped: int, todo: int, workers: int) -> None:
        self.skipped, self.todo, self.workers = skipped, todo, workers
        self.done = self.frames = self.tracks = 0
        self.failed: list[Outcome] = []
        self.start = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """One more video is done or has failed."""
        if outcome.tracked is None:
            self.failed.append(outcome)
            return
        self.done += 1
        self.frames += outcome.tracked.frames
        self.tracks += outcome.tracked.tracks

    @property
    def not_begun(self) -> int:
        return self.todo - self.done - len(self.failed)

    def summary(self) -> str:
        """The last line: counts and speed."""
        text = f"{self.done:,} done, {self.skipped:,} there already, {len(self.failed):,} failed"
        if self.not_begun:
            text += f", {self.not_begun:,} not begun (the disk is full)"
        if self.done:
            elapsed = time.monotonic() - self.start
            text += (
                f"; {output.count(self.frames, 'frame')}, {output.count(self.tracks, 'track')} in "
                f"{output.duration(elapsed)}: {self.frames / elapsed:.1f} frames/s with "
                f"{output.count(self.workers, 'worker')}"
            )
        return text

    def event(self) -> dict[str, Any]:
        """The last line of --json."""
        return {
            "status": "summary",
            "done": self.done,
            "skipped": self.skipped,
            "failed": len(self.failed),
            "not_begun": self.not_begun,
            "frames": self.frames,
            "tracks": self.tracks,
            "seconds": round(time.monotonic() - self.start, 3),
            "workers": self.workers,
        }


def _told(outcome: Outcome, least: int) -> str:
    """What a person should hear of one video; "" for nothing."""
    if outcome.tracked is None:
        return f"failed: {outcome.source.path}: {outcome.reason}"
    if outcome.tracked.damage:
        return f"damaged: {outcome.source.path}: {outcome.tracked.damage}"
    if outcome.tracked.frames < least:
        return (
            f"no tracks: {outcome.source.path}: {output.count(outcome.tracked.frames, 'frame')}, "
            f"a track needs {least}"
        )
    return ""


def _event(source: Source, status: str, outcome: Outcome | None = None) -> dict[str, Any]:
    """One line of --json."""
    event: dict[str, Any] = {"video": source.id, "source": str(source.path), "status": status}
    if outcome is not None and outcome.tracked is not None:
        tracked = outcome.tracked
        event |= {
            "frames": tracked.frames,
            "tracks": tracked.tracks,
            "damage": tracked.damage,
            "seconds": round(tracked.seconds, 3),
        }
    if status == "failed" and outcome is not None:
        event["reason"] = outcome.reason
    return event
