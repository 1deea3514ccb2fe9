"""Networks of the user's own, made by a function that is named "module:function".

The function takes the numbers of input channels and of classes and gives a module, which is tried
before it is used. Such code runs only where it is named: no checkpoint runs it by itself.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from flowkit.data.clips import Stream
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import misfits
from flowkit.networks.streams import StreamNet
from flowkit.networks.table import OwnNet
from flowkit.own_code import import_own, told

log = logging.getLogger(__name__)

CLIPS = 2  # clips of a trial
_TAKEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # whose heads may be taken out
UNKNOWN = (
    "which is not known: its last nn.Linear does not give the logits as they are (docs/own.md)"
)


class OwnStreamNet(StreamNet):
    """A network of own code, whose errors say so; UsageError for what it raises."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As StreamNet's."""
        try:
            return super().forward(images)
        except torch.OutOfMemoryError:  # fewer clips may do
            raise
        except Exception as error:
            raise _raised(self.name, self, images, error) from error


def build_own(
    name: str,
    stream: Stream,
    heads: Mapping[str, int],
    own: OwnNet,
    *,
    channels: int,
    side: int,
    dropout: float = 0.0,
    hidden: int = 0,
) -> StreamNet:
    """The network that the function called `name` makes, tried on clips of `side` px.

    Its layer of classes (`take_head`) goes into `heads`, and what is left is the trunk; with
    several tasks or a `hidden` layer the heads are flowkit's own. Where there is no such layer all
    is trunk. Parameters that the function froze stay so. UsageError where it cannot be used.
    """
    classes = sum(heads.values())
    module = _call(name, own, channels, classes)
    images = torch.randn(CLIPS, channels, side, side)
    module.eval()
    stored = module.state_dict().items()
    if odd := [key for key, value in stored if not isinstance(value, torch.Tensor)]:
        raise UsageError(f"network {name}: its state_dict() holds {odd[0]}, which is no tensor")
    with torch.no_grad():
        logits = _ask(name, module, images, classes)
        if not torch.equal(_ask(name, module, images, classes), logits):
            raise UsageError(
                f"network {name}: answers the same clips differently each time in evaluation: "
                "does it drop out there, too?"
            )
        head = take_head(module, images, dropout)
    frozen = [one for one in module.parameters() if not one.requires_grad]
    if head is None and (dropout or hidden):
        raise UsageError(
            f"network {name}: --dropout and --hidden stand before the layer of the classes, "
            f"{UNKNOWN}"
        )
    features = None if head is None else head.in_features
    net = OwnStreamNet(name, stream, module, features, heads, hidden=hidden, dropout=dropout)
    if head is not None and len(heads) == 1 and not hidden:
        net.heads = nn.ModuleDict(dict.fromkeys(heads, head))
    net.frozen = frozen
    return net


def take_head(module: nn.Module, images: torch.Tensor, dropout: float) -> nn.Linear | None:
    """The layer of the classes, taken out of a module that is given images; None if there is none.

    That is its last nn.Linear, in the order of its modules, if what it gives is what the module
    gives, as it is. Dropout takes its place, so that the module gives what the layer was given.
    """
    linear = [(name, one) for name, one in module.named_modules() if isinstance(one, nn.Linear)]
    if not linear or not linear[-1][0]:
        return None
    name, head = linear[-1]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    try:
        logits = module(images)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0][1] is not logits:
        return None
    parent, _, child = name.rpartition(".")
    owner = module.get_submodule(parent)
    setattr(owner, child, nn.Dropout(dropout).eval())
    try:
        if torch.equal(module(images), seen[0][0]):
            return head
    except Exception as error:  # its forward may use the layer in another way than by a call
        log.debug("%s is no head: %r", name, error)
    setattr(owner, child, head)
    return None


