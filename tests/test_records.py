"""Writing and reading records: every format round trips, damage is named, commits are whole."""

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import lz4.frame
import numpy as np
import pytest
from PIL import Image

from flowkit.documents import SIDECAR, differences
from flowkit.errors import RecordError, UsageError
from flowkit.records import formats, zips
from flowkit.records.layout import Storage
from flowkit.records.packing import pack_record, unpack_record
from flowkit.records.reading import find_records, open_record
from flowkit.records.unfinished import INCOMPLETE
from flowkit.records.verify import verify_record
from flowkit.records.writing import RecordWriter
from flowkit.series import Series

FORWARD, BACKWARD = Series("forward", 1), Series("backward", 1)
SIZE = (30, 41)
LZ4_FRAME = struct.Struct("<I2xQxI")  # magic number, size of the content, size of block 1
DEFAULT = Storage()


def smooth_field(index: int) -> np.ndarray:
    """A field with a turning point inside, unlike those of other indices."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    return np.stack([0.1 * (x - 20) + index, -0.2 * (y - 15)], axis=2)


def write_record(out, id="jump/a", *, storage=DEFAULT, series=(FORWARD, BACKWARD), frames=5):
    rng = np.random.default_rng(3)
    with RecordWriter(out, id, storage, series) as writer:
        for _ in range(frames):
            writer.add_frame(cv2.blur(rng.integers(0, 255, (*SIZE, 3), np.uint8), (5, 5)))
        for one in series:
            for index in range(frames - one.step):
                sign = 1 if one.direction == "forward" else -1
                writer.add_field(one, sign * smooth_field(index))
        description = {"fps": 25.0, "request": storage.identity(), "source": {"name": "a.avi"}}
        assert writer.commit(description)
    return out / id


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    ("format", "tolerance"),
    [("jpg", 0.25), ("png", 0.02), ("lz4", 0.02), ("npy", 0.0), ("flo", 0.0)],
)
def test_every_format_comes_back(tmp_path, format, tolerance, pack):
    path = write_record(tmp_path, storage=Storage(format=format, pack=pack))
    record = open_record(path)
    assert (record.frame_count, record.size, record.fps) == (5, SIZE, 25.0)
    assert (record.name, record.steps, record.directions) == ("a", (1,), ("forward", "backward"))
    fields = record.fields(1, 3)
    assert fields.shape == (3, *SIZE, 2) and fields.dtype == np.float32
    for position, field in enumerate(fields):
        assert np.abs(field - smooth_field(1 + position)).max() <= tolerance
    back = record.fields(0, 1, direction="backward")[0]
    assert np.abs(back + smooth_field(0)).max() <= tolerance
    assert record.frame(4).shape == (*SIZE, 3)


def test_an_all_zero_field_comes_back_exactly_zero(tmp_path):
    for bound in (None, 20.0):
        for format in ("jpg", "png", "lz4"):
            storage = Storage(format=format, bound=bound, rgb=False)
            with RecordWriter(tmp_path, f"{format}{bound}", storage, (FORWARD,)) as writer:
                writer.add_field(FORWARD, np.zeros((*SIZE, 2), np.float32))
                writer.size, writer.frame_count = SIZE, 2
                writer.commit({"fps": None, "request": storage.identity()})
            assert not open_record(tmp_path / f"{format}{bound}").fields(0, 1).any()


def test_a_reader_with_nothing_but_zipfile_json_and_pillow(tmp_path):
    """docs/formats.md is enough to read a record without flowkit."""
    path = write_record(tmp_path, storage=Storage(pack=True))
    with zipfile.ZipFile(f"{path}.zip") as pack:
        assert pack.testzip() is None
        sidecar = json.loads(pack.read("record.json"))
        one = next(s for s in sidecar["series"] if (s["direction"], s["step"]) == ("forward", 1))
        height, width = sidecar["size"]
        for index in range(one["fields"]):
            field = np.empty((height, width, 2))
            for c, component in enumerate("xy"):
                plane = Image.open(io.BytesIO(pack.read(one["files"][component] % (index + 1))))
                lo, hi = one["ranges"][index][c]
                field[..., c] = lo + np.asarray(plane) * (hi - lo) / 255
            assert np.abs(field - open_record(path).fields(index, 1)[0]).max() < 1e-5
        assert Image.open(io.BytesIO(pack.read(sidecar["images"] % 1))).size == (width, height)


def test_the_folder_is_what_tsn_and_mmaction2_count(tmp_path):
    path = write_record(tmp_path, storage=Storage(bound=20))
    names = sorted(entry.name for entry in path.iterdir())
    assert [n for n in names if n.startswith("img_")] == [f"img_{i:05d}.jpg" for i in range(1, 6)]
    for prefix in ("flow_x", "flow_y"):
        wanted = [f"{prefix}_{i:05d}.jpg" for i in range(1, 5)]
        assert [n for n in names if n.startswith(prefix)] == wanted
    assert cv2.imread(str(path / "flow_x_00001.jpg"), cv2.IMREAD_UNCHANGED).ndim == 2


def test_steps_have_names_of_their_own(tmp_path):
    series = (Series("forward", 1), Series("forward", 3))
    path = write_record(tmp_path, series=series)
    assert (path / "flow_step3_x_00002.jpg").exists()
    record = open_record(path)
    assert (record.steps, record.field_count(step=3)) == ((1, 3), 2)
    with pytest.raises(RecordError, match="no backward fields of step 1"):
        record.fields(0, 1, direction="backward")


def test_twostreamfusion_layout_and_its_range_files(tmp_path):
    storage = Storage(layout="twostreamfusion")
    write_record(tmp_path, "jump/100%_a", storage=storage)
    record = open_record(tmp_path / "records" / "100%_a")
    assert np.abs(record.fields(3, 1)[0] - smooth_field(3)).max() < 0.25
    assert (tmp_path / "jpegs_256" / "100%_a" / "frame000005.jpg").exists()
    table = np.frombuffer((tmp_path / "u" / "100%_a.bin").read_bytes(), "<f4").reshape(-1, 4)
    assert table.shape == (4, 4)
    lo, hi = table[2, :2]
    plane = np.asarray(Image.open(tmp_path / "u" / "100%_a" / "frame000003.jpg"), np.float32)
    assert np.abs(lo + plane * (hi - lo) / 255 - smooth_field(2)[..., 0]).max() < 0.25
    assert not (tmp_path / INCOMPLETE).exists()


def test_pack_and_unpack_are_each_others_inverse(tmp_path):
    path = write_record(tmp_path)
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    fields = open_record(path).fields(0, 4)
    pack = pack_record(path)
    assert not path.exists() and (open_record(pack).fields(0, 4) == fields).all()
    packed = pack.read_bytes()
    assert unpack_record(pack) == path and not pack.exists()
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before
    assert pack_record(path).read_bytes() == packed


MANY = (FORWARD, Series("backward", 1), Series("forward", 2))


def write_in_order(out, order, *, pack):
    """A record of 5 frames and three series whose parts, (index, kind), are given in an order."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (5, *SIZE, 3), np.uint8)
    storage, most = Storage(pack=pack), 0
    with RecordWriter(out, "a", storage, MANY) as writer:
        for index, kind in order:
            if kind == 0:
                writer.add_frame(frames[index])
            else:
                writer.add_field(MANY[kind - 1], smooth_field(5 * kind + index))
            most = max(most, len(writer.waiting))
        writer.commit({"request": storage.identity(), "fps": 25.0})
    return most


