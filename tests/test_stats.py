"""Statistics of records: counted by hand, by the files on the disk, and by the pixels."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from command import run_here
from made_records import write_record

from flowkit.records.statistics import record_facts, summarize

MOVING, STILL = 12, 11  # fields


def field(px, size=(32, 40)):
    """x grows to `px` from left to right, y is half of it the other way."""
    line = np.linspace(0, px, size[1], dtype=np.float32)
    x = np.broadcast_to(line, size)
    return np.stack([x, -x / 2], 2)


@pytest.fixture
def flow(tmp_path):
    flow = tmp_path / "flow"
    write_record(flow, "jump/a", np.stack([field(2 + k) for k in range(MOVING)]), format="jpg")
    write_record(flow, "jump/b", np.stack([field(4)] * 3), format="png", pack=True)
    write_record(flow, "sit/c", np.stack([field(0)] * STILL), format="jpg")
    return flow


def facts(flow, id, **options):
    path = flow / id
    return record_facts(path if path.is_dir() else Path(f"{path}.zip"), id, **options)


def files_below(path):
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    return len(found), sum(one.stat().st_size for one in found if one.is_file())


@pytest.mark.parametrize("id", ["jump/a", "jump/b", "sit/c"])
def test_bytes_and_inodes_are_those_on_the_disk(flow, id):
    one = facts(flow, id)
    path = flow / id
    assert (one.inodes, one.bytes) == files_below(path if path.is_dir() else Path(f"{path}.zip"))


def test_motion_by_the_sidecar_is_that_of_the_pixels_but_for_a_step_of_a_plane(flow):
    by_sidecar, by_pixels = facts(flow, "jump/a"), facts(flow, "jump/a", pixels=True)
    expected = np.median([2 + k for k in range(MOVING)])
    assert by_sidecar.motion == pytest.approx(expected, rel=1 / 254)
    assert by_pixels.motion == pytest.approx(expected, abs=0.3)  # after JPEG
    assert facts(flow, "sit/c").motion == 0 and facts(flow, "sit/c").still_fields == 1
    assert [one.class_name for one in (by_sidecar, facts(flow, "sit/c"))] == ["jump", "sit"]


def test_odd_videos_say_why(flow, tmp_path):
    assert facts(flow, "jump/a").oddities() == []
    assert facts(flow, "jump/b").oddities() == ["3 fields, fewer than a stack of 10"]
    assert facts(flow, "sit/c").oddities() == ["still: the median field moves at most 0 px"]
    wild = np.stack([field(11)] * 12)
    [reason] = facts_of(tmp_path / "odd", "x/wild", wild).oddities()
    assert reason == "the median field moves up to 11 px"
    frozen = np.stack([field(2), field(0), field(1)] * 4)
    [reason] = facts_of(tmp_path / "odd", "x/frozen", frozen).oddities()
    assert reason == "nothing moves in 33% of its fields"


def facts_of(flow, id, fields, **storage):
    write_record(flow, id, fields, **{"format": "png", **storage})
    return record_facts(flow / id, id)


def test_records_with_a_bound_need_pixels(tmp_path):
    fields = np.stack([field(9, (8, 10))] * 12)  # x is 0, 1, ... 9; y is -0.5 x
    write_record(tmp_path, "a", fields, format="png", bound=7)
    assert record_facts(tmp_path / "a", "a").motion is None
    one = record_facts(tmp_path / "a", "a", pixels=True)
    assert one.motion == 7
    summary = summarize([one])
    assert summary["lost"] == 3 / 20  # columns of 7, 8 and 9 px, of x alone
    assert summary["bound_1_percent"] is None  # what was clipped is not known


def test_the_bound_that_clips_one_percent_is_that_of_the_values(tmp_path):
    random = np.random.default_rng(0)
    fields = random.exponential(2, (3, 50, 50, 2)).astype(np.float32)
    write_record(tmp_path, "a", fields)  # floats
    summary = summarize([record_facts(tmp_path / "a", "a", pixels=True)])
    assert summary["bound_1_percent"] == pytest.approx(np.quantile(fields, 0.99), abs=1 / 16)
    assert summary["lost"] is None


def test_the_command_tells_and_lists(flow):
    done = run_here("stats", "-j", 1, "--json", cwd=flow.parent)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["videos"], told["frames"], told["fields"]) == (3, 29, MOVING + 3 + STILL)
    assert told["seconds"] == pytest.approx(29 / 25)
    assert told["methods"] == {"unknown": 3} and told["sizes"] == {"40x32": 3}
    assert told["stored"] == {"jpg": 2, "png, packed": 1}
    assert told["lengths"] == {"shortest": 4, "median": 12, "longest": 13}
    assert [(one["class"], one["videos"]) for one in told["classes"]] == [("jump", 2), ("sit", 1)]
    assert set(told["odd"]) == {"jump/b", "sit/c"}
    text = run_here("stats", "-j", 1, cwd=flow.parent).stdout.decode()
    assert text.startswith("3 videos of 2 classes, 29 frames (1.2 s of video), 26 forward fields\n")
    assert "lengths: 4 to 13 frames, median 12\n" in text and "worth a look: 2 videos\n" in text


def test_a_bad_record_is_named_and_the_rest_is_told(flow):
    sidecar = flow / "jump/a/record.json"
    sidecar.write_bytes(sidecar.read_bytes()[:-40])
    done = run_here("stats", "-j", 1, "--json", cwd=flow.parent)
    assert done.returncode == 1
    assert b"failed: jump/a: " in done.stderr and json.loads(done.stdout)["videos"] == 2


def test_a_folder_without_records_is_an_error(tmp_path):
    os.mkdir(tmp_path / "flow")
    done = run_here("stats", cwd=tmp_path)
    assert done.returncode == 1 and b"no flow records there" in done.stderr
