"""Flow that other tools wrote: each layout and quantizer gives the px values that were meant."""

import pickle
import struct

import cv2
import numpy as np
import pytest
from made_records import write_record

from flowkit.data.clips import Clip
from flowkit.data.stacks import StackForm, flow_stack
from flowkit.errors import RecordError, UsageError
from flowkit.records.foreign import find_foreign, open_foreign
from flowkit.records.layout import read_layouts

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
            case "pytorch-i3d":
                write_image(folder / f"{name}-{k + 1:06d}.jpg", 40 + k)
            case "mmaction2" | "short names":
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


@pytest.mark.parametrize("layout", [*read_layouts(), "short names"])
def test_every_layout_gives_its_fields_and_frames(tmp_path, layout):
    path = write_video(tmp_path, layout)
    asked = "mmaction2" if layout == "short names" else layout
    record = open_foreign(path, layout=asked, bound=20)
    assert (record.size, record.name, record.format) == (SIZE, "v_Run_g01_c01", "jpg")
    assert (record.field_count(), record.frame_count) == (COUNT, COUNT + 1)
    assert (record.directions, record.steps) == (("forward",), (1,))
    fields = record.fields(1, 3)
    assert fields.shape == (3, *SIZE, 2) and fields.dtype == np.float32
    for k in range(3):
        expected = [(20 + 1 + k - 127.5) * 40 / 255, (200 - 1 - k - 127.5) * 40 / 255]
        np.testing.assert_allclose(fields[k], np.full((*SIZE, 2), expected), atol=1e-5)
    for k in range(1, COUNT + 1):
        assert record.frame(k).shape == (*SIZE, 3) and (record.frame(k) == 40 + k).all()


def quantizers(value):
    """What tools that say "+-20 px" do to a displacement (the facts, written out)."""
    scaled = (np.clip(value, -20, 20) + 20) * 255 / 40
    return {"round": np.rint(scaled), "truncate": np.floor(scaled)}


@pytest.mark.parametrize("layout", ["denseflow", "mmaction2", "tsn", "pytorch-i3d"])
def test_tools_that_round_leave_no_bias(tmp_path, layout):
    """Their zero lies between two codes: with 128 all came out .078 px too small."""
    values = np.random.default_rng(0).normal(0, 3, (40, *SIZE))
    folder = tmp_path / "v"
    folder.mkdir()
    for k, plane in enumerate(quantizers(values)["round"].astype(np.uint8)):
        for c in "xy":
            name = {"denseflow": f"flow_{c}_{k:05d}.jpg", "pytorch-i3d": f"v-{k + 1:06d}{c}.jpg"}
            path = folder / name.get(layout, f"flow_{c}_{k + 1:05d}.jpg")
            assert cv2.imwrite(str(path), plane, [cv2.IMWRITE_JPEG_QUALITY, 100])
    fields = open_foreign(folder, layout=layout, bound=20).fields(0, 40)
    assert abs((fields[..., 0] - values.clip(-20, 20)).mean()) < 0.01


@pytest.mark.parametrize("rule, zero", [("round", 127.5), ("truncate", 127)])
def test_zero_says_which_code_stands_still(tmp_path, rule, zero):
    values = np.linspace(-19, 19, COUNT)
    values[2] = 0
    for k, code in enumerate(quantizers(values)[rule]):
        for c in "xy":
            write_image(tmp_path / f"flow_{c}_{k + 1:05d}.jpg", int(code))
    fields = open_foreign(tmp_path, layout="mmaction2", bound=20, zero=zero).fields(0, COUNT)
    still = {"round": 0.5 * 40 / 255, "truncate": 0}[rule]  # still pixels are rounded to 128
    np.testing.assert_allclose(fields[2], still, atol=1e-6)
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
    np.testing.assert_allclose(found[::2, 0, 0], (np.arange(21, 25) - 127.5) * 40 / 255, atol=1e-5)


def test_foreign_records_pickle_and_say_what_they_were_told(tmp_path):
    record = open_foreign(write_video(tmp_path, "tsn"), layout="tsn", bound=15, step=2)
    twin = pickle.loads(pickle.dumps(record))
    np.testing.assert_array_equal(twin.fields(0, COUNT, step=2), record.fields(0, COUNT))
    told = {"layout": "tsn", "bound": 15, "zero": 127.5, "step": 2}
    assert twin.sidecar == {"foreign": told}
    assert record.frame_count == COUNT + 2


