"""Flow that other tools wrote: each layout and quantizer gives the px values that were meant."""

import pickle

import cv2
import numpy as np
import pytest

from flowkit.clips import Clip
from flowkit.errors import RecordError, UsageError
from flowkit.foreign import LAYOUTS, find_foreign, open_foreign
from flowkit.stacks import StackForm, flow_stack

COUNT, SIZE = 5, (16, 24)


def write_image(path, value):
    """A constant plane (its code comes through JPEG unchanged) or a frame of one gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(SIZE, value, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 100])


def write_video(root, layout, name="v_Run_g01_c01", count=COUNT, images=None):
    """Planes of a video, field k of codes (20 + k, 200 - k), and its frames, k of gray 40 + k.

    Written out by hand, file by file, so that no template of the reader is used.
    """
    frames = count + 1 if images is None else images
    folder = root / name
    for k in range(count):
        match layout:
            case "mmaction2" | "tsn":
                x, y = (folder / f"flow_{c}_{k + 1:05d}.jpg" for c in "xy")
            case "short names":
                x, y = (folder / f"{c}_{k + 1:05d}.jpg" for c in "xy")
            case "denseflow":
                x, y = (folder / f"flow_{c}_{k:05d}.jpg" for c in "xy")
            case "twostreamfusion":
                x, y = (root / c / name / f"frame{k + 1:06d}.jpg" for c in "uv")
            case "pytorch-i3d":
                x, y = (folder / f"{name}-{k + 1:06d}{c}.jpg" for c in "xy")
        write_image(x, 20 + k)
        write_image(y, 200 - k)
    for k in range(frames):
        match layout:
            case "mmaction2" | "short names" | "pytorch-i3d":
                write_image(folder / f"img_{k + 1:05d}.jpg", 40 + k)
            case "denseflow":
                write_image(folder / f"img_{k:05d}.jpg", 40 + k)
            case "tsn":
                if k:
                    write_image(folder / f"img_{k:05d}.jpg", 40 + k)
            case "twostreamfusion":
                write_image(root / "jpegs_256" / name / f"frame{k + 1:06d}.jpg", 40 + k)
    return folder


def write_ranges(root, name="v_Run_g01_c01", count=COUNT):
    ranges = np.array([[-1 - k, 4 + k, -2, 3] for k in range(count)], "<f4")
    ranges.tofile(root / "u" / f"{name}.bin")
    return ranges


@pytest.mark.parametrize("layout", [*LAYOUTS, "short names"])
def test_every_layout_gives_its_fields_and_frames(tmp_path, layout):
    path = write_video(tmp_path, layout)
    asked = "mmaction2" if layout == "short names" else layout
    record = open_foreign(path, layout=asked, bound=20)
    assert (record.size, record.name) == (SIZE, "v_Run_g01_c01")
    assert (record.field_count(), record.frame_count) == (COUNT, COUNT + 1)
    assert (record.directions, record.steps) == (("forward",), (1,))
    fields = record.fields(1, 3)
    assert fields.shape == (3, *SIZE, 2) and fields.dtype == np.float32
    for k in range(3):
        expected = [(20 + 1 + k - 128) * 40 / 255, (200 - 1 - k - 128) * 40 / 255]
        np.testing.assert_allclose(fields[k], np.full((*SIZE, 2), expected), atol=1e-5)
    for k in range(1, COUNT + 1):
        assert record.frame(k).shape == (*SIZE, 3) and (record.frame(k) == 40 + k).all()


def quantizers(value):
    """What tools that say "+-20 px" do to a displacement (the facts, written out)."""
    scaled = (np.clip(value, -20, 20) + 20) * 255 / 40
    return {"round": np.rint(scaled), "truncate": np.floor(scaled)}


@pytest.mark.parametrize("rule, zero", [("round", 128), ("truncate", 127)])
def test_zero_says_which_code_stands_still(tmp_path, rule, zero):
    values = np.linspace(-19, 19, COUNT)
    values[2] = 0
    codes = quantizers(values)[rule]
    for k, code in enumerate(codes):
        for c in "xy":
            write_image(tmp_path / f"flow_{c}_{k + 1:05d}.jpg", int(code))
    fields = open_foreign(tmp_path, layout="mmaction2", bound=20, zero=zero).fields(0, COUNT)
    assert (fields[2] == 0).all()
    np.testing.assert_allclose(fields[:, 0, 0, 0], values, atol=0.158)  # a code is 0.157 px


def test_exact_decoding_is_within_half_a_code_of_truth_for_tools_that_truncate(tmp_path):
    values = np.random.default_rng(0).uniform(-19, 19, 40)
    for k, code in enumerate(quantizers(values)["truncate"]):
        for c in "xy":
            write_image(tmp_path / f"flow_{c}_{k + 1:05d}.jpg", int(code))
    found = open_foreign(tmp_path, layout="mmaction2", bound=20, zero=127).fields(0, 40)[:, 0, 0, 0]
    assert np.abs(found - values).max() <= 20 / 255 + 1e-6


def test_twostreamfusion_ranges_undo_the_planes(tmp_path):
    path = write_video(tmp_path, "twostreamfusion")
    ranges = write_ranges(tmp_path)
    fields = open_foreign(path, layout="twostreamfusion").fields(0, COUNT)
    for k, (lo_x, hi_x, lo_y, hi_y) in enumerate(ranges):
        x = lo_x + (20 + k) / 255 * (hi_x - lo_x)
        y = lo_y + (200 - k) / 255 * (hi_y - lo_y)
        np.testing.assert_allclose(fields[k, 3, 4], [x, y], rtol=1e-5)


def test_foreign_records_make_stacks_like_any_other(tmp_path):
    record = open_foreign(write_video(tmp_path, "denseflow"), layout="denseflow", bound=20)
    found = flow_stack(record, Clip("a", 1, 4), form=StackForm(4, mean_subtract=False))
    assert found.shape == (8, *SIZE)
    np.testing.assert_allclose(found[::2, 0, 0], (np.arange(21, 25) - 128) * 40 / 255, atol=1e-5)


def test_foreign_records_pickle_and_say_what_they_were_told(tmp_path):
    record = open_foreign(write_video(tmp_path, "tsn"), layout="tsn", bound=15, step=2)
    twin = pickle.loads(pickle.dumps(record))
    np.testing.assert_array_equal(twin.fields(0, COUNT, step=2), record.fields(0, COUNT))
    told = {"layout": "tsn", "bound": 15, "zero": 128, "step": 2}
    assert twin.sidecar == {"foreign": told}
    assert record.frame_count == COUNT + 2


def test_records_without_frames_say_so(tmp_path):
    path = write_video(tmp_path, "pytorch-i3d", images=0)
    record = open_foreign(path, layout="pytorch-i3d", bound=20)
    assert not record.has_frames
    with pytest.raises(RecordError, match="holds no frames"):
        record.frame(0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_videos_of_a_folder_are_found(tmp_path, layout):
    names = ["Run/b", "Run/a%d", "Jump/c"] if layout != "twostreamfusion" else ["b", "a%d", "c"]
    for name in names:
        if layout == "pytorch-i3d":
            folder = tmp_path / name
            for c in "xy":
                write_image(folder / f"{folder.name}-000001{c}.jpg", 128)
        else:
            write_video(tmp_path, layout, name, count=2)
    found = list(find_foreign(tmp_path, layout=layout))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(names)
    for path in found:
        assert open_foreign(path, layout=layout, bound=20).name == path.name


def refused(path, message, error=RecordError, **options):
    options = {"layout": "mmaction2", "bound": 20, **options}
    with pytest.raises(error, match=message):
        open_foreign(path, **options)


def test_requests_that_cannot_be_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2")
    refused(path, "expected a layout of mmaction2, tsn", UsageError, layout="mmlab")
    refused(path, "stores no ranges: give the bound", UsageError, bound=None)
    refused(path, "expected a bound above 0 px", UsageError, bound=-1)
    with pytest.raises(RecordError, match="no such folder"):
        list(find_foreign(tmp_path / "none", layout="tsn"))


def test_planes_of_another_layout_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2")
    refused(path, "no flow_x_00000.jpg or x_00000.jpg", layout="denseflow")
    refused(tmp_path / "none", "no flow_x_00001.jpg or x_00001.jpg")


def test_gaps_and_unequal_counts_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2")
    (path / "flow_y_00005.jpg").unlink()
    refused(path, "as many x as y planes, got 5 and 4")
    (path / "flow_x_00003.jpg").unlink()
    refused(path, "found flow_x_00004.jpg but no flow_x_00003.jpg")


def test_frames_that_cannot_belong_to_the_fields_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2", images=9)
    refused(path, "expected 5 to 6 frames beside 5 fields, got 9")


def test_ranges_that_do_not_fit_are_refused(tmp_path):
    path = write_video(tmp_path, "twostreamfusion")
    options = {"layout": "twostreamfusion", "bound": None}
    refused(path, "v_Run_g01_c01.bin: no ranges there", **options)
    write_ranges(tmp_path, count=4)
    refused(path, "4 finite floats for each of 5 fields, got 16", **options)


def test_damaged_planes_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2")
    (path / "flow_x_00002.jpg").write_bytes(b"\xff\xd8 no jpeg")
    record = open_foreign(path, layout="mmaction2", bound=20)
    with pytest.raises(RecordError, match=r"flow_x_00002\.jpg: damaged or truncated image"):
        record.fields(0, 3)
    (path / "flow_x_00001.jpg").write_bytes(b"")
    refused(path, "flow_x_00001.jpg: damaged image")


def test_errors_name_files_by_the_other_tools_numbers(tmp_path):
    path = write_video(tmp_path, "denseflow")
    record = open_foreign(path, layout="denseflow", bound=20)
    (path / "flow_y_00000.jpg").write_bytes(b"")
    (path / "img_00003.jpg").write_bytes(b"")
    with pytest.raises(RecordError, match=r"flow_y_00000\.jpg: damaged or truncated image"):
        record.fields(0, 3)
    with pytest.raises(RecordError, match=r"img_00003\.jpg: damaged or truncated image"):
        record.frame(3)
    (path / "flow_x_00004.jpg").unlink()
    with pytest.raises(RecordError, match=r"flow_x_00004\.jpg: file is missing"):
        record.fields(4, 1)
