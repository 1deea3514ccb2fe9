"""What commands share that make a record of every video: options, the run, and what it adds up to.

The steps of such a command: `find_sources`, plan, `tell_plan`, `follow`, `tell_totals`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.stores.retries import retry_count
from flowkit.stores.urls import Access, Place, Url, local_path
from flowkit_cli import output
from flowkit_cli.options import (
    cores,
    dask_option,
    failures_option,
    json_option,
    max_frame_option,
    max_memory_option,
    root_option,
    shard_option,
    timeout_option,
    workers_option,
)
from flowkit_cli.store_options import PlacePath, store_access

if TYPE_CHECKING:
    from flowkit.extraction.outcomes import Outcome
    from flowkit.video.sources import Found, Source
    from flowkit.workers.engine import Engine


@dataclass(frozen=True)
class VideoRun:
    """The options of a run over videos that do not change what its records hold."""

    inputs: tuple[str | Url, ...]
    out: Place
    root: Place | None = None
    overwrite: bool = False
    workers: int | None = None
    timeout_s: float | None = None
    memory_bytes: int | None = None
    dask: str | None = None
    share: tuple[int, int] | None = None
    dry_run: bool = False
    as_json: bool = False
    failures: Path | None = None
    access: Access = field(default_factory=Access)

    @property
    def folder(self) -> Path:
        """Where records go; UsageError where that is in a store."""
        return local_path(self.out)


def place_options(out: str, *, kind: type[click.Path] = PlacePath) -> Callable[..., Any]:
    """INPUT..., --out and --root, which come first; `out` is where records go by default.

    `kind` says whether INPUT and --out may be addresses in stores.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        place = click.option(
            "--out",
            type=kind(path_type=Path, file_okay=False),
            default=out,
            show_default=True,
            help="Folder of the records.",
        )
        inputs = click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=kind())
        return inputs(place(root_option(command)))

    return decorate


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The further options of a run, which come last; the command gets a `VideoRun` and the rest."""

    @functools.wraps(command)
    def called(**options: Any) -> Any:
        names = [field.name for field in dataclasses.fields(VideoRun) if field.name in options]
        access = store_access(click.get_current_context())
        run = VideoRun(**{name: options.pop(name) for name in names}, access=access)
        return command(run, **options)

    for option in (
        failures_option,
        json_option,
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        dask_option,
        shard_option,
        max_memory_option,
        timeout_option,
        workers_option,
        max_frame_option,
        click.option(
            "--keep-damaged",
            is_flag=True,
            help="Keep the frames that a damaged video still gives; its record tells the damage.",
        ),
        click.option("--overwrite", is_flag=True, help="Redo records that are there already."),
    ):
        called = option(called)
    return called


class Totals:
    """Counts and times of a run over `todo` videos, `skipped` further were there.

    Results have `frames` and, under the plural of `noun`, how many of these were made of them.
    """

    def __init__(self, noun: str, *, skipped: int, todo: int, workers: int) -> None:
        self.noun = noun
        self.skipped, self.todo, self.workers = skipped, todo, workers
        self.done = self.failed = self.frames = self.made = 0
        self.retries = 0  # of the workers; those of this process come on top
        self.stopped_by = "the disk is full"
        self.start, self.elapsed = time.monotonic(), 0.0

    def begin(self) -> None:
        """The work starts now."""
        self.start = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """One more video is done or has failed."""
        self.retries += outcome.retries
        if outcome.result is None:
            self.failed += 1
            return
        self.done += 1
        self.frames += outcome.result.frames
        self.made += getattr(outcome.result, f"{self.noun}s")

    def end(self) -> None:
        """The work ends now."""
        self.elapsed = time.monotonic() - self.start

    @property
    def not_begun(self) -> int:
        """The videos that have no outcome."""
        return self.todo - self.done - self.failed

    def summary(self) -> str:
        """The last line: counts and speed."""
        text = f"{self.done:,} done, {self.skipped:,} there already, {self.failed:,} failed"
        if self.not_begun:
            text += f", {self.not_begun:,} not begun ({self.stopped_by})"
        if self.done:
            text += (
                f"; {output.count(self.frames, 'frame')}, {output.count(self.made, self.noun)} in "
                f"{output.duration(self.elapsed)}: {self.frames / self.elapsed:.1f} frames/s with "
                f"{output.count(self.workers, 'worker')}"
            )
        if retries := self.retries + retry_count():
            text += f"; stores were asked again {retries:,} times"
        return text

    def event(self) -> dict[str, Any]:
        """The last line of --json."""
        return {
            "status": "summary",
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "not_begun": self.not_begun,
            "frames": self.frames,
            f"{self.noun}s": self.made,
            "seconds": round(self.elapsed, 3),
            "frames_per_s": round(self.frames / self.elapsed, 1),
            "workers": self.workers,
            "retries": self.retries + retry_count(),
        }


def find_sources(run: VideoRun) -> tuple[Found, list[Source]]:
    """All the videos that a run's inputs name, and those of its share.

    UsageError as of `find_videos` and `take_shard`.
    """
    from flowkit.extraction.plan import take_shard
    from flowkit.video.sources import find_videos

    found = find_videos(
        run.inputs, root=run.root, stdin=output.stdin(), out=run.out, access=run.access
    )
    sources = found.sources if run.share is None else take_shard(found.sources, *run.share)
    return found, list(sources)


def tell_plan(
    run: VideoRun, found: Found, sources: Sequence[Source], todo: Sequence[Source], how: str
) -> None:
    """Say what is to be done, `how` it is done, and what was passed over.

    With --dry-run, a line for each video to do; with --json, one for each that is skipped.
    """
    text = f"{output.count(len(sources), 'video')}, {len(todo):,} to do: {how}"
    if run.share:
        text += f"; shard {run.share[0]}/{run.share[1]} of {len(found.sources):,}"
    output.say(text)
    if found.passed_over:
        kinds = ", ".join(f"{end or 'no ending'} ({n})" for end, n in found.passed_over.items())
        output.say(f"passed over, being no videos: {kinds}")
    if run.dry_run:
        for source in todo:
            if run.as_json:
                output.json_line(_event(source, "to do"))
            elif source.refusal:
                output.result(f"{source.path}: would fail: {source.refusal}")
            else:
                output.result(f"{source.path} -> {run.out / source.id}")
    elif run.as_json:
        waiting = {source.id for source in todo}
        for source in sources:
            if source.id not in waiting:
                output.json_line(_event(source, "skipped"))


def done_by(run: VideoRun, workers: int) -> str:
    """Where a run does its work, in words for `tell_plan`."""
    return f"with {output.count(workers, 'worker')}" if run.dask is None else f"by Dask, {run.dask}"


@contextmanager
def engine_of(run: VideoRun, totals: Totals) -> Iterator[Engine]:
    """The engine that a run asks for: the pool, or a cluster, whose threads the totals count."""
    from flowkit.workers.cluster import connected
    from flowkit.workers.pool import run_pool

    if run.dask is None or not totals.todo:
        yield run_pool
        return
    with connected(run.dask, workers=run.workers or cores()) as cluster:
        output.say(f"--dask {run.dask}: {output.count(cluster.threads(), 'thread')} to begin with")
        yield cluster.run
        totals.workers = min(totals.workers, cluster.most_threads)


def most_workers(run: VideoRun, usual: int) -> int:
    """The videos under way at most: as -j says, else `usual` here, and in a cluster its threads."""
    if run.dask is not None and run.dask != "local":
        usual = sys.maxsize
    return run.workers or usual


def follow(
    run: VideoRun,
    sources: Sequence[Source],
    outcomes: Generator[Outcome],
    totals: Totals,
    *,
    figures: Callable[[Any], dict[str, Any]],
    note: Callable[[Outcome], str] = lambda outcome: "",
) -> None:
    """Go through the outcomes of a run as they come: progress, failures, JSON lines, totals.

    `figures` are those of a result in its line of JSON; `note` is what a person should hear of a
    video that is done, "" for nothing.
    """
    with (
        output.Failures(
            run.failures,
            [*map(str, run.inputs), *(str(one.path) for one in sources)],
            run.out if isinstance(run.out, Path) else None,
        ) as failures,
        closing(outcomes),
        output.ProgressBar(totals.todo) as progress,
    ):
        totals.begin()
        for outcome in outcomes:
            progress.frames_of(outcome.source.id, outcome.frames)
            if outcome.status == "running":
                continue
            progress.finished(failed=outcome.status == "failed")
            totals.add(outcome)
            path = outcome.source.path
            if outcome.status == "failed":
                failures.add(path, outcome.reason)
                output.error(f"failed: {path}: {outcome.reason}")
            elif outcome.result is not None and outcome.result.damage:
                output.error(f"damaged: {path}: {outcome.result.damage}")
            elif line := note(outcome):
                output.error(line)
            else:
                output.detail(f"done: {path} ({outcome.frames:,} frames)")
            if run.as_json:
                told = {"reason": outcome.reason}
                if outcome.status == "done":
                    told = figures(outcome.result)
                output.json_line(_event(outcome.source, outcome.status) | told)
        totals.end()


def tell_totals(run: VideoRun, totals: Totals) -> None:
    """The last lines; exit status 1 where a video has failed or was not begun."""
    for line in totals.summary().split("\n"):
        output.say(line)
    if run.as_json:
        output.json_line(totals.event())
    if totals.failed or totals.not_begun:
        sys.exit(1)


def _event(source: Source, status: str) -> dict[str, Any]:
    """What every line of --json has."""
    return {"video": source.id, "source": str(source.path), "status": status}
