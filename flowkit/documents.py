"""flowkit's own documents: read and checked, written in one step; how texts list names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

NAMED = 5  # names that an error lists; it counts the others


def differences(existing: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two requests: "name: 20 on disk, 15 asked for", nested names dotted.

    Of two methods only the names: the parameters of one say nothing of the other.
    """
    found = []
    for key in dict.fromkeys([*existing, *wanted]):
        one, other = existing.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if one.get("name") == other.get("name"):
                found += differences(one, other, f"{prefix}{key}.")
                continue
            one, other = one.get("name"), other.get("name")
        if one != other:
            found.append(f"{prefix}{key}: {json.dumps(one)} on disk, {json.dumps(other)} asked for")
    return found


def listed(items: Iterable[object]) -> str:
    """The first few of `items`, and how many more."""
    names = [str(item) for item in items]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
