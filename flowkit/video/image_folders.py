"""Which images of a folder are the numbered frames of one video."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_FRAME_MPX = 40.0  # megapixels of a frame that are allowed unless told: 8K has 33
FRAME_NAME = re.compile(r"(.*?)([0-9]+)\.(jpe?g|png|bmp)", re.IGNORECASE | re.DOTALL)


def frame_files(names: Iterable[str]) -> list[tuple[int, str]]:
    """The frames among the file `names` of one folder: (number, name), in order of the number.

    Frames share one prefix and one extension: img_00001.jpg, frame000001.jpg, 00001.png. Where
    the planes of a flow record (flow_x_*, flow_y_*) lie beside, they are the images called img_*.
    Empty where the names are not those of one video's frames.
    """
    groups = image_groups(names)
    return groups[0] if len(groups) == 1 else []


def image_groups(names: Iterable[str]) -> list[list[tuple[int, str]]]:
    """The numbered images among the file `names` of a folder that share prefix and extension.

    Each group is in order of the number, the largest comes first. One group is a video's frames
    (`frame_files`); of more, nobody can say which are.
    """
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in names:
        if (match := FRAME_NAME.fullmatch(name)) and not name.startswith("."):
            prefix, number, extension = match.groups()
            groups.setdefault((prefix, extension.lower()), []).append((int(number), name))
    if any(prefix.startswith(("flow_x", "flow_y")) for prefix, _ in groups):
        groups = {key: files for key, files in groups.items() if key[0] == "img_"}
    return sorted(map(sorted, groups.values()), key=len, reverse=True)


def describe_groups(groups: Iterable[list[tuple[int, str]]]) -> str:
    """Groups of images in words: "5 images like img_00001.jpg and cover1.jpg"."""
    words = [
        files[0][1] if len(files) == 1 else f"{len(files)} images like {files[0][1]}"
        for files in groups
    ]
    return " and ".join(words) or "none"