def test_records_without_frames_say_so(tmp_path):
    path = write_video(tmp_path, "pytorch-i3d", images=0)
    record = open_foreign(path, layout="pytorch-i3d", bound=20)
    assert not record.has_frames
    with pytest.raises(RecordError, match="holds no frames"):
        record.frame(0)


@pytest.mark.parametrize("layout", read_layouts())
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
    refused(path, "there is flow_x_00001.jpg", layout="denseflow")
    refused(tmp_path / "none", "no flow_x_00001.jpg or x_00001.jpg; there are no images")
    with pytest.raises(RecordError, match=r"no flow_x_00000.jpg .* v_Run_g01_c01/flow_x_00001"):
        list(find_foreign(tmp_path, layout="denseflow"))
    refused(write_video(tmp_path, "denseflow", "b"), "from 1, found flow_x_00000.jpg: is it anoth")


def test_gaps_and_unequal_counts_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2")
    (path / "flow_y_00005.jpg").unlink()
    refused(path, "as many x as y planes, got 5 and 4")
    (path / "flow_x_00003.jpg").unlink()
    refused(path, "found flow_x_00004.jpg but no flow_x_00003.jpg")


def test_more_images_than_fields_are_the_frames_by_their_numbers(tmp_path):
    """As in mmaction2's own test data: 10 images beside 5 fields."""
    record = open_foreign(
        write_video(tmp_path, "mmaction2", images=10), layout="mmaction2", bound=20
    )
    assert (record.field_count(), record.frame_count) == (COUNT, COUNT + 1)
    assert [record.frame(k)[0, 0, 0] for k in range(COUNT + 1)] == list(range(40, 46))


def test_frames_that_cannot_belong_to_the_fields_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2", images=4)
    refused(path, "at least 5 images beside 5 fields, got 4")


def test_tsn_has_as_many_images_as_fields_and_names_the_layout_that_has_more(tmp_path):
    """An image more is mmaction2's first frame: read as TSN's, every frame would come one late."""
    path = write_video(tmp_path, "mmaction2")
    refused(path, "got 6 beside 5: layout mmaction2", layout="tsn")
    assert open_foreign(path, layout="mmaction2", bound=20).frame(0)[0, 0, 0] == 40


def test_frames_that_were_not_stored_are_given_as_their_neighbor(tmp_path):
    record = open_foreign(write_video(tmp_path, "tsn"), layout="tsn", bound=20)
    assert [record.frame(k)[0, 0, 0] for k in range(3)] == [41, 41, 42]
    record = open_foreign(
        write_video(tmp_path / "b", "mmaction2", images=5), layout="mmaction2", bound=20
    )
    assert [record.frame(k)[0, 0, 0] for k in (4, 5)] == [44, 44]


def write_series(folder, name, first, count, end="jpg"):
    for k in range(count):
        for c, code in zip("xy", (20, 60), strict=True):
            write_image(folder / f"flow_{c}_{name}{first + k:05d}.{end}", code + k)


@pytest.mark.parametrize("end", ["jpg", "png"])
def test_denseflow_says_the_steps_in_its_names(tmp_path, end):
    """Backward planes are numbered by the frame that they start from, so _m2_ begins at 2."""
    write_series(tmp_path / "v", "p2_", 0, 5, end)
    write_series(tmp_path / "v", "m2_", 2, 5, end)
    record = open_foreign(tmp_path / "v", layout="denseflow", bound=20)
    assert (record.steps, record.directions) == ((2,), ("forward", "backward"))
    assert record.frame_count == 7
    for direction in record.directions:
        fields = record.fields(1, 2, step=2, direction=direction)
        expected = [(21 - 127.5) * 40 / 255, (61 - 127.5) * 40 / 255]
        np.testing.assert_allclose(fields[0, 0, 0], expected, atol=1e-5)
    write_series(tmp_path / "v", "", 0, 6, end)
    assert open_foreign(tmp_path / "v", layout="denseflow", bound=20).steps == (1, 2)
    assert list(find_foreign(tmp_path, layout="denseflow")) == [tmp_path / "v"]


def test_denseflows_steps_that_do_not_agree_are_refused(tmp_path):
    write_series(tmp_path, "m2_", 2, 5)
    refused(tmp_path, "no flow_x_00000.jpg .*there is flow_x_m2_00002.jpg", layout="denseflow")
    write_series(tmp_path, "", 0, 5)
    refused(tmp_path, "of one video, got 5 forward of step 1, 5 back", layout="denseflow")
    refused(tmp_path, "its names say the steps", UsageError, layout="denseflow", step=2)