def test_a_pack_is_the_same_bytes_in_whatever_order_it_is_written(tmp_path):
    counts = [5, 4, 4, 3]
    parts = [(index, kind) for kind, count in enumerate(counts) for index in range(count)]
    orders = {  # name -> the parts in their order, and how many wait at most
        "by time": (sorted(parts, key=lambda p: (p[0] + (p[1] > 0) + (p[1] == 3), p[1])), 4),
        "frames first": (parts, 10),
        "fields first": (sorted(parts, key=lambda part: -part[1]), 11),
    }
    write_in_order(tmp_path / "folder", parts, pack=False)
    expected = pack_record(tmp_path / "folder" / "a").read_bytes()
    for name, (order, most) in orders.items():
        assert write_in_order(tmp_path / name, order, pack=True) <= most, name
        assert (tmp_path / name / "a.zip").read_bytes() == expected, name
    assert verify_record(tmp_path / "by time" / "a.zip").kind == "sound"


def test_packing_refuses_a_folder_with_other_files(tmp_path):
    path = write_record(tmp_path)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(RecordError, match=r"not the record's own: notes\.txt"):
        pack_record(path)
    assert (path / "notes.txt").exists()


def test_a_pack_rezipped_with_extra_fields_still_reads(tmp_path):
    pack = pack_record(write_record(tmp_path))
    fields = open_record(pack).fields(0, 4)
    with zipfile.ZipFile(pack) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(pack, "w") as new:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH4s", 0xCAFE, 4, b"more")
            new.writestr(info, data)
    assert (open_record(pack).fields(0, 4) == fields).all()


