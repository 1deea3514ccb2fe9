"""What weights were trained on, whoever trained them: so that no such video is tested on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from flowkit.data.splits import Video


@dataclass(frozen=True)
class Origin:
    """The videos that weights were trained on, their own training and those before it.

    `videos` are ids by class and source group. `unknown` names files of weights among what they
    started from that do not say on what they were trained.
    """

    videos: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def seen(self, videos: Iterable[Video]) -> list[str]:
        """The ids of those `videos` that were trained on, or whose source group was.

        Ids are joined by class and name, however spelled: folders above the class do not count.
        """
        ids = {
            _key(name, id)
            for name, groups in self.videos.items()
            for listed in groups.values()
            for id in listed
        }
        groups = {_key(name, group) for name, groups in self.videos.items() for group in groups}
        return [
            video.id
            for video in videos
            if _key(video.class_name, video.id) in ids
            or _key(video.class_name, video.group) in groups
        ]


def origin_of(videos: Iterable[Video], *before: Origin) -> Origin:
    """The origin of weights trained on `videos`, starting from weights of the origins `before`."""
    found: dict[str, dict[str, set[str]]] = {}
    for video in videos:
        found.setdefault(video.class_name, {}).setdefault(video.group, set()).add(video.id)
    for origin in before:
        for name, groups in origin.videos.items():
            for group, ids in groups.items():
                found.setdefault(name, {}).setdefault(group, set()).update(ids)
    unknown = dict.fromkeys(where for origin in before for where in origin.unknown)
    return Origin(
        {
            name: {group: tuple(sorted(ids)) for group, ids in sorted(groups.items())}
            for name, groups in sorted(found.items())
        },
        tuple(unknown),
    )


def origin_from_json(data: Mapping[str, Any]) -> Origin:
    """The origin in a checkpoint; KeyError, TypeError or AttributeError for anything else."""
    videos = {
        name: {group: tuple(map(str, ids)) for group, ids in groups.items()}
        for name, groups in data["videos"].items()
    }
    return Origin(videos, tuple(data["unknown"]))


def _key(class_name: str, id: str) -> tuple[str, str]:
    """A video, or a source group, of a class: by its last name, with case and signs left out."""
    name = PurePosixPath(id).name.replace("#", "@").replace("&", "@")
    return "".join(filter(str.isalnum, class_name.casefold())), name.casefold()
