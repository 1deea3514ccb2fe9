"""A flipped bit of any file of a record is found, and a read error is never called damage."""

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
from made_records import write_record

from flowkit.documents import SIDECAR
from flowkit.errors import FlowkitError
from flowkit.records import reading
from flowkit.records.packing import pack_record
from flowkit.records.reading import find_records, open_record
from flowkit.records.verify import verify_record

FLIPS = 30
STORES = [
    *({"format": format} for format in ("jpg", "png", "lz4", "npy", "flo")),
    {"format": "jpg", "layout": "twostreamfusion"},
]


def made(tmp_path, **storage):
    rng = np.random.default_rng(0)
    fields = rng.normal(0, 2, (3, 24, 32, 2)).astype(np.float32)
    frames = rng.integers(0, 255, (4, 24, 32, 3), np.uint8)
    return write_record(tmp_path, "a", fields, frames=frames, **storage).path


def flips(files, seed=0, count=FLIPS):
    """Flips one random bit of one random byte of all `files` at a time."""
    draw = random.Random(seed)
    whole = {file: file.read_bytes() for file in files}
    for _ in range(count):
        [file] = draw.choices(files, weights=[len(whole[file]) for file in files])
        data = bytearray(whole[file])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        yield file
        file.write_bytes(whole[file])


@pytest.mark.parametrize("storage", STORES, ids=lambda storage: "-".join(storage.values()))
def test_every_flipped_bit_is_found(tmp_path, storage):
    path = made(tmp_path, **storage)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert verify_record(path).kind == "sound"
    for file in flips(files):
        assert verify_record(path).kind == "broken", file
    assert verify_record(path).kind == "sound"


def test_a_flipped_bit_in_the_name_of_the_checksums_is_no_older_record(tmp_path):
    path = made(tmp_path, format="jpg")
    text = (path / SIDECAR).read_text()
    (path / SIDECAR).write_text(text.replace('"checksums"', '"checksumr"'))
    assert verify_record(path).kind == "broken"


def test_quick_compares_names_and_sizes_only(tmp_path):
    path = made(tmp_path, format="png")
    assert verify_record(path, quick=True).kind == "complete"
    file = path / "flow_x_00002.png"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"x")
    assert verify_record(path, quick=True).kind == "complete"
    file.write_bytes(data + b"x")
    assert "flow_x_00002.png" in verify_record(path, quick=True).problems[0]
    file.unlink()
    assert "flow_x_00002.png: file is missing" in verify_record(path, quick=True).problems[0]


def test_a_record_from_before_checksums_is_complete_and_not_called_sound(tmp_path):
    path = made(tmp_path, format="jpg")
    text = (path / SIDECAR).read_text()
    head, _, rest = text.partition(' "checksums"')
    assert rest
    (path / SIDECAR).write_text(head.rstrip().removesuffix(",") + "\n}\n")
    assert verify_record(path).kind == "complete"


@pytest.mark.parametrize("number", ["EIO", "EMFILE", "EACCES", "ESTALE", "ENOMEM"])
def test_what_the_system_does_not_give_is_not_broken(tmp_path, monkeypatch, number):
    path, opened = made(tmp_path, format="jpg"), os.open
    for name in (SIDECAR, "flow_x_00002.jpg", "img_00001.jpg"):

        def refuse(file, *args, name=name, **kwargs):
            if str(file).endswith(name):
                raise OSError(getattr(errno, number), "no", str(file))
            return opened(file, *args, **kwargs)

        monkeypatch.setattr(reading.os, "open", refuse)
        verdict = verify_record(path)
        monkeypatch.undo()
        assert verdict.kind == "unreadable" and name in verdict.problems[0], name


def test_a_record_of_larger_frames_than_one_reads_is_not_broken(tmp_path):
    verdict = verify_record(made(tmp_path, format="jpg"), max_frame_mpx=0.0007)  # 24 x 32 px
    assert verdict.kind == "unreadable" and "32x24" in verdict.problems[0].replace(" ", "")


def test_a_zip_that_cannot_be_read_is_found_and_broken(tmp_path):
    path = tmp_path / "jump" / "a.zip"
    path.parent.mkdir()
    path.write_bytes(b"PK no zip at all")
    assert list(find_records(tmp_path)) == [path]
    assert verify_record(path).kind == "broken"


def test_a_read_error_of_a_pack_names_it(tmp_path, monkeypatch):
    path = pack_record(made(tmp_path, format="lz4"))
    record, opened = open_record(path), os.open

    def refuse(file, *args, **kwargs):
        if Path(file) == path:
            raise OSError(errno.EIO, "Input/output error", str(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(FlowkitError, match=r"a\.zip: could not be read"):
        record.fields(0, 3)


def test_too_little_memory_is_not_damage(tmp_path, monkeypatch):
    def too_large(path, **limits):
        raise MemoryError

    path = made(tmp_path, format="lz4")
    monkeypatch.setattr("flowkit.records.verify.open_record", too_large)
    verdict = verify_record(path)
    assert verdict.kind == "unreadable" and "not enough memory" in verdict.problems[0]


def test_every_damaged_file_is_named(tmp_path):
    path = made(tmp_path, format="npy")
    for number in (1, 3):
        file = path / f"flow_{number:05d}.npy"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    said = " ".join(verify_record(path).problems)
    assert "flow_00001.npy" in said and "flow_00003.npy" in said and "flow_00002" not in said
