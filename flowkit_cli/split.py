"""`flowkit split`: make a split of videos into training, held-out and test part, and check it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flowkit.data.exported_lists import LIST_TOOLS
from flowkit.stores.urls import Place, Url
from flowkit_cli import output
from flowkit_cli.options import choices_text
from flowkit_cli.record_options import layout_option, length_option, missing_option, record_options
from flowkit_cli.store_options import PlacePath, store_options

if TYPE_CHECKING:
    from flowkit.data.splits import Split

SPLIT = Path("runs/split.json")
PATH = click.Path(path_type=Path)


@click.group()
def split() -> None:
    """Which videos train, which are held out of training, and which test.

    \b
    flowkit split make flow                               class folders, by source group
    flowkit split make ucfTrainTestlist --kind ucf101     official split 1
    flowkit split check --records flow                    is every record there?
    flowkit split export --for tsn --out lists            lists that other tools train from
    """


@split.command()
@click.argument("source", type=PlacePath(path_type=Path), default="flow")
@click.option(
    "--kind",
    type=click.Choice(["folders", "ucf101", "hmdb51", "list"]),
    default="folders",
    show_default=True,
    help="What SOURCE is.",
)
@click.option("--out", type=PATH, default=SPLIT, show_default=True, help="The file to write.")
@click.option(
    "--number",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Which official split, or which fold of class folders is the test part.",
)
@click.option("--test", "test_list", type=PATH, help="With --kind list: the list of test videos.")
@click.option(
    "--classes",
    type=PATH,
    help="With --kind list: class names, one per line, by label; maybe numbered.",
)
@click.option(
    "--labels-from",
    type=click.IntRange(0, 1),
    help="With --kind list: the label of the first class.  [default: the first number of "
    "--classes, unless there is a label 0; else 0]",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=4,
    show_default=True,
    help="With --kind folders: into how many folds, one of which is the test part.",
)
@click.option(
    "--parts",
    type=click.Choice(["above", "below", "none"]),
    help="With --kind folders: where folders called train, val and test, which then say the "
    "parts, lie: above or below the class folders; none: they are class folders.",
)
@click.option("--by-video", is_flag=True, help="With --kind folders: groups in names mean nothing.")
@click.option(
    "--all-train",
    is_flag=True,
    help="All videos train, those of the test part, too: to pre-train for another data set.",
)
@click.option(
    "--heldout-folds",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Hold out one of so many folds of the training part's source groups; 0 for none.",
)
@click.option(
    "--heldout-number",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Which of these folds.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the folds.")
@layout_option
@click.option("--overwrite", is_flag=True, help="Replace a split that is there already.")
@store_options
def make(
    source: Place,
    kind: Literal["folders", "ucf101", "hmdb51", "list"],
    out: Path,
    number: int,
    test_list: Path | None,
    classes: Path | None,
    labels_from: int | None,
    folds: int,
    parts: Literal["above", "below", "none"] | None,
    by_video: bool,
    all_train: bool,
    heldout_folds: int,
    heldout_number: int,
    seed: int,
    layout: str | None,
    overwrite: bool,
) -> None:
    """Make a split and write it as JSON.

    SOURCE is, by --kind: "folders", class folders of flow records or of videos, CLASS/VIDEO, here
    or in a store;
    "ucf101", the folder of classInd.txt and trainlist01.txt; "hmdb51", the folder of
    brush_hair_test_split1.txt and so on; "list", a list of training videos as mmaction2 and TSN
    write it. The test part is never touched to hold videos out.

    \b
    flowkit split make flow --folds 4 --number 1
    flowkit split make videos --parts below                 CLASS/train/*, CLASS/test/*
    flowkit split make testTrainMulti_7030_splits --kind hmdb51 --number 2 --out runs/split2.json
    flowkit split make train.txt --kind list --test val.txt --classes names.txt
    """
    from flowkit.data.record_folders import RecordFolder, folder_ids
    from flowkit.data.split_lists import hmdb51_split, list_split, ucf101_split
    from flowkit.data.splits import folder_split, hold_out, train_on_all, write_split
    from flowkit.documents import listed
    from flowkit.errors import UsageError

    if out.exists() and not overwrite:
        raise UsageError(f"{out}: there is a split already: --overwrite replaces it")
    inputs: list[str | Path] = [str(source), *filter(None, (test_list, classes))]
    output.check_out("--out", out, "a split (.json)", inputs)
    lists = str(source)
    if kind != "folders" and isinstance(source, Url):
        raise UsageError(f"{source}: --kind {kind} reads lists of this machine")
    match kind:
        case "ucf101":
            made = ucf101_split(lists, number)
        case "hmdb51":
            made = hmdb51_split(lists, number)
        case "list":
            if test_list is None:
                raise UsageError("--kind list needs the list of test videos: --test FILE")
            made = list_split(lists, test_list, classes=classes, labels_from=labels_from)
        case "folders":
            ids = folder_ids(RecordFolder(source, layout))
            made = folder_split(
                ids, folds=folds, fold=number - 1, seed=seed, by_video=by_video, parts=parts
            )
    if all_train:
        made = train_on_all(made)
    if heldout_folds and not made.heldout:
        made = hold_out(made, folds=heldout_folds, fold=heldout_number - 1, seed=seed)
    write_split(out, made)
    output.result(f"{out}: {_summary(made)}")
    output.result(f"classes: {listed(made.classes)}")
    output.result(_groups(made))
    if straddling := made.straddling_groups():
        output.say(
            f"of {output.count(len(straddling), 'source group')} videos lie in two parts: "
            f"{listed(straddling)}; flowkit split check refuses that"
            + (" (--by-video: names say nothing of groups)" if kind == "folders" else "")
        )


@split.command()
@click.argument("split_file", metavar="[SPLIT]", type=PATH, default=SPLIT)
@click.option(
    "--records",
    type=PlacePath(path_type=Path),
    default="flow",
    show_default=True,
    help="The folder of flow records, here or in a store.",
)
@length_option
@click.option(
    "--missing",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Of listed videos that have no record: stop, or say how many.",
)
@record_options
@store_options
def check(
    split_file: Path,
    records: Place,
    length: int,
    missing: Literal["error", "skip"],
    layout: str | None,
    bound: float | None,
    zero: float,
    max_frame_mpx: float,
) -> None:
    """Check a split against the flow records: all there, none on two sides, long enough.

    SPLIT is runs/split.json unless it is named. Every record is opened, no plane is read
    (flowkit verify does that).

    \b
    flowkit split check
    flowkit split check runs/split.json --records rawframes --layout tsn --bound 20
    """
    from flowkit.data.record_folders import RecordFolder, check_split
    from flowkit.data.splits import read_split

    read = read_split(split_file)
    folder = RecordFolder(records, layout, bound, zero, max_frame_mpx)
    found = check_split(read, folder, length=length, missing=missing)
    output.result(f"{split_file}: {_summary(read)}")
    output.result(f"{_groups(read)}; none has videos in two parts")
    sizes = ", ".join(f"{count:,} of {w}x{h}" for (h, w), count in found.sizes.items())
    output.result(f"records: {sizes} px (WxH), {found.missing:,} missing")
    output.result(
        f"without frames: {found.without_frames:,}; without backward fields: "
        f"{found.without_backward:,}; shorter than {length} fields, so looped: {found.looped:,}"
    )


@split.command()
@click.argument("split_file", metavar="[SPLIT]", type=PATH, default=SPLIT)
@click.option(
    "--for",
    "tool",
    type=click.Choice(tuple(LIST_TOOLS)),
    default=next(iter(LIST_TOOLS)),
    show_default=True,
    help="The tool that reads them. " + choices_text(LIST_TOOLS),
)
@click.option(
    "--records", type=PATH, default="flow", show_default=True, help="The folder of flow records."
)
@click.option("--out", type=PATH, required=True, help="The folder to write the lists into.")
@missing_option
def export(
    split_file: Path, tool: str, records: Path, out: Path, missing: Literal["error", "skip"]
) -> None:
    """Write the lists that another tool trains from, labels from 0.

    SPLIT is runs/split.json unless it is named. Of a video of n frames the lists of frames say n,
    those of flow n - 1; classes.txt has the names. mmaction2 and TSN get train_rgb.txt and
    train_flow.txt and so on; PySlowFast and PyTorchVideo rgb/train.csv, flow_x/train.csv and
    flow_y/train.csv, and the test part as val.csv.

    \b
    flowkit split export --for mmaction2 --out lists
    flowkit split export ucf101-1/split.json --for tsn --records flow/ucf101 --out lists/ucf101-1
    """
    from flowkit.data.exported_lists import export_lists
    from flowkit.data.record_folders import RecordFolder
    from flowkit.data.splits import read_split

    output.check_out_folder("--out", out)
    written = export_lists(
        read_split(split_file), RecordFolder(records), out, tool=tool, missing=missing
    )
    for name, lines in written.items():
        output.result(f"{out / name}: {output.count(lines, 'line')}")


def _summary(made: Split) -> str:
    parts = ", ".join(
        f"{part} {output.count(len(made.part(part)), 'video')}"
        for part in ("train", "heldout", "test")
    )
    return f"{made.name}: {len(made.classes)} classes; {parts}"


def _groups(made: Split) -> str:
    """How many source groups the videos are of, and what it means where names carry none."""
    videos, groups, alone = made.group_counts()
    text = f"{output.count(videos, 'video')} of {output.count(groups, 'source group')}"
    if alone:
        text += (
            f" ({alone:,} of their names carry no group: each counts as a group of its own, and "
            "parts of one recording may lie on two sides)"
        )
    return text
