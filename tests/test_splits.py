"""Splits: the official lists with all their traps, list files, class folders, held-out groups."""

import csv
import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from flowkit.data.split_lists import hmdb51_split, list_split, ucf101_split
from flowkit.data.splits import (
    Split,
    Video,
    folder_split,
    hold_out,
    read_split,
    source_group,
    write_split,
)
from flowkit.errors import SplitError

UCF_COUNTS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}
NUMBERS = (1, 2, 3)


@pytest.fixture(scope="module")
def ucf(real_data):
    return {
        number: ucf101_split(real_data / "splits/ucfTrainTestlist", number) for number in NUMBERS
    }


@pytest.fixture(scope="module")
def hmdb(real_data):
    folder = real_data / "splits/testTrainMulti_7030_splits"
    return {number: hmdb51_split(folder, number) for number in NUMBERS}


@pytest.mark.parametrize("number", NUMBERS)
def test_ucf101_has_the_official_counts(ucf, number):
    split = ucf[number]
    assert (len(split.train), len(split.test)) == UCF_COUNTS[number]
    assert len(split.classes) == 101 and split.heldout == ()
    assert len({video.id for video in split.train + split.test}) == 13320


@pytest.mark.parametrize("number", NUMBERS)
def test_ucf101_tests_on_seven_groups_that_never_train(ucf, number):
    first = 7 * number - 6
    tested = {video.group for video in ucf[number].test}
    assert tested == {f"g{group:02d}" for group in range(first, first + 7)}
    assert ucf[number].straddling_groups() == []


def test_ucf101_labels_follow_its_index_and_no_sort(ucf):
    classes = ucf[1].classes
    assert [classes[k - 1] for k in (35, 36, 47, 48)] == [
        "Hammering",
        "HammerThrow",
        "JumpingJack",
        "JumpRope",
    ]
    assert list(classes) != sorted(classes)
    jump = next(video for video in ucf[1].test if video.class_name == "JumpRope")
    assert ucf[1].labels([jump]) == [47]


def test_ucf101_class_is_the_folder_and_not_the_file(ucf):
    [video] = [v for v in ucf[1].test if v.id.endswith("v_HandStandPushups_g01_c01")]
    assert video.id == "HandstandPushups/v_HandStandPushups_g01_c01"
    assert video.class_name == "HandstandPushups" in ucf[1].classes


def test_ucf101_agrees_with_what_is_known_of_the_real_clips(ucf, real_data):
    with (real_data / "ucf101/clips.csv").open() as file:
        for row in csv.DictReader(file):
            id = row["file"].removesuffix(".avi")
            assert source_group(id) == row["group"]
            for number in NUMBERS:
                assert id in {video.id for video in ucf[number].part(row[f"split{number}"])}


@pytest.mark.parametrize("number", NUMBERS)
def test_hmdb51_has_70_and_30_clips_of_every_class(hmdb, number):
    split = hmdb[number]
    assert set(Counter(video.class_name for video in split.train).values()) == {70}
    assert set(Counter(video.class_name for video in split.test).values()) == {30}
    assert len(split.classes) == 51
    assert split.straddling_groups() == []


def test_hmdb51_keeps_classes_apart_whose_names_begin_alike(hmdb):
    for one, other in (
        ("kick", "kick_ball"),
        ("sword", "sword_exercise"),
        ("climb", "climb_stairs"),
    ):
        assert {one, other} <= set(hmdb[1].classes)
        [ids, others] = (
            {video.id for video in hmdb[1].train if video.class_name == name}
            for name in (one, other)
        )
        assert len(ids) == len(others) == 70 and not ids & others
        assert all(id.startswith(f"{other}/") for id in others)


def test_hmdb51_names_with_odd_characters_come_through(hmdb):
    ids = {video.id for video in hmdb[1].train + hmdb[1].test}
    assert (
        "cartwheel/Geena_und_die_Radschl_ge___;-)_cartwheel_f_cm_np1_fr_med_2" in ids
        and "cartwheel/(Rad)Schlag_die_Bank!_cartwheel_f_cm_np1_le_med_0" in ids
        and "catch/Goalkeeper_Training_Day_#_2_catch_f_cm_np1_ba_bad_3" in ids
    )


