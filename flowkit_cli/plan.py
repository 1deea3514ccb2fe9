"""`flowkit plan`: what an extraction will take, before it is begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowkit.flow.methods import methods_on
from flowkit_cli import output
from flowkit_cli.options import cores, json_option, read_stabilization, stabilize_options

if TYPE_CHECKING:
    from flowkit.extraction.forecast import Forecast, FormatCost, MethodCost


@click.command()
@click.argument("inputs", metavar="[INPUT]...", nargs=-1, type=click.Path())
@click.option(
    "--videos",
    type=click.IntRange(1),
    metavar="N",
    help="So many videos, whatever INPUT has; with --frames-per-video none need be at hand.",
)
@click.option(
    "--frames-per-video",
    type=click.FloatRange(2),
    metavar="N",
    help="Their frames on average.  [default: counted in up to 200 of INPUT]",
)
@click.option(
    "--resize",
    "--size",
    "resize",
    metavar="SIZE",
    help="The size of flow and frames, as of flowkit extract: 256 (short side), 340x256, 50%.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(methods_on("cpu", "cuda", "opencv-cuda")),
    multiple=True,
    help="Measure this one; may be given several times.  [default: all that compute here]",
)
@stabilize_options
@click.option(
    "-j",
    "--workers",
    type=click.IntRange(1),
    help="So many workers like this machine's.  [default: all cores this process may use]",
)
@json_option
def plan(
    inputs: tuple[str, ...],
    videos: int | None,
    frames_per_video: float | None,
    resize: str | None,
    methods: tuple[str, ...],
    stabilize: Any,
    matches: Any,
    workers: int | None,
    as_json: bool,
) -> None:
    """Hours, gigabytes and files of an extraction, by a measurement here of some seconds.

    INPUT is what `flowkit extract` takes, on this machine. The first frames of three of the videos
    are decoded, put through the methods and stored in every format; nothing is kept. Hours are
    those of idle cores and of a disk that keeps up. Without INPUT made videos are measured: hours
    are about as good, but bytes are those of simple pictures.

    \b
    flowkit plan videos/ --resize 340x256
    flowkit plan videos/ --workers 64 --method tvl1
    flowkit plan --videos 13320 --frames-per-video 186 --size 340x256

    Exit status: 0 planned, 1 no video can be read, 2 usage.
    """
    from flowkit.extraction.forecast import forecast
    from flowkit.video.sources import find_videos

    if not inputs and (videos is None or frames_per_video is None):
        raise click.UsageError("expected INPUT, or --videos and --frames-per-video")
    sources = find_videos(inputs, stdin=output.stdin()).sources if inputs else ()
    found = forecast(
        sources,
        methods or _methods_here(),
        resize=resize,
        videos=videos,
        frames_per_video=frames_per_video,
        stabilize=read_stabilization(stabilize, matches),
    )
    machine = cores()
    if as_json:
        output.json_line(_as_json(found, machine, workers or machine))
    else:
        _show(found, machine, workers or machine)


def _methods_here() -> tuple[str, ...]:
    """Those of the CPU, and flowkit's of a GPU where there is one."""
    from flowkit.errors import FlowkitError
    from flowkit.flow.methods import make_method, prepare_method

    try:
        prepare_method(make_method("tvl1-cuda"))
    except FlowkitError:
        return methods_on("cpu")
    return methods_on("cpu", "cuda")


def _hours(found: Forecast, one: MethodCost, workers: int) -> float:
    return one.hours(found.amount.frames, workers)


def _show(found: Forecast, machine: int, workers: int) -> None:
    amount, places = found.amount, dict.fromkeys((machine, workers))
    height, width = amount.size
    counted = f", counted in {amount.counted:,} videos" if amount.counted else ""
    if amount.unreadable:
        counted += f", {amount.unreadable:,} of which cannot be read"
    output.result(
        f"{output.count(amount.videos, 'video')}, {amount.frames:,} frames of "
        f"{width}x{height}{counted}"
    )
    kind = "made videos" if found.made else "of them"
    output.result(f"measured in {output.duration(found.seconds)} on {found.sample} {kind}")
    output.result("")
    heads = [output.count(number, "worker") for number in places]
    _row("method", "device", "frames/s each", *heads)
    for one in found.methods:
        if one.error:
            output.result(f"{one.method:<18}no: {one.error}")
            continue
        times = [output.duration(3600 * _hours(found, one, number)) for number in places]
        _row(one.method, one.device, f"{1 / (one.flow_s + one.rest_s):,.1f}", *times)
    output.result("")
    _row("format", "GB", "files", "GB with frames", "files")
    for form in found.formats:
        _row(form.format, *_room(found, form, rgb=False), *_room(found, form, rgb=True))
    output.result(f"with --pack {output.count(amount.videos, 'file')}, of as many GB")


def _row(first: str, *others: str) -> None:
    output.result(f"{first:<18}" + "".join(f"{text:>16}" for text in others))


def _room(found: Forecast, form: FormatCost, *, rgb: bool) -> tuple[str, str]:
    """Gigabytes and files of all records, in words."""
    gigabytes = found.bytes_of(form, rgb=rgb) / 1e9
    return f"{gigabytes:,.{0 if gigabytes >= 10 else 3}f}", f"{found.files_of(form, rgb=rgb):,}"


def _as_json(found: Forecast, machine: int, workers: int) -> dict[str, Any]:
    amount = found.amount
    return {
        "videos": amount.videos,
        "frames": amount.frames,
        "size": [amount.size[1], amount.size[0]],
        "counted_videos": amount.counted,
        "unreadable_videos": amount.unreadable,
        "measured": {
            "videos": found.sample,
            "made": found.made,
            "seconds": round(found.seconds, 2),
        },
        "workers": {"machine": machine, "asked": workers},
        "methods": [
            {"method": one.method, "device": one.device, "error": one.error}
            if one.error
            else {
                "method": one.method,
                "device": one.device,
                "frames_per_s": round(1 / (one.flow_s + one.rest_s), 2),
                "hours": round(_hours(found, one, machine), 3),
                "hours_asked": round(_hours(found, one, workers), 3),
            }
            for one in found.methods
        ],
        "formats": [
            {
                "format": form.format,
                "gigabytes": round(found.bytes_of(form, rgb=False) / 1e9, 3),
                "files": found.files_of(form, rgb=False),
                "gigabytes_with_frames": round(found.bytes_of(form, rgb=True) / 1e9, 3),
                "files_with_frames": found.files_of(form, rgb=True),
                "files_packed": amount.videos,
            }
            for form in found.formats
        ],
    }
