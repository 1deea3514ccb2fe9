"""Writes the reference of the library, docs/api.md, from the docstrings of its public names.

usage: python -m flowkit_cli.library_reference docs/api.md
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flowkit

SECTIONS = {  # title -> names of flowkit, and as "module:name" what these return
    "Videos and flow": (
        "find_videos", "open_video", "compute_field", "video_fields", "make_method", "colorize",
        "read_flo", "write_flo", "flowkit.video.sources:Found", "flowkit.video.sources:Source",
        "flowkit.video.reading:Video", "flowkit.flow.method:FlowMethod",
        "flowkit.flow.stabilized:Stabilization",
    ),
    "Records": (
        "extract", "Request", "Storage", "find_records", "open_record", "open_foreign",
        "RecordFolder", "flowkit.extraction.outcomes:Outcome", "flowkit.records.reading:Record",
    ),
    "Learning": (
        "Clip", "View", "FrameForm", "StackForm", "flow_stack", "read_split", "TrainingClips",
        "TestClips",
        "load_net", "Scorer", "flowkit.data.splits:Split", "flowkit.data.splits:Video",
        "flowkit.networks.checkpoints:Checkpoint",
    ),
    "Scores": (
        "Scores", "read_scores", "write_scores", "Fusion", "fuse", "evaluate",
        "flowkit.report.figures:Report", "flowkit.report.figures:Method",
    ),
    "Errors": (
        "FlowkitError", "UsageError", "VideoError", "RecordError", "SplitError", "CheckpointError",
        "ScoresError", "InstallError", "DeviceError",
    ),
}  # fmt: skip
SPECIAL = ("__getitem__", "__len__")  # methods that are shown beside those with public names
WIDTH = 100  # columns of a signature on one line

HEAD = """# API reference

Written by `make docs` from the docstrings. `from flowkit import NAME` gives each name that is shown
without a module; the others are what these take or return. [library.md](library.md) shows them at
work.
"""


def reference() -> str:
    """The Markdown text: every name with its signature, its docstring and its public methods."""
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name, find(name)) for name in names]
    return "\n".join(parts)


def find(name: str) -> Any:
    """What a name of SECTIONS stands for."""
    module, _, attribute = name.rpartition(":")
    return getattr(importlib.import_module(module) if module else flowkit, attribute)


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself: name, function."""
    for name, value in vars(owner).items():
        function = value.fget if isinstance(value, property) else value
        if inspect.isfunction(function) and (name in SPECIAL or not name.startswith("_")):
            yield name, value


def _entry(name: str, value: Any) -> str:
    module, _, title = name.rpartition(":")
    lines = [f"### {title}\n"]
    if module:
        lines.append(f"`{module}.{title}`\n")
    if not (inspect.isclass(value) and issubclass(value, BaseException)):
        lines.append(f"```python\n{_signature(title, value)}\n```\n")
    lines.append(f"{_docs(value)}\n")
    if inspect.isclass(value):
        for method, function in members(value):
            heading = _signature(f"{title}.{method}", function)
            lines.append(f"```python\n{heading}\n```\n\n{_docs(function)}\n")
    return "\n".join(lines)


def _docs(value: Any) -> str:
    return inspect.getdoc(value) or ""


def _signature(name: str, value: Any) -> str:
    """A signature with annotations as they are written, over several lines where it is long."""
    if isinstance(value, property):
        return f"{name}: {inspect.signature(value.fget).return_annotation}"  # type: ignore[arg-type]
    if getattr(value, "_is_protocol", False):
        return f"class {name}(Protocol)"
    signature = inspect.signature(value)
    parts: list[str] = []
    star = False
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        text = "**" + one.name if one.kind is one.VAR_KEYWORD else one.name
        if one.annotation is not one.empty:
            text += f": {one.annotation}"
        if one.default is not one.empty:
            default = repr(one.default)
            text += f" = {'...' if default.startswith('<') else default}"
        parts.append(text)
    made = signature.return_annotation
    ends = "" if made in (signature.empty, None, "None") else f" -> {made}"
    line = f"{name}({', '.join(parts)}){ends}"
    if len(line) <= WIDTH:
        return line
    indented = "".join(f"    {part},\n" for part in parts)
    return f"{name}(\n{indented}){ends}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