@pytest.mark.parametrize(
    "name, message",
    [
        ("flow_00000.png", "denseflow's png, both components in one"),
        ("flow_p2_00000.png", "denseflow's png, both components in one"),
        ("flow_00001.jpg", "one image for both components"),
        ("a.h5", "HDF5: make images"),
    ],
)
def test_forms_that_no_layout_reads_are_refused_by_name(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    for layout in ("denseflow", "mmaction2"):
        refused(tmp_path, rf"there is {name} \({message}", layout=layout)
        with pytest.raises(RecordError, match=rf"there is {name} \({message}"):
            list(find_foreign(tmp_path, layout=layout))


def test_flow_in_the_channels_of_a_color_image_is_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2")
    plane = np.full((*SIZE, 3), (128, 90, 0), np.uint8)
    assert cv2.imwrite(str(path / "flow_x_00001.jpg"), plane)
    refused(path, "gray plane of one component, got a color image")
    plane[:] = 128
    assert cv2.imwrite(str(path / "flow_x_00001.jpg"), plane)
    assert open_foreign(path, layout="mmaction2", bound=20).size == SIZE


def test_records_of_flowkit_are_not_read_as_another_tools(tmp_path):
    """Their step is bound / 127, not 2 bound / 255: every value would come out too small."""
    fields = np.zeros((3, *SIZE, 2), np.float32)
    write_record(tmp_path, "a", fields, format="jpg", bound=20)
    refused(tmp_path / "a", "flowkit's own: leave the layout out")
    write_record(tmp_path / "b", "a", fields, format="jpg", bound=20, layout="twostreamfusion")
    own = "flowkit's own"
    refused(tmp_path / "b" / "a", own, layout="twostreamfusion")
    assert open_foreign(tmp_path / "b" / "a", layout="twostreamfusion").field_count() == 3
    path = write_video(tmp_path, "mmaction2", "theirs")
    (path / "record.json").write_text('{"format": "of something else"}')
    assert open_foreign(path, layout="mmaction2", bound=20).field_count() == COUNT


def test_ranges_that_do_not_fit_are_refused(tmp_path):
    path = write_video(tmp_path, "twostreamfusion")
    options = {"layout": "twostreamfusion", "bound": None}
    refused(path, "v_Run_g01_c01.bin: no ranges there", **options)
    write_ranges(tmp_path, count=4)
    refused(path, "4 finite floats for each of 5 fields, got 64 bytes", **options)


def test_planes_too_large_are_refused_before_one_is_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path, "mmaction2")
    plane = path / "flow_x_00001.jpg"
    data = cv2.imencode(".bmp", np.zeros((4, 4), np.uint8))[1].tobytes()
    plane.write_bytes(data[:18] + struct.pack("<ii", 16000, 16000) + data[26:])
    monkeypatch.setattr("flowkit.records.formats.decode_image", None)
    with pytest.raises(RecordError, match=r"more than 40 megapixels \(--max-frame"):
        open_foreign(path, layout="mmaction2", bound=20)


def test_damaged_planes_are_refused(tmp_path):
    path = write_video(tmp_path, "mmaction2")
    (path / "flow_x_00002.jpg").write_bytes(b"\xff\xd8 no jpeg")
    record = open_foreign(path, layout="mmaction2", bound=20)
    with pytest.raises(RecordError, match=r"flow_x_00002\.jpg: damaged image"):
        record.fields(0, 3)
    (path / "flow_x_00001.jpg").write_bytes(b"")
    refused(path, "flow_x_00001.jpg: damaged image")


def test_errors_name_files_by_the_other_tools_numbers(tmp_path):
    path = write_video(tmp_path, "denseflow")
    record = open_foreign(path, layout="denseflow", bound=20)
    (path / "flow_y_00000.jpg").write_bytes(b"")
    (path / "img_00003.jpg").write_bytes(b"")
    with pytest.raises(RecordError, match=r"flow_y_00000\.jpg: damaged image"):
        record.fields(0, 3)
    with pytest.raises(RecordError, match=r"img_00003\.jpg: damaged image"):
        record.frame(3)
    (path / "flow_x_00004.jpg").unlink()
    with pytest.raises(RecordError, match=r"flow_x_00004\.jpg: file is missing"):
        record.fields(4, 1)
