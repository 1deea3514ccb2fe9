"""flowkit removes and replaces what carries its own mark, and that only: names prove nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_records import write_record
from made_videos import moving_texture, write_video

from flowkit.errors import RecordError, UsageError, VideoError
from flowkit.extraction.extract import extract_video
from flowkit.extraction.plan import plan
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.records.layout import Storage
from flowkit.records.ownership import in_the_way, one_at_a_time, remove_record, take_mark_away
from flowkit.records.packing import pack_record, unpack_record
from flowkit.records.reading import SIDECAR, find_records, open_record, read_sidecar
from flowkit.records.unfinished import (
    DEAD_S,
    INCOMPLETE,
    WorkFolder,
    find_work,
    remove_dead,
    remove_if_dead,
)
from flowkit.records.verify import delete_broken, find_unfinished, verify_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.video.sources import Source
from flowkit_cli.verify import verify

FIELDS = np.zeros((3, 8, 9, 2), np.float32)
MANY = {"layout": "twostreamfusion", "format": "png"}
FORWARD = Series("forward", 1)


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def run_verify(folder, *options):
    return CliRunner().invoke(verify, [str(folder), "-j", "1", *options])


def foreign_place(out, kind):
    """Something that is none of flowkit's in the place of the record "a"; returns that place."""
    place = out / "a"
    place.mkdir(parents=True)
    match kind:
        case "planes of another tool":
            (place / "flow_x_00001.jpg").write_text("theirs")
            (place / "img_00001.jpg").write_text("theirs")
        case "another record.json":
            (place / SIDECAR).write_text('{"mine": 1}')
        case "a sidecar of the future" | "a damaged sidecar":
            write_record(out, "a", FIELDS)
            sidecar = json.loads((place / SIDECAR).read_text()) | {"version": 99}
            text = json.dumps(sidecar)
            (place / SIDECAR).write_text(text if "future" in kind else text[:-20])
        case "a subfolder":
            (place / "notes").mkdir()
            (place / "notes" / "thesis.txt").write_text("irreplaceable")
    return place


FOREIGN = (
    "planes of another tool",
    "another record.json",
    "a sidecar of the future",
    "a damaged sidecar",
    "a subfolder",
)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_flowkits_is_never_replaced(tmp_path, kind, overwrite):
    place = foreign_place(tmp_path, kind)
    before = files(tmp_path)
    source = Source(tmp_path / "v.mp4", "a")
    request = Request(make_method("dis"))
    if kind in ("planes of another tool", "a subfolder") or overwrite:
        with pytest.raises(UsageError, match=f"in the place of a record, but .*: {place}"):
            plan([source], tmp_path, request, overwrite=overwrite)
    else:  # what may be a record stops no other video
        [planned] = plan([source], tmp_path, request)
        assert f"in the place of its record: {place}" in planned.refusal
        with pytest.raises(VideoError, match="in the place of its record"):
            extract_video(planned, tmp_path, request)
    with RecordWriter(tmp_path, "a", Storage(rgb=False), (FORWARD,)) as writer:
        writer.add_frame(np.zeros((8, 9, 3), np.uint8))
        with pytest.raises(RecordError):
            writer.commit({"fps": None, "request": Storage().identity()}, overwrite=overwrite)
    assert files(tmp_path) == before


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_flowkits_is_never_deleted(tmp_path, kind):
    foreign_place(tmp_path, kind)
    before = files(tmp_path)
    told = run_verify(tmp_path, "--delete-broken")
    assert files(tmp_path) == before
    is_one = kind in ("a sidecar of the future", "a damaged sidecar")
    assert told.exit_code == is_one and ("not deleted" in told.output) == is_one


def test_planes_of_another_tool_in_the_folders_of_twostreamfusion_stay(tmp_path):
    (tmp_path / "u" / "a").mkdir(parents=True)
    (tmp_path / "u" / "a" / "frame000001.png").write_text("theirs")
    source = Source(tmp_path / "v.mp4", "jump/a")
    request = Request(make_method("dis"), storage=Storage(**MANY))
    with pytest.raises(UsageError, match=r"not written by flowkit as that record: .*/u/a/f"):
        plan([source], tmp_path, request, overwrite=True)


