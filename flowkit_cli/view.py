"""`flowkit view`: one record as a video or a contact sheet, or the first filters of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowkit.errors import UsageError
from flowkit_cli import output
from flowkit_cli.options import max_frame_option


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where to: .mp4 or .gif for a video, .png for a contact sheet.",
)
@click.option(
    "--style",
    type=click.Choice(["color", "arrows"]),
    default="color",
    show_default=True,
    help="Hue for direction and saturation for speed, or arrows on the frame.",
)
@click.option(
    "--max-px",
    type=click.FloatRange(0, min_open=True),
    help="Displacement shown in full color or length.  [default: 99% of the record's are below]",
)
@click.option(
    "--direction",
    type=click.Choice(["forward", "backward"]),
    default="forward",
    show_default=True,
    help="Which fields, where both are stored.",
)
@click.option("--step", type=click.IntRange(1), help="Frame step.  [default: the first stored]")
@click.option(
    "--moments",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Moments on a contact sheet, equally spaced.",
)
@click.option(
    "--columns",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Moments side by side on a contact sheet.",
)
@click.option(
    "--fps",
    type=click.FloatRange(0, min_open=True),
    help="Frames a second of a video.  [default: the record's, or 25]",
)
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    help="What a track record (.npz) was made from; its frames are shown with the tracks on them.",
)
@max_frame_option
def view(
    record: Path,
    out: Path,
    moments: int,
    columns: int,
    fps: float | None,
    video: Path | None,
    max_frame_mpx: float,
    **look: Any,
) -> None:
    """Show the flow of RECORD, a folder or a pack, beside its frames; or tracks, or filters.

    \b
    Color is direction and its strength is speed: the wheel in the corner says which is which,
    and how many px its rim stands for. White stands still.

    \b
    flowkit view flow/jump/a --out a.mp4
    flowkit view flow/jump/a --out a.png --moments 12 --style arrows
    flowkit view tracks/jump/a.npz --video videos/jump/a.avi --out a.mp4
    flowkit view runs/temporal --out filters.png    (of a run: its first filters, one per column)
    """
    if record.suffix == ".json" or (record / "best.json").exists():
        _view_filters(record, out)
        return
    if record.suffix == ".npz":
        _view_tracks(record, video, out, fps, max_frame_mpx)
        return
    if video is not None:
        raise UsageError("--video goes with a track record (.npz): a flow record has its frames")
    from flowkit.pictures.sheets import ENDINGS, Look, write_view
    from flowkit.records.reading import open_record

    if out.suffix.lower() in ENDINGS:  # other endings are an error of `write_view`
        output.check_out("--out", out, f"a {out.suffix.lower()}", [record])
    opened = open_record(record, max_frame_mpx=max_frame_mpx)
    write_view(opened, out, Look(**look), moments=moments, columns=columns, fps=fps)
    output.wrote(f"{record} -> {out}")


def _view_filters(run: Path, out: Path) -> None:
    from flowkit.networks.checkpoints import checkpoint_path, read_checkpoint, read_filters
    from flowkit.pictures.filters import filter_sheet, write_sheets

    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: filters are a picture: expected a name that ends in .png")
    output.check_out("--out", out, "a .png", [checkpoint_path(run)])
    checkpoint = read_checkpoint(run)
    filters = read_filters(run)
    nets = dict(zip(filters, checkpoint.net.split("+"), strict=True))
    sheets = []
    for stream, weights in filters.items():
        channels = checkpoint.inputs[stream].channel_names
        sheets.append(filter_sheet(weights, f"{run}: {stream}, {nets[stream]}", channels))
    write_sheets(out, sheets)
    output.wrote(f"{run} -> {out}")


def _view_tracks(
    record: Path, video: Path | None, out: Path, fps: float | None, max_frame_mpx: float
) -> None:
    from flowkit.idt.drawing import write_track_video
    from flowkit.idt.records import open_tracks

    opened = open_tracks(record)
    if video is None:
        raise UsageError(
            f"{record}: a track record has no frames: give the video "
            f"({opened.header['source']['name']}) as --video"
        )
    if out.suffix.lower() == ".mp4":  # other endings are an error of `write_track_video`
        output.check_out("--out", out, "a .mp4", [record, video])
    write_track_video(opened, video, out, fps=fps, max_frame_mpx=max_frame_mpx)
    output.wrote(f"{record} -> {out}")
