"""Whether a video has changed since something was made of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowkit.stores.urls import Place, State, Url
from flowkit.video.image_folders import frame_files


def source_state(path: Path) -> dict[str, Any]:
    """What tells later whether a source has changed; JSON values.

    Of a file its `bytes`, when it was `modified_ns`, and the `sha256` of what it holds; of a folder
    the number of its `images`, their `bytes`, and the sha256 of their names and sizes.
    """
    if path.is_dir():
        names = [name for _, name in frame_files(os.listdir(path))]
        sizes = [os.stat(path / name).st_size for name in names]
        text = "".join(f"{name} {size}\n" for name, size in zip(names, sizes, strict=True))
        digest = hashlib.sha256(os.fsencode(text)).hexdigest()
        return {"images": len(names), "bytes": sum(sizes), "sha256": digest}
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": digest}


def object_state(state: State, copy: Path) -> dict[str, Any]:
    """As `source_state`, of an object with a local `copy`; its `etag` is the store's."""
    time = {"modified_ns": state.modified_ns} if state.etag is None else {"etag": state.etag}
    return source_state(copy) | {"modified_ns": None} | time


def source_change(path: Place, recorded: Mapping[str, Any]) -> str:
    """How the source at `path` differs from what `source_state` gave once; "" if it does not.

    A file is read only where its size is the same and its time, or its etag, another: copies are
    no change. What was not recorded counts as unchanged.
    """
    name, size = recorded.get("name", path.name), recorded.get("bytes")
    if name != path.name:
        return f"name: {name} then, {path.name} now"
    if size is None:
        return ""
    if isinstance(path, Url):
        return _object_change(path, recorded)
    if path.is_dir() != ("images" in recorded):
        return "a file then, a folder now" if path.is_dir() else "a folder then, a file now"
    if path.is_dir():
        now = source_state(path)
        kinds = {"images": "images", "bytes": "bytes", "sha256": "names or sizes of images"}
        found = [kind for key, kind in kinds.items() if recorded.get(key) != now[key]]
        return f"other {found[0]}" if found else ""
    status = path.stat()
    if status.st_size != size:
        return f"bytes: {size} then, {status.st_size} now"
    if recorded.get("modified_ns") in (None, status.st_mtime_ns):
        return ""
    return "" if source_state(path)["sha256"] == recorded.get("sha256") else "other bytes"


def source_stamp(path: Path) -> tuple[int, int] | None:
    """The size and time of a file, by which a change in the middle of reading it is seen."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _object_change(url: Url, recorded: Mapping[str, Any]) -> str:
    from flowkit.stores import objects

    if "images" in recorded:
        return "a folder then, a file now"
    state = url.state or objects.object_state(url)
    if state.size != recorded["bytes"]:
        return f"bytes: {recorded['bytes']} then, {state.size} now"
    mark = ("etag", state.etag) if state.etag is not None else ("modified_ns", state.modified_ns)
    if mark[1] is not None and recorded.get(mark[0]) == mark[1]:
        return ""
    return "" if objects.hash_object(url) == recorded.get("sha256") else "other bytes"