@pytest.mark.parametrize("storage", [{}, MANY], ids=["one folder", "many"])
def test_a_record_with_another_file_in_it_is_neither_replaced_nor_deleted(tmp_path, storage):
    record = write_record(tmp_path, "a", FIELDS, **storage)
    notes = (tmp_path / "u" / "a" if storage else record.path) / "notes.txt"
    notes.write_text("irreplaceable")
    with pytest.raises(RecordError, match=r"holds what is not flowkit's: .*notes\.txt"):
        remove_record(record.path)
    assert in_the_way(record.path, []) == [notes]
    assert open_record(record.path).fields(0, 3).shape == FIELDS.shape


@pytest.mark.parametrize("storage", [{}, {"pack": True}, MANY], ids=["folder", "pack", "many"])
def test_a_record_is_removed_with_all_its_files(tmp_path, storage):
    backward = None if "pack" in storage else FIELDS
    record = write_record(tmp_path, "50%a", FIELDS, backward, **storage)
    (tmp_path / "mine.txt").write_text("mine")
    remove_record(record.path)
    assert files(tmp_path) == {"mine.txt"}


def test_a_pack_with_another_member_is_not_flowkits(tmp_path):
    pack = write_record(tmp_path, "a", FIELDS, pack=True).path
    with zipfile.ZipFile(pack, "a") as archive:
        archive.writestr("thesis.txt", "irreplaceable")
    with pytest.raises(RecordError, match=r"does not name: thesis\.txt"):
        remove_record(pack)
    assert in_the_way(pack, [pack]) == [pack]


def test_a_sidecar_cannot_name_files_elsewhere(tmp_path):
    victim = tmp_path / "home" / "letter_00001.txt"
    victim.parent.mkdir()
    victim.write_text("irreplaceable")
    for template in ("../../home/letter_%05d.txt", "/home/letter_%05d.txt", "../letter_%05d.txt"):
        path = write_record(tmp_path, f"x/{len(template)}/a", FIELDS).path
        sidecar = json.loads((path / SIDECAR).read_text())
        sidecar["series"][0]["files"] = {"xy": template}
        (path / SIDECAR).write_text(json.dumps(sidecar))
        with pytest.raises(RecordError, match="files cannot be"):
            remove_record(path)
    assert victim.exists()


def test_a_link_goes_as_a_link(tmp_path):
    record = write_record(tmp_path / "elsewhere", "a", FIELDS)
    (record.path / "flow_00002.npy").unlink()
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "a").symlink_to(record.path)
    told = run_verify(tmp_path / "flow", "--delete-broken")
    assert told.exit_code == 1 and "; deleted" in told.output
    assert not (tmp_path / "flow" / "a").is_symlink()
    assert (record.path / SIDECAR).exists()


def test_finding_records_steps_over_foreign_files_and_sees_loops(tmp_path):
    record = write_record(tmp_path, "jump/a", FIELDS)
    with zipfile.ZipFile(tmp_path / "backup.zip", "w") as archive:
        archive.writestr("letter.txt", "mine")
    foreign_place(tmp_path / "other", "another record.json")
    (tmp_path / "jump" / "round").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "itself.zip").symlink_to("itself.zip")
    assert list(find_records(tmp_path)) == [record.path]


def test_a_folder_that_cannot_be_listed_is_named_and_hides_no_record(tmp_path, monkeypatch):
    record = write_record(tmp_path, "jump/a", FIELDS)
    (tmp_path / "closed").mkdir()
    list_folder = os.listdir

    def listdir(folder="."):
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    assert list(find_records(tmp_path)) == [tmp_path / "closed", record.path]


@pytest.mark.parametrize("name", ["record.json", "b.zip"])
def test_a_flipped_bit_hides_no_record(tmp_path, name):
    write_record(tmp_path, "a", FIELDS)
    write_record(tmp_path, "b", FIELDS, pack=True)
    file = next(tmp_path.rglob(name))
    data = file.read_bytes()
    places = [data.rindex(b"record.json")] if name == "b.zip" else range(0, 60, 3)
    for place in places:
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place + bit % 3] ^= 1 << bit
            file.write_bytes(flipped)
            assert len(list(find_records(tmp_path))) == 2


