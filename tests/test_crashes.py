"""Cut at every system call: what was written is whole or absent, and never half."""

import numpy as np
import pytest
from made_crashes import SYNCS, Crashes
from made_records import write_record

from flowkit.data.splits import Split, Video, read_split, write_split
from flowkit.documents import replacing
from flowkit.records.layout import Storage
from flowkit.records.packing import pack_record, unpack_record
from flowkit.records.reading import find_records, open_record
from flowkit.records.verify import verify_record
from flowkit.records.writing import RecordWriter
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.series import Series

STORAGES = {
    "folder": {"format": "npy"},
    "pack": {"format": "npy", "pack": True},
    "many folders": {"format": "png", "layout": "twostreamfusion"},
}
FORWARD = Series("forward", 1)
SHAPE = (6, 7)


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    """A busy disk takes minutes for what these tests only count."""
    for name in ("os.fsync", *SYNCS):
        monkeypatch.setattr(name, lambda _: None)


def write(out, value, storage, *, fields=2):
    """The record "a" of so many fields of one value, and in `storage`; replaces what is there."""
    asked = Storage(**storage)
    with RecordWriter(out, "a", asked, (FORWARD,)) as writer:
        for _ in range(fields + 1):
            writer.add_frame(np.full((*SHAPE, 3), value, np.uint8))
        for _ in range(fields):
            writer.add_field(FORWARD, np.full((*SHAPE, 2), value, np.float32))
        writer.commit({"request": asked.identity(), "fps": 25.0}, overwrite=True)


def values_of(out):
    """The (value, number) of the fields of each record below; AssertionError if one is broken."""
    found = set()
    for path in find_records(out):
        verdict = verify_record(path)
        assert verdict.kind == "sound", verdict
        record = open_record(path)
        fields = record.fields(0, record.field_count())
        assert np.ptp(fields) < 0.1
        found.add((round(float(fields.mean())), len(fields)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, *STORAGES])
@pytest.mark.parametrize("new", STORAGES)
def test_a_record_is_the_old_one_or_the_new_one_or_none(tmp_path, old, new):
    if old and ("many folders" in (old, new)) and old != new:
        pytest.skip("another layout has other places")
    out, after = tmp_path / "out", tmp_path / "after"
    out.mkdir()
    if old:
        write(out, 1, STORAGES[old], fields=3)
    with Crashes(out) as crashes:
        write(out, 2, STORAGES[new])
    seen = set()
    for name, make in crashes.states(after):
        make()
        found = values_of(after)
        assert found in (set(), {(1, 3)}, {(2, 2)}), name
        seen |= found
        if "kill" in name:  # and the next run goes on from there
            write(after, 2, STORAGES[new])
            assert values_of(after) == {(2, 2)}, name
    crashes.make_last(after)
    assert values_of(after) == {(2, 2)}
    assert seen == {(2, 2)} | ({(1, 3)} if old else set())


@pytest.mark.parametrize("pack", [True, False])
def test_packing_and_unpacking_always_leave_a_sound_record(tmp_path, pack):
    out, after = tmp_path / "out", tmp_path / "after"
    path = write_record(out, "a", np.ones((2, *SHAPE, 2), np.float32), pack=not pack).path
    with Crashes(out) as crashes:
        pack_record(path) if pack else unpack_record(path)
    for name, make in crashes.states(after):
        make()
        assert values_of(after) == {(1, 2)}, name
        path = next(find_records(after))
        if path.is_dir() == pack:
            pack_record(path) if pack else unpack_record(path)
        assert values_of(after) == {(1, 2)}, name
    crashes.make_last(after)
    assert [p.suffix for p in find_records(after)] == [".zip" if pack else ""]


def scores_of(value):
    values = np.full((1, 2), 0.5, np.float32)
    return Scores((f"v{value}",), ("a", "b"), values, np.array([0]), {"kind": "softmax"})


def split_of(value):
    return Split(f"made-{value}", ("a",), (Video(f"a/{value}", "a", "g"),), (), ())


FILES = {
    "scores": (
        lambda file, value: write_scores(file, scores_of(value)),
        lambda file: int(read_scores(file).videos[0][1:]),
    ),
    "split": (
        lambda file, value: write_split(file, split_of(value)),
        lambda file: int(read_split(file).name[-1]),
    ),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path, kind, is_there):
    write_file, read_file = FILES[kind]
    out, after = tmp_path / "out", tmp_path / "after"
    out.mkdir()
    if is_there:
        write_file(out / "file.npz", 1)
    with Crashes(out) as crashes:
        write_file(out / "file.npz", 2)
    for name, make in crashes.states(after):
        make()
        there = (after / "file.npz").exists()
        assert there or not is_there, name
        assert not there or read_file(after / "file.npz") in ((1, 2) if is_there else (2,)), name
    crashes.make_last(after)
    assert read_file(after / "file.npz") == 2


def test_the_model_sees_what_is_not_synced(tmp_path):
    out, after = tmp_path / "out", tmp_path / "after"
    out.mkdir()
    with Crashes(out) as crashes:
        (out / "part").write_text("text")
        (out / "part").rename(out / "file")
    torn = []
    for name, make in crashes.states(after):
        make()
        if (after / "file").exists() and (after / "file").read_text() != "text":
            torn.append(name)
    assert torn and all("power cut" in name for name in torn)
    with Crashes(out) as crashes, replacing(out / "file") as part:
        part.write_text("new")
    for name, make in crashes.states(after):
        make()
        assert (after / "file").read_text() in ("text", "new"), name