def test_a_flipped_byte_in_a_pack_is_seen(tmp_path):
    pack = pack_record(write_record(tmp_path))
    begin, _, size, _ = zips.list_members(pack)["flow_x_00002.jpg"]
    data = bytearray(pack.read_bytes())
    data[begin + 30 + len("flow_x_00002.jpg") + size // 2] ^= 1
    pack.write_bytes(data)
    open_record(pack).fields(2, 2)
    with pytest.raises(RecordError, match=r"flow_x_00002\.jpg is damaged: its checksum"):
        open_record(pack).fields(0, 4)


def test_every_flipped_bit_of_a_packs_zip_headers_is_found(tmp_path):
    path = write_record(tmp_path, series=(FORWARD,), frames=2, storage=Storage(format="npy"))
    pack = pack_record(path)
    data = pack.read_bytes()
    places = zips.list_members(pack)
    own = np.ones(len(data), bool)
    for name, (begin, _, size, _) in places.items():
        start = begin + zips.LOCAL_HEADER.size + len(name)
        own[start : start + size] = False
    assert own.sum() == sum(30 + 46 + 2 * len(name) for name in places) + 22
    for at in np.flatnonzero(own):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        pack.write_bytes(flipped)
        verdict = verify_record(pack)
        assert verdict.kind == "broken", (at, verdict)
    pack.write_bytes(data + b"\0")
    assert verify_record(pack).kind == "broken"
    pack.write_bytes(data)
    assert verify_record(pack).kind == "sound"


def test_a_pack_that_another_tool_zipped_is_complete(tmp_path):
    pack = pack_record(write_record(tmp_path))
    with zipfile.ZipFile(pack) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(pack, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    assert verify_record(pack).kind == "complete"


def zip_with(place: Path, names: Iterable[str]) -> Path:
    with zipfile.ZipFile(place, "w") as pack:
        for name in names:
            pack.writestr(name, b"")
    return place


def test_a_pack_of_more_members_than_16_bits_count_is_read(tmp_path):
    """Its directory as it is written, behind a hole where empty members would be."""
    names = [SIDECAR, *map(str, range(0x10000))]
    start = sum(zips.LOCAL_HEADER.size + len(name) for name in names)
    with (tmp_path / "a.zip").open("wb") as file:
        file.seek(start)
        file.write(zips._directory((name, 0, 0) for name in names))
    members = zips.list_members(tmp_path / "a.zip")
    assert list(members) == names
    assert members["65535"] == (start - zips.LOCAL_HEADER.size - 5, start, 0, 0)


def test_a_pack_of_more_than_4_gb_is_read(tmp_path):
    """Made as it is written, but for the data of a member, which is a hole."""
    path = tmp_path / "a.zip"
    pack = zips.PackWriter(path)
    pack.add("a", b"data")
    pack._members.append(("hole", 0, 5 << 30))
    pack._size += len(zips._stored_member("hole", 0, 5 << 30, 0).FileHeader()) + (5 << 30)
    pack._file.seek(pack._size)
    pack.add(SIDECAR, b"{}")
    pack.finish()
    with zipfile.ZipFile(path) as other:
        assert other.read(SIDECAR) == b"{}"
    members = zips.list_members(path)
    assert members["hole"][2] == 5 << 30 < members[SIDECAR][0]
    assert zips.read_members(path, [(name, members[name]) for name in ("a", SIDECAR)]) == [
        b"data", b"{}"
    ]  # fmt: skip


def test_what_the_end_of_a_zip_counts_is_held_to_a_limit_before_anything_is_read(
    tmp_path, monkeypatch
):
    pack = pack_record(write_record(tmp_path))
    data, count = pack.read_bytes(), len(zips.list_members(pack))
    monkeypatch.setattr(zips, "MOST_MEMBERS", count)
    assert len(zips.list_members(pack)) == count
    monkeypatch.setattr(zips, "_read_entries", None)
    for field, at, number in (
        ("<H", -12, 0xFFFF),  # how many members
        ("<L", -10, 1 << 31),  # bytes of the directory
        ("<L", -6, 0xFFFFFFF0),  # where it begins
    ):
        changed = bytearray(data)
        struct.pack_into(field, changed, len(data) + at, number)
        pack.write_bytes(changed)
        with pytest.raises(RecordError, match=r"expected a stored zip \((no room|it has 65,535)"):
            zips.list_members(pack)
    pack.write_bytes(data)
    monkeypatch.setattr(zips, "MOST_MEMBERS", count - 1)
    with pytest.raises(RecordError, match=f"it has {count} members, expected at most {count - 1}"):
        zips.list_members(pack)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_zip_that_counts_other_members_than_it_has_is_refused(tmp_path, change):
    pack = pack_record(write_record(tmp_path))
    data, count = bytearray(pack.read_bytes()), len(zips.list_members(pack))
    struct.pack_into("<H", data, len(data) - 12, count + change)
    pack.write_bytes(data)
    with pytest.raises(RecordError, match="expected a stored zip"):
        zips.list_members(pack)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_two_members_of_one_name_is_refused(tmp_path):
    """Readers take one or the other, so that nobody knows what is in it."""
    pack = pack_record(write_record(tmp_path))
    with zipfile.ZipFile(pack, "a") as more:
        more.writestr("flow_x_00001.jpg", b"")
    assert verify_record(pack).problems == (
        f"{pack}: expected a stored zip (two members have one name)",
    )


def test_a_zip_of_many_members_is_refused_before_they_are_read(tmp_path, monkeypatch):
    place = zip_with(tmp_path / "a.zip", map(str, range(100)))
    monkeypatch.setattr(zips, "_read_entries", None)
    assert not list(find_records(tmp_path))
    assert verify_record(place).problems == (
        f"{place}: expected a pack with record.json, which is missing",
    )


def test_a_writer_of_packs_keeps_to_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "MOST_MEMBERS", 9)
    with pytest.raises(RecordError, match="at most 9 files in a pack"):
        pack_record(write_record(tmp_path))
    assert verify_record(tmp_path / "jump" / "a").kind == "sound"


def test_a_truncated_plane_is_named(tmp_path):
    path = write_record(tmp_path)
    (path / "flow_y_00003.jpg").write_bytes(b"")
    with pytest.raises(RecordError, match=r"flow_y_00003\.jpg: damaged image of 0 bytes"):
        open_record(path).fields(2, 1)


def test_lz4_planes_are_one_block_and_frames_of_any_blocks_are_read(tmp_path):
    random = np.random.default_rng(0)
    pair = random.integers(0, 256, (2, 200, 300), np.uint8)
    pair[:, :, 40:] = 7  # or LZ4 would leave it as it is
    field = np.moveaxis(pair, 0, 2).astype(np.float32)  # (H, W, 2), of whole codes
    [data], ranges = formats.encode_field(field, "lz4")
    assert LZ4_FRAME.unpack_from(data) == (0x184D2204, 2 * 200 * 300, len(data) - 19 - 4)
    raw = lz4.frame.decompress(data)
    assert (np.frombuffer(raw, np.uint8).reshape(pair.shape) == pair).all()
    frames = {
        "one block": data,
        "linked blocks of 64 KB": lz4.frame.compress(raw, block_size=lz4.frame.BLOCKSIZE_MAX64KB),
        "no size": lz4.frame.compress(raw, store_size=False),
        "checksums": lz4.frame.compress(raw, content_checksum=True, block_checksum=True),
    }
    for name, frame in frames.items():
        found = formats.decode_planes([memoryview(frame)], "lz4", (200, 300), where=["x.lz4"])
        assert (np.stack(found) == pair).all(), name
    back = formats.decode_field([data], "lz4", (200, 300), np.array(ranges), where=["x.lz4"])
    np.testing.assert_allclose(back, field, atol=1e-4)


def test_damaged_lz4_is_named():
    [data], _ = formats.encode_field(smooth_field(2), "lz4")
    broken = data[:19] + b"\xff" * (len(data) - 23) + data[-4:]  # lengths that lead outside
    for damaged in (b"", data[:10], data[:-9], broken):
        with pytest.raises(RecordError, match=r"x\.lz4: damaged LZ4 data"):
            formats.decode_planes([damaged], "lz4", SIZE, where=["x.lz4"])
    with pytest.raises(RecordError, match=r"x\.lz4: expected two planes of \(4, 4\)"):
        formats.decode_planes([data], "lz4", (4, 4), where=["x.lz4"])


def test_reading_a_record_does_not_import_torch():
    modules = "flowkit.records.writing, flowkit.records.foreign"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_asking_outside_the_record_is_an_error(tmp_path):
    record = open_record(write_record(tmp_path, storage=Storage(rgb=False)))
    with pytest.raises(RecordError, match=r"asked for 2 from 3"):
        record.fields(3, 2)
    with pytest.raises(RecordError, match="holds no frames: flowkit extract --rgb"):
        record.frame(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a flowkit flow record, in JSON"),
        (
            '{"format": "flowkit flow record", "version": 99}',
            "of version 1, got version 99: a later",
        ),
        ('{"format": "flowkit flow record", "version": 1}', "has no frames"),
    ],
)
def test_a_sidecar_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        open_record(tmp_path)