# --- is it alive ----------------------------------------------------------------------------------

OWNER = """
import sys
from pathlib import Path
from flowkit.records.unfinished import WorkFolder
with WorkFolder(Path(sys.argv[1])) as work:
    (work.path / "half").write_text("half")
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that has unfinished work below `tmp_path`."""
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def grow_old(out):
    for lock in (out / INCOMPLETE).glob("*/lock"):
        os.utime(lock, (0, time.time() - DEAD_S - 1))


def states(out):
    return [state for _, state in find_work(out)]


def test_work_is_dead_when_its_lock_is_free_and_its_last_heartbeat_long_ago(tmp_path, owner):
    assert states(tmp_path) == ["in progress"]
    grow_old(tmp_path)
    assert states(tmp_path) == ["in progress"] and remove_dead(tmp_path) == 0
    for lock in (tmp_path / INCOMPLETE).glob("*/lock"):
        os.utime(lock)
    owner.kill()
    owner.wait()
    assert states(tmp_path) == ["young"] and remove_dead(tmp_path) == 0
    grow_old(tmp_path)
    assert states(tmp_path) == ["dead"] and remove_dead(tmp_path) == 1
    assert not (tmp_path / INCOMPLETE).exists()


def test_verify_says_that_a_run_is_at_work_and_leaves_it(tmp_path, owner):
    write_record(tmp_path, "a", FIELDS)
    grow_old(tmp_path)
    for options in ((), ("--delete-broken",)):
        told = run_verify(tmp_path, *options)
        assert told.exit_code == 0 and "in progress" in told.output
    owner.kill()
    owner.wait()
    told = run_verify(tmp_path)
    assert told.exit_code == 1 and "left by a run that was stopped" in told.output
    assert run_verify(tmp_path, "--delete-broken").exit_code == 1
    assert run_verify(tmp_path).exit_code == 0


def test_the_heart_beats_while_a_record_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("flowkit.records.unfinished.BEAT_S", 0.0)
    with RecordWriter(tmp_path, "a", Storage(), (FORWARD,)) as writer:
        grow_old(tmp_path)
        writer.add_frame(np.zeros((8, 9, 3), np.uint8))
        [lock] = (tmp_path / INCOMPLETE).glob("*/lock")
        assert time.time() - lock.stat().st_mtime < DEAD_S / 2


def test_a_file_of_the_users_among_unfinished_work_stays(tmp_path):
    (tmp_path / INCOMPLETE / "mine").mkdir(parents=True)
    (tmp_path / INCOMPLETE / "mine" / "letter.txt").write_text("irreplaceable")
    assert states(tmp_path) == ["foreign"] and remove_dead(tmp_path) == 0
    told = run_verify(tmp_path, "--delete-broken")
    assert told.exit_code == 0 and "not flowkit's" in told.output


def test_a_pipe_in_place_of_the_lock_is_foreign(tmp_path):
    (tmp_path / INCOMPLETE / "x").mkdir(parents=True)
    os.mkfifo(tmp_path / INCOMPLETE / "x" / "lock")
    assert states(tmp_path) == ["foreign"] and remove_dead(tmp_path) == 0


def test_a_record_called_like_the_lock_is_written(tmp_path):
    assert write_record(tmp_path, "lock", FIELDS).field_count() == 3


def test_files_that_vanish_while_a_record_is_written_are_missed(tmp_path):
    with RecordWriter(tmp_path, "a", Storage(), (FORWARD,)) as writer:
        for _ in range(2):
            writer.add_frame(np.zeros((8, 9, 3), np.uint8))
        writer.add_field(FORWARD, FIELDS[0])
        next(writer.temporary.rglob("flow_y_00001.jpg")).unlink()
        with pytest.raises(RecordError, match=r"vanished .*flow_y_00001\.jpg"):
            writer.commit({"fps": None, "request": Storage().identity()})
    assert list(tmp_path.iterdir()) == []


