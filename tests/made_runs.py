"""Runs as a training leaves them, without one: networks of fresh weights that answer firmly."""

from functools import cache
from pathlib import Path

import torch

from flowkit.data.frames import FrameForm
from flowkit.data.splits import Split, write_split
from flowkit.data.stacks import StackForm
from flowkit.networks.checkpoints import BEST, LAST, Checkpoint, write_checkpoint
from flowkit.networks.joining import Towers
from flowkit.networks.towers import make_net

FIRMNESS = 300.0  # times the heads' fresh weights, which would call all classes alike


def write_run(
    folder: Path,
    *,
    form: FrameForm | StackForm | None = None,
    classes: tuple[str, ...] = ("grow", "shrink", "spin"),
    split: Split | None = None,
    flow: dict | None = None,
    short_side: int = 36,
    crop: int = 32,
    seed: int = 0,
    tasks: dict | None = None,
    step: int = 7,
    towers: Towers | None = None,
) -> Path:
    """The run of a stream of a form, by default of single frames, and maybe its split.

    With `towers` that of two small networks, joined.
    """
    form = form or FrameForm()
    inputs = {"spatial" if isinstance(form, FrameForm) else "temporal": form}
    if towers is not None:
        inputs = {"spatial": FrameForm(), "temporal": form}
    tasks = tasks or {"main": classes}
    name = "small" if towers is None else "small+small"
    checkpoint = Checkpoint(step, name, inputs, 0.5, tasks, short_side, crop, flow, towers=towers)
    heads = tuple((task, len(names)) for task, names in tasks.items())
    weights = _firm_weights(name, tuple(inputs.items()), heads, towers, seed)
    write_checkpoint(folder, [BEST, LAST], checkpoint, weights, {})
    if split is not None:
        write_split(folder / "split.json", split)
    return folder


@cache
def _firm_weights(
    name: str, inputs: tuple, heads: tuple, towers: Towers | None, seed: int
) -> dict[str, torch.Tensor]:
    net = make_net(name, dict(inputs), dict(heads), towers, seed=seed)
    with torch.no_grad():
        for head in net.heads.values():
            head.weight *= FIRMNESS
    return net.state_dict()
