"""The flow methods by name, in one table, and what is done with any of them.

A method of the user's own is named module:Class, a program exec:COMMAND. Such code runs only where
it is named: no record and no checkpoint runs it by itself.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from flowkit.documents import differences
from flowkit.errors import UsageError
from flowkit.flow.method import takes_color
from flowkit.flow.pairs import consecutive
from flowkit.own_code import import_own, is_own

if TYPE_CHECKING:
    import numpy as np

    from flowkit.flow.method import FlowMethod


@dataclass(frozen=True)
class MethodFacts:
    """Where the class of a flow method is, and what it computes on.

    `runs_on` is "cpu"; "cuda" for flowkit's kernels, which a flow process runs for all workers;
    "opencv-cuda" for an OpenCV built with CUDA; "torch" for a network, on a GPU if there is one.
    `one_worker`: one process of it fills the machine, a GPU or all cores by threads.
    """

    home: str  # "module:Class", imported when the method is asked for
    runs_on: Literal["cpu", "cuda", "opencv-cuda", "torch"] = "cpu"
    one_worker: bool = False


METHODS = {
    "tvl1": MethodFacts("flowkit.flow.tvl1:TVL1"),
    "tvl1-opencv": MethodFacts("flowkit.flow.opencv:OpenCVTVL1"),
    "farneback": MethodFacts("flowkit.flow.farneback:Farneback"),
    "farneback-opencv": MethodFacts("flowkit.flow.opencv:OpenCVFarneback"),
    "dis": MethodFacts("flowkit.flow.opencv:DIS"),
    "tvl1-cuda": MethodFacts("flowkit.flow.cuda.methods:CudaTVL1", "cuda"),
    "farneback-cuda": MethodFacts("flowkit.flow.cuda.methods:CudaFarneback", "cuda"),
    "tvl1-opencv-cuda": MethodFacts(
        "flowkit.flow.opencv_cuda:OpenCVCudaTVL1", "opencv-cuda", one_worker=True
    ),
    "farneback-opencv-cuda": MethodFacts(
        "flowkit.flow.opencv_cuda:OpenCVCudaFarneback", "opencv-cuda", one_worker=True
    ),
    "brox-opencv-cuda": MethodFacts(
        "flowkit.flow.opencv_cuda:OpenCVCudaBrox", "opencv-cuda", one_worker=True
    ),
    "raft": MethodFacts("flowkit.flow.raft:RAFT", "torch", one_worker=True),
}


def methods_on(*places: str) -> tuple[str, ...]:
    """The names of the methods that run on any of `places`, as `MethodFacts.runs_on` has them."""
    return tuple(name for name, facts in METHODS.items() if facts.runs_on in places)


OWN = ("MODULE:CLASS", "exec:COMMAND")  # how methods that are not in the table are named
PROGRAM = "exec:"


def method_facts(name: str) -> MethodFacts:
    """The facts of a method by its name, of own code, too; UsageError names those there are."""
    if name in METHODS:
        return METHODS[name]
    if name.startswith(PROGRAM):
        return MethodFacts("flowkit.flow.program:Program")
    if is_own(name):
        return MethodFacts(name)
    raise UsageError(f"expected a method of {', '.join((*METHODS, *OWN))}, got {name!r}")


def method_class(name: str) -> type[FlowMethod]:
    """The class of a flow method by its name, of one's own code, too.

    UsageError names those there are, or says what one's own code lacks.
    """
    home = method_facts(name).home
    module, _, class_name = home.partition(":")
    if home != name:
        return getattr(import_module(module), class_name)
    found = import_own(name, "method")
    _check_class(name, found)
    return found


def _check_class(name: str, found: Any) -> None:
    """UsageError where what one's own code gives is no class of a flow method."""
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise UsageError(f"method {name}: expected a frozen dataclass (docs/library.md)")
    for attribute, kind in (("name", str), ("presets", dict)):
        if not isinstance(getattr(found, attribute, None), kind):
            raise UsageError(
                f"method {name}: expected a class with `{attribute}`, a {kind.__name__}"
            )
    if not callable(getattr(found, "fields", None)):
        raise UsageError(f"method {name}: expected a class with `fields`, which yields fields")
    if (called := getattr(found, "name", "")) in METHODS or ":" in called:
        raise UsageError(f"method {name}: expected a `name` of its own, got {called!r}")