# --- many folders, two containers -----------------------------------------------------------------


def test_without_its_mark_a_record_in_many_folders_is_unfinished_and_flowkits(tmp_path):
    record = write_record(tmp_path, "a", FIELDS, **MANY)
    take_mark_away(record.path, tmp_path, [])
    with pytest.raises(RecordError):
        open_record(record.path)
    told = run_verify(tmp_path)
    assert told.exit_code == 1 and "unfinished: a run was stopped" in told.output
    again = write_record(tmp_path, "a", FIELDS + 1, **MANY)
    assert again.fields(0, 3).mean() == pytest.approx(1)
    take_mark_away(record.path, tmp_path, [])
    assert "; deleted" in run_verify(tmp_path, "--delete-broken").output
    assert files(tmp_path) == set()


def test_a_record_whose_folders_are_being_moved_is_waited_for(tmp_path):
    path = write_record(tmp_path, "a", FIELDS, **MANY).path
    sidecar = (path / SIDECAR).read_bytes()
    take_mark_away(path, tmp_path, [])
    with ThreadPoolExecutor(1) as other:
        with one_at_a_time(path.parent):
            verdicts = other.submit(lambda: list(find_unfinished(tmp_path)))
            time.sleep(0.3)
            assert not verdicts.done()
            (path / SIDECAR).write_bytes(sidecar)
        assert [one.problems for one in verdicts.result()] == [()]


