"""Flow stacks against a slow and obvious reference, values worked by hand, and their laws."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_records import write_record

from flowkit.data import stacks, trajectories
from flowkit.data.clips import Clip, View, center_view, ten_views
from flowkit.data.stacks import StackForm, flip, flow_stack, flow_stacks, stack, stack_batch
from flowkit.errors import RecordError, UsageError

MODES = ("flow", "trajectory")


def rough_fields(length=6, height=9, width=13, scale=4.0, seed=0):
    """White noise: paths jump about and often meet the border."""
    noise = np.random.default_rng(seed).normal(0, scale, (length, height, width, 2))
    return noise.astype(np.float32)


def smooth_fields(length=6, height=24, width=31, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 8.0
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.normal(0, 1, (2 * length, 3))]
    fields = np.stack(waves).reshape(length, 2, height, width).transpose(0, 2, 3, 1)
    return (2.5 * fields + rng.normal(0, 1, (length, 1, 1, 2))).astype(np.float32)


def mirrored_fields(fields):
    return fields[:, :, ::-1] * np.float32([-1, 1])


def sample(field, x, y):
    """Bilinear, in double, at a point within the frame."""
    height, width = field.shape[:2]
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    a, b = x - left, y - top
    upper = (1 - a) * field[top, left] + a * field[top, left + 1]
    lower = (1 - a) * field[top + 1, left] + a * field[top + 1, left + 1]
    return (1 - b) * upper + b * lower


def slow_stack(fields, *, mode, mean_subtract):
    """Equations 1 and 2 of the paper, a pixel at a time, in double."""
    fields = fields.astype(np.float64)
    length, height, width, _ = fields.shape
    stacked = np.zeros((2 * length, height, width))
    for v in range(height):
        for u in range(width):
            x, y = float(u), float(v)
            for k, field in enumerate(fields):
                d = sample(field, x, y) if mode == "trajectory" else field[v, u]
                kept = d - field.mean(axis=(0, 1)) if mean_subtract else d
                stacked[2 * k, v, u], stacked[2 * k + 1, v, u] = kept
                x = min(max(x + d[0], 0.0), width - 1.0)
                y = min(max(y + d[1], 0.0), height - 1.0)
    return stacked


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mean_subtract", [False, True])
def test_stack_equals_the_equations_of_the_paper(mode, mean_subtract):
    fields = smooth_fields()
    expected = slow_stack(fields, mode=mode, mean_subtract=mean_subtract)
    found = stack(fields, mode=mode, mean_subtract=mean_subtract)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_bidirectional_stack_is_both_halves_each_on_its_own_path(mode):
    forward, backward = smooth_fields(3, seed=1), smooth_fields(3, seed=2)
    halves = [slow_stack(half, mode=mode, mean_subtract=True) for half in (forward, backward)]
    found = stack(forward, backward, mode=mode)
    np.testing.assert_allclose(found, np.concatenate(halves), atol=2e-5)


def test_channels_are_x1_y1_x2_y2():
    fields = np.zeros((2, 2, 3, 2), np.float32)
    fields[0, ..., 0], fields[0, ..., 1], fields[1, ..., 0], fields[1, ..., 1] = 1, 2, 3, 4
    assert stack(fields, mean_subtract=False)[:, 0, 0].tolist() == [1, 2, 3, 4]


def test_all_fields_run_the_loop_that_a_parent_compiles_for_its_workers():
    fields = np.zeros((2, 8, 9, 2), np.float32)
    cut = np.zeros((2, 8, 12, 2), np.float32)[:, :, :9]
    read_only = fields.copy()
    read_only.flags.writeable = False
    for given in (fields, cut, read_only):
        assert not stack(given, mode="trajectory").any()
    assert len(trajectories.compiled().signatures) == 1


def test_trajectory_worked_by_hand():
    fields = np.zeros((3, 2, 4, 2), np.float32)
    fields[0, 0, 0] = (1.5, 0)  # from column 0 to column 1.5
    fields[1, 0, :, 0] = (10, 2, 4, 8)  # between 2 and 4 lies 3: on to 4.5, kept at column 3
    fields[2, 0, :, 0] = (1, 2, 3, 7)
    found = stack(fields, mode="trajectory", mean_subtract=False)
    assert found[:, 0, 0].tolist() == [1.5, 0, 3, 0, 7, 0]


def test_a_point_that_would_leave_the_frame_stays_on_its_border_and_comes_back_from_there():
    fields = np.zeros((3, 3, 4, 2), np.float32)
    fields[0, 1, 1] = (-5, 0)  # would be at column -4: it stays at 0
    fields[1, 1, 0] = (2, 1)  # from (0, 1) to (2, 2)
    fields[2, 2, 2] = (0.25, -7)
    found = stack(fields, mode="trajectory", mean_subtract=False)
    assert found[:, 1, 1].tolist() == [-5, 0, 2, 1, 0.25, -7]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mean_subtract", [False, True])
@pytest.mark.parametrize("backward", [None, rough_fields(seed=5)], ids=["forward", "both"])
def test_mirrored_video_gives_the_mirrored_stack_bit_for_bit(mode, mean_subtract, backward):
    options = {"mode": mode, "mean_subtract": mean_subtract}
    forward = rough_fields(seed=4)
    forward[:, 2:4] = smooth_fields(6, 2, 13)
    back = None if backward is None else mirrored_fields(backward)
    expected = flip(stack(forward, backward, **options))
    np.testing.assert_array_equal(stack(mirrored_fields(forward), back, **options), expected)


def test_flip_reverses_columns_and_negates_every_x_and_no_y():
    stacked = rough_fields(2, 3, 5).transpose(0, 3, 1, 2).reshape(4, 3, 5)
    flipped = flip(stacked)
    for channel, sign in enumerate((-1, 1, -1, 1)):
        np.testing.assert_array_equal(flipped[channel], sign * stacked[channel, :, ::-1])
    np.testing.assert_array_equal(flip(flipped), stacked)
    batch = torch.from_numpy(np.stack([stacked, 2 * stacked]))
    np.testing.assert_array_equal(flip(batch)[1].numpy(), 2 * flipped)


@pytest.mark.parametrize("mean_subtract", [False, True])
def test_constant_flow_makes_trajectory_stacking_equal_to_stacking(mean_subtract):
    values = np.random.default_rng(0).normal(0, 3, (5, 1, 1, 2)).astype(np.float32)
    fields = np.tile(values, (1, 11, 17, 1))
    one, other = (stack(fields, mode=mode, mean_subtract=mean_subtract) for mode in MODES)
    np.testing.assert_array_equal(one, other)


def test_the_first_pair_of_channels_is_the_same_in_both_modes():
    fields = rough_fields()
    one, other = (stack(fields, mode=mode) for mode in MODES)
    np.testing.assert_array_equal(one[:2], other[:2])
    assert not np.array_equal(one[2:], other[2:])


def test_means_come_off_the_stored_values_and_leave_the_path_alone():
    fields = rough_fields()
    fields += np.float32([3, -2])
    raw = stack(fields, mode="trajectory", mean_subtract=False)
    means = fields.mean(axis=(1, 2), dtype=np.float64).reshape(-1, 1, 1)
    np.testing.assert_allclose(stack(fields, mode="trajectory"), raw - means, atol=1e-6)


def test_subtracting_the_mean_twice_changes_nothing():
    once = stack(rough_fields() + np.float32(7))
    again = once.reshape(-1, 2, *once.shape[1:]).transpose(0, 2, 3, 1).copy()
    np.testing.assert_allclose(stack(again), once, atol=1e-6)
    np.testing.assert_allclose(once.mean(axis=(1, 2)), 0, atol=1e-6)


def test_mean_is_of_the_whole_field_and_not_of_the_crop():
    fields = rough_fields()
    crop = View((9, 13), 2, 3, 4, 5)
    for mode in MODES:
        whole = stack(fields, mode=mode)
        np.testing.assert_array_equal(stack(fields, mode=mode, crop=crop), whole[:, 2:6, 3:8])


def test_inputs_are_not_changed():
    fields = rough_fields()
    before = fields.copy()
    for mode in MODES:
        stack(fields, fields, mode=mode)
    np.testing.assert_array_equal(fields, before)


def check_batch(found_of, mode, backward):
    forward = np.stack([rough_fields(seed=s) for s in range(3)])
    back = np.stack([rough_fields(seed=s) for s in range(5, 8)]) if backward else None
    views = [View((9, 13), 0, 2, 7, 8), View((9, 13), 2, 5, 7, 8, True), View((9, 13), 1, 0, 7, 8)]
    tensors = [torch.from_numpy(half) for half in (forward, back) if half is not None]
    found = found_of(tensors, views)
    assert found.shape == (3, 24 if backward else 12, 7, 8) and found.dtype == torch.float32
    for k, view in enumerate(views):
        half = None if back is None else back[k]
        expected = stack(forward[k], half, mode=mode, crop=view)
        expected = flip(expected) if view.flip else expected
        np.testing.assert_allclose(found[k].cpu().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backward", [False, True])
def test_batch_on_the_cpu_equals_the_numpy_form(mode, backward):
    check_batch(lambda fields, views: stack_batch(*fields, mode=mode, views=views), mode, backward)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backward", [False, True])
def test_batch_in_the_operations_that_a_device_runs_equals_the_numpy_form(
    mode, backward, monkeypatch
):
    monkeypatch.setattr(stacks, "PART", 2)  # the three samples come in two parts

    def on_tensors(fields, views):
        pair = (*fields, None)[:2]
        return stacks._stack_tensors(*pair, mode, True, views)

    check_batch(on_tensors, mode, backward)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_batch_on_a_gpu_equals_the_numpy_form(mode):
    def on_gpu(fields, views):
        return stack_batch(*(half.cuda() for half in fields), mode=mode, views=views)

    check_batch(on_gpu, mode, True)


def test_batch_without_views_is_of_whole_frames():
    fields = rough_fields()
    np.testing.assert_array_equal(stack_batch(torch.from_numpy(fields[None]))[0], stack(fields))


def numbered_record(tmp_path, fields=12, size=(6, 8), **options):
    """Forward field i is (i, 0) and backward field i (-100 - i, 0), everywhere."""
    forward = np.zeros((fields, *size, 2), np.float32)
    forward[..., 0] = np.arange(fields)[:, None, None]
    backward = np.zeros_like(forward)
    backward[..., 0] = -100 - np.arange(fields)[:, None, None]
    return write_record(tmp_path, "jump/a", forward, backward, **options)


def xs(stacked):
    return stacked[0::2, 0, 0].tolist()


RAW = {"mean_subtract": False}


def test_record_stack_takes_the_fields_of_the_clip(tmp_path):
    record = numbered_record(tmp_path)
    found = flow_stack(record, Clip("jump/a", 3, 4), form=StackForm(4, **RAW))
    assert found.shape == (8, 6, 8) and xs(found) == [3, 4, 5, 6]


def test_bidirectional_record_stack_goes_both_ways_from_the_middle_frame(tmp_path):
    record = numbered_record(tmp_path)
    form = StackForm(6, bidirectional=True, **RAW)
    # Frames 2..8; from frame 5: fields 5->6, 6->7, 7->8, then 5->4, 4->3, 3->2.
    found = flow_stack(record, Clip("jump/a", 2, 6), form=form)
    assert xs(found) == [5, 6, 7, -104, -103, -102]


def test_short_video_is_looped(tmp_path):
    record = numbered_record(tmp_path, fields=3)
    found = flow_stack(record, Clip("jump/a", 0, 8), form=StackForm(8, **RAW))
    assert xs(found) == [0, 1, 2, 0, 1, 2, 0, 1]
    form = StackForm(4, bidirectional=True, **RAW)
    # Middle frame 2: forward fields 2, 0; backward fields 1 (frame 2 to 1) and 0.
    assert xs(flow_stack(record, Clip("jump/a", 0, 4), form=form)) == [2, 0, -101, -100]


def test_fields_over_several_frames_are_taken_end_to_end(tmp_path):
    record = numbered_record(tmp_path, step=2)
    clip = Clip("jump/a", 1, 4, step=2)
    assert xs(flow_stack(record, clip, form=StackForm(4, step=2, **RAW))) == [1, 3, 5, 7]


def test_view_rescales_fields_as_vectors(tmp_path):
    record = numbered_record(tmp_path, size=(8, 10))
    view = View((16, 30), 4, 5, 12, 12, flip=True)
    clip, form = Clip("jump/a", 2, 3), StackForm(3, **RAW)
    found = flow_stack(record, clip, view, form=form)
    assert found.shape == (6, 12, 12)
    np.testing.assert_allclose(found[0::2, 3, 3], [-6, -9, -12], rtol=1e-6)  # 3 x wider, mirrored
    half = flow_stack(record, clip, view, form=form, size=(6, 6))
    np.testing.assert_allclose(half[0::2, 3, 3], [-3, -4.5, -6], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_ten_views_of_one_reading_are_those_of_ten_readings(tmp_path, mode):
    record = write_record(tmp_path, "a", smooth_fields(), smooth_fields(seed=1))
    clip, form = Clip("a", 0, 6), StackForm(6, mode=mode, bidirectional=True)
    views = ten_views(record.size, crop=20, short_side=24)
    together = flow_stacks(record, clip, views, form=form)
    for view, found in zip(views, together, strict=True):
        np.testing.assert_array_equal(found, flow_stack(record, clip, view, form=form))
    np.testing.assert_array_equal(together[5:], flip(together[:5]))


def test_stack_of_a_jpeg_record_is_near_the_fields(tmp_path):
    fields = smooth_fields(10, 64, 80)
    record = write_record(tmp_path, "a", fields, format="jpg", pack=True)
    found = flow_stack(record, Clip("a", 0, 10), center_view(record.size, crop=56, short_side=64))
    expected = stack(fields)[:, 4:60, 12:68]
    assert np.abs(found - expected).mean() < 0.02


REFUSED = {
    "expected an even L": lambda: StackForm(5, bidirectional=True),
    "expected L and a step of at least 1": lambda: StackForm(0),
    "expected a mode of flow or trajectory": lambda: StackForm(mode="path"),
    r"float32 \(L, H, W, 2\)": lambda: stack(np.zeros((2, 3, 4, 2))),
    "of one shape": lambda: stack(rough_fields(4), rough_fields(3)),
    "a mode of flow or": lambda: stack(rough_fields(), mode="path"),
    "a crop of a frame of": lambda: stack(rough_fields(), crop=View((8, 8), 0, 0, 2, 2)),
    "a view for each of 1": lambda: stack_batch(
        torch.from_numpy(rough_fields()[None]), views=[View((9, 13), 0, 0, 2, 2)] * 2
    ),
    "crops of one size": lambda: stack_batch(
        torch.zeros(2, 1, 9, 13, 2), views=[View((9, 13), 0, 0, k, 2) for k in (2, 3)]
    ),
    "within a frame": lambda: View((8, 8), 4, 0, 5, 5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_stacked_is_refused(message):
    with pytest.raises(UsageError, match=message):
        REFUSED[message]()


def test_clip_of_another_length_than_the_form_is_refused(tmp_path):
    record = numbered_record(tmp_path)
    with pytest.raises(UsageError, match="a clip of 4 fields of step 1, got 6 of 1"):
        flow_stack(record, Clip("jump/a", 0, 6), form=StackForm(4))


def test_record_without_backward_fields_is_an_error_that_says_so(tmp_path):
    record = write_record(tmp_path, "a", rough_fields())
    with pytest.raises(RecordError, match="no backward fields"):
        flow_stack(record, Clip("a", 0, 4), form=StackForm(4, bidirectional=True))


def test_fields_that_are_no_numbers_are_refused(tmp_path):
    fields = rough_fields()
    fields[1, 2, 3, 0] = np.nan
    record = write_record(tmp_path, "a", fields)
    with pytest.raises(RecordError, match="got NaN or infinity"):
        flow_stack(record, Clip("a", 0, 4))


def test_the_lines_of_the_docs_give_a_tensor(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs/stacks.md").read_text()
    lines = text.partition("```python\n")[2].partition("```")[0]
    record = write_record(tmp_path / "flow", "jump/a", smooth_fields(30), format="jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(lines, names)
    expected = stack(record.fields(10, 10), mode="trajectory")
    np.testing.assert_array_equal(names["stacked"], expected)


def test_importing_stacks_imports_nothing_heavy():
    code = "import flowkit.data.stacks, sys; print({'torch', 'cv2', 'numba'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
