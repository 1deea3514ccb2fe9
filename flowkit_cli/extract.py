"""`flowkit extract`: videos to flow records."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from flowkit.errors import FlowkitError, UsageError
from flowkit.flow.methods import method_facts
from flowkit.records.layout import FORMATS, LAYOUTS, written_layouts
from flowkit.stores.urls import Place, Url
from flowkit_cli.extract_totals import ExtractTotals
from flowkit_cli.options import (
    MethodCommand,
    choices_text,
    chosen_method,
    cores,
    method_options,
    read_stabilization,
    stabilize_options,
)
from flowkit_cli.store_options import store_options
from flowkit_cli.video_runs import (
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
    from flowkit.extraction.extract import Extracted
    from flowkit.extraction.flow_processes import FlowProcesses
    from flowkit.extraction.request import Request
    from flowkit.flow.method import FlowMethod
    from flowkit.records.layout import Storage

GPU_METHODS = {"tvl1": "tvl1-cuda", "farneback": "farneback-cuda"}  # what --gpu makes of --method
WORKERS_PER_CORE = 1.5  # workers per core with --gpu: some wait for the GPU


def _read_time(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """The seconds that "90", "1:30" or "0:01:30.5" say."""
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) > 3 or not re.fullmatch(r"(\d+:)*\d+(\.\d*)?", text):
        raise UsageError(f"{option.opts[0]}: expected seconds, MM:SS or HH:MM:SS, got {text!r}")
    return sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))


@click.command(cls=MethodCommand)
@place_options(out="flow")
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
@stabilize_options
@click.option(
    "--resize",
    metavar="SIZE",
    help="Compute and store at this size: 256 (short side), 340x256 (width x height), 50%.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="K",
    help="Take each K-th frame only; all else, --step too, counts the frames taken.",
)
@click.option(
    "--fps",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Take N frames per second, the first at or after each k / N seconds; a video of fewer "
    "fails.  [default: all]",
)
@click.option(
    "--from",
    "start_s",
    callback=_read_time,
    metavar="T",
    help="Begin at this time: seconds, MM:SS or HH:MM:SS.",
)
@click.option(
    "--to",
    "stop_s",
    callback=_read_time,
    metavar="T",
    help="End before this time; what follows is not read.",
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
@click.option(
    "--changed",
    type=click.Choice(["redo", "keep", "fail"]),
    default="fail",
    show_default=True,
    help="A video that has changed since its record was made, by its size or, where its time is "
    "another, by its bytes: make the record again, keep it, or fail that video.",
)
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
@run_options
@store_options
def extract(
    run: VideoRun,
    method: str,
    preset: str | None,
    changed: Literal["redo", "keep", "fail"],
    gpu: bool,
    gpus: str | None,
    **options: Any,
) -> None:
    """Videos to flow records.

    INPUT is a video, a folder of videos (searched whole, class folders kept), a folder of frames
    (img_00001.jpg ...), a list file (.txt, one path per line), or - for paths on standard input;
    and any of these in a store (s3://..., gs://...), but for frames. Records in a store are packs.
    A rerun does only what is missing.

    \b
    flowkit extract videos/                         -> flow/<class>/<video>/
    flowkit extract videos/ --bound 20 --resize 340x256
    find videos -name '*.avi' | flowkit extract - --root videos --json
    flowkit extract videos/ --fps 5 --from 1:30 --to 2:00
    flowkit extract videos/ --stabilize homography  the camera's motion taken off
    flowkit extract videos/ --shard slurm           in a SLURM array job
    flowkit extract videos/ --dask tcp://head:8786  on a Dask cluster
    flowkit extract videos/ --gpus all              on NVIDIA GPUs
    flowkit extract s3://bucket/videos --out s3://bucket/flow

    Exit status: 0 all done, 1 some videos failed (the others are done), 2 usage, 75 stopped by
    SIGTERM, 130 interrupted.
    """
    begun = time.monotonic()
    on_gpus = gpu or gpus is not None or method in GPU_METHODS.values()
    if on_gpus:
        method = _method_on_gpus(method)
    if run.dask is not None and (on_gpus or method_facts(method).one_worker):
        raise UsageError(
            f"--dask does not go with {'--gpu' if on_gpus else f'--method {method}'}: give each "
            "machine with GPUs a share of the videos by --shard I/N or slurm (docs/cluster.md)"
        )
    numbers = _read_gpus(gpus)
    flow_method = chosen_method(method, preset, options)
    storage = _read_storage(run.out, options)
    options["stabilize"] = read_stabilization(options["stabilize"], options["matches"])
    quantized = options["stabilize"] is None
    with ExitStack() as stack:
        processes = None
        if on_gpus and numbers is not None and not run.dry_run:
            # Before all else: they open their GPUs while this process gets ready.
            processes = stack.enter_context(_started(flow_method, storage, numbers, quantized))

        from flowkit.extraction.extract import extract as run_extraction
        from flowkit.extraction.plan import plan

        request = _read_request(flow_method, storage, options)
        found, sources = find_sources(run)
        todo = plan(sources, run.out, request, overwrite=run.overwrite, changed=changed)
        workers = most_workers(run, _usual_workers(method, on_gpus))
        how = f"{method} to {run.out}{os.sep} {done_by(run, workers)}"
        tell_plan(run, found, sources, todo, how)
        if run.dry_run:
            return
        if on_gpus and todo:
            processes = processes or stack.enter_context(
                _started(flow_method, storage, numbers, quantized)
            )
            with _errors_of_gpus():
                processes.wait()
        totals = ExtractTotals(
            skipped=len(sources) - len(todo), todo=len(todo), workers=workers, begun=begun
        )
        engine = stack.enter_context(engine_of(run, totals))
        outcomes = run_extraction(
            todo,
            run.out,
            request,
            workers=workers,
            timeout_s=run.timeout_s,
            memory_bytes=run.memory_bytes,
            overwrite=run.overwrite,
            processes=processes if todo else None,
            engine=engine,
        )
        follow(run, sources, outcomes, totals, figures=_figures)
        if processes is not None and todo:
            totals.hear(processes)
    tell_totals(run, totals)


def _usual_workers(method: str, on_gpus: bool) -> int:
    if method_facts(method).one_worker:
        return 1
    return math.ceil(cores() * (WORKERS_PER_CORE if on_gpus else 1))


def _read_storage(out: Place, options: dict[str, Any]) -> Storage:
    """How the options ask for records to be stored: as packs, where `out` is in a store."""
    from flowkit.records.layout import Storage

    if isinstance(out, Url):
        if options["layout"] != "flowkit":
            raise UsageError(
                f"--layout {options['layout']}: a store holds packs of layout flowkit: {out}"
            )
        options["pack"] = True
    stored = ("format", "quality", "bound", "rgb", "rgb_quality", "layout", "pack")
    return Storage(**{name: options[name] for name in stored})


def _read_request(method: FlowMethod, storage: Storage, options: dict[str, Any]) -> Request:
    """What the options ask for of every video."""
    from flowkit.extraction.request import Request
    from flowkit.video.sampling import Sampling

    sampling = Sampling(**{name: options[name] for name in ("every", "fps", "start_s", "stop_s")})
    asked = ("steps", "backward", "resize", "keep_damaged", "max_frame_mpx", "stabilize")
    return Request(
        method, storage=storage, sampling=sampling, **{name: options[name] for name in asked}
    )


def _method_on_gpus(method: str) -> str:
    if method not in (*GPU_METHODS, *GPU_METHODS.values()):
        without = (
            "it computes on the CPU"
            if method_facts(method).runs_on == "cpu"
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


@contextmanager
def _started(
    method: FlowMethod, storage: Storage, gpus: list[int] | None, quantized: bool
) -> Iterator[FlowProcesses]:
    """The processes of --gpu, which have not been waited for; their errors say so."""
    from flowkit.extraction.flow_processes import FlowProcesses, count_gpus_apart

    with ExitStack() as stack:
        with _errors_of_gpus():
            gpus = list(range(count_gpus_apart())) if gpus is None else gpus
            processes = FlowProcesses(method, storage, gpus=gpus, quantized=quantized)
            stack.callback(processes.close)
            processes.start()
        yield processes


@contextmanager
def _errors_of_gpus() -> Iterator[None]:
    try:
        yield
    except FlowkitError as error:
        raise UsageError(f"--gpu: {error}") from error


def _figures(extracted: Extracted) -> dict[str, Any]:
    """What --json tells of a video that is done."""
    plain = extracted.plain_fields
    return {
        "frames": extracted.frames,
        "fields": extracted.fields,
        "damage": extracted.damage,
        "seconds": {stage: round(s, 4) for stage, s in extracted.seconds.items()},
        **({} if plain is None else {"plain_fields": plain}),
    }
