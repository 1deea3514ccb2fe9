"""What a flow method is: parameters that identify it; pairs of frames in, fields out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from flowkit.errors import UsageError
from flowkit.flow.pairs import Pair

if TYPE_CHECKING:  # the command line reads parameters without numpy
    import numpy as np


class FlowMethod(Protocol):
    """A flow method: a frozen dataclass whose fields are its parameters.

    It is its own identity in the sidecar, and picklable, so that it can travel to a worker. `name`
    is the word of ``--method``; `presets` are named sets of parameters. It is given pairs of gray
    frames, but one that says `color = True` those of the video, in color unless that is gray.
    """

    name: ClassVar[str]
    presets: ClassVar[dict[str, dict[str, Any]]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fields(self, pairs: Iterable[Pair]) -> Iterator[np.ndarray]:
        """The field of each pair, in order: float32 (H, W, 2) px, moving first to second.

        Lazy, but a method may read some pairs ahead, to compute them in one batch.
        """


def parameter(
    default: Any, text: str, *, at_least: float | None = None, at_most: float | None = None
) -> Any:
    """A dataclass field with the help text and the limits of a flow method's parameter."""
    limits = {"at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata={"help": text, **limits})


def check_parameters(method: FlowMethod) -> None:
    """Raise UsageError if a parameter is outside its limits; for ``__post_init__``."""
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        at_least, at_most = field.metadata["at_least"], field.metadata["at_most"]
        if at_least is not None and not value >= at_least:
            limit = f"at least {at_least}"
        elif at_most is not None and not value <= at_most:
            limit = f"at most {at_most}"
        else:
            continue
        raise UsageError(f"{method.name}: expected {field.name} of {limit}, got {value}")


def takes_color(method: FlowMethod) -> bool:
    """True for a method that says that it is given frames in color."""
    return getattr(method, "color", False)
