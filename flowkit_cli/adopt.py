"""`flowkit adopt`: weights that others published to a run."""

from __future__ import annotations

from pathlib import Path

import click

from flowkit.networks.table import NETS
from flowkit_cli import output


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--net",
    type=click.Choice([name for name, facts in NETS.items() if facts.published]),
    required=True,
    help="The network.",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    required=True,
    help="File of the class names in the order of the network's outputs, a name on each line, or "
    "number and name, as UCF-101's classInd.txt has them.",
)
@click.option(
    "--stack",
    "length",
    type=click.IntRange(1),
    metavar="N",
    help="Frames or fields that I3D sees at a time.  [default: 64]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run.  [default: runs/STREAM: runs/spatial, runs/temporal, of I3D's frames "
    "runs/frames]",
)
def adopt(file: Path, net: str, classes: Path, length: int | None, out: Path | None) -> None:
    """Make a run of trained weights that others published, in FILE.

    FILE (.pth, .pt, .pth.tar, .safetensors) is one of TSN's with BN-Inception (tsn-pytorch,
    mmaction) or of I3D's (pytorch-i3d, kinetics_i3d_pytorch); whether it sees frames, differences
    of frames or flow is told by its first layer. Nothing in it is executed. What the run's network
    sees is normalized as it was when it was trained: eval, predict, features, fuse and export take
    it like any other run, and --weights to train further.

    \b
    flowkit adopt tsn_flow.pth.tar --net bninception --classes classInd.txt   -> runs/temporal/
    flowkit adopt rgb_imagenet.pt --net i3d --classes kinetics.txt            -> runs/frames/
    """
    from flowkit.data.inputs import stream_name
    from flowkit.data.split_lists import read_class_names
    from flowkit.networks.published import adopt, write_adopted

    names, _ = read_class_names(classes)
    checkpoint, tensors = adopt(file, net, names, length=length)
    out = out or Path("runs") / stream_name(checkpoint.inputs)
    output.check_out_folder("--out", out)
    write_adopted(out, checkpoint, tensors)
    [form] = checkpoint.inputs.values()
    output.wrote(
        f"{out}: {net}, {len(names):,} classes, sees {form.about}; next: flowkit predict, or "
        f"flowkit eval {out} --split SPLIT"
    )