def make_method(name: str, *, preset: str | None = None, **parameters: Any) -> FlowMethod:
    """A flow method by name, with its defaults, a preset's values over them, then `parameters`.

    ``module:Class`` is a method of one's own, ``exec:COMMAND`` a program (`flow.program`).
    UsageError for a name, a preset or a parameter that there is not, or a value out of range.
    """
    chosen = method_class(name)
    if name.startswith(PROGRAM):
        parameters["command"] = name.removeprefix(PROGRAM)
    if preset is not None and preset not in chosen.presets:
        there = ", ".join(chosen.presets) or "none"
        raise UsageError(f"method {name} has no preset {preset!r}; it has: {there}")
    unknown = set(parameters) - {field.name for field in dataclasses.fields(chosen)}
    if unknown:
        raise UsageError(f"method {name} has no parameter {', '.join(sorted(unknown))}")
    return chosen(**{**(chosen.presets[preset] if preset else {}), **parameters})


def compute_field(
    first: np.ndarray, second: np.ndarray, method: FlowMethod | str = "tvl1"
) -> np.ndarray:
    """The displacement field of two frames: float32 (H, W, 2) in px.

    `first` and `second` are uint8, (H, W) gray or (H, W, 3) BGR as OpenCV reads them, of one size.
    Pixel (y, x) of `first` is found in `second` at (y + field[y, x, 1], x + field[y, x, 0]).
    `method` is a flow method or the name of one with its defaults. FlowkitError for frames of
    another kind or of two sizes, UsageError for a name that there is not.
    """
    chosen = make_method(method) if isinstance(method, str) else method
    [field] = chosen.fields(consecutive([first, second], color=takes_color(chosen)))
    return field


def prepare_method(method: FlowMethod) -> None:
    """Compile or load, once for all, what every worker would otherwise do for itself.

    Calls the method's own ``prepare()`` where it has one. UsageError where it cannot compute here,
    a CUDA method without a GPU or weights that do not fit, before any work.
    """
    prepare = getattr(method, "prepare", None)
    if prepare is not None:
        prepare()


def describe_method(method: FlowMethod) -> dict[str, Any]:
    """The identity of a method as the sidecar holds it: its name and every parameter.

    A method may give its parameters itself, by ``identity()``.
    """
    identity = getattr(method, "identity", None)
    parameters = dataclasses.asdict(method) if identity is None else identity()
    return {"name": method.name, **parameters}


def method_of(identity: dict[str, Any], own: FlowMethod | None = None) -> FlowMethod:
    """The method that `describe_method` described; files that it names are looked for here.

    Of one's own code it is `own`, which must be described so. UsageError as `make_method`, and
    where own code is described that is not given, or is another. A method may say, as `unnamed`,
    what older identities leave out.
    """
    name = identity["name"]
    if name in METHODS:
        if own is not None:
            raise UsageError(f"expected flow of {name}, got the method {own.name}: leave it out")
        return make_method(**{**getattr(method_class(name), "unnamed", {}), **identity})
    if own is None:
        raise UsageError(
            f"the flow is of own code, {_told(identity)}, which runs only where it is named: "
            f"--method {' or '.join(OWN)} names it again"
        )
    if found := differences(identity, describe_method(own)):
        raise UsageError(f"--method: another method than that of the flow: {'; '.join(found)}")
    return own


def _told(identity: dict[str, Any]) -> str:
    """A method's identity in words: "exec (command: python flow.py)"."""
    parameters = ", ".join(f"{key}: {value}" for key, value in identity.items() if key != "name")
    return f"{identity['name']}{f' ({parameters})' if parameters else ''}"


def device_of(method: FlowMethod) -> str:
    """The kind of device that a method computes on here: "cuda" or "cpu"."""
    device = getattr(method, "device", None)
    if device is not None:
        return device()
    return "cuda" if method.name in methods_on("cuda", "opencv-cuda") else "cpu"