def test_source_groups_of_hmdb51_names_are_the_known_ones(real_data):
    with (real_data / "jhmdb10/clips.csv").open() as file:
        for row in csv.DictReader(file):
            id = f"{row['class']}/{Path(row['file']).stem}"
            assert source_group(id) == row["source_group"]


def test_jhmdb10_lists_are_read_as_ucf101s(real_data):
    split = ucf101_split(real_data / "jhmdb10")
    assert (split.name, len(split.train), len(split.test)) == ("jhmdb10-1", 330, 138)
    assert split.straddling_groups() == []


@pytest.mark.parametrize("fold", range(4))
def test_held_out_groups_are_a_tenth_of_training_and_never_test(ucf, fold):
    split = hold_out(ucf[1], fold=fold)
    assert split.test == ucf[1].test
    assert set(split.train) | set(split.heldout) == set(ucf[1].train)
    assert split.straddling_groups() == []
    assert {video.class_name for video in split.heldout} == set(split.classes)
    assert 0.08 < len(split.heldout) / len(ucf[1].train) < 0.13


def test_folds_hold_out_every_training_video_once(hmdb):
    folds = [hold_out(hmdb[1], folds=5, fold=fold) for fold in range(5)]
    held = Counter(video.id for split in folds for video in split.heldout)
    assert held == Counter(video.id for video in hmdb[1].train)
    assert hold_out(folds[3], folds=5, fold=1) == replace(
        folds[1], train=hold_out(folds[3], folds=5, fold=1).train
    )


def test_holding_out_depends_on_the_seed_alone(hmdb):
    assert hold_out(hmdb[1], seed=3) == hold_out(hmdb[1], seed=3) != hold_out(hmdb[1], seed=4)


def made_ids(classes=3, groups=8, clips=3):
    return [
        f"c{c}/v_c{c}_g{g:02d}_c{k:02d}"
        for c in range(classes)
        for g in range(groups)
        for k in range(clips)
    ]


def test_class_folders_are_split_by_source_group():
    ids = made_ids()
    split = folder_split(ids)
    assert {video.id for video in split.train + split.test} == set(ids)
    assert split.straddling_groups() == []
    for class_name in split.classes:
        tested = {video.group for video in split.test if video.class_name == class_name}
        assert len(tested) == 2  # a quarter of eight groups


def test_class_folders_without_groups_are_split_by_video_with_a_seed():
    ids = [f"{c}/{k}" for c in ("jump", "run") for k in range(20)]
    split = folder_split(ids)
    assert Counter(video.class_name for video in split.test) == {"jump": 5, "run": 5}
    assert folder_split(reversed(ids)) == split
    assert folder_split(ids, seed=1) != split


def test_folds_of_class_folders_test_every_video_once():
    tests = [folder_split(made_ids(), fold=fold).test for fold in range(4)]
    assert Counter(v.id for test in tests for v in test) == Counter(made_ids())


def test_a_new_class_moves_no_video_of_another():
    small, large = folder_split(made_ids(2)), folder_split(made_ids(3))
    assert {video.id for video in small.test} <= {video.id for video in large.test}


def test_splitting_by_video_ignores_groups_where_that_is_asked_for():
    split = folder_split(made_ids(groups=1, clips=8), by_video=True)
    assert Counter(video.class_name for video in split.test) == {"c0": 2, "c1": 2, "c2": 2}


@pytest.mark.parametrize(
    "ids",
    [
        ["jump/train/a", "jump/test/b", "run/train/c"],
        ["train/jump/a", "test/jump/b"],
        ["Train/jump/a", "Train/run/b"],
        ["ucf/validation/jump/a", "ucf/training/run/b"],
        ["train/a", "test/b"],
        ["jump/train/a", "jump/test/b", "run/c"],
    ],
)
def test_folders_called_like_parts_are_asked_about(ids):
    with raises(r"folders called \w.*which level is the class\?"):
        folder_split(ids)


