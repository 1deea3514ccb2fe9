"""Whatever a file holds, its reader answers, or refuses it in one line, soon, in little memory."""

import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowkit.errors import CheckpointError, ScoresError
from flowkit.networks.weights import read_weights
from flowkit.scores import npz
from flowkit.scores.files import read_scores
from flowkit.scores.npz import write_arrays

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import hostile_tries
from hostile_files import KINDS
from hostile_tries import tried

EXAMPLES = 8


@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_file_is_refused_in_one_line_or_read(tmp_path, name):
    found = tried(KINDS[name], tmp_path, EXAMPLES)
    assert found and not any(found)


def test_a_reader_that_does_neither_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile_tries, "MOST_S", 0.2)
    monkeypatch.setattr(hostile_tries, "MOST_BYTES", 64 << 20)

    def raises(file):
        raise KeyError("x")

    def tires(file):
        end = time.process_time() + 0.25
        while time.process_time() < end:
            pass

    def takes(file):
        return len(b"x" * (80 << 20))

    for read, wrong in ((raises, "KeyError"), (tires, " s"), (takes, " bytes")):
        kind = replace(KINDS["a split"], read=read)
        assert all(wrong in text for text in tried(kind, tmp_path, 1))


def test_weights_that_unpack_to_more_than_they_are_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000, 1000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match=r"bomb\.pth: .*compressed"):
        read_weights(str(tmp_path / "bomb.pth"), "small")


def test_scores_that_unpack_to_far_more_than_they_are_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "PACKED_BYTES", 1 << 16)
    file = tmp_path / "a.npz"
    write_arrays(file, {"scores": np.zeros((400, 400))}, {})
    with (
        zipfile.ZipFile(file) as whole,
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in ("videos", "classes"):
            bomb.writestr(f"{name}.npy", b"")
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(ScoresError, match="bytes at most, got 1,280,"):
        read_scores(tmp_path / "bomb.npz")
