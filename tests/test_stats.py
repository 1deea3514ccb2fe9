"""Statistics of records: counted by hand, by the files on the disk, and by the pixels."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from command import run_here
from made_records import write_record

from flowkit.records.statistics import record_facts, summarize
from flowkit.report.records_page import histogram

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


def test_a_bound_that_clips_less_says_which_smaller_one_clips_one_percent(tmp_path):
    fields = np.zeros((3, 20, 20, 2), np.float32)  # 2,400 displacements
    fields[0, 0, :12, 0] = 7  # 0.5% at the bound
    fields[0, 1, :18, 0] = 3.3  # 0.75%: with those above, 1.25% from 3.3 px on
    write_record(tmp_path, "a", fields, format="png", bound=7)
    summary = summarize([record_facts(tmp_path / "a", "a", pixels=True)])
    assert summary["lost"] == 12 / 2400
    assert summary["bound_1_percent"] == pytest.approx(3.3, abs=7 / 254 + 1 / 16)
    assert summary["clipped_by_bound"] == {"5": pytest.approx(12 / 2400)}  # 10 px: not known


def test_frames_that_are_too_large_are_not_read_for_pixels(flow):
    done = run_here("stats", "-j", 1, "--pixels", "--max-frame-mpx", 0.001, cwd=flow.parent)
    assert done.returncode == 1 and b"megapixels (--max-frame-mpx)" in done.stderr


def test_the_page_stands_alone_and_shows_counts_charts_and_odd_videos(flow):
    os.rename(flow / "jump/b.zip", flow / "jump/<b>.zip")
    done = run_here("stats", "-j", 1, "--pixels", "--html", "s.html", cwd=flow.parent)
    assert done.returncode == 0, done.stderr
    assert b"wrote s.html" in done.stderr
    page = (flow.parent / "s.html").read_text()
    assert "<script" not in page and "http:" not in page and "url(" not in page
    assert page.count(" frames: 1 videos</title>") == 3  # 4, 12 and 13 frames
    assert page.count("<figure>") == page.count('alt="flow of') == 2  # jump/b and sit/c
    assert "still: the median field moves at most 0 px" in page
    assert "<b>" not in page.partition("Worth a look")[2]  # the name, as text
    assert "jump/&lt;b&gt;" in page
    assert "would clip 1%" in page


def test_the_page_names_records_that_cannot_be_read_and_why_a_picture_is_missing(flow):
    sidecar = flow / "jump/a/record.json"
    sidecar.write_bytes(sidecar.read_bytes()[:-40])
    (flow / "sit/c" / f"flow_x_{1 + STILL // 2:05}.jpg").write_bytes(b"no image")
    done = run_here("stats", "-j", 1, "--html", "s.html", cwd=flow.parent)
    assert done.returncode == 1
    page = (flow.parent / "s.html").read_text()
    assert "Not read" in page and "jump/a" in page.partition("Not read")[2]
    assert "damaged image" in page


def test_a_page_replaces_no_other_file(flow):
    kept = flow.parent / "notes.txt"
    kept.write_text("mine")
    done = run_here("stats", "-j", 1, "--html", kept, cwd=flow.parent)
    assert done.returncode == 2 and b"not a page" in done.stderr and kept.read_text() == "mine"


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1, 2, 3, 4] * 50 + [900], [5, 5.5, 8]])
def test_bars_count_every_value_once(values):
    said = re.findall(r"<title>([\d.]+) (?:to below ([\d.]+)|and more) px: ([\d,]+)", _bars(values))
    for low, high, count in said:
        inside = [one for one in values if float(low) <= one < float(high or "inf")]
        assert len(inside) == int(count), (low, high)
    assert sum(int(count) for *_, count in said) == len(values) and len(said) < 30


def _bars(values):
    return histogram(values, "px")
