"""timm's image networks by name: features, first layer, pixels and input sides as timm tells them.

timm is an extra (``flowkit[timm]``), imported here alone, and only for networks called "timm/NAME".
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import nn

from flowkit.data.clips import Stream
from flowkit.data.frames import RGB_CHANNELS
from flowkit.errors import InstallError, UsageError
from flowkit.networks.pixels import FlowPixels, FramePixels
from flowkit.networks.table import PREFIX, NetFacts

log = logging.getLogger(__name__)

SIDES = (32, 1024)  # px; limits of networks that take more than one size


def timm_facts(name: str) -> NetFacts:
    """What timm's configuration says of "timm/NAME"; UsageError where it knows no such network."""
    config = _config(name)
    side = config.input_size[-1]
    first, classifiers = config.first_conv, config.classifier
    if not isinstance(first, str):
        raise UsageError(f"{name}: its first layer is not one convolution, which flow needs")
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    return NetFacts(
        home=f"{__name__}:timm_trunk",
        about="of timm",
        first_layer=f"net.{first}",
        sides=(side, side) if config.fixed_input_size else SIDES,
        size=(round(side / (config.crop_pct or 1)), side),
        classifier=tuple(f"net.{one}." for one in classifiers or ()),
        weights="timm",
    )


def timm_trunk(name: str, stream: Stream, channels: int, dropout: float) -> tuple[nn.Module, int]:
    """The trunk of "timm/NAME" with fresh weights, and how many features it gives.

    Standardized frames, or flow stacks in px, float32 (B, channels, h, w) -> features (B, F).
    """
    config = _config(name)
    net = _timm().create_model(_model(name), pretrained=False, in_chans=channels, num_classes=0)
    trunk = nn.Sequential()
    pixels = [tuple(255 * one for one in three) for three in (config.mean, config.std)]
    frames = FramePixels(channels // RGB_CHANNELS, *pixels)
    trunk.add_module("pixels", frames if stream == "spatial" else FlowPixels())
    trunk.add_module("net", net)
    trunk.add_module("drop", nn.Dropout(dropout))
    return trunk, getattr(net, "head_hidden_size", None) or net.num_features


def timm_weights(name: str) -> tuple[dict[str, torch.Tensor], str]:
    """timm's pretrained weights of "timm/NAME" by our names, and where they came from.

    They are fetched on first use, which is announced, and kept in timm's cache. UsageError where
    timm has none or they can neither be found nor fetched.
    """
    config = _config(name)
    where = config.hf_hub_id or config.url
    if not where:
        raise UsageError(f"timm has no weights of {_model(name)}: name a file of them (--weights)")
    log.warning("%s: taken from timm's cache or downloaded from %s", name, where)
    try:
        net = _timm().create_model(_model(name), pretrained=True)
    except (OSError, RuntimeError, ValueError, ImportError) as error:  # a hub's client raises them
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{name}: its weights are neither in timm's cache nor could they be fetched from "
            f"{where} ({reason}): name a file of them (--weights)"
        ) from error
    return {f"net.{key}": tensor for key, tensor in net.state_dict().items()}, where


def _model(name: str) -> str:
    return name.removeprefix(PREFIX)


def _config(name: str) -> Any:
    try:
        return _timm().get_pretrained_cfg(_model(name), allow_unregistered=False)
    except RuntimeError as error:
        raise UsageError(f"{name}: {error} timm.list_pretrained() names them") from error


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise InstallError(
            f"networks of timm need it ({error}): pip install 'flowkit-video[timm]'"
        ) from error
