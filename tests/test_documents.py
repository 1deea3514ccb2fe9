"""Files are replaced whole or not at all, and are on the disk before they are named."""

import os

import pytest

from flowkit import documents
from flowkit.documents import make_folders, replacing


def test_a_file_is_replaced_when_it_is_whole_and_folders_above_it_are_made(tmp_path):
    file = tmp_path / "a" / "b" / "one.txt"
    for text in ("old", "new"):
        with replacing(file) as part:
            part.write_text(text)
            assert part.parent == file.parent
            assert not file.exists() or file.read_text() == "old"
        assert file.read_text() == text
    assert os.listdir(file.parent) == ["one.txt"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(file) as part:
        part.write_text("ne")
        raise OSError("disk full")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["one.txt"]


def test_a_folder_or_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe"):
        with pytest.raises(FileExistsError, match="plain file"), replacing(tmp_path / name):
            pytest.fail("was handed a name")
    assert os.listdir(tmp_path) == ["pipe"]


def test_bytes_are_synced_before_the_rename_and_the_name_after_it(tmp_path, monkeypatch):
    file = tmp_path / "new" / "one.txt"
    synced = []
    monkeypatch.setattr(
        documents, "sync", lambda path: synced.append((path, file.exists(), path.exists()))
    )
    with replacing(file) as part:
        part.write_text("text")
    assert synced == [(tmp_path, False, True), (part, False, True), (file.parent, True, True)]


def test_every_new_folder_is_synced_into_the_one_above_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(documents, "sync", synced.append)
    make_folders(tmp_path / "a" / "b")
    assert set(synced) == {tmp_path, tmp_path / "a"}
    make_folders(tmp_path / "a" / "b")
    assert len(synced) == 2
