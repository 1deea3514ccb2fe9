"""Layouts of other tools as flowkit writes them: read back by each tool's own rule."""

import os
import shutil

import numpy as np
import pytest
from made_records import write_record

from flowkit._cv2 import cv2
from flowkit.errors import RecordError, UsageError
from flowkit.records.foreign import find_foreign, open_foreign
from flowkit.records.layout import LAYOUTS, Storage, written_layouts
from flowkit.records.ownership import remove_record
from flowkit.records.packing import pack_record
from flowkit.records.reading import find_records, open_record
from flowkit.records.verify import verify_record
from flowkit.video.sources import find_videos

BOUND, COUNT, SIZE = 20.0, 4, (12, 16)  # px, fields, (H, W)
# px of a code, as these tools read planes: flowkit's own, zero on 128, are 1.5 of them away at most
CODE = 2 * BOUND / 255
STORED = {"bound": BOUND, "format": "png", "rgb": True}


def fields():
    return np.random.default_rng(0).normal(0, 4, (COUNT, *SIZE, 2)).astype(np.float32)


def frames():
    return np.stack([np.full((*SIZE, 3), 10 * k, np.uint8) for k in range(COUNT + 1)])


def make(out, layout, id="Run/v_a%d", **options):
    return write_record(
        out, id, fields(), -fields(), frames=frames(), layout=layout, **{**STORED, **options}
    )


def test_denseflow_counts_from_0_and_names_steps(tmp_path):
    record = make(tmp_path, "denseflow")
    names = sorted(os.listdir(tmp_path / "Run/v_a%d"))
    expected = [f"flow_{c}_{k:05d}.png" for c in "xy" for k in range(COUNT)]
    expected += [f"flow_{c}_m1_{k:05d}.png" for c in "xy" for k in range(1, COUNT + 1)]
    expected += [f"img_{k:05d}.jpg" for k in range(COUNT + 1)]
    assert names == sorted([*expected, "record.json"])
    assert (
        np.abs(record.fields(0, COUNT) - fields().clip(-BOUND, BOUND)).max() <= BOUND / 254 + 1e-6
    )
    assert [int(record.frame(k).mean().round(-1)) for k in range(3)] == [0, 10, 20]
    # a plane of the backward fields has the number of the frame that the field starts from
    plane = cv2.imread(str(tmp_path / "Run/v_a%d/flow_x_m1_00002.png"), cv2.IMREAD_GRAYSCALE)
    assert np.abs((plane - 127.5) * CODE + fields()[1, ..., 0]).max() < 1.5 * CODE


def test_what_is_written_as_denseflow_is_read_as_denseflows(tmp_path):
    record = make(tmp_path / "own", "denseflow")
    shutil.copytree(tmp_path / "own", tmp_path / "theirs")
    (tmp_path / "theirs/Run/v_a%d/record.json").unlink()
    [path] = find_foreign(tmp_path / "theirs", layout="denseflow")
    theirs = open_foreign(path, layout="denseflow", bound=BOUND)
    assert (theirs.directions, theirs.steps) == (record.directions, record.steps)
    assert theirs.frame_count == record.frame_count == COUNT + 1
    for direction in record.directions:
        found = theirs.fields(0, COUNT, direction=direction)
        true = fields() if direction == "forward" else -fields()
        assert np.abs(found - true.clip(-BOUND, BOUND)).max() <= 1.5 * CODE
    exact = open_foreign(path, layout="denseflow", bound=BOUND * 255 / 254, zero=128)
    np.testing.assert_allclose(exact.fields(0, COUNT), record.fields(0, COUNT), atol=1e-5)


def test_further_steps_of_denseflow_are_named(tmp_path):
    record = write_record(
        tmp_path, "a", fields(), fields(), step=2, **{**STORED, "rgb": False}, layout="denseflow"
    )
    assert (tmp_path / "a/flow_x_p2_00000.png").exists()
    assert (tmp_path / "a/flow_y_m2_00005.png").exists()
    (tmp_path / "a/record.json").rename(tmp_path / "kept.json")
    theirs = open_foreign(tmp_path / "a", layout="denseflow", bound=BOUND)
    assert (theirs.steps, theirs.frame_count) == ((2,), record.frame_count)


