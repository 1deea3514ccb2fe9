"""Which videos train, which are held out of training to choose by, and which test: splits.

A video is known by its id, the path of its flow record below the records' folder and of its file
below the videos' folder without extension: ``jump/a``. Classes are joined by name everywhere; a
label is only the place of a class in `Split.classes`. A *source group* is the footage that clips
were cut from: clips of one group look alike, so a group never lies on two sides of a split.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from flowkit.documents import listed, read_document, replacing, seal, short
from flowkit.errors import SplitError

FORMAT = "flowkit split"
VERSION = 1
PARTS = ("train", "heldout", "test")
# Where folders called train and test lie: beside the class folders
Parts = Literal["above", "below", "none"]
PART_WORDS = {  # folders that are likely no classes -> the part that they say
    "train": "train", "training": "train", "trainset": "train",
    "val": "heldout", "valid": "heldout", "validation": "heldout", "validate": "heldout",
    "dev": "heldout", "eval": "heldout", "evaluation": "heldout", "heldout": "heldout",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
UCF_GROUP = re.compile(r"_(g\d+)_c\d+$")
# HMDB-51: visible body part, camera motion, number of people, viewpoint, quality, clip number
HMDB_FIELDS = re.compile(r"_[hulf]_(cm|nm)_np\d+_(ba|fr|le|ri)_(bad|med|goo)_\d+$")


@dataclass(frozen=True)
class Video:
    """A video of a split: its id, its class, and its source group within that class.

    `listed_count` is what a list file says of its length, in frames or in fields: lists disagree,
    so it is checked against the record and never used as a length.
    """

    id: str
    class_name: str
    group: str
    listed_count: int | None = None


@dataclass(frozen=True)
class Split:
    """Classes in the order of their labels, and the videos of the three parts.

    SplitError if a video is listed twice or a class is not among the classes.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Video, ...]
    heldout: tuple[Video, ...]
    test: tuple[Video, ...]

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.part(part))} {part}" for part in PARTS)
        return f"Split({self.name!r}, {len(self.classes)} classes, videos: {counts})"

    def __post_init__(self) -> None:
        _refuse_repeats(self.name, "classes", self.classes)
        videos = [video for part in PARTS for video in self.part(part)]
        _refuse_repeats(self.name, "videos", [video.id for video in videos])
        unknown = sorted({video.class_name for video in videos} - set(self.classes))
        if unknown:
            raise SplitError(
                f"{self.name}: videos of classes that are not listed: {listed(unknown)}"
            )

    def part(self, part: str) -> tuple[Video, ...]:
        """The videos of "train", "heldout" or "test"; SplitError for another word."""
        if part not in PARTS:
            raise SplitError(f"expected a part of {', '.join(PARTS)}, got {part!r}")
        return getattr(self, part)

    def labels(self, videos: Sequence[Video]) -> list[int]:
        """The label of each video: the place of its class in `classes`."""
        places = {class_name: label for label, class_name in enumerate(self.classes)}
        return [places[video.class_name] for video in videos]

    def straddling_groups(self) -> list[str]:
        """The source groups, as "class: group", that have videos in two parts."""
        first: dict[tuple[str, str], str] = {}
        found: dict[str, None] = {}
        for part in PARTS:
            for video in self.part(part):
                if first.setdefault((video.class_name, video.group), part) != part:
                    found[f"{video.class_name}: {video.group}"] = None
        return list(found)

    def group_counts(self) -> tuple[int, int, int]:
        """How many videos there are, of how many source groups, and how many whose name has none.

        Groups count within their class; a video without one is a group of its own.
        """
        videos = [video for part in PARTS for video in self.part(part)]
        groups = {(video.class_name, video.group) for video in videos}
        alone = sum(video.group in (video.id, PurePosixPath(video.id).name) for video in videos)
        return len(videos), len(groups), alone


