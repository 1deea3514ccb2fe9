"""`flowkit stack`: the flow stack of one clip, as a network gets it."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit_cli import output
from flowkit_cli.record_options import (
    bidirectional_option,
    length_option,
    mean_subtract_option,
    record_options,
    stacking_option,
    step_option,
)


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@stacking_option
@bidirectional_option
@length_option
@click.option(
    "--start",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="First frame of the clip; a bi-directional stack starts L/2 frames later.",
)
@mean_subtract_option
@step_option
@record_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .npy file to write: float32 (2L, H, W) in px, channels x1 y1 x2 y2 ...",
)
def stack(
    record: Path,
    stacking: str,
    bidirectional: bool,
    length: int,
    start: int,
    mean_subtract: bool,
    step: int,
    layout: str | None,
    bound: float | None,
    zero: float,
    max_frame_mpx: float,
    out: Path,
) -> None:
    """Write the flow stack of one clip of RECORD.

    A video too short for L fields is looped.

    \b
    flowkit stack flow/jump/a --out a.npy
    flowkit stack flow/jump/a --stacking trajectory --L 10 --start 20 --out a.npy
    flowkit stack flow/jump/a --bidirectional --no-mean-subtract --out a.npy
    flowkit stack rawframes/jump/a --layout mmaction2 --bound 20 --out a.npy
    """
    import numpy as np

    from flowkit.data.clips import chosen_clip
    from flowkit.data.record_folders import RecordFolder
    from flowkit.data.stacks import StackForm, flow_stack
    from flowkit.documents import replacing

    output.check_out("--out", out, "an array (.npy)", [record])
    form = StackForm(length, stacking, bidirectional, mean_subtract, step)
    opened = RecordFolder(record.parent, layout, bound, zero, max_frame_mpx).open(record)
    clip = chosen_clip(str(record), opened.field_count("forward", step), length, start, step=step)
    stacked = flow_stack(opened, clip, form=form)
    with replacing(out) as part, part.open("wb") as file:
        np.save(file, stacked)
    output.wrote(
        f"{out}: float32 {stacked.shape}, frames {start} to {start + length * step} of {record}"
    )
