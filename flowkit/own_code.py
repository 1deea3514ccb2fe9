"""Code of the user's own, named module:name: it is imported where it is named, and nowhere else."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

from flowkit.errors import UsageError


def is_own(name: str) -> bool:
    """Whether a name is one of own code: those of flowkit's tables have no colon."""
    return ":" in name


def import_own(name: str, what: str) -> Any:
    """What "module:name" names, installed or in the current folder; `what` it should be, in a word.

    UsageError where it cannot be imported.
    """
    module, _, inner = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does; workers get the same path
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no answer of a command
            return getattr(import_module(module), inner)
    except (Exception, SystemExit) as error:
        is_told = isinstance(error, ImportError | AttributeError)
        reason = error if is_told else told(error)
        raise UsageError(f"{what} {name}: cannot be imported: {reason}") from error


def told(error: BaseException) -> str:
    """An error of own code in a line: its kind, and the first line of what it says."""
    [first, *_] = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}{first and f': {first.strip()}'}"