def test_one_class_may_be_called_like_a_part():
    """Vehicles: car, train, bus."""
    ids = [f"{name}/{k}" for name in ("car", "train", "bus") for k in range(8)]
    assert folder_split(ids).classes == ("bus", "car", "train")
    ids = [f"{name}/{k}" for name in ("test", "train") for k in range(8)]
    assert folder_split(ids, parts="none").classes == ("test", "train")


def part_ids(split):
    return [[video.id for video in split.part(part)] for part in ("train", "heldout", "test")]


def test_the_users_own_division_is_taken_where_it_is_said_where_it_lies():
    below = folder_split(["jump/Train/a", "jump/val/b", "run/test/d", "run/train/c"], parts="below")
    assert below.classes == ("jump", "run")
    assert part_ids(below) == [["jump/Train/a", "run/train/c"], ["jump/val/b"], ["run/test/d"]]
    above = folder_split(["x/train/jump/a", "x/val/jump/b", "x/train/run/c"], parts="above")
    assert above.classes == ("jump", "run")  # of train and val, val is what is tested on
    assert part_ids(above) == [["x/train/jump/a", "x/train/run/c"], [], ["x/val/jump/b"]]
    with raises("jump/a: expected CLASS/PART/VIDEO, a part called train, "):
        folder_split(["jump/a"], parts="below")
    with raises("train/a: expected PART/CLASS/VIDEO"):
        folder_split(["train/a"], parts="above")


def test_groups_are_counted_within_their_classes():
    assert folder_split(made_ids(classes=2, groups=8, clips=3)).group_counts() == (48, 16, 0)
    ids = [*made_ids(classes=2, groups=8, clips=1), "c0/interview_part1", "c0/interview_part2"]
    assert folder_split(ids).group_counts() == (18, 18, 2)
    assert folder_split(ids, by_video=True).group_counts() == (18, 18, 18)


def made_split():
    train = tuple(Video(id, id.split("/")[0], id) for id in ("run/a", "jump/b"))
    test = (Video("jump/\udcff#;c", "jump", "g", 7),)
    return Split("mine", ("run", "jump"), train[:1], train[1:], test)


def test_split_file_round_trip_keeps_everything_and_the_order_of_classes(tmp_path):
    write_split(tmp_path / "runs" / "split.json", made_split())
    assert read_split(tmp_path / "runs" / "split.json") == made_split()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["split.json"]
    data = json.loads((tmp_path / "runs" / "split.json").read_text())
    assert data["classes"] == ["run", "jump"] and data["test"][0]["class_name"] == "jump"


def test_labels_are_places_among_the_classes_by_name():
    split = made_split()
    assert split.labels(split.train + split.heldout + split.test) == [0, 1, 1]


def test_straddling_groups_are_named():
    split = made_split()
    same = replace(split, heldout=(Video("run/z", "run", "run/a"),))
    assert same.straddling_groups() == ["run: run/a"]


def write(path, text):
    path.write_bytes(text.encode())
    return path


def test_lists_of_frames_as_mmaction2_writes_them(tmp_path):
    train = write(tmp_path / "train.txt", "run/v_a 120 0\njump/a b 31 1\n")
    test = write(tmp_path / "val.txt", "jump/v.c 25 1\r\n")
    split = list_split(train, test)
    assert split.classes == ("run", "jump")  # by label, never by name
    assert split.train == (
        Video("run/v_a", "run", "v_a", 120),
        Video("jump/a b", "jump", "a b", 31),
    )
    assert split.test == (Video("jump/v.c", "jump", "v.c", 25),)


