"""`flowkit features`: what a layer of a trained network says of clips or videos."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from flowkit.evaluation.feature_files import FEATURE_FORMATS
from flowkit_cli import output
from flowkit_cli.options import choices_text, cores
from flowkit_cli.record_options import record_folder, record_options
from flowkit_cli.scoring_options import own_nets, scoring_options, test_views


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--layer",
    default="trunk",
    show_default=True,
    help="Name of the layer: full7 or full6 of the paper's network, layer4 of a ResNet. trunk is "
    "what the layer of the classes, or that of --hidden before it, sees of any network of one "
    "stream; hidden is what that of --hidden gives.",
)
@click.option(
    "--per",
    type=click.Choice(["clip", "video"]),
    default="clip",
    show_default=True,
    help="A row for each moment, or the mean of them.",
)
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    default="flow",
    show_default=True,
    help="Folder of the records: all below it are asked.",
)
@record_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option(
    "--format",
    type=click.Choice(tuple(FEATURE_FORMATS)),
    default="npz",
    show_default=True,
    help=choices_text(FEATURE_FORMATS) + "  hdf5 needs h5py (pip install).",
)
@scoring_options
@click.option(
    "-j",
    "--workers",
    type=click.IntRange(1),
    help="Threads that read ahead.  [default: with a GPU all cores, else 1]",
)
def features(
    run: Path,
    layer: str,
    per: Literal["clip", "video"],
    records: Path,
    out: Path,
    format: str,
    **options: Any,
) -> None:
    """Write what a layer of RUN's network says of records, as float32 features.

    RUN is a run's folder or a checkpoint in it. Moments and views are those of flowkit eval; the
    features of a moment are the mean over its views, of maps the mean over places. Beside them are
    the moments, as frames from 0 and in seconds. What was written before in the same way is kept.

    \b
    flowkit features runs/temporal --out features
    flowkit features runs/spatial --per video --format hdf5 --out features
    flowkit features runs/temporal --layer full6 --views center --moments 50 --out features

    Exit status: 0 all done, 1 some videos failed, 2 usage.
    """
    from flowkit.evaluation.features import write_features
    from flowkit.evaluation.scoring import Scorer
    from flowkit.networks.checkpoints import read_checkpoint
    from flowkit.training.distributed import choose_device

    output.check_out_folder("--out", out)
    folder = record_folder(records, options)
    found = {id: partial(folder.open, place) for id, place in folder.find().items()}
    checkpoint = read_checkpoint(run)
    views, own = test_views(options, checkpoint), own_nets(options["own_nets"], {run: checkpoint})
    device = choose_device(options["device"])
    readers = options["workers"] or (1 if device.type == "cpu" else cores())
    size = options["pass_inputs"]
    scorer = Scorer(run, views=views, device=device, pass_inputs=size, own=own[run])
    failed = 0
    written = write_features(
        scorer, found.items(), out, layer=layer, per=per, format=format, readers=readers
    )
    with output.ProgressBar(len(found)) as bar:
        for id, error in written:
            bar.finished(failed=error is not None)
            if error is not None:
                failed += 1
                output.error(f"failed: {id}: {error}")
    output.wrote(f"{out}: features of {output.count(len(found) - failed, 'video')}, {format}")
    if failed:
        sys.exit(1)