@pytest.mark.parametrize("pack", [False, True])
def test_a_record_of_the_other_kind_is_replaced(tmp_path, pack):
    write_record(tmp_path, "a", FIELDS, pack=not pack)
    storage = Storage(format="npy", rgb=False, pack=pack)
    with RecordWriter(tmp_path, "a", storage, (FORWARD,)) as writer:
        for _ in range(2):
            writer.add_frame(np.zeros((8, 9, 3), np.uint8))
        writer.add_field(FORWARD, FIELDS[0])
        assert writer.commit({"fps": None, "request": storage.identity()}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip" if pack else "a"]


def test_a_broken_record_that_another_makes_meanwhile_is_not_deleted(tmp_path):
    path = write_record(tmp_path, "a", FIELDS).path
    plane = next(path.glob("*.npy"))
    whole = plane.read_bytes()
    plane.unlink()
    verdict = verify_record(path)
    assert verdict.kind == "broken"
    with ThreadPoolExecutor(1) as other:
        with one_at_a_time(path.parent):
            told = other.submit(delete_broken, verdict)
            time.sleep(0.3)
            assert not told.done()
            plane.write_bytes(whole)
        assert told.result() == ""
    assert verify_record(path).kind == "sound"


def test_overwriting_many_folders_leaves_nothing_of_the_old_record(tmp_path):
    record = write_record(
        tmp_path, "a", FIELDS, FIELDS, frames=np.zeros((4, 8, 9, 3), np.uint8), **MANY
    )
    storage = Storage(**MANY, rgb=False)
    with RecordWriter(tmp_path, "a", storage, (FORWARD,)) as writer:
        for _ in range(2):
            writer.add_frame(np.zeros((8, 9, 3), np.uint8))
        writer.add_field(FORWARD, FIELDS[0])
        assert writer.commit({"fps": None, "request": storage.identity()}, overwrite=True)
    names = {"u/a.bin", "u/a/frame000001.png", "v/a/frame000001.png", "records/a/record.json"}
    assert files(tmp_path) == names
    assert read_sidecar(record.path)["frames"] == 2


def test_the_table_of_ranges_beside_many_folders_is_verified(tmp_path):
    write_record(tmp_path, "a", FIELDS, **MANY)
    assert run_verify(tmp_path).exit_code == 0
    table = tmp_path / "u" / "a.bin"
    changed = np.frombuffer(table.read_bytes(), "<f4") + 1
    table.write_bytes(changed.tobytes())
    told = run_verify(tmp_path)
    assert told.exit_code == 1 and "a.bin: other ranges than in record.json" in told.output
    table.unlink()
    told = run_verify(tmp_path)
    assert told.exit_code == 1 and "a.bin: file is missing" in told.output


@pytest.mark.parametrize("pack", [False, True])
def test_packing_that_was_stopped_before_its_last_step_is_finished(tmp_path, pack, monkeypatch):
    path = write_record(tmp_path, "a", FIELDS, pack=not pack).path
    convert = pack_record if pack else unpack_record

    def stop(parts, trash):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("flowkit.records.packing.move_away", stop)
        convert(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.zip"]
    convert(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip" if pack else "a"]


def test_a_pack_that_stands_beside_with_other_bytes_is_never_taken_for_the_same(tmp_path):
    folder = write_record(tmp_path, "a", FIELDS).path
    other = write_record(tmp_path / "other", "a", FIELDS + 1, pack=True).path
    other.rename(tmp_path / "a.zip")
    with pytest.raises(RecordError, match=r"is there already, with another flow_00001\.npy"):
        pack_record(folder)
    with pytest.raises(RecordError, match="is there already, with another"):
        unpack_record(tmp_path / "a.zip")
    assert folder.exists() and (tmp_path / "a.zip").exists()


def test_a_record_below_another_ones_place_is_refused(tmp_path):
    write_record(tmp_path, "jump", FIELDS)
    video = write_video(tmp_path / "a.mp4", moving_texture(3))
    with pytest.raises(UsageError, match="would lie inside the record"):
        plan([Source(video, "jump/a")], tmp_path, Request(make_method("dis")))


def test_a_foreign_zip_beside_a_record_is_in_nobodys_way(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("letter.txt", "irreplaceable")
    before = (tmp_path / "a.zip").read_bytes()
    assert write_record(tmp_path, "a", FIELDS).path == tmp_path / "a"
    assert (tmp_path / "a.zip").read_bytes() == before


def test_two_owners_do_not_see_the_same_work_folder(tmp_path):
    with WorkFolder(tmp_path, "x") as one, WorkFolder(tmp_path, "x") as other:
        assert one.path != other.path


def test_records_are_written_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    for name, value in (("a", 0), ("b", 1)):
        record = write_record(tmp_path, name, FIELDS + value)
        np.testing.assert_array_equal(record.fields(0, 3), FIELDS + value)
    with WorkFolder(tmp_path) as work:
        assert list(find_work(tmp_path)) == [(work.path, "in progress")]
        os.utime(work.path / "lock", (0, time.time() - DEAD_S - 1))
        assert list(find_work(tmp_path)) == [(work.path, "dead")]


def test_work_begins_although_another_removes_the_folder_of_all_work(tmp_path, monkeypatch):
    made, times = Path.mkdir, []

    def raced(self, *args, **options):
        times.append(self)
        if len(times) == 1:
            raise FileNotFoundError(self)
        made(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", raced)
    with WorkFolder(tmp_path) as work:
        assert work.path.is_dir() and len(times) > 1


def test_work_whose_folder_is_gone_ends_in_silence(tmp_path):
    with WorkFolder(tmp_path) as work:
        shutil.rmtree(work.path)
    assert list(tmp_path.iterdir()) == []


def test_work_that_another_removes_meanwhile_is_gone(tmp_path, monkeypatch):
    folder = tmp_path / INCOMPLETE / "work"
    folder.mkdir(parents=True)

    def raced(folder):
        folder.rmdir()
        raise FileNotFoundError(folder / "lock")

    monkeypatch.setattr("flowkit.records.unfinished._state", raced)
    assert remove_if_dead(folder)


def test_an_empty_work_folder_is_of_a_run_that_begins_or_has_just_ended(tmp_path):
    """Between the folder and its lock, and at the end between the two again."""
    folder = tmp_path / INCOMPLETE / "owner-work"
    folder.mkdir(parents=True)
    assert states(tmp_path) == ["in progress"] and remove_dead(tmp_path) == 0
    long_ago = time.time() - 2 * DEAD_S
    os.utime(folder, (long_ago, long_ago))
    assert states(tmp_path) == ["dead"] and remove_dead(tmp_path) == 1