def test_lists_of_videos_as_mmaction2_writes_them(tmp_path):
    train = write(tmp_path / "train.txt", "run/v_run_g01_c01.avi 0\n./jump/b.mp4 1\n")
    test = write(tmp_path / "val.txt", "/data/x/jump/c.avi 1\n")
    split = list_split(train, test)
    assert [video.id for video in split.train + split.test] == [
        "run/v_run_g01_c01",
        "jump/b",
        "jump/c",
    ]
    assert [video.listed_count for video in split.train] == [None, None]
    assert split.train[0].group == "g01"


def test_lists_without_class_folders_take_their_names_from_a_file(tmp_path):
    train = write(tmp_path / "train.txt", "v_b 9 1\n")
    test = write(tmp_path / "val.txt", "v_a 9 0\n")
    with pytest.raises(SplitError, match="give the file of class names"):
        list_split(train, test)
    for text in ("throw\ncatch ball\n", "1 throw\r\n2 catch ball\r\n", "0 throw\n1 catch ball"):
        split = list_split(train, test, classes=write(tmp_path / "names.txt", text))
        assert split.classes == ("throw", "catch ball")
        assert split.test[0].class_name == "throw"


NAMES = "jump\nclimb\nrun\n"  # the last class has no videos in the lists of these tests
NUMBERED = "1 jump\n2 climb\n3 run\n"


@pytest.mark.parametrize(
    ("names", "labels", "options"),
    [
        (NAMES, (0, 1), {}),
        (NAMES, (1, 2), {"labels_from": 1}),
        (NUMBERED, (1, 2), {}),
        (NUMBERED, (0, 1), {}),  # a label 0 says so
        (NUMBERED, (0, 1), {"labels_from": 0}),
        ("0 jump\n1 climb\n2 run\n", (0, 1), {}),
    ],
)
def test_a_video_has_the_class_of_its_folder_however_labels_count(tmp_path, names, labels, options):
    lines = [f"jump/a 9 {labels[0]}\n", f"climb/b 9 {labels[1]}\n"]
    train = write(tmp_path / "train.txt", "".join(lines))
    test = write(tmp_path / "test.txt", f"/data/climb/part1/c 9 {labels[1]}\n")
    file = write(tmp_path / "names.txt", names)
    split = list_split(train, test, classes=file, **options)
    assert split.classes == ("jump", "climb", "run")
    assert [video.class_name for video in split.train + split.test] == ["jump", "climb", "climb"]


@pytest.mark.parametrize(
    ("names", "train", "test", "message"),
    [
        (NAMES, (1, 2), 2, r"train.txt, line 1: label 1 is 'climb'"),
        (NAMES, (1, 2), 2, r"labels look counted from 1"),
        (
            NAMES,
            (0, 1),
            2,
            r"test.txt, line 1: .*looks counted from 1",
        ),
        (NAMES, (0, 7), 1, r"train.txt, line 2: label 7, but .* 3 classes"),
        (NUMBERED, (1, 2), 1, r"test.txt, line 1: label 1 is 'jump' in .*from 1, but"),
    ],
)
def test_labels_that_contradict_the_folders_are_refused(tmp_path, names, train, test, message):
    lines = [f"jump/a 9 {train[0]}\n", f"climb/b 9 {train[1]}\n"]
    lists = (
        write(tmp_path / "train.txt", "".join(lines)),
        write(tmp_path / "test.txt", f"climb/c 9 {test}\n"),
    )
    with raises(message):
        list_split(*lists, classes=write(tmp_path / "names.txt", names))


def test_labels_of_class_folders_may_count_from_1(tmp_path):
    train = write(tmp_path / "train.txt", "jump/a 9 1\nclimb/b 9 2\n")
    test = write(tmp_path / "test.txt", "jump/c 9 1\n")
    with raises("a class folder for each label from 0 to 2.*; if labels count from 1: --labels-f"):
        list_split(train, test)
    assert list_split(train, test, labels_from=1).classes == ("jump", "climb")


