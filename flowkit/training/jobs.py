"""A training to be done: what is trained on what, and the machine it is done on."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from flowkit.data.augment import Augmentation
from flowkit.data.datasets import TestClips
from flowkit.data.inputs import Inputs, check_inputs, input_channels, inputs_to_json
from flowkit.data.moments import Moments
from flowkit.data.origins import Origin, origin_of
from flowkit.data.record_folders import Missing
from flowkit.documents import differences
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import Checkpoint
from flowkit.networks.joining import Towers, net_names, tower_seams
from flowkit.networks.own import UNKNOWN, check_learns, check_state
from flowkit.networks.streams import StreamNet, build_stream
from flowkit.networks.table import OwnNet, check_input_side
from flowkit.networks.towers import Net, TowersNet, make_net
from flowkit.networks.weights import load_weights, read_weights, weights_origin
from flowkit.own_code import is_own
from flowkit.stores.urls import absolute
from flowkit.training.recipes import TOWER_MODES, Recipe
from flowkit.training.sampling import Task

log = logging.getLogger(__name__)

# Fields of a job, beside its recipe and augmentation, that a checkpoint tells of.
OPTIONS = ("weights", "first_layer", "seed", "eval_moments", "missing", "hidden")


@dataclass(frozen=True)
class Job:
    """What is trained on what: all that decides the weights.

    `inputs` are what the network takes. The first task is the one that the best step is chosen for,
    by its held-out part. `weights` are what to start from (`weights.read_weights`), None for
    fresh ones. `eval_moments` clips of a held-out video, at equal spacing, are asked. A layer of
    `hidden` units stands before the classes, none where it is 0. Where `net` is own code,
    "module:function", `own` names it again or is the function: no stored job runs it by itself.

    With `towers` the networks of a spatial and a temporal run, the two of `weights`, are joined;
    `net` names both, NET+NET.
    """

    inputs: Inputs
    net: str
    tasks: tuple[Task, ...]
    recipe: Recipe
    augmentation: Augmentation = field(default_factory=Augmentation)
    weights: str | tuple[str, str] | None = None
    first_layer: str = "averaged"
    seed: int = 0
    eval_moments: int = 5
    missing: Missing = "error"
    towers: Towers | None = None
    hidden: int = 0
    own: OwnNet | None = None

    def __post_init__(self) -> None:
        check_inputs(self.inputs)
        if self.towers is not None:
            self._check_towers(self.towers)
        elif self.recipe.mode == "top":
            raise UsageError("mode top is for joined towers: it trains from the join up")
        brings = self.weights is not None or is_own(self.net)  # whose function may load some
        if self.recipe.mode in ("last-layer", "two-phase") and not brings:
            raise UsageError(
                f"mode {self.recipe.mode} trains on top of given weights: name them (--weights)"
            )
        if self.recipe.batch_size < len(self.tasks):
            raise UsageError(
                f"expected a batch of at least one clip for each of {len(self.tasks)} tasks, "
                f"got {self.recipe.batch_size}"
            )
        if self.recipe.schedule == "plateau" and not self.tasks[0].split.heldout:
            raise UsageError(
                "the rate drops when held-out accuracy stays: hold a part out, or give --drop-at"
            )
        for name in [self.net] if self.towers is None else net_names(self.net):
            check_input_side(name, self.augmentation.crop)

    def _check_towers(self, towers: Towers) -> None:
        tower_seams(self.net, towers.seam)
        if self.hidden:
            raise UsageError("joined towers have no hidden layer")
        if len(self.inputs) < 2 or len(self.tasks) > 1 or isinstance(self.weights, str | None):
            raise UsageError(
                "joined towers take both streams, one task, and the weights of a spatial and a "
                "temporal run"
            )
        if self.recipe.mode not in TOWER_MODES:
            raise UsageError(
                f"expected a mode of {' or '.join(TOWER_MODES)} for joined towers, "
                f"got {self.recipe.mode}"
            )
        if self.recipe.segments > 1:
            raise UsageError("segments do not go with joined towers: --frames does their work")

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(C, h, w) of each input; of joined towers (T, C, h, w)."""
        crop = self.augmentation.crop
        moments = () if self.towers is None else (self.towers.frames,)
        return [(*moments, c, crop, crop) for c in input_channels(self.inputs).values()]

    @property
    def several(self) -> Moments | None:
        """The moments of a sample of joined towers."""
        return None if self.towers is None else self.towers.moments

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the weights to start from are: none, one, or those of both towers."""
        return (self.weights,) if isinstance(self.weights, str) else self.weights or ()

    def clips_of(self, part: str, *, moments: int, views: str = "center") -> TestClips:
        """The clips of a part of its first task's split, as its network looks at them."""
        task = self.tasks[0]
        return TestClips(
            task.split,
            task.records,
            inputs=self.inputs,
            part=part,
            moments=moments,
            views=views,
            crop=self.augmentation.crop,
            short_side=self.augmentation.short_side,
            several=self.several,
            missing=self.missing,
        )

    def build(self) -> Net:
        """The network with the weights that training starts from."""
        if self.towers is not None:
            return self._join(self.towers)
        net = self.fresh_net(self.seed)
        assert isinstance(net, StreamNet)
        if is_own(self.net):
            self._check_own(net)
        if isinstance(self.weights, str):
            classes = {task.name: task.classes for task in self.tasks}
            loaded = load_weights(
                net, read_weights(self.weights, self.net), classes, first_layer=self.first_layer
            )
            kept = ", ".join(f"{n} classes of {task}" for task, n in loaded.kept_classes.items())
            log.info(
                "weights of %s; first layer %s%s",
                loaded.where,
                loaded.first_layer,
                f"; kept {kept}" if kept else "",
            )
        return net

    def fresh_net(self, seed: int = 0) -> Net:
        """The network with weights drawn from `seed`, not with those that training starts from."""
        return make_net(
            self.net,
            self.inputs,
            {task.name: len(task.classes) for task in self.tasks},
            self.towers,
            dropout=self.recipe.dropout,
            hidden=self.hidden,
            seed=seed,
            own=self.own,
            side=self.augmentation.crop,
        )

    def _check_own(self, net: StreamNet) -> None:
        """UsageError where the recipe needs a head that own code has not, or it cannot learn."""
        is_split = self.recipe.trunk_rate != 1 or self.recipe.mode in ("last-layer", "two-phase")
        if not net.heads and is_split:
            raise UsageError(
                f"network {self.net}: modes last-layer and two-phase and --trunk-rate tell the "
                f"layer of the classes from the rest, {UNKNOWN}"
            )
        check_learns(net, self.shapes[0])
        other = self.fresh_net(self.seed + 1)
        assert isinstance(other, StreamNet)
        check_state(net, other, self.shapes[0])

    def _join(self, towers: Towers) -> TowersNet:
        """The towers of the two runs, the heads of whose first tasks are known to be alike."""
        [task] = self.tasks
        heads, classes = {task.name: len(task.classes)}, {task.name: task.classes}
        streams = input_channels(self.inputs).items()
        nets = []
        for name, (stream, channels), source in zip(
            net_names(self.net), streams, self.sources, strict=True
        ):
            dropout = self.recipe.dropout
            net = build_stream(name, stream, heads, channels=channels, dropout=dropout)
            weights = read_weights(source, name)
            own = dict(list(weights.heads.items())[:1])
            load_weights(net, replace(weights, heads=own), classes)
            nets.append(net)
        return TowersNet(nets[0], nets[1], towers)

    def origin(self) -> Origin:
        """The videos that the weights will have seen, those that they start from included."""
        before = [weights_origin(source) for source in self.sources]
        return origin_of((video for task in self.tasks for video in task.videos), *before)

    def places(self) -> dict[str, Any]:
        """Where the records of each task and of its added classes are; JSON values."""
        found = {task.name: task.records for task in self.tasks}
        found |= {f"{task.name}+": task.added[1] for task in self.tasks if task.added}
        return {
            name: asdict(replace(one, root=Path())) | {"root": absolute(one.root)}
            for name, one in found.items()
        }

    def describe(self) -> dict[str, Any]:
        """What a checkpoint tells of it, and resuming compares; JSON values."""
        data = [
            {
                "task": task.name,
                "split": task.split.name,
                "videos": len(task.split.train),
                "heldout": len(task.split.heldout),
                "digest": _digest(task),
            }
            for task in self.tasks
        ]
        options = {name: getattr(self, name) for name in OPTIONS}
        values = {"recipe": asdict(self.recipe), "augmentation": asdict(self.augmentation)}
        return json.loads(json.dumps({**values, **options, "data": data}))

    def differences(self, checkpoint: Checkpoint) -> list[str]:
        """What a checkpoint was trained otherwise; options that it does not know had no effect."""
        told = {key: value for key, value in checkpoint.training.items() if key != "places"}
        defaults = {f.name: f.default for f in fields(self) if f.name in OPTIONS}
        own = (
            defaults
            | told
            | {
                "recipe": asdict(Recipe()) | told.get("recipe", {}),
                "augmentation": asdict(Augmentation()) | told.get("augmentation", {}),
                "net": checkpoint.net,
                "inputs": inputs_to_json(checkpoint.inputs),
                "towers": checkpoint.towers and asdict(checkpoint.towers),
            }
        )
        asked = {
            "net": self.net,
            "inputs": inputs_to_json(self.inputs),
            "towers": self.towers and asdict(self.towers),
            **self.describe(),
        }
        return differences(*(json.loads(json.dumps(one)) for one in (own, asked)))


@dataclass(frozen=True)
class Machine:
    """How the work is done; `bf16` changes results by rounding only, `compile` dropout masks, too.

    `workers` are loader processes, of each process of a training. `micro_batch` is the most clips
    of a pass, None for what fits; the batch of the recipe is made up of passes. `checkpointing`
    computes what joined towers see below the join again for the backward pass, instead of keeping
    it.
    """

    workers: int = 0
    micro_batch: int | None = None
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    checkpointing: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(f"expected a micro-batch of at least 1 clip, got {self.micro_batch}")


def _digest(task: Task) -> str:
    """A number of the videos that a task trains on and is chosen by, with their classes."""
    splits = [task.split] + ([task.added[0]] if task.added else [])
    listed = [[(v.id, v.class_name) for v in (*s.train, *s.heldout)] for s in splits]
    return hashlib.sha256(json.dumps([task.classes, listed]).encode()).hexdigest()[:16]
