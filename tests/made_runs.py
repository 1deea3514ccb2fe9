"""Runs as a training leaves them, without one: networks of fresh weights that answer firmly."""

from pathlib import Path

import torch

from flowkit.data.splits import Split, write_split
from flowkit.data.stacks import StackForm
from flowkit.networks.checkpoints import BEST, LAST, Checkpoint, write_checkpoint
from flowkit.networks.streams import build_net

FIRMNESS = 300.0  # times the heads' fresh weights, which would call all classes alike


def write_run(
    folder: Path,
    *,
    form: StackForm | None = None,
    classes: tuple[str, ...] = ("grow", "shrink", "spin"),
    split: Split | None = None,
    flow: dict | None = None,
    short_side: int = 36,
    crop: int = 32,
    seed: int = 0,
    tasks: dict | None = None,
    step: int = 7,
) -> Path:
    """The run of a temporal stream, or without a `form` of a spatial one, and maybe its split."""
    inputs = {"spatial" if form is None else "temporal": form}
    tasks = tasks or {"main": classes}
    checkpoint = Checkpoint(step, "small", inputs, 0.5, tasks, short_side, crop, flow)
    heads = {task: len(names) for task, names in tasks.items()}
    net = build_net("small", inputs, heads, seed=seed)
    with torch.no_grad():
        for head in net.heads.values():
            head.weight *= FIRMNESS
    write_checkpoint(folder, [BEST, LAST], checkpoint, net.state_dict(), {})
    if split is not None:
        write_split(folder / "split.json", split)
    return folder