def test_lists_with_an_offset_are_refused(tmp_path):
    train = write(tmp_path / "train.txt", "climb/a 2 5 0\njump/b 2 5 1\n")
    with raises("train.txt, line 1: .* got four columns"):
        list_split(train, train)
    test = write(tmp_path / "test.txt", '"climb/a 2" 5 0\n\'jump/b c\' 5 1\n"climb/d" 7 0\n')
    assert [
        video.id for video in list_split(test, write(tmp_path / "b.txt", "jump/x 1 1")).train
    ] == [
        "climb/a 2",
        "jump/b c",
        "climb/d",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    "text",
    [
        'file,label\nrun/\u00fc 1.avi,0\n"jump/b, c.avi",1\n',
        "file;label\r\nrun/\u00fc 1.avi;0\r\njump/b, c.avi;1\r\n",
    ],
)
def test_tables_are_read_as_lists_are(tmp_path, text, encoding):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_bytes(text.encode(encoding))
    test.write_bytes("run/d.avi,9,0\njump/e.avi,8,1\n".encode(encoding))
    split = list_split(train, test)
    assert [video.id for video in split.train] == ["run/\u00fc 1", "jump/b, c"]
    assert [(video.id, video.listed_count) for video in split.test] == [("run/d", 9), ("jump/e", 8)]
    train.write_bytes("run/\u00fc 1.avi 0\njump/b c.avi 1\n".encode(encoding))  # without commas
    assert [video.id for video in list_split(train, test).train] == ["run/\u00fc 1", "jump/b c"]


def test_tables_are_read_by_their_header(tmp_path):
    train = write(
        tmp_path / "a.csv", "label,frames,video,by\n0,9,run/a.avi,me\n1,8,jump/b.avi,me\n"
    )
    test = write(tmp_path / "b.csv", "file,label,frames\njump/c.avi,1,7\n")
    split = list_split(train, test)
    assert [(video.id, video.listed_count) for video in split.train] == [
        ("run/a", 9),
        ("jump/b", 8),
    ]
    assert split.test == (Video("jump/c", "jump", "c", 7),)
    for header in ("file,kind", "name,label"):
        with raises(r"c.csv: expected a header .* a column label, got"):
            list_split(train, write(tmp_path / "c.csv", f"{header}\nrun/a.avi,0\n"))
    with raises(r"c.csv, row 2: expected"):
        list_split(train, write(tmp_path / "c.csv", "label,frames,file\n0,9\n"))


def ucf_lists(
    tmp_path, index="1 Run\r\n2 Jump\r\n", train="Run/a.avi 1\r\n", test="Jump/b.avi\r\n"
):
    write(tmp_path / "classInd.txt", index)
    write(tmp_path / "trainlist01.txt", train)
    write(tmp_path / "testlist01.txt", test)
    return tmp_path


def test_carriage_returns_are_no_part_of_a_name(tmp_path):
    split = ucf101_split(ucf_lists(tmp_path))
    assert split.classes == ("Run", "Jump")
    assert (split.train[0].id, split.test[0].id) == ("Run/a", "Jump/b")


def test_blanks_are_part_of_a_name_and_test_lists_may_carry_labels(tmp_path):
    split = ucf101_split(ucf_lists(tmp_path, train="Run/a 7.avi 1\n", test="Jump/b c.avi 2\n"))
    assert (split.train[0].id, split.test[0].id) == ("Run/a 7", "Jump/b c")


def raises(message):
    return pytest.raises(SplitError, match=message)


def test_official_lists_that_do_not_agree_are_refused(tmp_path):
    with raises("line 1: label 2 for class 'Run', which is number 1"):
        ucf101_split(ucf_lists(tmp_path, train="Run/a.avi 2\n"))
    with raises("line 2: class 'Swim' is not in"):
        ucf101_split(ucf_lists(tmp_path, test="Jump/b.avi\nSwim/c.avi\n"))
    with raises("videos listed more than once: Run/a"):
        ucf101_split(ucf_lists(tmp_path, test="Run/a.avi\n"))
    with raises("numbered from 1"):
        ucf101_split(ucf_lists(tmp_path, index="1 Run\n3 Jump\n"))
    with raises(r"expected one file \*trainlist02.txt, found 0"):
        ucf101_split(ucf_lists(tmp_path), 2)
    with raises("files named CLASS_test_split1.txt, found none"):
        hmdb51_split(tmp_path)
    write(tmp_path / "run_test_split1.txt", "a.avi 3\n")
    with raises("run_test_split1.txt, line 1: expected NAME.avi"):
        hmdb51_split(tmp_path)


