"""Records of the videos of a split: matched by id whatever their spelling, and checked."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_records import write_record

from flowkit.data.record_folders import RecordFolder, check_split, folder_ids, match_records
from flowkit.data.split_lists import hmdb51_split, ucf101_split
from flowkit.data.splits import Split, Video
from flowkit.errors import RecordError, SplitError
from flowkit.records.foreign import ForeignRecord
from flowkit.video.sources import find_videos


def real_ids(folder):
    return {source.id: source.path for source in find_videos([folder]).sources}


def test_hmdb51_lists_find_the_files_whose_names_were_changed(real_data):
    """Files on disk have "@" where the lists have "#" or "&"."""
    available = real_ids(real_data / "jhmdb10")
    hmdb = hmdb51_split(real_data / "splits/testTrainMulti_7030_splits")
    with (real_data / "jhmdb10/clips.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["hmdb51_list_name"]]
    listed = {
        f"{row['class']}/{row['hmdb51_list_name'].removesuffix('.avi')}": row["file"]
        for row in rows
    }
    videos = [video for video in hmdb.train + hmdb.test if video.id in listed]
    found = match_records(videos, available)
    assert len(found) == 467
    for id, path in found.items():
        assert path.name == listed[id]
    assert sum(path.stem != Path(id).name for id, path in found.items()) == 12


def test_jhmdb10_lists_find_every_file(real_data):
    split = ucf101_split(real_data / "jhmdb10")
    assert len(match_records(split.train + split.test, real_ids(real_data / "jhmdb10"))) == 468


def paths(*ids):
    return {id: Path("flow") / id for id in ids}


def test_records_are_matched_by_id_before_anything_else():
    videos = [Video("jump/A", "jump", ""), Video("jump/a", "jump", "")]
    found = match_records(videos, paths("jump/a", "jump/A"))
    assert found == {"jump/A": Path("flow/jump/A"), "jump/a": Path("flow/jump/a")}


def test_records_are_matched_over_the_case_of_a_folder_and_without_class_folders():
    videos = [Video("HandstandPushups/v_HandStandPushups_g01_c01", "HandstandPushups", "g01")]
    for id in ("HandStandPushups/v_HandStandPushups_g01_c01", "v_HandstandPushups_g01_c01"):
        assert list(match_records(videos, paths(id)).values()) == [Path("flow") / id]


def test_a_record_of_the_same_name_in_another_class_is_not_taken():
    with pytest.raises(SplitError, match="no flow record: jump/a"):
        match_records([Video("jump/a", "jump", "")], paths("run/a"))


def test_two_records_spelled_alike_are_refused():
    with pytest.raises(SplitError, match="jump/a#: 2 records are spelled like it"):
        match_records([Video("jump/a#", "jump", "")], paths("jump/A@", "jump/a&"))


def test_missing_records_are_one_error_that_counts_and_names_them():
    videos = [Video(f"jump/{k}", "jump", str(k)) for k in range(9)]
    with pytest.raises(SplitError) as error:
        match_records(videos, paths("jump/0"))
    assert "no flow record: jump/1, jump/2" in str(error.value)
    assert "and 3 more" in str(error.value) and "flowkit extract" in str(error.value)
    assert match_records(videos, paths("jump/0"), missing="skip") == paths("jump/0")


def fields(count, size=(8, 10)):
    return np.zeros((count, *size, 2), np.float32)


def made_split(**counts):
    videos = [Video(id, id.split("/")[0], id, counts.get(id[-1])) for id in ("jump/a", "run/b")]
    return Split("made", ("jump", "run"), tuple(videos), (), (Video("run/c", "run", "c"),))


def made_folder(root):
    write_record(root, "jump/a", fields(12), fields(12))
    write_record(root, "run/b", fields(4), pack=True)
    write_record(root, "run/c", fields(9, (6, 8)), frames=np.zeros((10, 6, 8, 3), np.uint8))
    return RecordFolder(root)


def test_records_are_found_in_folders_and_packs(tmp_path):
    folder = made_folder(tmp_path)
    found = folder.find()
    assert list(found) == ["jump/a", "run/b", "run/c"]
    assert [folder.open(place).field_count() for place in found.values()] == [12, 4, 9]


def test_ids_below_a_folder_are_of_records_or_of_videos(tmp_path):
    assert folder_ids(made_folder(tmp_path / "flow")) == ["jump/a", "run/b", "run/c"]
    for name in ("run/a.b.avi", "jump/c.mp4", "jump/notes.txt"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    assert folder_ids(RecordFolder(tmp_path / "videos")) == ["jump/c", "run/a.b"]
    write_record(tmp_path, "run/v", fields(2), format="jpg", layout="twostreamfusion")
    assert folder_ids(RecordFolder(tmp_path, layout="twostreamfusion")) == ["v"]


def test_check_counts_what_a_training_should_know(tmp_path):
    check = check_split(made_split(), made_folder(tmp_path), length=10)
    assert (check.missing, check.without_frames, check.without_backward) == (0, 2, 2)
    assert check.looped == 2 and check.sizes == {(6, 8): 1, (8, 10): 2}


def test_check_finds_missing_records(tmp_path):
    folder = made_folder(tmp_path)
    shutil.rmtree(tmp_path / "jump")
    with pytest.raises(SplitError, match="no flow record: jump/a"):
        check_split(made_split(), folder)
    assert check_split(made_split(), folder, missing="skip").missing == 1


def test_listed_counts_may_be_of_frames_or_of_fields_but_not_mixed(tmp_path):
    folder = made_folder(tmp_path)
    check_split(made_split(a=13, b=5), folder)
    check_split(made_split(a=12, b=4), folder)
    with pytest.raises(SplitError, match=r"1 of 2 .*run/b has 5 frames and 4 fields"):
        check_split(made_split(a=12, b=6), folder)


def test_records_of_several_methods_are_refused_as_training_refuses_them(tmp_path):
    folder = made_folder(tmp_path)
    shutil.rmtree(tmp_path / "jump")
    write_record(tmp_path, "jump/a", fields(12), format="jpg", bound=20)
    with pytest.raises(RecordError, match=r"run/b.zip: its flow is not that of .*jump/a: .*format"):
        check_split(made_split(), folder)


def test_groups_on_both_sides_are_an_error(tmp_path):
    videos = (Video("run/b", "run", "g01"), Video("run/c", "run", "g01"))
    split = Split("leaky", ("run",), videos[:1], (), videos[1:])
    with pytest.raises(SplitError, match="videos in two parts: run: g01"):
        check_split(split, made_folder(tmp_path))


def test_a_video_in_a_folder_and_in_a_pack_is_refused(tmp_path):
    write_record(tmp_path, "run/a", fields(3))
    pack = write_record(tmp_path / "other", "run/a", fields(3), pack=True).path
    pack.rename(tmp_path / "run/a.zip")
    with pytest.raises(RecordError, match="two records of one video"):
        RecordFolder(tmp_path).find()


def test_a_folder_without_records_says_what_makes_them(tmp_path):
    with pytest.raises(RecordError, match="no flow records there"):
        RecordFolder(tmp_path).find()


def test_foreign_folders_are_found_and_opened_as_they_were_told(tmp_path):
    """What flowkit writes in the layout of twostreamfusion is read as that tool would read it."""
    moving = np.random.default_rng(0).normal(0, 2, (4, 16, 24, 2)).astype(np.float32)
    own = write_record(tmp_path, "Run/v_a%d", moving, format="jpg", layout="twostreamfusion")
    folder = RecordFolder(tmp_path, layout="twostreamfusion")
    found = folder.find()
    record = folder.open(found["v_a%d"])
    assert isinstance(record, ForeignRecord) and list(found) == ["v_a%d"]
    np.testing.assert_allclose(record.fields(0, 4), own.fields(0, 4), atol=1e-5)
    matched = match_records([Video("Run/v_a%d", "Run", "")], found)
    assert matched == {"Run/v_a%d": tmp_path / "v_a%d"}