def folder_split(
    ids: Iterable[str],
    *,
    folds: int = 4,
    fold: int = 0,
    seed: int = 0,
    by_video: bool = False,
    parts: Parts | None = None,
) -> Split:
    """A seeded split of class folders: fold `fold` of `folds` of each class is the test part.

    `ids` are "class/video". Whole source groups are dealt to folds where the names carry them
    (`source_group`), else, and with `by_video`, single videos. Adding a class moves no video of
    another. With `parts` "above" or "below" the folders above or below the class folder, called as
    in PART_WORDS, divide the videos, and nothing is dealt; "none" takes such folders for classes.
    SplitError where a class has too few groups to lie in both parts, and where folders are called
    like parts but `parts` does not say what they are.
    """
    ids = sorted(set(ids))
    if parts is None:
        _refuse_part_words(ids)
    if parts in ("above", "below"):
        return _divided_split(ids, parts, by_video)
    videos = [_video_of(id, PurePosixPath(id).parent.name, by_video) for id in ids]
    classes = tuple(sorted({video.class_name for video in videos}))
    if len(classes) < 2:
        raise SplitError(f"expected at least two class folders, got {len(classes)}")
    train, test = _take_fold(videos, folds, fold, seed)
    for part in (train, test):
        empty = sorted(set(classes) - {video.class_name for video in part})
        if empty:
            groups = len({video.group for video in videos if video.class_name == empty[0]})
            raise SplitError(
                f"class {empty[0]!r} has {groups} source groups, too few for a training and a test "
                f"part in fold {fold} of {folds}: add videos, use fewer folds, or split by video"
            )
    return Split(f"folders-{fold + 1}", classes, tuple(train), (), tuple(test))


def _video_of(id: str, class_name: str, by_video: bool) -> Video:
    if not class_name:
        raise SplitError(f"{id}: expected videos in class folders, CLASS/VIDEO")
    return Video(id, class_name, id if by_video else source_group(id))


def _refuse_part_words(ids: Sequence[str]) -> None:
    """SplitError where the class folders, or those above them, are called train, test and so on."""
    folders = [PurePosixPath(id).parts[:-1] for id in ids]
    levels = {
        "below": {parts[-1] for parts in folders if parts},
        "above": {name for parts in folders for name in parts[:-1]},
    }
    for level, names in levels.items():
        words = sorted(name for name in names if name.casefold() in PART_WORDS)
        if len(words) > 1 or (words and len(words) == len(names)):
            raise SplitError(
                f"folders called {listed(words)}, as parts of a split are: which level is the "
                "class? flowkit split make --parts above: they divide the class folders below "
                f"them; --parts below: they lie in the class folders (here they look {level}); "
                "--parts none: they are no parts, and the folder that holds the videos is the class"
            )


def _divided_split(ids: Sequence[str], where: Literal["above", "below"], by_video: bool) -> Split:
    """The split that folders called train, val, test say, above or below the class folders."""
    divided: dict[str, list[Video]] = {part: [] for part in PARTS}
    for id in ids:
        folders = PurePosixPath(id).parts[:-1]
        others = folders[:-1]
        word = folders[-1] if folders else ""
        class_name = others[-1] if others else ""
        if where == "above":
            named = [folder for folder in others if folder.casefold() in PART_WORDS]
            word, class_name = named[0] if named else "", word
        part = PART_WORDS.get(word.casefold())
        if part is None or not class_name:
            form = "PART/CLASS/VIDEO" if where == "above" else "CLASS/PART/VIDEO"
            raise SplitError(f"{id}: expected {form}, a part called train, val, test or so")
        divided[part].append(_video_of(id, class_name, by_video))
    if not divided["test"]:  # a set of train and val is tested on val
        divided["test"], divided["heldout"] = divided["heldout"], []
    classes = sorted({video.class_name for videos in divided.values() for video in videos})
    return Split(
        "folders",
        tuple(classes),
        tuple(divided["train"]),
        tuple(divided["heldout"]),
        tuple(divided["test"]),
    )


def hold_out(split: Split, *, folds: int = 10, fold: int = 0, seed: int = 0) -> Split:
    """The split with fold `fold` of `folds` of its training groups moved to the held-out part.

    The test part is not touched. What was held out before is training again first, so that the
    folds from 0 to `folds` - 1 make a cross-validation. A class of one source group keeps it in
    training. SplitError if that leaves nothing to hold out.
    """
    train, heldout = _take_fold(split.train + split.heldout, folds, fold, seed)
    if not heldout:
        raise SplitError(
            f"{split.name}: nothing to hold out in fold {fold} of {folds}: "
            "every class has too few source groups in its training part; add videos, or train on "
            "all of it and take the last step (flowkit split make --heldout-folds 0, flowkit train "
            "--no-heldout)"
        )
    return replace(split, train=tuple(train), heldout=tuple(heldout))


def train_on_all(split: Split) -> Split:
    """The split with all its videos in the training part, as auxiliary data sets are used."""
    return replace(split, train=split.train + split.heldout + split.test, heldout=(), test=())