def test_no_record_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(RecordError, match="flowkit extract makes one"):
        open_record(tmp_path / "nothing")
    with pytest.raises(RecordError, match=r"record\.json: file is missing"):
        open_record(tmp_path)


def test_nothing_is_in_place_before_the_commit_and_nothing_left_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), RecordWriter(tmp_path, "a", Storage(), (FORWARD,)) as writer:
        writer.add_frame(np.zeros((*SIZE, 3), np.uint8))
        assert list(find_records(tmp_path)) == []
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_writers_of_one_record_leaves_the_first_ones(tmp_path):
    with RecordWriter(tmp_path, "a", Storage(), (FORWARD,)) as late:
        late.add_frame(np.zeros((*SIZE, 3), np.uint8))
        write_record(tmp_path, "a")
        assert late.commit({"request": DEFAULT.identity(), "source": {"name": "a.avi"}}) is False
        with pytest.raises(RecordError, match=r"finished it meanwhile, .*bound: null on disk, 20"):
            late.commit({"request": Storage(bound=20).identity()})
        with pytest.raises(RecordError, match=r'source.name: "a.avi" on disk, "b.avi" asked for'):
            late.commit({"request": DEFAULT.identity(), "source": {"name": "b.avi"}})
    with RecordWriter(tmp_path, "a", Storage(pack=True), (FORWARD,)) as late:
        late.add_frame(np.zeros((*SIZE, 3), np.uint8))
        with pytest.raises(RecordError, match="a folder on disk: flowkit pack"):
            late.commit({"fps": None, "request": DEFAULT.identity()})
    assert open_record(tmp_path / "a").frame_count == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_overwriting_replaces_either_container(tmp_path):
    write_record(tmp_path, "a")
    with RecordWriter(tmp_path, "a", Storage(pack=True), (FORWARD,)) as writer:
        for _ in range(2):
            writer.add_frame(np.zeros((*SIZE, 3), np.uint8))
        writer.add_field(FORWARD, smooth_field(0))
        writer.commit({"fps": None, "request": Storage().identity()}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert open_record(tmp_path / "a").frame_count == 2


def test_differences_are_named():
    one = {"bound": 20, "method": {"name": "tvl1", "tau": 0.25}}
    other = {"bound": None, "method": {"name": "tvl1", "tau": 0.2}}
    assert differences(one, other) == [
        "bound: 20 on disk, null asked for",
        "method.tau: 0.25 on disk, 0.2 asked for",
    ]
    assert differences(one, one) == []


def test_of_two_methods_only_the_names_are_compared():
    one = {"bound": 20, "method": {"name": "tvl1", "tau": 0.25, "warps": 5}}
    other = {"bound": 20, "method": {"name": "dis", "patch_size": 8}}
    assert differences(one, other) == ['method: "tvl1" on disk, "dis" asked for']
    assert differences(one, {"bound": 20}) == ['method: "tvl1" on disk, null asked for']


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "bmp"}, "expected a format of jpg, png"),
        ({"quality": 0}, r"expected quality within 1\.\.100, got 0"),
        ({"bound": -1}, "expected a bound above 0 px"),
        ({"bound": 20, "format": "npy"}, "--bound goes with 8-bit planes"),
        ({"layout": "twostreamfusion", "pack": True}, "without --pack"),
        ({"layout": "other"}, "expected a layout of flowkit"),
    ],
)
def test_storage_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Storage(**options)