def check_learns(net: StreamNet, shape: tuple[int, ...]) -> None:
    """Try a step of training on clips of `shape` (C, h, w); the network stays as it is.

    UsageError where training answers with anything but logits, or where a parameter that should
    learn gets no gradient.
    """
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = {module: module.training for module in net.modules()}
    net.train()
    with torch.random.fork_rng(devices=[]):
        images = torch.randn(CLIPS, *shape)
        if net.heads:  # a head cannot say what is wrong with what it is given
            _ask(net.name, net.trunk, images, net.features, "what its last layer takes,")
        logits = _ask(net.name, net, images, sum(net.classes.values()))
    learning = {name: one for name, one in net.named_parameters() if one.requires_grad}
    if logits.requires_grad:
        try:
            logits.sum().backward()
        except Exception as error:
            raise UsageError(
                f"network {net.name}: its backward pass raised {told(error)}"
            ) from error
    without = [name for name, one in learning.items() if one.grad is None]
    net.zero_grad(set_to_none=True)
    for module, mode in modes.items():
        module.training = mode
    net.load_state_dict(before)
    if not learning:
        raise UsageError(f"network {net.name}: none of its parameters learns")
    if without:
        raise UsageError(
            f"network {net.name}: {len(without)} of {len(learning)} parameters get no gradient, "
            f"{without[0].removeprefix('trunk.')} first: leave out what gives no logits, or freeze "
            "it (requires_grad_(False))"
        )


def check_state(net: StreamNet, other: StreamNet, shape: tuple[int, ...]) -> None:
    """UsageError unless another network of the function answers as `net`, once it has its state.

    So will the networks be that checkpoints are loaded into. `shape` is that of a clip, (C, h, w).
    """
    state = net.state_dict()
    if problems := misfits(other, state):
        raise UsageError(
            f"network {net.name}: is not made alike each time: its state_dict() {problems[0]}"
        )
    other.load_state_dict(state)
    images = torch.randn(CLIPS, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(net.eval()(images), other.eval()(images)):
            raise UsageError(
                f"network {net.name}: answers differently each time it is made, though with the "
                "same state_dict(), which should hold all that is drawn (register_buffer)"
            )


def check_sizes(net: StreamNet, shape: tuple[int, ...]) -> None:
    """UsageError unless the network, in evaluation, takes clips of `shape` (C, h, w)."""
    with torch.no_grad():
        _ask(net.name, net, torch.zeros(CLIPS, *shape), sum(net.classes.values()))


def _call(name: str, own: OwnNet, channels: int, classes: int) -> nn.Module:
    """What the function makes, on the CPU."""
    function: Callable[..., Any] = import_own(name, "network") if isinstance(own, str) else own
    try:
        with redirect_stdout(sys.stderr):
            module = function(channels, classes)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"network {name}: called with {channels} channels and {classes} classes, it raised "
            f"{told(error)}"
        ) from error
    if isinstance(module, nn.Module) and module in _TAKEN:
        raise UsageError(f"network {name}: gave the same module twice: it is to make a new one")
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"network {name}: expected a function that gives a torch.nn.Module, got "
            f"{type(module).__name__}"
        )
    _TAKEN.add(module)
    return module.cpu()


def _ask(
    name: str, module: nn.Module, images: torch.Tensor, columns: int | None, what: str = "logits"
) -> torch.Tensor:
    """What a module gives for images, float32 (B, columns); UsageError for anything else."""
    try:
        logits = module(images)
    except UsageError:
        raise
    except Exception as error:
        raise _raised(name, module, images, error) from error
    expected = (len(images), columns)
    if isinstance(logits, torch.Tensor):
        got = f"{str(logits.dtype).removeprefix('torch.')} {tuple(logits.shape)}"
        if (logits.dtype, tuple(logits.shape)) == (torch.float32, expected):
            return logits
    else:
        got = type(logits).__name__
    raise UsageError(
        f"network {name}: given {_shown(module, images)}, expected {what} float32 {expected}, "
        f"got {got}"
    )


def _raised(name: str, module: nn.Module, images: torch.Tensor, error: Exception) -> UsageError:
    return UsageError(f"network {name}: given {_shown(module, images)}, it raised {told(error)}")


def _shown(module: nn.Module, images: torch.Tensor) -> str:
    mode = "training" if module.training else "evaluation"
    return f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)} in {mode}"
