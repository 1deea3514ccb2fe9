"""`flowkit export`: a trained network as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from flowkit_cli import output
from flowkit_cli.scoring_options import own_net_option
from flowkit_cli.scoring_options import own_nets as read_own_nets


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--format",
    type=click.Choice(["onnx", "torchscript"]),
    default="onnx",
    show_default=True,
    help="onnx needs onnx, onnxscript and onnxruntime (pip install).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to.  [default: beside the checkpoint, best.onnx or best.pt]",
)
@own_net_option
def export(
    run: Path,
    format: Literal["onnx", "torchscript"],
    out: Path | None,
    own_nets: tuple[str, ...],
) -> None:
    """Write the network of RUN, a run's folder or a checkpoint, as ONNX or TorchScript.

    The file is read back and its outputs compared before it is put in place. What it takes
    (classes, L, crop, flow) is in it as JSON under the key flowkit.json.

    \b
    flowkit export runs/temporal                       -> runs/temporal/best.onnx
    flowkit export runs/temporal --format torchscript  -> runs/temporal/best.pt
    """
    from flowkit.networks.checkpoints import checkpoint_path, read_checkpoint
    from flowkit.networks.export import ENDINGS, export_net

    own = read_own_nets(own_nets, {run: read_checkpoint(run)})
    out = out or checkpoint_path(run).with_suffix(ENDINGS[format])
    kind = "an ONNX file" if format == "onnx" else "a TorchScript file"
    output.check_out("--out", out, kind, [checkpoint_path(run)])
    difference = export_net(run, out, format=format, own=own[run])
    output.wrote(f"{run} -> {out}; outputs agree to {difference:.2g}")
