"""Documents of flowkit's own: read only if they are plain, small and of a known version."""

import json
import os
import socket

import pytest

from flowkit import documents
from flowkit.documents import parse_json, read_document, read_plain_file
from flowkit.errors import ReadError, SplitError

HEAD = {"format": "flowkit split", "version": 1}


def read(path, version=1):
    return read_document(path, "flowkit split", version, error=SplitError, maker="flowkit split")


def test_a_document_comes_back_and_one_of_an_earlier_version_too(tmp_path):
    (tmp_path / "a").write_text(json.dumps(HEAD | {"name": "é"}))
    assert read(tmp_path / "a")["name"] == "é"
    assert read(tmp_path / "a", version=2)["version"] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", r"expected a flowkit split, in JSON \(Expecting"),
        (b"[1]", "got list"),
        (b"\xff{}", "byte 0 is no UTF-8"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a":' * 40 + b"0" + b"}" * 40, "nested too deep"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":1' + b"0" * 5000 + b"}", "in JSON"),
        (b'{"format": "x"}', "expected a flowkit split"),
        (json.dumps(HEAD | {"version": 2}).encode(), "got version 2: a later flowkit wrote it"),
        (json.dumps(HEAD | {"version": True}).encode(), "got version True"),
        (json.dumps(HEAD | {"version": "x" * 10_000}).encode(), r"got version 'x+\.\.\.$"),
    ],
)
def test_what_is_none_is_one_short_line_that_names_the_file(tmp_path, data, message):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(SplitError, match=message) as caught:
        read(tmp_path / "a.json")
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "a.json")) and "\n" not in text
    assert len(text) < len(str(tmp_path)) + 200


def test_a_number_beyond_floats_is_not_taken_for_infinity():
    with pytest.raises(SplitError, match="numbers beyond floats"):
        parse_json('{"a": 1e999}', where="x", what="split", error=SplitError)


def test_only_plain_files_are_read_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, kind in {"pipe": "a named pipe", "socket": "plain file", "": "a folder"}.items():
            with pytest.raises(SplitError, match=kind):
                read(tmp_path / name)
    with pytest.raises(SplitError, match="a device"):
        read("/dev/zero")


def test_more_bytes_than_allowed_are_refused_before_they_are_read(tmp_path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(documents.MOST_BYTES + 1)  # a hole: no bytes on the disk
    with pytest.raises(SplitError, match="expected at most 268,435,456 bytes"):
        read(tmp_path / "big")


@pytest.mark.parametrize("number", ["EIO", "EMFILE", "EACCES", "ESTALE", "ENOMEM", "EINTR"])
def test_what_the_system_does_not_give_is_not_called_wrong(tmp_path, monkeypatch, number):
    (tmp_path / "a").write_text("{}")

    def refuse(*args, **kwargs):
        raise OSError(getattr(documents.errno, number), "no", str(tmp_path / "a"))

    monkeypatch.setattr(documents.os, "open", refuse)
    with pytest.raises(ReadError, match="a: could not be read: no"):
        read_plain_file(tmp_path / "a", error=SplitError)