def choose_classes(split: Split, names: Sequence[str]) -> Split:
    """The split with the classes of these names alone; SplitError for one that it does not have."""
    if unknown := [name for name in names if name not in split.classes]:
        raise SplitError(
            f"{split.name}: has no classes {listed(unknown)}; it has {listed(split.classes)}"
        )
    kept = tuple(name for name in split.classes if name in set(names))
    train, heldout, test = (
        tuple(video for video in split.part(part) if video.class_name in set(kept))
        for part in PARTS
    )
    return Split(split.name, kept, train, heldout, test)


def source_group(id: str) -> str:
    """The source group of a video within its class, by its name; the name itself if it has none.

    UCF-101's ``v_Jump_g08_c01`` is of group "g08", HMDB-51's ``April_09_brush_hair_u_nm_np1_ba_
    goo_0`` of "April_09": all before the class and the trailing fields.
    """
    path = PurePosixPath(id)
    if match := UCF_GROUP.search(path.name):
        return match.group(1)
    if match := HMDB_FIELDS.search(path.name):
        return path.name[: match.start()].removesuffix(f"_{path.parent.name}")
    return path.name


def write_split(path: str | os.PathLike[str], split: Split) -> None:
    """Write `split` as JSON, one video per line, sealed; replaces what is there in one step."""
    head = {"format": FORMAT, "version": VERSION, "name": split.name, "classes": split.classes}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for part in PARTS:
        videos = ",\n".join(f"    {json.dumps(asdict(video))}" for video in split.part(part))
        lines.append(f'  "{part}": [\n{videos}\n  ]' if videos else f'  "{part}": []')
    with replacing(path) as file:
        file.write_bytes(seal("{\n" + ",\n".join(lines) + "\n}\n"))


def read_split(path: str | os.PathLike[str]) -> Split:
    """Read what `write_split` wrote; SplitError if it is missing or anything else."""
    data = read_document(path, FORMAT, VERSION, error=SplitError, maker="flowkit split make")
    try:
        parts = {part: tuple(_video(**video) for video in data[part]) for part in PARTS}
        return Split(_text(data["name"]), tuple(map(_text, data["classes"])), **parts)
    except (KeyError, TypeError) as error:
        raise SplitError(f"{path}: not of this format ({error!r})") from error


def _video(id: str, class_name: str, group: str, listed_count: int | None = None) -> Video:
    if listed_count is not None and (type(listed_count) is not int or listed_count < 0):
        raise TypeError(f"expected a count of frames or fields, got {short(listed_count)}")
    return Video(_text(id), _text(class_name), _text(group), listed_count)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {short(value)}")
    return value


def _take_fold(
    videos: Sequence[Video], folds: int, fold: int, seed: int
) -> tuple[list[Video], list[Video]]:
    """The videos outside and inside a fold of whole groups.

    Class by class, groups are dealt in an order shuffled by the seed and the class, each to the
    fold that has the fewest videos yet; the fold nearest to a fair share becomes the first, empty
    ones the last.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise SplitError(f"expected at least 2 folds and a fold within them, got {fold} of {folds}")
    sizes: dict[str, Counter[str]] = {}  # class -> group -> videos
    for video in videos:
        sizes.setdefault(video.class_name, Counter())[video.group] += 1
    inside: set[tuple[str, str]] = set()
    for class_name, groups in sizes.items():
        if len(groups) == 1:
            continue
        order = sorted(groups)
        random.Random(f"{seed} {class_name}").shuffle(order)
        dealt: list[list[str]] = [[] for _ in range(folds)]
        counts = [0] * folds
        for group in order:
            place = counts.index(min(counts))
            dealt[place].append(group)
            counts[place] += groups[group]
        fair = groups.total() / folds
        ranked = sorted(
            range(folds), key=lambda place: (not counts[place], abs(counts[place] - fair))
        )
        inside.update((class_name, group) for group in dealt[ranked[fold]])
    taken = [(video.class_name, video.group) in inside for video in videos]
    return (
        [video for video, is_in in zip(videos, taken, strict=True) if not is_in],
        [video for video, is_in in zip(videos, taken, strict=True) if is_in],
    )


def _refuse_repeats(where: str, what: str, items: Sequence[str]) -> None:
    repeated = sorted(item for item, count in Counter(items).items() if count > 1)
    if repeated:
        raise SplitError(f"{where}: {what} listed more than once: {listed(repeated)}")
