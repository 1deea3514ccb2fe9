"""`flowkit extract`: videos to flow records."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from flowkit.errors import FlowkitError, UsageError
from flowkit.flow.methods import METHODS
from flowkit.records.layout import FORMATS, LAYOUTS, written_layouts
from flowkit_cli import output
from flowkit_cli.extract_totals import Totals
from flowkit_cli.options import (
    MethodCommand,
    choices_text,
    chosen_method,
    cores,
    failures_option,
    json_option,
    max_frame_option,
    method_options,
    root_option,
    shard_option,
    timeout_option,
    workers_option,
)

if TYPE_CHECKING:
    from flowkit.extraction.extract import Outcome
    from flowkit.extraction.flow_processes import FlowProcesses
    from flowkit.extraction.request import Request
    from flowkit.flow.method import FlowMethod
    from flowkit.video.sources import Source

GPU_METHODS = {"tvl1": "tvl1-cuda", "farneback": "farneback-cuda"}  # what --gpu makes of --method
WORKERS_A_CORE = 1.5  # with --gpu: some wait for the GPU


@click.command(cls=MethodCommand)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="flow",
    show_default=True,
    help="Folder of the records.",
)
@root_option
@method_options
@click.option(
    "--step",
    "steps",
    type=click.IntRange(1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Fields from every frame t to t + STEP; may be given several times.",
)
@click.option("--backward", is_flag=True, help="Also the fields from t + STEP back to t, computed.")
@click.option(
    "--resize",
    metavar="SIZE",
    help="Compute and store at this size: 256 (short side), 340x256 (width x height), 50%.",
)
@click.option(
    "--rgb/--no-rgb", default=True, show_default=True, help="Store the frames, too, as JPEG."
)
@click.option("--rgb-quality", type=click.IntRange(1, 100), default=95, show_default=True)
@click.option(
    "--bound",
    type=float,
    metavar="PX",
    help="Clip displacements to +-PX and put zero on 128, as TSN and mmaction2 read it (20 is "
    "usual).  [default: each field's own minimum and maximum]",
)
@click.option(
    "--format",
    type=click.Choice(tuple(FORMATS)),
    default="jpg",
    show_default=True,
    help=choices_text(FORMATS),
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    help="JPEG quality of the planes.",
)
@click.option(
    "--layout",
    type=click.Choice(written_layouts()),
    default="flowkit",
    show_default=True,
    help=choices_text({name: LAYOUTS[name] for name in written_layouts()}),
)
@click.option("--pack", is_flag=True, help="One stored zip per video instead of a folder.")
@click.option("--overwrite", is_flag=True, help="Redo records that are there already.")
@click.option(
    "--changed",
    type=click.Choice(["redo", "keep", "fail"]),
    default="fail",
    show_default=True,
    help="A video that has changed since its record was made, by its size or, where its time is "
    "another, by its bytes: make the record again, keep it, or fail that video.",
)
@click.option(
    "--keep-damaged",
    is_flag=True,
    help="Keep the frames that a damaged video still gives; the sidecar tells the damage.",
)
@max_frame_option
@workers_option
@timeout_option
@shard_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@failures_option
@click.option(
    "--gpu",
    is_flag=True,
    help="Compute the flow on an NVIDIA GPU, with one and a half workers per core: "
    "tvl1 becomes tvl1-cuda, farneback farneback-cuda.",
)
@click.option(
    "--gpus",
    metavar="0,1|all",
    help="The GPUs to spread the videos over; implies --gpu.  [default: 0]",
)
def extract(
    inputs: tuple[str, ...],
    out: Path,
    root: Path | None,
    method: str,
    preset: str | None,
    shard: str | None,
    workers: int | None,
    timeout_s: float | None,
    overwrite: bool,
    changed: Literal["redo", "keep", "fail"],
    dry_run: bool,
    as_json: bool,
    failures: Path | None,
    gpu: bool,
    gpus: str | None,
    **options: Any,
) -> None:
    """Videos to flow records.

    INPUT is a video, a folder of videos (searched whole, class folders kept), a folder of frames
    (img_00001.jpg ...), a list file (.txt, a path a line), or - for paths on standard input. A
    rerun does only what is missing.

    \b
    flowkit extract videos/                         -> flow/<class>/<video>/
    flowkit extract videos/ --bound 20 --resize 340x256
    find videos -name '*.avi' | flowkit extract - --root videos --json
    flowkit extract videos/ --shard slurm           in a SLURM array job
    flowkit extract videos/ --gpus all              on NVIDIA GPUs

    Exit status: 0 all done, 1 some videos failed (the others are done), 2 usage, 75 stopped by
    SIGTERM, 130 interrupted.
    """
    on_gpus = gpu or gpus is not None or method in GPU_METHODS.values()
    if on_gpus:
        method = _method_on_gpus(method)
    numbers = _read_gpus(gpus)
    flow_method = chosen_method(method, preset, options)
    share = read_shard(shard) if shard else None

    from flowkit.extraction.extract import extract as run
    from flowkit.extraction.plan import plan, take_shard
    from flowkit.video.sources import find_videos

    request = _read_request(flow_method, options)
    found = find_videos(inputs, root=root, stdin=output.stdin(), out=out)
    sources = list(found.sources) if share is None else take_shard(found.sources, *share)
    todo = plan(sources, out, request, overwrite=overwrite, changed=changed)
    if workers is None:
        per_core = WORKERS_A_CORE if on_gpus else 1
        workers = 1 if METHODS[method].one_worker else math.ceil(cores() * per_core)
    output.say(
        f"{output.count(len(sources), 'video')}, {len(todo):,} to do: "
        f"{method} to {out}{os.sep} with {output.count(workers, 'worker')}"
        + (f"; shard {share[0]}/{share[1]} of {len(found.sources):,}" if share else "")
    )
    if found.passed_over:
        kinds = ", ".join(f"{end or 'no ending'} ({n})" for end, n in found.passed_over.items())
        output.say(f"passed over, being no videos: {kinds}")
    if dry_run:
        _tell_todo(todo, out, as_json)
        return

    if as_json:
        waiting = {source.id for source in todo}
        for source in sources:
            if source.id not in waiting:
                output.json_line(_event(source, "skipped"))
    totals = Totals(len(sources) - len(todo), len(todo), workers)
    with (
        output.Failures(failures, [*inputs, *(one.path for one in sources)]) as failed,
        _flow_processes(request, numbers) if on_gpus and todo else nullcontext() as processes,
        output.ProgressBar(len(todo)) as progress,
    ):
        totals.begin()
        for outcome in run(
            todo,
            out,
            request,
            workers=workers,
            timeout_s=timeout_s,
            overwrite=overwrite,
            processes=processes,
        ):
            progress.frames_of(outcome.source.id, outcome.frames)
            if outcome.status == "running":
                continue
            progress.finished(failed=outcome.status == "failed")
            totals.add(outcome)
            if outcome.status == "failed":
                failed.add(outcome.source.path, outcome.reason)
            _tell(outcome, progress, as_json)
        totals.end(processes)
    output.say(totals.summary())
    if as_json:
        output.json_line(totals.event())
    if totals.failed or totals.done < len(todo):
        sys.exit(1)


def _read_request(method: FlowMethod, options: dict[str, Any]) -> Request:
    """What the options ask for of every video."""
    from flowkit.extraction.request import Request
    from flowkit.records.layout import Storage

    stored = ("format", "quality", "bound", "rgb", "rgb_quality", "layout", "pack")
    asked = ("steps", "backward", "resize", "keep_damaged", "max_frame_mpx")
    storage = Storage(**{name: options[name] for name in stored})
    return Request(method, storage=storage, **{name: options[name] for name in asked})


def _tell_todo(todo: Sequence[Source], out: Path, as_json: bool) -> None:
    """What --dry-run prints: a line for each video that would be extracted."""
    for source in todo:
        if as_json:
            output.json_line(_event(source, "to do"))
        elif source.refusal:
            output.result(f"{source.path}: would fail: {source.refusal}")
        else:
            output.result(f"{source.path} -> {out / source.id}")


def _tell(outcome: Outcome, progress: output.ProgressBar, as_json: bool) -> None:
    """What is said of a video that is done or has failed."""
    path = outcome.source.path
    if outcome.status == "failed":
        progress.line(f"failed: {path}: {outcome.reason}")
    elif outcome.extracted and outcome.extracted.damage:
        progress.line(f"damaged: {path}: {outcome.extracted.damage}")
    else:
        output.detail(f"done: {path} ({outcome.frames:,} frames)")
    if as_json:
        output.json_line(_event(outcome.source, outcome.status, outcome))


def _method_on_gpus(method: str) -> str:
    if method not in (*GPU_METHODS, *GPU_METHODS.values()):
        without = (
            "it computes on the CPU"
            if METHODS[method].runs_on == "cpu"
            else "it finds a GPU by itself"
        )
        raise UsageError(
            f"--gpu: expected --method {' or '.join(GPU_METHODS)}, whose pairs go to GPUs by "
            f"batches, got {method}; leave --gpu out: {without}"
        )
    return GPU_METHODS.get(method, method)


def _read_gpus(gpus: str | None) -> list[int] | None:
    """The GPUs that --gpus names, None for all."""
    if gpus == "all":
        return None
    names = (gpus or "0").split(",")
    if not all(name.strip().isdecimal() for name in names):
        raise UsageError(f"--gpus: expected GPUs such as 0,1, or all, got {gpus!r}")
    return [int(name) for name in names]


def _open_gpus(request: Request, gpus: list[int] | None) -> FlowProcesses:
    from flowkit.extraction.flow_processes import FlowProcesses

    if gpus is None:
        from flowkit.extraction.flow_processes import count_gpus_apart

        gpus = list(range(count_gpus_apart()))
    return FlowProcesses(request.method, request.storage, gpus=gpus)


@contextmanager
def _flow_processes(request: Request, gpus: list[int] | None) -> Iterator[FlowProcesses]:
    """The processes of --gpu; their errors say so."""
    with ExitStack() as stack:
        try:
            processes = stack.enter_context(_open_gpus(request, gpus))
        except FlowkitError as error:
            raise UsageError(f"--gpu: {error}") from error
        yield processes


def _event(source: Source, status: str, outcome: Outcome | None = None) -> dict[str, Any]:
    """One line of --json."""
    event: dict[str, Any] = {"video": source.id, "source": str(source.path), "status": status}
    if outcome is not None and outcome.extracted is not None:
        extracted = outcome.extracted
        event |= {
            "frames": extracted.frames,
            "fields": extracted.fields,
            "damage": extracted.damage,
            "seconds": {stage: round(s, 4) for stage, s in extracted.seconds.items()},
        }
    if status == "failed" and outcome is not None:
        event["reason"] = outcome.reason
    return event


def read_shard(shard: str) -> tuple[int, int]:
    """The share that --shard names: index from 1, and count."""
    from flowkit.extraction.plan import slurm_shard

    if shard == "slurm":
        return slurm_shard(os.environ)
    index, _, count = shard.partition("/")
    if index == "slurm" and count.isdecimal():
        return slurm_shard(os.environ, int(count))
    if not (index.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard: expected I/N such as 1/8, slurm or slurm/N, got {shard!r}")
    return int(index), int(count)
