"""Sidecars are held to what they may say before anything is done with them."""

import copy
import json
import shutil
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_records import write_record

from flowkit.documents import SIDECAR, is_sealed
from flowkit.errors import FlowkitError, RecordError
from flowkit.records.reading import open_record
from flowkit.records.sidecar import parse_sidecar, read_checks
from flowkit.records.verify import verify_record

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ODD = (
    None,
    True,
    -1,
    0,
    3,
    10**12,
    10**400,
    1.5,
    "",
    "../%0999999999d",
    "x",
    [],
    [[]],
    {},
    {"x": 1},
)


def made(tmp_path, **storage):
    forward = np.zeros((4, 8, 10, 2), np.float32)
    forward[:, 2:5, 3:6] = (2.0, -1.0)
    frames = np.full((5, 8, 10, 3), 90, np.uint8)
    return write_record(tmp_path, "jump/a", forward, -forward, frames=frames, **storage)


def places(value, at=()):
    """The way to every value inside a JSON value."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))
        else:
            yield (*at, key)


def put(document, at, value):
    changed = copy.deepcopy(document)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return changed


def test_checksums_are_zips_and_of_every_file(tmp_path):
    record = made(tmp_path, format="jpg")
    checks = read_checks(record.sidecar)
    files = {}
    for template, one in checks.items():
        for number, (crc, size) in enumerate(zip(one.crc32, one.size, strict=True), start=1):
            files[template % number] = (crc, size)
    for file in record.path.iterdir():
        data = file.read_bytes()
        if file.name != SIDECAR:
            assert files.pop(file.name) == (zlib.crc32(data), len(data))
    assert files == {}


def test_a_sidecar_seals_itself(tmp_path):
    data = (made(tmp_path).path / SIDECAR).read_bytes()
    body, _, _ = data.rpartition(b",\n")
    assert json.loads(data)["crc32"] == f"{zlib.crc32(body):08x}"
    assert is_sealed(data) and not is_sealed(data + b" ") and not is_sealed(body)
    for at in range(0, len(data), 7):
        assert not is_sealed(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("format", ["jpg", "npy"])
def test_every_value_replaced_is_refused_in_one_line_or_harmless(tmp_path, format):
    record = made(tmp_path, format=format)
    whole = record.sidecar
    fields = record.fields(0, 4)
    for at in places(whole):
        for odd in ODD:
            data = json.dumps(put(whole, at, odd)).encode()
            try:
                parse_sidecar(data, record.path)
            except RecordError as error:
                text = str(error)
                assert text.startswith(str(record.path)) and "\n" not in text
                assert len(text) < len(str(record.path)) + 250
                continue
            if "ranges" not in at and at[0] in ("series", "request", "size", "images"):
                (record.path / SIDECAR).write_bytes(data)
                try:
                    same = open_record(record.path).fields(0, 4)
                except RecordError:
                    continue
                np.testing.assert_array_equal(same, fields)


@pytest.mark.parametrize("whole", [[], "a.avi", 3, None])
def test_a_source_that_is_no_object_is_refused(tmp_path, whole):
    record = made(tmp_path)
    data = json.dumps(record.sidecar | {"source": whole}).encode()
    with pytest.raises(RecordError, match="source cannot be"):
        parse_sidecar(data, record.path)


@pytest.mark.parametrize("value", [-1, "none", [3], None])
def test_a_count_of_plain_fields_that_is_none_is_refused(tmp_path, value):
    record = made(tmp_path)
    data = json.dumps(record.sidecar | {"plain_fields": value}).encode()
    with pytest.raises(RecordError, match="plain_fields cannot be"):
        parse_sidecar(data, record.path)


@pytest.mark.parametrize("value", ["homography", {"matches": "flow"}, {"name": 3}, None])
def test_a_way_to_stabilize_without_a_name_is_refused(tmp_path, value):
    record = made(tmp_path)
    request = record.sidecar["request"] | {"stabilize": value}
    data = json.dumps(record.sidecar | {"request": request}).encode()
    with pytest.raises(RecordError, match="stabilize cannot be"):
        parse_sidecar(data, record.path)


@pytest.mark.parametrize("change", [lambda ranges: ranges[:-1], lambda ranges: ranges * 2])
def test_ranges_of_another_number_of_fields_are_refused(tmp_path, change):
    record = made(tmp_path, format="jpg")
    sidecar = copy.deepcopy(record.sidecar)
    sidecar["series"][0]["ranges"] = change(sidecar["series"][0]["ranges"])
    with pytest.raises(RecordError, match=r"ranges"):
        parse_sidecar(json.dumps(sidecar).encode(), record.path)


@pytest.mark.slow
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_what_hypothesis_makes_of_a_sidecar_gives_a_flowkit_error_or_a_verdict(tmp_path, data):
    folder = tmp_path / "jump" / "a"
    if not folder.exists():
        made(tmp_path, format="png")
        shutil.copy(folder / SIDECAR, tmp_path / "whole")
    whole = json.loads((tmp_path / "whole").read_text())
    changed = put(whole, data.draw(st.sampled_from(list(places(whole)))), data.draw(VALUES))
    (folder / SIDECAR).write_text(json.dumps(changed))
    try:
        open_record(folder).fields(0, 1)
    except FlowkitError as error:
        assert "\n" not in str(error)
    assert verify_record(folder).problems  # for the sidecar's own checksum is gone


def test_a_sidecar_names_no_files_of_another_video(tmp_path):
    record = made(tmp_path, format="jpg", layout="twostreamfusion")
    shutil.copytree(record.path, tmp_path / "records" / "b")
    with pytest.raises(RecordError, match="files cannot be"):
        open_record(tmp_path / "records" / "b")


def test_frames_beyond_the_limit_are_refused_by_the_flags_name(tmp_path):
    record = made(tmp_path)
    with pytest.raises(RecordError, match=r"10x8 px, more than 5e-05 .*--max-frame-mpx"):
        open_record(record.path, max_frame_mpx=0.00005)


def test_a_series_of_floats_that_lost_its_ranges_is_broken_and_no_crash(tmp_path):
    record = made(tmp_path, format="npy")
    text = (record.path / SIDECAR).read_text()
    (record.path / SIDECAR).write_text(text.replace('"ranges"', '"rangEs"'))
    assert verify_record(record.path).kind == "broken"
