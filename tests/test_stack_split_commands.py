"""`flowkit stack` and `flowkit split`: what they write, what they say, what they refuse."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from made_records import write_record

from flowkit.data.clips import Clip
from flowkit.data.exported_lists import LIST_TOOLS, export_lists
from flowkit.data.record_folders import RecordFolder
from flowkit.data.split_lists import list_split
from flowkit.data.splits import Split, Video, read_split
from flowkit.data.stacks import StackForm, flow_stack
from flowkit.errors import FlowkitError, RecordError, SplitError, UsageError
from flowkit_cli.info import info
from flowkit_cli.split import split
from flowkit_cli.stack import stack
from flowkit_cli.view import view


def run(command, *arguments):
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def refused(message, command, *arguments, error=UsageError):
    with pytest.raises(error, match=message):
        run(command, *arguments)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with flow/<class>/<video>, 2 classes of 6 source groups of 2 videos."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("jump", "run"):
        for video in range(12):
            fields = random.normal(0, 1, (2, 8 + video, 6, 9, 2)).astype(np.float32)
            write_record(tmp_path / "flow", f"{name}/v_g{video // 2:02d}_c{video % 2:02d}", *fields)
    return tmp_path


def test_stack_writes_what_the_library_gives(folder):
    record = RecordFolder(folder / "flow").open(folder / "flow/jump/v_g02_c01")
    cases = {
        (): (StackForm(10), 0),
        ("--stacking", "trajectory", "--L", "4", "--start", "3"): (StackForm(4, "trajectory"), 3),
        ("--bidirectional", "--no-mean-subtract"): (StackForm(10, "flow", True, False), 0),
    }
    for options, (form, start) in cases.items():
        done = run(stack, "flow/jump/v_g02_c01", *options, "--out", "out/x.npy")
        found = np.load("out/x.npy", allow_pickle=False)
        clip = Clip("", start, form.length)
        np.testing.assert_array_equal(found, flow_stack(record, clip, form=form))
        assert found.dtype == np.float32 and found.shape == (2 * form.length, 6, 9)
        last = start + form.length
        assert f"float32 ({2 * form.length}, 6, 9), frames {start} to {last} of" in done.output


def test_frames_too_large_are_refused_by_name(folder):
    limit = ("--max-frame-mpx", "5e-5")  # 54 px there are
    place, more = "flow/jump/v_g02_c01", r"9x6 px, more than 5e-05 .*--max-frame-mpx"
    refused(more, stack, place, "--out", "x.npy", *limit, error=RecordError)
    refused(more, view, place, "--out", "x.png", *limit, error=RecordError)
    run(split, "make", "flow", "--out", "s.json")
    refused(more, split, "check", "s.json", *limit, error=RecordError)
    assert run(info, place).exit_code == 0  # which decodes nothing


def test_stack_refuses_what_cannot_be(folder):
    out = ("--out", "x.npy")
    refused("expected an even L", stack, "flow/jump/v_g02_c01", "--bidirectional", "--L", 5, *out)
    refused("start within frames 0..3, got 4", stack, "flow/jump/v_g02_c01", "--start", 4, *out)
    refused("no flow record there", stack, "flow/jump/none", *out, error=FlowkitError)
    assert run(stack, "flow/jump/v_g02_c01").exit_code == 2  # no --out
    assert not (folder / "x.npy").exists()


def test_split_of_class_folders_is_written_and_checked(folder):
    done = run(split, "make")
    counts, classes, groups = done.output.splitlines()
    assert counts.startswith("runs/split.json") and "2 classes" in counts
    assert "train 12 videos, heldout 4 videos, test 8 videos" in counts
    assert classes == "classes: jump, run" and groups == "24 videos of 12 source groups"
    made = read_split("runs/split.json")
    assert made.classes == ("jump", "run") and made.straddling_groups() == []
    lines = run(split, "check").output.splitlines()
    assert lines[0] == counts
    assert lines[1].startswith(groups) and "none has videos in two parts" in lines[1]
    assert "24 of 9x6 px (WxH), 0 missing" in lines[2]
    for fact in ("without frames: 24", "backward fields: 0", "10 fields, so looped: 4"):
        assert fact in lines[3]
    assert "looped: 24" in run(split, "check", "--L", 50).output


def test_split_is_not_replaced_unless_asked(folder):
    run(split, "make")
    refused("a split already: --overwrite", split, "make")
    assert run(split, "make", "--overwrite", "--number", 2).output.startswith(
        "runs/split.json: fol"
    )
    assert read_split("runs/split.json").name == "folders-2"


def test_options_of_the_split_come_through(folder):
    run(split, "make", "flow", "--out", "a.json", "--folds", 3, "--heldout-folds", 0, "--by-video")
    made = read_split("a.json")
    assert made.heldout == () and len(made.test) == 8
    assert made.train[0].group == made.train[0].id
    run(split, "make", "flow", "--out", "b.json", "--folds", 3, "--seed", 5, "--heldout-number", 2)
    assert read_split("b.json").test != made.test


def test_where_names_carry_no_groups_it_is_said(folder):
    for name in ("jump", "run"):
        for part in range(12):
            path = folder / "videos" / name / f"interview{part // 3}_part{part % 3}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    done = run(split, "make", "videos")
    assert "24 of their names carry no group" in done.output
    assert "parts of one recording may lie on two sides" in done.output


def test_the_users_own_parts_are_asked_about_and_taken(folder):
    for name in ("jump", "run"):
        for part in ("train", "test"):
            for k in range(4):
                path = folder / "videos" / name / part / f"v_{name}_g0{k}_c01.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    refused("folders called test, train.*--parts above", split, "make", "videos", error=SplitError)
    options = ("--parts", "below", "--heldout-folds", 0)
    done = run(split, "make", "videos", *options)
    assert "2 classes; train 8 videos, heldout 0 videos, test 8 videos" in done.stdout
    assert "classes: jump, run\n" in done.stdout
    assert "two parts: jump: g00" in done.stderr


def test_missing_records_stop_the_check_or_are_counted(folder):
    run(split, "make")
    (folder / "flow/run/v_g03_c00/record.json").unlink()
    message = "no flow record: run/v_g03_c00"
    refused(message, split, "check", error=SplitError)
    assert "(WxH), 1 missing" in run(split, "check", "--missing", "skip").output


def test_official_and_list_splits(folder, real_data):
    lists = real_data / "splits"
    ucf = run(split, "make", lists / "ucfTrainTestlist", "--kind", "ucf101", "--out", "u.json")
    assert "101 classes; train 8,569 videos, heldout 968 videos, test 3,783 videos" in ucf.output
    hmdb = lists / "testTrainMulti_7030_splits"
    options = ("--kind", "hmdb51", "--number", 3, "--heldout-folds", 0, "--out", "h.json")
    assert (
        "train 3,570 videos, heldout 0 videos, test 1,530"
        in run(split, "make", hmdb, *options).output
    )
    (folder / "train.txt").write_text("".join(f"jump/v_g0{g}_c00 12 0\n" for g in range(4)))
    (folder / "test.txt").write_text("run/v_g05_c00 12 1\n")
    options = ("--kind", "list", "--test", "test.txt", "--out", "l.json")
    assert "l.json: train: 2 classes; train 3" in run(split, "make", "train.txt", *options).output
    refused("needs the list of test videos", split, "make", "train.txt", "--kind", "list")


def test_split_of_videos_that_are_not_extracted_yet(folder):
    for name in ("jump", "run"):
        for video in range(8):
            path = folder / "videos" / name / f"{video}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    run(split, "make", "videos")
    assert json.loads((folder / "runs/split.json").read_text())["test"][0]["id"].startswith("jump/")


def test_info_says_that_there_is_nothing_and_goes_on(folder):
    (folder / "empty").mkdir()
    (folder / "flow/odd").mkdir()
    odd = '{"format": "flowkit flow record", "version": 99}'
    (folder / "flow/odd/record.json").write_text(odd)
    done = run(info, "empty", "flow/odd")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "empty: no flow records" in done.stderr
    assert "flow/odd: record.json: expected" in done.stderr
    with pytest.raises(RecordError, match="none: no such folder of flow records"):
        run(info, "empty", "none")


def write_images(folder):
    for name in (f"{c}/v_g{k:02d}_c00" for c in ("run", "jump") for k in range(8)):
        fields, frames = np.ones((12, 6, 9, 2), np.float32), np.zeros((13, 6, 9, 3), np.uint8)
        write_record(folder / "images", name, fields, frames=frames, format="jpg", bound=20)


def test_lists_for_other_tools_give_the_split_back(folder):
    """n frames and n - 1 fields, in the form that `--kind list` reads."""
    write_images(folder)
    run(split, "make", "images")
    done = run(split, "export", "--records", "images", "--out", "lists")
    assert "lists/train_rgb.txt: 10 lines\n" in done.output
    made = read_split("runs/split.json")
    for kind, count in (("rgb", 13), ("flow", 12)):
        parts = {part: f"lists/{part}_{kind}.txt" for part in ("train", "heldout", "test")}
        for part in ("heldout", "test"):
            read = list_split(parts["train"], parts[part], classes="lists/classes.txt")
            assert read.classes == made.classes
            assert read.train == tuple(replace(v, listed_count=count) for v in made.train)
            assert read.test == tuple(replace(v, listed_count=count) for v in made.part(part))
    with pytest.raises(UsageError, match="there already, and not replaced"):
        run(split, "export", "--records", "images", "--out", "lists")


OWN_RANGES = (np.stack([np.full((6, 9, 2), k, np.float32) for k in (1, 2, 3)]),)


def read_as_mmaction2(file, prefix):
    """Its `RawframeDataset`: columns at any blanks, the path below a prefix."""
    rows = [line.strip().split() for line in Path(file).read_text().splitlines()]
    assert all(len(row) == 3 for row in rows)
    return [(os.path.join(prefix, path), int(n), int(label)) for path, n, label in rows]


def read_as_tsn(file):
    """Its `VideoRecord`: columns at single blanks; the path is opened as it stands."""
    rows = [line.strip().split(" ") for line in Path(file).read_text().splitlines()]
    return [(row[0], int(row[1]), int(row[2])) for row in rows]


def read_as_pyslowfast(file, prefix):
    """Its `load_image_lists`: a header that it knows, five columns, quotes dropped."""
    header, *lines = Path(file).read_text().splitlines()
    assert header.startswith("original_vido_id")
    found = {}
    for row in (line.split() for line in lines):
        assert len(row) == 5
        labels = [int(one) for one in row[-1].replace('"', "").split(",")]
        found.setdefault(row[0], []).append((os.path.join(prefix, row[3]), labels))
    return found


def read_as_pytorchvideo(file, prefix):
    """Its `Charades`: a table with named columns at blanks."""
    found = {}
    with Path(file).open(newline="") as opened:
        for row in csv.DictReader(opened, delimiter=" "):
            assert len(row) == 5
            labels = [int(one) for one in row["labels"].replace('"', "").split(",")]
            path = os.path.join(prefix, row["path"])
            found.setdefault(row["original_vido_id"], []).append((path, labels))
    return found


def test_lists_are_read_by_the_rule_of_each_tool(folder):
    write_images(folder)
    run(split, "make", "images")
    made = read_split("runs/split.json")
    for tool in LIST_TOOLS:
        run(split, "export", "--for", tool, "--records", "images", "--out", tool)
    labels = dict(zip([v.id for v in made.test], made.labels(made.test), strict=True))
    for kind, count, image in (("rgb", 13, "img_%05d.jpg"), ("flow", 12, "flow_x_%05d.jpg")):
        of_mm = read_as_mmaction2(f"mmaction2/test_{kind}.txt", "images")
        of_tsn = read_as_tsn(f"tsn/test_{kind}.txt")
        for path, n, _ in of_tsn:
            assert os.path.isabs(path) and Path(path, image % n).exists()
        for path, n, _ in of_mm:
            assert n == count  # the last file of that number is there, and no further one
            assert Path(path, image % n).exists() and not Path(path, image % (n + 1)).exists()
        assert [label for *_, label in of_mm] == [label for *_, label in of_tsn]
        assert [label for *_, label in of_mm] == list(labels.values())
    for kind, count in (("rgb", 13), ("flow_x", 12), ("flow_y", 12)):
        one = read_as_pyslowfast(f"pyslowfast/{kind}/val.csv", "images")
        assert one == read_as_pytorchvideo(f"pytorchvideo/{kind}/val.csv", "images")
        assert one.keys() == labels.keys()
        for id, images in one.items():
            assert len(images) == count == len({path for path, _ in images})
            assert all(Path(path).exists() for path, _ in images)
            assert all(of_image == [labels[id]] for _, of_image in images)
        train = read_as_pyslowfast(f"pyslowfast/{kind}/train.csv", "images")
        assert list(train) == [video.id for video in made.train]


def test_planes_of_own_ranges_are_warned_of(folder, caplog):
    write_record(folder / "own", "run/a", *OWN_RANGES, format="jpg")
    write_record(folder / "own", "run/b", *OWN_RANGES, format="jpg", bound=20)
    made = Split("made", ("run",), (Video("run/a", "run", "a"), Video("run/b", "run", "b")), (), ())
    export_lists(made, RecordFolder(folder / "own"), "lists")
    assert "1 record has planes of different ranges" in caplog.text


def test_lists_for_a_tool_that_there_is_not_are_refused(folder):
    write_images(folder)
    run(split, "make", "images")
    with pytest.raises(UsageError, match=r"a tool of mmaction2, tsn, .*, got 'caffe'"):
        export_lists(
            read_split("runs/split.json"), RecordFolder(folder / "images"), "out", tool="caffe"
        )


def test_records_that_other_tools_could_not_read_are_not_listed(folder):
    cases = {
        "floats": ({}, "expected a folder of images named as TSN's .* got npy files"),
        "packs": ({"format": "jpg", "pack": True}, r"\w.zip: a pack: flowkit unpack"),
        "blank name": ({"format": "jpg"}, "/b a: a blank in its path"),
    }
    for root, (storage, message) in cases.items():
        for name in ("jump/ba", "jump/c", "run/ba", "run/c"):
            name = name.replace("b", "b ") if root == "blank name" else name
            write_record(folder / root, name, np.ones((3, 6, 9, 2), np.float32), **storage)
        options = ("--heldout-folds", 0, "--folds", 2, "--out", f"{root}.json")
        run(split, "make", root, *options)
        arguments = ("export", f"{root}.json", "--records", root, "--out", "lists")
        refused(message, split, *arguments, error=SplitError)
        assert not (folder / "lists").exists()


def test_the_python_of_the_guide_runs(folder):
    """Each block as it stands, but for its sizes and its device."""
    text = (Path(__file__).parents[1] / "docs/stacks.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for name in (f"{c}/{k}" for c in ("jump", "run") for k in "abcd"):
        fields, frames = np.ones((12, 6, 9, 2), np.float32), np.zeros((13, 6, 9, 3), np.uint8)
        write_record(folder / "guide/flow", name, fields, frames=frames, format="jpg", bound=20)
    os.chdir("guide")
    run(split, "make", "flow", "--heldout-folds", 0)
    for block in blocks:
        small = {"256 * 1000": "4", "256": "2", "num_workers=8": "num_workers=0", '"cuda"': '"cpu"'}
        for word, replaced in small.items():
            block = block.replace(word, replaced)
        names: dict[str, object] = {}
        exec(block, names)
    assert names["temporal"].shape == (2, 20, 224, 224)


def test_the_lines_of_the_guide_make_a_split_each():
    text = (Path(__file__).parents[1] / "docs/stacks.md").read_text()
    lines = re.findall(r"^    flowkit split make (.*)$", text, re.MULTILINE)
    places = [re.search(r"--out (\S+)", line) for line in lines]
    assert len(lines) == 4 and len({place and place[1] for place in places}) == 4


@pytest.mark.parametrize("command", [stack, *split.commands.values()])
def test_every_option_has_help_and_every_command_an_example(command):
    assert "flowkit " in command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_all_videos_of_a_split_train_where_that_is_asked_for(folder):
    run(split, "make", "--all-train", "--heldout-folds", 0)
    made = read_split("runs/split.json")
    assert (len(made.train), made.heldout, made.test) == (24, (), ())
