"""Recipes: every number of a training that is no option of the machine it runs on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from flowkit.errors import UsageError

if TYPE_CHECKING:
    from flowkit.data.augment import Crops
    from flowkit.data.clips import Stream

EVAL_STEPS = 200  # the most between two of its checkpoints
# What learns: everything from fresh weights, everything from others' weights, the last layer alone,
# or the last layer first and then the top blocks with it (as in Keras's fine-tuning example).
# Of joined towers: everything, or the top alone, from the join up.
Mode = Literal["scratch", "fine-tune", "last-layer", "two-phase", "top"]
MODES: tuple[Mode, ...] = ("scratch", "fine-tune", "last-layer", "two-phase")
TOWER_MODES: tuple[Mode, ...] = ("top", "fine-tune")
Schedule = Literal["drops", "cosine", "plateau"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
Optimizer = Literal["sgd", "rmsprop"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
Draw = Literal["class", "video"]
DRAWS: tuple[Draw, ...] = get_args(Draw)
# Numbers of a recipe that are above 0, or None
RATES = ("learning_rate", "trunk_rate", "bias_rate", "drop_factor", "clip_norm", "second_rate")


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent, step by step; the defaults are those of the 2014 paper.

    A step is one update by a batch of `batch_size` videos, of a class each that is drawn first, or
    with `draw` "video" each as likely as any other, however many devices and passes share
    it: `segments` clips of each, one from each equal part, whose logits are averaged before the
    loss (Wang et al. 2016, arXiv:1608.00859).

    The learning rate rises over `warmup_steps`; with the schedule "drops" it is multiplied by
    `drop_factor` at each step of `drop_at`, with "cosine" it falls to zero along half a wave, with
    "plateau" it drops whenever `patience` held-out accuracies in a row are not above the best. The
    trunk takes `trunk_rate` of it, the heads all; biases take `bias_rate` times as much, and with
    `bias_decay` False no weight decay. `frozen_statistics` keeps those of given weights
    in all batch normalizations but the first (the same paper's partial BN). `clip_norm` is the
    largest norm of the gradient, None for any. Two phases: the heads alone learn for
    `first_phase_steps`, then the last `top_blocks` blocks of the trunk, too, at `second_rate`
    instead of `learning_rate` if there is one. `optimizer` "rmsprop" divides each gradient by the
    root of the mean of its squares (Hinton's lecture 6e, 2012); `momentum` is what that mean keeps
    at a step, as in Keras. The held-out part, if
    there is one, is asked and a checkpoint written every `eval_every` steps.
    """

    mode: Mode = "scratch"
    steps: int = 80_000
    batch_size: int = 256
    segments: int = 1
    learning_rate: float = 1e-2
    trunk_rate: float = 1.0
    schedule: Schedule = "drops"
    drop_at: tuple[int, ...] = (50_000, 70_000)
    drop_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4  # that of Krizhevsky et al. 2012; the paper states none
    bias_rate: float = 1.0
    bias_decay: bool = True
    patience: int = 3
    dropout: float = 0.9
    frozen_statistics: bool = False
    warmup_steps: int = 0
    clip_norm: float | None = None
    first_phase_steps: int = 0
    top_blocks: int = 2
    eval_every: int = 1_000
    second_rate: float | None = None
    optimizer: Optimizer = "sgd"
    draw: Draw = "class"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UsageError(f"expected a mode of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.schedule not in SCHEDULES:
            raise UsageError(
                f"expected a schedule of {', '.join(SCHEDULES)}, got {self.schedule!r}"
            )
        for name, choices in (("optimizer", OPTIMIZERS), ("draw", DRAWS)):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"expected {name} of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("steps", "batch_size", "segments", "patience", "eval_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "first_phase_steps", "top_blocks", "weight_decay", "momentum"):
            if getattr(self, name) < 0:
                raise UsageError(f"expected {name} of at least 0, got {getattr(self, name)}")
        for name in RATES:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"expected {name} above 0, got {value}")
        if list(self.drop_at) != sorted(set(self.drop_at)):
            raise UsageError(f"expected drop_at steps in rising order, got {self.drop_at}")
        if self.mode == "two-phase" and not 0 < self.first_phase_steps < self.steps:
            raise UsageError(
                f"expected a first phase within the {self.steps} steps, "
                f"got {self.first_phase_steps}"
            )
        if self.second_rate is not None and self.mode != "two-phase":
            raise UsageError("expected a second rate with two phases only")
        if self.optimizer == "rmsprop" and not self.momentum < 1:
            raise UsageError(f"expected momentum of less than 1 with rmsprop, got {self.momentum}")

    def rate(self, step: int, drops: int = 0) -> float:
        """The learning rate of the heads at step `step`, from 0, after `drops` on a plateau."""
        warmth = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        else:
            left = self.drop_factor ** (drops + sum(step >= drop for drop in self.drop_at))
        rate = self.learning_rate
        if self.second_rate is not None and step >= self.first_phase_steps:
            rate = self.second_rate
        return rate * left * warmth

    def top_blocks_at(self, step: int) -> int | None:
        """How many blocks of the trunk, from the last, learn at step `step`; None: all."""
        match self.mode:
            case "last-layer" | "top":
                return 0
            case "two-phase":
                return 0 if step < self.first_phase_steps else self.top_blocks
        return None


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe, and what goes with it and is no number of it.

    `by_mode` has the recipe of modes that need another. `passes` over the training videos are its
    length, None where that is `recipe.steps`. `net`, its `sizes` by stream (short side and crop in
    px), `crops` and `jitter` in training, `weights`, `mode` and `first_layer` are what `flowkit
    train` takes where nothing else is said.
    """

    about: str
    recipe: Recipe
    net: str
    sizes: Mapping[Stream, tuple[int, int]]
    crops: Crops = "random"
    jitter: float = 0.1
    weights: str | None = None
    mode: Mode = "scratch"
    first_layer: str = "averaged"
    by_mode: Mapping[Mode, Recipe] = field(default_factory=dict)
    passes: float | None = None


_PAPER_TUNED = Recipe(steps=20_000, drop_at=(14_000,), first_phase_steps=5_000)
# Section 4 of Feichtenhofer et al. 2016: as in 2014 but for these. Rate and decay of biases are of
# their program, the numbers of steps those of 2014.
_TOWER_ALONE = Recipe(schedule="plateau", drop_at=(), dropout=0.85, bias_rate=2.0, bias_decay=False)
RECIPES = {
    "pretrained": RecipeFacts(
        "efficientnet-lite0 from ImageNet",
        Recipe(
            batch_size=32,
            learning_rate=5e-3,
            trunk_rate=0.2,
            schedule="cosine",
            drop_at=(),
            dropout=0.5,
            frozen_statistics=True,
            clip_norm=20.0,
            eval_every=EVAL_STEPS,
        ),
        "efficientnet-lite0",
        {"spatial": (256, 224), "temporal": (128, 112)},
        crops="multi-scale",
        weights="imagenet",
        mode="last-layer",
        first_layer="shared",
        passes=20,  # held-out videos of J-HMDB tell 20 to 60 not apart (docs/training.md)
    ),
    "paper": RecipeFacts(
        "the 2014 network and schedule at full size",
        Recipe(),
        "cnn-m-2048",
        {"spatial": (256, 224), "temporal": (256, 224)},
        by_mode={
            "fine-tune": _PAPER_TUNED,
            "last-layer": replace(_PAPER_TUNED, dropout=0.5),  # table 1a: 72.7%; 59.9% with 0.9
            "two-phase": _PAPER_TUNED,
        },
    ),
    "paper-2016": RecipeFacts(
        "towers to be joined, at full size",
        _TOWER_ALONE,
        "cnn-m-2048",
        {"spatial": (256, 224), "temporal": (256, 224)},
        jitter=0.0,
        by_mode={
            mode: replace(_TOWER_ALONE, steps=20_000, first_phase_steps=5_000)
            for mode in ("fine-tune", "last-layer", "two-phase")
        },
    ),
    "short": RecipeFacts(
        "a small network from scratch",
        Recipe(
            steps=1_500,
            batch_size=64,
            drop_at=(1_000, 1_350),
            dropout=0.5,
            warmup_steps=50,
            clip_norm=5.0,
            first_phase_steps=300,
            eval_every=100,
        ),
        "small",
        {"spatial": (128, 112), "temporal": (128, 112)},
    ),
}


@dataclass(frozen=True)
class TowersRecipe:
    """A recipe for joined towers, and what goes with it; `rates` are those of some networks."""

    about: str
    recipe: Recipe
    crops: Crops
    jitter: float
    rates: Mapping[str, float] = field(default_factory=dict)
    passes: float | None = None


TOWER_RECIPES = {
    "pretrained": TowersRecipe(
        "small data, towers from ImageNet",
        replace(RECIPES["pretrained"].recipe, learning_rate=1e-3, trunk_rate=1.0),
        crops="multi-scale",
        jitter=0.1,
        passes=20,
    ),
    "paper": TowersRecipe(
        "that of 2016 at full size",
        Recipe(
            steps=4_970,  # 50 passes over the 9,537 videos of UCF-101's split 1, as their program
            batch_size=96,
            learning_rate=1e-3,
            schedule="plateau",
            drop_at=(),
            dropout=0.85,
            bias_rate=2.0,
            bias_decay=False,
            patience=2,
            eval_every=497,
        ),
        crops="jittered",
        jitter=0.0,
        rates={"vgg16": 5e-4},  # printed as "50^-4"
    ),
    "short": TowersRecipe(
        "small towers from scratch",
        replace(RECIPES["short"].recipe, steps=500, drop_at=(400,), warmup_steps=0),
        crops="random",
        jitter=0.1,
    ),
}


def recipe_facts(name: str) -> RecipeFacts:
    """What RECIPES has of a name; UsageError names those there are."""
    if name not in RECIPES:
        raise UsageError(f"expected a recipe of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]


def make_recipe(
    name: str,
    mode: Mode,
    *,
    videos: int | None = None,
    passes: float | None = None,
    **numbers: Any,
) -> Recipe:
    """The recipe `name` for `mode`, with `numbers` of its own instead of the recipe's.

    "paper" is section 4 of Simonyan & Zisserman 2014: 80,000 steps from scratch, 20,000 from other
    weights. "short" is for small data, from scratch. "pretrained" is for weights of ImageNet, 20
    passes over the `videos` that train. Any recipe takes another number of `passes`, or of `steps`:
    whatever happens at a step of it moves in proportion, unless it is
    given, too.
    """
    facts = recipe_facts(name)
    recipe = facts.by_mode.get(mode, facts.recipe)
    if passes is None and "steps" not in numbers:
        passes = facts.passes
    return _sized(recipe, videos, passes, {"mode": mode, **numbers})


def make_tower_recipe(
    name: str, mode: Mode, net: str, *, videos: int, passes: float | None = None, **numbers: Any
) -> Recipe:
    """The recipe of TOWER_RECIPES for joined towers whose spatial one is `net`; as `make_recipe`.

    "paper" is section 4 of Feichtenhofer et al. 2016, its length that of their program.
    """
    if name not in TOWER_RECIPES:
        raise UsageError(f"expected a recipe of {', '.join(TOWER_RECIPES)}, got {name!r}")
    facts = TOWER_RECIPES[name]
    if passes is None and "steps" not in numbers:
        passes = facts.passes
    if net in facts.rates:
        numbers.setdefault("learning_rate", facts.rates[net])
    return _sized(facts.recipe, videos, passes, {"mode": mode, **numbers})


def steps_of_passes(passes: float, videos: int, batch_size: int) -> int:
    """How many steps see each video `passes` times; UsageError where that is no number."""
    if not 0 < passes < math.inf or not videos:
        raise UsageError(f"expected passes over videos, got {passes} over {videos}")
    return math.ceil(passes * videos / batch_size)


def _sized(
    recipe: Recipe, videos: int | None, passes: float | None, numbers: dict[str, Any]
) -> Recipe:
    """The recipe with `numbers` of its own, as long as `passes` or as the numbers say."""
    if passes is not None:
        if "steps" in numbers:
            raise UsageError("expected passes or steps: one of them says how long a training is")
        batch_size = numbers.get("batch_size", recipe.batch_size)
        numbers["steps"] = steps_of_passes(passes, videos or 0, batch_size)
    if "steps" in numbers:
        factor = numbers["steps"] / recipe.steps
        drops = {max(1, round(step * factor)) for step in recipe.drop_at}
        recipe = replace(
            recipe,
            steps=numbers["steps"],
            drop_at=tuple(sorted(drops)),
            warmup_steps=round(recipe.warmup_steps * factor),
            first_phase_steps=round(recipe.first_phase_steps * factor),
            eval_every=max(1, min(recipe.eval_every, numbers["steps"] // 5)),
        )
    return replace(recipe, **numbers)
