"""Which image files of a folder are the numbered frames of one video; by their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

FRAME_NAME = re.compile(r"(.*?)([0-9]+)\.(jpe?g|png|bmp)", re.IGNORECASE | re.DOTALL)


def frame_files(names: Iterable[str]) -> list[tuple[int, str]]:
    """The frames among the file `names` of one folder: (number, name), in order of the number.

    Frames share one prefix and one extension: img_00001.jpg, frame000001.jpg, 00001.png. Where
    the planes of a flow record (flow_x_*, flow_y_*) lie beside, they are the images called img_*.
    Empty where the names are not those of one video's frames.
    """
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in names:
        if (match := FRAME_NAME.fullmatch(name)) and not name.startswith("."):
            prefix, number, extension = match.groups()
            groups.setdefault((prefix, extension.lower()), []).append((int(number), name))
    if any(prefix.startswith(("flow_x", "flow_y")) for prefix, _ in groups):
        groups = {key: files for key, files in groups.items() if key[0] == "img_"}
    return sorted(*groups.values()) if len(groups) == 1 else []