def test_list_files_that_do_not_agree_are_refused(tmp_path):
    good = write(tmp_path / "good.txt", "run/a 9 0\njump/b 9 1\n")
    for text, message in {
        "run/a 9 x\n": 'line 1: expected "path count label"',
        "run/a 9 0\nrun/b 1\n": "all lines",
        "": "an empty file",
        "run/c 9 1\n": "each label from 0 to 1",
    }.items():
        with raises(message):
            list_split(good, write(tmp_path / "bad.txt", text))
    with raises(r"good.txt, line 2: label 1, but .*names.txt has 1 classes"):
        list_split(good, good, classes=write(tmp_path / "names.txt", "run\n"))
    with raises("none.txt: no such file"):
        list_split(good, tmp_path / "none.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with raises("pipe.txt: expected a plain file"):
        list_split(good, tmp_path / "pipe.txt")


def test_folders_that_cannot_be_split_are_refused():
    with raises("at least two class folders, got 1"):
        folder_split(["jump/a", "jump/b"])
    with raises("a: expected videos in class folders"):
        folder_split(["a"])
    with raises("class 'c0' has 1 source groups, too few"):
        folder_split(made_ids(groups=1))
    with raises("a fold within them, got 4 of 4"):
        folder_split(made_ids(), fold=4)
    with raises(r"nothing to hold out in fold 0 of 10.*--no-heldout"):
        hold_out(replace(folder_split(made_ids()), train=()))


def test_files_that_are_no_split_are_refused(tmp_path):
    with raises("no flowkit split there: flowkit split make"):
        read_split(tmp_path / "none.json")
    for text, message in {
        "{": "expected a flowkit split, in JSON",
        "[]": "expected a flowkit split",
        '{"format": "flowkit split", "version": 9}': "of version 1, got version 9: a later flowkit",
        '{"format": "flowkit split", "version": 1}': "not of this format",
        '{"format": "flowkit split", "version": 1, "name": 7, "classes": [], "train": [], '
        '"heldout": [], "test": []}': "expected a text, got 7",
    }.items():
        with raises(message):
            read_split(write(tmp_path / "split.json", text))


def test_splits_that_contradict_themselves_are_refused():
    split = made_split()
    with raises("videos listed more than once: run/a"):
        replace(split, test=split.train)
    with raises("classes that are not listed: jump"):
        replace(split, classes=("run",))
    with raises("classes listed more than once: run"):
        replace(split, classes=("run", "run", "jump"))
    with raises("got 'val'"):
        split.part("val")


def test_a_changed_split_is_refused_until_its_checksum_is_taken_away(tmp_path):
    path = tmp_path / "split.json"
    write_split(path, folder_split([f"{name}/v{k}" for name in "ab" for k in range(8)]))
    path.write_text(path.read_text().replace("a/v3", "a/v9"))
    with pytest.raises(SplitError, match="checksum does not agree"):
        read_split(path)
    path.write_text(re.sub(r'"crc32": ".*"', '"crc32": ""', path.read_text()))
    split = read_split(path)
    assert "a/v9" in {video.id for video in (*split.train, *split.test)}


@pytest.mark.parametrize("line", ["a/v1 20 {}", "a/v1 {} 0"])
def test_a_number_of_5000_digits_in_a_list_is_refused(tmp_path, line):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text(line.format("9" * 5000) + "\n")
    test.write_text("a/w1 20 0\nb/w2 20 1\n")
    with pytest.raises(SplitError, match=r'train\.txt.*expected "path count label"'):
        list_split(train, test)
