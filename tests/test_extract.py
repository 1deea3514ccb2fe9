"""Extraction in one process: every field is the method's, and nothing is half done."""

import errno
import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_videos import X264, moving_texture, write_images, write_motion_jpeg, write_video

from flowkit.errors import FlowkitError, UsageError, VideoError
from flowkit.extraction.extract import extract, extract_video, video_fields
from flowkit.extraction.plan import plan, slurm_shard, take_shard
from flowkit.extraction.request import Request, resize_frame, target_size
from flowkit.flow.methods import make_method
from flowkit.flow.pairs import to_gray
from flowkit.flow.stabilized import Stabilization
from flowkit.records.layout import Storage
from flowkit.records.reading import open_record
from flowkit.records.unfinished import INCOMPLETE
from flowkit.records.writing import RecordWriter
from flowkit.video.changes import source_change
from flowkit.video.reading import open_video
from flowkit.video.sources import Source

DIS = make_method("dis")
LOSSLESS = Storage(format="npy")


@pytest.fixture
def video(tmp_path) -> Source:
    return Source(write_video(tmp_path / "a.mp4", moving_texture(6)), "jump/a")


def by_hand(path: Path, first: int, second: int, size=None) -> np.ndarray:
    """The field between two frames of a video by calls of OpenCV alone."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frame = read[1] if size is None else cv2.resize(read[1], size, interpolation=cv2.INTER_AREA)
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    algorithm = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return algorithm.calc(frames[first], frames[second], None)


def test_fields_are_opencvs_forward_backward_and_over_steps(video, tmp_path):
    request = Request(DIS, steps=(1, 3), backward=True, storage=LOSSLESS)
    extracted = extract_video(video, tmp_path / "flow", request)
    assert (extracted.frames, extracted.fields, extracted.written) == (6, 5 + 5 + 3 + 3, True)
    assert set(extracted.seconds) == {"decode", "flow", "encode", "write"}
    record = open_record(tmp_path / "flow" / "jump" / "a")
    for step in (1, 3):
        for t in range(6 - step):
            forward = record.fields(t, 1, step=step)[0]
            assert (forward == by_hand(video.path, t, t + step)).all()
            backward = record.fields(t, 1, direction="backward", step=step)[0]
            assert (backward == by_hand(video.path, t + step, t)).all()


def test_backward_is_computed_and_undoes_forward(video, tmp_path):
    extract_video(video, tmp_path, Request(DIS, backward=True, storage=LOSSLESS))
    record = open_record(tmp_path / "jump" / "a")
    forward, backward = record.fields(2, 1)[0], record.fields(2, 1, direction="backward")[0]
    assert (backward != -forward).any()
    inside = np.s_[16:-16, 16:-16]
    assert np.abs(forward[inside] - [2, 1]).mean() < 0.3
    assert np.abs(backward[inside] + [2, 1]).mean() < 0.3


def test_flow_is_computed_at_the_size_it_is_stored_at(video, tmp_path):
    extract_video(video, tmp_path, Request(DIS, resize="48x36", storage=LOSSLESS))
    record = open_record(tmp_path / "jump" / "a")
    assert record.size == (36, 48)
    assert (record.fields(1, 1)[0] == by_hand(video.path, 1, 2, size=(48, 36))).all()
    assert record.frame(0).shape == (36, 48, 3)


def test_frames_are_stored_beside_the_fields(video, tmp_path):
    extract_video(video, tmp_path, Request(DIS))
    record = open_record(tmp_path / "jump" / "a")
    with open_video(video.path) as opened:
        for t, frame in enumerate(opened.frames()):
            difference = to_gray(record.frame(t)).astype(int) - to_gray(frame)
            assert np.abs(difference).mean() < 2


def test_the_sidecar_says_what_was_done(video, tmp_path):
    extract_video(video, tmp_path, Request(DIS, storage=Storage(bound=20, rgb=False)))
    sidecar = open_record(tmp_path / "jump" / "a").sidecar
    assert sidecar["source"] == {
        "name": "a.mp4",
        "bytes": video.path.stat().st_size,
        "modified_ns": video.path.stat().st_mtime_ns,
        "sha256": hashlib.sha256(video.path.read_bytes()).hexdigest(),
        "size": [72, 96],
        "fps": 25.0,
        "frames_expected": 6,
        "damage": None,
    }
    assert (sidecar["fps"], sidecar["frames"], sidecar["images"]) == (25, 6, None)
    assert sidecar["request"]["method"]["name"] == "dis"
    assert sidecar["request"]["method"]["patch_size"] == 8
    assert sidecar["libraries"]["opencv"] == cv2.__version__


def test_a_folder_of_frames_is_a_video(tmp_path):
    folder = write_images(tmp_path / "frames", moving_texture(4))
    request = Request(DIS, storage=LOSSLESS)
    extract_video(Source(folder, "a"), tmp_path / "flow", request)
    first, second = (cv2.imread(str(folder / f"img_{n:05d}.png"), 0) for n in (1, 2))
    wanted = cv2.DISOpticalFlow_create(1).calc(first, second, None)
    assert np.abs(open_record(tmp_path / "flow" / "a").fields(0, 1)[0] - wanted).max() < 0.2


def test_one_frame_is_no_video(tmp_path):
    source = Source(write_video(tmp_path / "one.mp4", moving_texture(1)), "one")
    with pytest.raises(VideoError, match="1 frame, expected at least 2 for step 1"):
        extract_video(source, tmp_path / "flow", Request(DIS))
    assert not (tmp_path / "flow" / "one").exists()


def test_a_truncated_video_leaves_nothing_unless_asked_to(tmp_path):
    path = write_video(tmp_path / "cut.avi", moving_texture(30), "mjpeg", pixel_format="yuvj420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"damaged: \d+ frames decoded"):
        extract_video(Source(path, "cut"), tmp_path / "flow", Request(DIS))
    assert list((tmp_path / "flow").iterdir()) == []
    kept = extract_video(Source(path, "cut"), tmp_path / "flow", Request(DIS, keep_damaged=True))
    record = open_record(tmp_path / "flow" / "cut")
    assert 2 <= record.frame_count < 30 and record.frame_count == kept.frames
    assert record.sidecar["source"]["damage"] == kept.damage != ""


def test_the_limit_of_a_frame_is_the_requests_and_not_the_records(video, tmp_path):
    narrow = Request(DIS, max_frame_mpx=0.001)
    with pytest.raises(VideoError, match=r"at most 0.001 megapixels, .*--max-frame-mpx"):
        extract_video(video, tmp_path / "flow", narrow)
    assert narrow.identity() == Request(DIS).identity()


@dataclass(frozen=True)
class Forgetful:
    """A method that loses the last field, as a race in a batch would."""

    name = "forgetful"

    def fields(self, pairs):
        *kept, _ = DIS.fields(pairs)
        return iter(kept)


def test_a_method_that_loses_a_field_is_found_out(video, tmp_path):
    with pytest.raises(FlowkitError, match="gave 4 forward fields of step 1 for 6 frames"):
        extract_video(video, tmp_path, Request(Forgetful()))  # type: ignore[arg-type]


def test_a_full_disk_leaves_nothing_and_begins_no_further_video(tmp_path, monkeypatch):
    paths = [write_video(tmp_path / f"{n}.mp4", moving_texture(3)) for n in range(3)]
    sources = [Source(path, path.stem) for path in paths]
    begun = []

    def here(task, items, **options):
        """An engine in this process, so that writing can be made to fail."""
        from flowkit.workers.engine import Done, Failed

        for index, item in enumerate(items):
            begun.append(item.id)
            try:
                yield Done(index, task(item, lambda frames: None), 0.0)
            except OSError as error:
                yield Failed(index, str(error), "error", 0.0, "OSError", error.errno)

    def full(self, files, index, kind):
        if index == 1 and self.folder.name == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, files, index, kind)

    write = RecordWriter._write
    monkeypatch.setattr(RecordWriter, "_write", full)
    outcomes = list(extract(sources, tmp_path / "flow", Request(DIS), workers=1, engine=here))
    assert [(one.source.id, one.status) for one in outcomes] == [("0", "done"), ("1", "failed")]
    assert begun == ["0", "1"] and "No space left on device" in outcomes[1].reason
    assert sorted(p.name for p in (tmp_path / "flow").iterdir()) == ["0"]


def test_planning_leaves_out_what_is_finished_as_asked(video, tmp_path):
    out, request = tmp_path / "flow", Request(DIS)
    assert plan([video], out, request) == [video]
    extract_video(video, out, request)
    assert plan([video], out, request) == []
    assert plan([video], out, request, overwrite=True) == [video]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (Request(DIS, storage=Storage(bound=20)), r"bound: null on disk, 20 asked for"),
        (Request(make_method("dis", patch_size=12)), r"method.patch_size: 8 on disk, 12 asked for"),
        (Request(DIS, steps=(1, 2)), r"steps: \[1\] on disk, \[1, 2\] asked for"),
        (Request(DIS, storage=Storage(pack=True)), "a folder on disk: flowkit pack"),
        (Request(DIS, stabilize=Stabilization()), 'stabilize: null on disk, "homography" asked'),
    ],
)
def test_records_of_other_parameters_are_an_error_before_any_work(
    video, tmp_path, changed, message
):
    extract_video(video, tmp_path, Request(DIS))
    with pytest.raises(UsageError, match=message):
        plan([video], tmp_path, changed)


def test_a_video_that_has_changed_fails_by_name_or_is_done_again_or_kept(video, tmp_path):
    request = Request(DIS)
    extract_video(video, tmp_path, request)
    write_video(video.path, moving_texture(9))
    [refused] = plan([video], tmp_path, request)
    assert re.search(r"changed since .*bytes: \d+ then, \d+ now.*--changed redo", refused.refusal)
    with pytest.raises(VideoError, match=r"a\.mp4: it has changed since"):
        extract_video(refused, tmp_path, request)
    assert plan([video], tmp_path, request, changed="keep") == []
    [again] = plan([video], tmp_path, request, changed="redo")
    assert extract_video(again, tmp_path, request).written
    assert open_record(tmp_path / "jump" / "a").frame_count == 9
    assert plan([video], tmp_path, request) == []


def test_a_copy_of_another_time_is_no_change_and_other_bytes_of_one_size_are(video, tmp_path):
    extract_video(video, tmp_path, Request(DIS))
    os.utime(video.path, ns=(1, 1))
    assert plan([video], tmp_path, Request(DIS)) == []
    data = bytearray(video.path.read_bytes())
    data[len(data) // 2] ^= 1
    video.path.write_bytes(data)
    [refused] = plan([video], tmp_path, Request(DIS))
    assert "other bytes" in refused.refusal


def test_of_a_folder_of_frames_number_names_and_sizes_are_compared(tmp_path):
    folder = write_images(tmp_path / "a", moving_texture(4))
    source, out = Source(folder, "a"), tmp_path / "flow"
    extract_video(source, out, Request(DIS))
    images = sorted(folder.iterdir())
    os.utime(images[0], ns=(1, 1))
    assert plan([source], out, Request(DIS)) == []
    images[-1].write_bytes(images[-1].read_bytes() + b"x")
    assert "other bytes" in plan([source], out, Request(DIS))[0].refusal
    images[-1].unlink()
    assert "other images" in plan([source], out, Request(DIS))[0].refusal


def test_a_record_that_does_not_know_its_source_counts_as_unchanged(video):
    assert source_change(video.path, {"name": "a.mp4"}) == ""
    size = video.path.stat().st_size
    assert source_change(video.path, {"name": "a.mp4", "bytes": size}) == ""
    assert source_change(video.path.parent, {"name": video.path.parent.name, "bytes": None}) == ""


def test_a_record_is_never_written_into_its_own_source(tmp_path):
    folder = write_images(tmp_path / "a", moving_texture(3))
    with pytest.raises(UsageError, match="its record would be written into it"):
        plan([Source(folder, "a")], tmp_path, Request(DIS), overwrite=True)


@pytest.mark.parametrize("pack", [False, True])
def test_a_record_is_never_written_inside_another_or_around_one(video, tmp_path, pack):
    """`video` goes to jump/a: not where jump is a record, nor where jump/a/b is one."""
    request = Request(DIS, storage=Storage(pack=pack))
    outer = Source(video.path, "jump")
    extract_video(outer, tmp_path / "one", request)
    for out in (tmp_path / "one", tmp_path / "one/jump/deeper/down"):
        with pytest.raises(UsageError, match=r"inside the record .*one/jump: rename"):
            plan([video], out, request, overwrite=True)
    inner = Source(video.path, "jump/a/b")
    extract_video(inner, tmp_path / "two", request)
    with pytest.raises(UsageError, match=r"other records, the first .*a/b"):
        plan([video], tmp_path / "two", request, overwrite=True)
    assert plan([inner], tmp_path / "two", request) == []


def test_a_zip_of_something_else_is_in_no_records_way(video, tmp_path):
    (tmp_path / "jump.zip").write_bytes(b"PK of something else")
    assert plan([video], tmp_path, Request(DIS)) == [video]


def test_one_name_in_two_classes_is_an_error_where_the_layout_has_no_classes(tmp_path):
    sources = [
        Source(write_video(tmp_path / f"{n}.mp4", moving_texture(3)), f"{n}/a") for n in "xy"
    ]
    assert plan(sources, tmp_path / "flow", Request(DIS)) == sources
    with pytest.raises(UsageError, match="would share the record"):
        plan(sources, tmp_path / "flow", Request(DIS, storage=Storage(layout="twostreamfusion")))


def test_shares_are_disjoint_complete_and_stable():
    sources = [Source(Path(f"/v/{n}.avi"), f"c/{n}") for n in range(500)]
    shares = [take_shard(sources, index, 7) for index in range(1, 8)]
    assert sorted(one.id for share in shares for one in share) == sorted(s.id for s in sources)
    assert min(len(share) for share in shares) > 40
    assert [one for one in shares[2] if one in sources[:250]] == take_shard(sources[:250], 3, 7)
    with pytest.raises(UsageError, match="expected a shard from 1/7 to 7/7, got 0/7"):
        take_shard(sources, 0, 7)


def slurm_array(task, *tasks, step=1):
    """The environment of one task of an array, as sbatch's manual describes it."""
    numbers = {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks), "STEP": step}
    array = {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}
    return {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", **array}


def test_slurm_tells_the_share():
    assert slurm_shard(slurm_array(14, 10, 12, 14, 16, 18, step=2)) == (3, 5)
    assert slurm_shard({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == (1, 4)
    with pytest.raises(UsageError, match="--shard slurm: expected SLURM_ARRAY_TASK_ID"):
        slurm_shard({})
    with pytest.raises(UsageError, match="--shard slurm: expected SLURM_ARRAY_TASK_ID"):
        slurm_shard({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 4)


@pytest.mark.parametrize("tasks", [range(1, 13), range(12), range(5, 17)])
def test_tasks_of_an_array_do_each_share_once_and_again_the_same(tasks):
    shares = {task: slurm_shard(slurm_array(task, *tasks)) for task in tasks}
    assert sorted(shares.values()) == [(index, 12) for index in range(1, 13)]
    for task in tasks:  # alone, with its neighbors, with all
        for again in ([task], [*tasks][3:8], tasks):
            if task in again:
                assert slurm_shard(slurm_array(task, *again), 12) == shares[task]


def test_slurm_arrays_with_gaps_are_refused_unless_their_total_is_given():
    tasks = (3, 7, 12)
    assert [slurm_shard(slurm_array(task, *tasks), 12) for task in tasks] == [
        (task, 12) for task in tasks
    ]
    for task in tasks:
        with pytest.raises(UsageError, match=r"got 3 from 3 to 12: .* --shard slurm/N"):
            slurm_shard(slurm_array(task, *tasks))
    for total in (0, 9):
        with pytest.raises(UsageError, match=f"tasks of one array of {total}, got .* 3 to 12"):
            slurm_shard(slurm_array(3, *tasks), total)


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        (None, (240, 320)),
        ("256", (256, 341)),
        ("340x256", (256, 340)),
        ("50%", (120, 160)),
        ("0.1%", (1, 1)),
    ],
)
def test_sizes(resize, size):
    assert target_size(resize, (240, 320)) == size
    assert resize_frame(np.zeros((240, 320, 3), np.uint8), size).shape[:2] == size


@pytest.mark.parametrize("resize", ["", "0", "-5", "340*256", "0x0", "x", "half", "0%", "nan%"])
def test_sizes_that_are_none_are_refused(resize):
    with pytest.raises(UsageError, match="expected a size such as 256"):
        Request(DIS, resize=resize)


def test_steps_that_are_none_are_refused():
    for steps in ((), (0,), (2, 2)):
        with pytest.raises(UsageError, match="expected distinct steps of at least 1 frame"):
            Request(DIS, steps=steps)


def test_the_library_in_five_lines(tmp_path, monkeypatch):
    """The example of docs/guide.md, run as it stands there."""
    write_video(tmp_path / "a.mp4", moving_texture(4))
    extract_video(Source(tmp_path / "a.mp4", "a"), tmp_path / "flow", Request(DIS))
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
    example = guide.split("```python\n")[1].split("```")[0].replace("videos/jump/a.avi", "a.mp4")
    names: dict = {}
    exec(example.replace("flow/jump/a", "flow/a"), names)
    assert names["fields"].shape == (3, 72, 96, 2)


def test_fields_of_a_real_clip_are_opencvs(real_data):
    path = sorted((real_data / "ucf101").glob("*/*.avi"))[0]
    fields = video_fields(path, make_method("farneback"), resize="50%")
    capture = cv2.VideoCapture(str(path))
    frames = [to_gray(resize_frame(capture.read()[1], (120, 160))) for _ in range(3)]
    algorithm = cv2.FarnebackOpticalFlow_create()
    for pair in itertools.pairwise(frames):
        assert (next(fields) == algorithm.calc(*pair, None)).all()


def test_a_folder_that_cannot_be_made_or_written_to_is_refused_before_any_work(
    video, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match=r"file/flow: cannot be made: Not a directory"):
        list(extract([video], tmp_path / "file/flow", Request(DIS), workers=1))
    monkeypatch.setattr("os.access", lambda *_: False)  # which root never sees
    with pytest.raises(UsageError, match="flow: cannot be written to: choose another --out"):
        list(extract([video], tmp_path / "flow", Request(DIS), workers=1))
    assert list((tmp_path / "flow").iterdir()) == []


def test_nothing_is_left_below_the_output_but_records(video, tmp_path):
    out = tmp_path / "flow"
    [outcome] = [
        one for one in extract([video], out, Request(DIS), workers=1) if one.status != "running"
    ]
    assert outcome.status == "done" and not (out / INCOMPLETE).exists()
    assert json.loads((out / "jump" / "a" / "record.json").read_text())["frames"] == 6


@pytest.mark.parametrize("name", ["a.mjpeg", "a.h264", "frames"])
def test_a_video_whose_size_changes_within_is_served_by_resize(tmp_path, name):
    """Each frame at the size that --resize makes of the first one, whatever its own."""
    frames = moving_texture(6, size=(48, 64))
    frames[3:] = [cv2.resize(frame, (96, 60)) for frame in frames[3:]]
    path = tmp_path / name
    if name == "frames":
        write_images(path, frames)
    elif name == "a.mjpeg":
        write_motion_jpeg(path, frames)
    else:
        codec = X264 or pytest.skip("FFmpeg was built without libx264")
        parts = [write_video(tmp_path / f"{k}.h264", frames[k : k + 3], codec) for k in (0, 3)]
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError, match=r"frame 3 is .* --resize makes them one"):
        extract_video(Source(path, "plain"), tmp_path / "flow", Request(DIS))
    extract_video(Source(path, "a"), tmp_path / "flow", Request(DIS, resize="24"))
    record = open_record(tmp_path / "flow/a")
    assert (record.size, record.frame_count, record.field_count()) == ((24, 32), 6, 5)
    for index in (0, 5):
        expected = cv2.resize(frames[index], (32, 24), interpolation=cv2.INTER_AREA)
        assert np.abs(record.frame(index).astype(int) - expected).mean() < 14  # of a JPEG's colors