def charades_stack(root, video, *, flow):
    """A video as the Charades data set of pytorch-i3d reads it: (F, H, W, C) within -1..1.

    Frames are counted by the files of the video's folder, and numbered from 1.
    """
    count = len(os.listdir(root / video))
    if flow:
        names = [[f"{video}-{k:06d}{c}.png" for c in "xy"] for k in range(1, count // 2 + 1)]
        planes = [
            [cv2.imread(str(root / video / n), cv2.IMREAD_GRAYSCALE) for n in p] for p in names
        ]
        return np.stack(planes).transpose(0, 2, 3, 1) / 255 * 2 - 1
    names = [f"{video}-{k:06d}.jpg" for k in range(1, count + 1)]
    return np.stack([cv2.imread(str(root / video / name)) for name in names]) / 255 * 2 - 1


def test_i3d_reads_flow_and_frames_by_its_own_rule(tmp_path):
    record = make(tmp_path, "pytorch-i3d")
    found = charades_stack(tmp_path / "flow", "v_a%d", flow=True)
    assert found.shape == (COUNT, *SIZE, 2)
    assert np.abs(found * BOUND - fields().clip(-BOUND, BOUND)).max() <= 1.5 * CODE
    back = charades_stack(tmp_path / "flow_backward", "v_a%d", flow=True)
    assert np.abs(back * BOUND + fields().clip(-BOUND, BOUND)).max() <= 1.5 * CODE
    seen = charades_stack(tmp_path / "rgb", "v_a%d", flow=False)
    assert len(seen) == COUNT + 1 == record.frame_count
    assert list(find_records(tmp_path)) == [tmp_path / "records/v_a%d"]
    [path] = find_foreign(tmp_path / "flow", layout="pytorch-i3d")
    with pytest.raises(RecordError, match="flowkit's own"):
        open_foreign(path, layout="pytorch-i3d", bound=BOUND)


@pytest.mark.parametrize("layout", written_layouts())
def test_every_layout_is_sound_found_passed_over_as_video_and_removed_whole(tmp_path, layout):
    make(tmp_path / "flow", layout)
    [path] = find_records(tmp_path / "flow")
    assert verify_record(path).kind == "sound"
    video = tmp_path / "flow/b.mp4"
    video.write_bytes(b"some video")
    assert [one.path for one in find_videos([tmp_path / "flow"]).sources] == [video]
    video.unlink()
    remove_record(path)
    assert [one for one in (tmp_path / "flow").rglob("*") if one.is_file()] == []


def test_a_strangers_number_in_denseflows_names_is_not_flowkits(tmp_path):
    make(tmp_path, "denseflow")
    stranger = tmp_path / f"Run/v_a%d/flow_x_{COUNT:05d}.png"
    stranger.write_bytes(b"mine")
    with pytest.raises(RecordError, match="holds what is not flowkit's"):
        remove_record(tmp_path / "Run/v_a%d")
    assert stranger.exists() and open_record(tmp_path / "Run/v_a%d").frame(0).shape == (*SIZE, 3)


def test_records_in_other_layouts_are_not_packed(tmp_path):
    make(tmp_path, "denseflow")
    with pytest.raises(RecordError, match="another layout than flowkit's"):
        pack_record(tmp_path / "Run/v_a%d")


@pytest.mark.parametrize("layout", [n for n in written_layouts() if LAYOUTS[n].ranges is None][1:])
def test_layouts_of_one_range_need_a_bound_and_planes(layout):
    with pytest.raises(UsageError, match="one range for all planes: give --bound"):
        Storage(layout=layout)
    for wrong in ({"format": "lz4"}, {"format": "npy"}, {"format": "jpg", "pack": True}):
        with pytest.raises(UsageError, match="holds jpg or png files, without --pack"):
            Storage(layout=layout, **wrong)
