"""`flowkit verify` of splits, checkpoints and .npz files: a flipped bit anywhere is found."""

import json
import os
import random
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from made_runs import write_run

from flowkit.data.splits import Split, Video
from flowkit.errors import CheckpointError, UsageError
from flowkit.evaluation.soundness import find_files, verify_file
from flowkit.networks.checkpoints import load_net
from flowkit.scores.files import Scores, read_scores, write_scores
from flowkit.scores.fusion import Fusion, write_fusion
from flowkit_cli.verify import verify

FLIPS = 150  # of each kind of file
SPLIT = Split("made", ("a",), (Video("a/1", "a", "g"),), (), ())
SCORES = Scores(("v",), ("a", "b"), np.full((1, 2), 0.5, np.float32), meta={"kind": "softmax"})


@pytest.fixture
def runs(tmp_path):
    """A run with its split, scores and a fusion, and two files of other programs."""
    folder = write_run(tmp_path / "runs/spatial", split=SPLIT)
    write_scores(folder / "scores-test.npz", SCORES)
    write_fusion(tmp_path / "runs/fused/fusion.npz", Fusion("average"))
    (folder / "other.json").write_text('{"format": "something"}')
    np.savez(folder / "other.npz", a=1)
    return tmp_path / "runs"


def told(*arguments):
    result = CliRunner().invoke(verify, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_all_files_of_a_run_are_sound_and_others_passed_over(runs):
    found = [path.relative_to(runs).as_posix() for path in find_files(runs)]
    expected = ["best.json", "last.json", "scores-test.npz", "split.json"]
    assert found == ["fused/fusion.npz", *(f"spatial/{name}" for name in expected)]
    result = told(runs)
    assert result.exit_code == 0
    assert result.stderr == "5 files: 5 sound; 0 broken or unfinished\n"
    assert "1 file: 1 complete, by names and sizes" in told(runs / "fused", "--quick").stderr


@pytest.mark.parametrize(
    "name", ["best.json", "split.json", "scores-test.npz", "step-00000007.safetensors"]
)
def test_every_flipped_bit_is_found(runs, name):
    file, chance = runs / "spatial" / name, random.Random(7)
    checked = runs / "spatial/best.json" if file.suffix == ".safetensors" else file
    data = file.read_bytes()
    places = [chance.randrange(8 * len(data)) for _ in range(FLIPS)]
    places += range(8 * (len(data) - 40), 8 * len(data))  # the seal, too
    for bit in places:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert verify_file(checked).kind == "broken", bit
        assert checked in list(find_files(runs)), bit
    file.write_bytes(data)
    assert verify_file(checked).kind == "sound"


def test_what_is_damaged_or_missing_is_named_and_never_deleted(runs):
    tensors = runs / "spatial/step-00000007.safetensors"
    tensors.unlink()
    result = told(runs, "--delete-broken")
    assert result.exit_code == 1
    assert "best.json: " in result.stdout and "safetensors: file is missing" in result.stdout
    assert "2 broken or unfinished" in result.stderr
    assert (runs / "spatial/best.json").exists()
    assert verify_file(runs / "nowhere.npz").problems == (f"{runs}/nowhere.npz: file is missing",)
    (runs / "text.npz").write_text("text")
    assert "expected an .npz file" in told(runs / "text.npz").stdout
    assert "expected a split or a checkpoint" in told(runs / "spatial/other.json").stdout
    with pytest.raises(UsageError, match=r"expected a folder, a pack"):
        told(next(runs.rglob("*.state.safetensors")))
    os.mkfifo(runs / "pipe.json")
    assert "expected a plain file, got a named pipe" in told(runs / "pipe.json").stdout


def test_hostile_files_are_refused_at_once(runs, tmp_path):
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.npy", b"0")
    data = bytearray(bomb.read_bytes())
    place = data.index(b"PK\x01\x02") + 24  # the size unpacked, in the directory
    data[place : place + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    bomb.write_bytes(data)
    verdict = verify_file(bomb)
    assert verdict.kind == "broken" and "at most, got 4,294,967,280" in verdict.problems[0]
    tensors = runs / "spatial/step-00000007.safetensors"
    tensors.unlink()
    os.mkfifo(tensors)
    with pytest.raises(CheckpointError, match="expected a plain file, got a named pipe"):
        load_net(runs / "spatial")
    assert verify_file(runs / "spatial/best.json").kind == "broken"


def test_files_without_checksums_are_complete(runs, tmp_path):
    file = tmp_path / "three-lines.npz"
    arrays = {"videos": ["v"], "classes": ["a", "b"], "scores": np.zeros((1, 2), np.float32)}
    np.savez(file, **arrays, meta=json.dumps({"version": 1, "kind": "logits"}))
    assert read_scores(file).videos == ("v",)
    assert verify_file(file).kind == "complete"
    split = runs / "spatial/split.json"
    text = split.read_text()
    split.write_text(text[: text.rindex(',\n "crc32"')] + "\n}\n")
    assert verify_file(split).kind == "complete"


def test_a_sealed_file_is_read_by_other_programs_and_by_everyone_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        run = write_run(tmp_path / "run")
        write_scores(run / "s.npz", SCORES)
    finally:
        os.umask(before)
    for file in run.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, file
    with np.load(run / "s.npz") as loaded:
        assert loaded["videos"].tolist() == ["v"]
    assert zipfile.ZipFile(run / "s.npz").testzip() is None


def test_verify_needs_no_torch():
    code = "import sys, flowkit.evaluation.soundness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
