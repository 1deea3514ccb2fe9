"""Features: what a forward hook sees, and each kind of file as its own library reads it."""

import gc
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command import run_here
from made_records import write_record
from made_runs import write_run

from flowkit.data.clips import ten_views
from flowkit.data.frames import FrameForm
from flowkit.data.stacks import StackForm, flow_stack
from flowkit.errors import InstallError, UsageError
from flowkit.evaluation.features import record_features, write_features
from flowkit.evaluation.scoring import Scorer, TestViews
from flowkit.networks.checkpoints import BEST, Checkpoint, load_net, write_checkpoint
from flowkit.networks.joining import Towers
from flowkit.networks.towers import make_net
from flowkit.records.reading import open_record

IDS = ("jump/a.b", "jump/c", "run/d")
LAYERS = ("block3", "block4.conv", "pool", "flatten", "trunk.block2.relu", "trunk")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A temporal run and three records of six frames, at 25 frames/s."""
    place = tmp_path_factory.mktemp("place")
    write_run(place / "runs/temporal", form=StackForm(2))
    random = np.random.default_rng(0)
    for id in IDS:
        write_record(place / "flow", id, random.normal(size=(5, 40, 48, 2)).astype(np.float32))
    return place


@pytest.fixture
def scorer(place):
    return Scorer(place / "runs/temporal", views=TestViews(moments=3, crops="ten"), pass_inputs=7)


def opened(flow):
    return [(id, lambda id=id: open_record(flow / id)) for id in IDS]


def hooked(place, record, layer, clips):
    """By hand: a hook's output of each view, then means over places and views."""
    _, net = load_net(place / "runs/temporal")
    seen = []
    module = dict(net.named_modules())[layer if layer.startswith("trunk") else f"trunk.{layer}"]
    module.register_forward_hook(lambda m, i, output: seen.append(output.clone()))
    rows = []
    for clip in clips:
        seen.clear()
        for view in ten_views(record.size, crop=32, short_side=36):
            with torch.no_grad():
                net(torch.from_numpy(flow_stack(record, clip, view, form=StackForm(2)))[None])
        maps = torch.cat(seen)
        rows.append((maps.mean((2, 3)) if maps.ndim == 4 else maps).mean(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("layer", LAYERS)
def test_features_are_what_a_forward_hook_sees(place, scorer, layer):
    [(_, open_one), *_] = opened(place / "flow")
    record = open_one()
    found = record_features(scorer, record, layer)
    clips = [one[0][0] for one in scorer.places(record.name, record.frame_count)]
    expected = hooked(place, record, layer, clips)
    assert (found.values.dtype, found.values.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    of_video = record_features(scorer, record, layer, per="video")
    np.testing.assert_allclose(of_video.values, expected.mean(0), atol=1e-5)


def test_moments_are_frames_and_seconds(place, scorer):
    [(_, open_one), *_] = opened(place / "flow")
    found = record_features(scorer, open_one(), "pool")
    assert found.frames.tolist() == [1, 3, 4]  # clips of 2 fields within frames 0 to 5
    np.testing.assert_allclose(found.seconds, found.frames / 25.0)


def test_a_short_video_repeats_moments_and_their_features(place, tmp_path):
    scorer = Scorer(place / "runs/temporal", views=TestViews(moments=5, crops="center"))
    random = np.random.default_rng(1)
    record = write_record(tmp_path, "short", random.normal(size=(2, 40, 48, 2)).astype(np.float32))
    found = record_features(scorer, record, "flatten")
    assert found.values.shape[0] == 5
    assert (found.values == found.values[0]).all() and found.frames.tolist() == [1] * 5


def test_a_hook_does_not_stay(place, scorer):
    [(_, open_one), *_] = opened(place / "flow")
    record_features(scorer, open_one(), "pool")
    assert not any(module._forward_hooks for module in scorer.net.modules())


def test_joined_towers_give_the_mean_over_the_moments_of_a_sample(tmp_path):
    towers = Towers("conv", ("relu4",), frames=2)
    inputs = {"spatial": FrameForm(), "temporal": StackForm(2)}
    net = make_net("small+small", inputs, {"main": 3}, towers)
    said = Checkpoint(
        1, "small+small", inputs, 0.5, {"main": ("a", "b", "c")}, 36, 32, towers=towers
    )
    write_checkpoint(tmp_path / "run", [BEST], said, net.state_dict(), {})
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (20, 40, 48, 3), dtype=np.uint8)
    fields = random.normal(size=(19, 40, 48, 2)).astype(np.float32)
    record = write_record(tmp_path, "a", fields, frames=frames)
    scorer = Scorer(tmp_path / "run", views=TestViews(1, "center", "logits"))
    found = record_features(scorer, record, "above.joined.flatten")
    seen = []
    scorer.net.above["joined"].flatten.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    list(scorer.logits(record))
    assert len(seen) == 1 and seen[0].shape == (2, 256)  # both moments of the one sample
    np.testing.assert_allclose(found.values, seen[0].mean(0, keepdim=True).numpy(), atol=1e-5)


def command(place, *more):
    run = place / "runs/temporal"
    return run_here(
        "features", run, "--records", place / "flow", "--moments", "2",
        "--views", "center", *more, cwd=place,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(place):
    scorer = Scorer(place / "runs/temporal", views=TestViews(moments=2, crops="center"))
    return {id: record_features(scorer, one(), "trunk") for id, one in opened(place / "flow")}


def test_the_command_writes_npz_and_keeps_what_is_there(place, tmp_path, expected):
    out = tmp_path / "features"
    assert command(place, "--out", out).returncode == 0
    for id, one in expected.items():
        with np.load(out / f"{id}.npz") as file:
            np.testing.assert_array_equal(file["features"], one.values)
            np.testing.assert_array_equal(file["frames"], one.frames)
            np.testing.assert_array_equal(file["seconds"], one.seconds)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    Path(out, "run/d.npz").unlink()
    assert command(place, "--out", out).returncode == 0
    assert Path(out, "run/d.npz").exists()
    kept = {path: path.stat().st_mtime_ns for path in before if path.name != "d.npz"}
    assert kept.items() <= before.items()
    done = command(place, "--out", out, "--per", "video")
    assert done.returncode == 2
    assert b"made in another way are there: per: " in done.stderr


def test_npy_stands_beside_its_moments(place, tmp_path, expected):
    assert command(place, "--out", tmp_path / "f", "--format", "npy").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "f/jump/c.npy"), expected["jump/c"].values)
    told = json.loads(Path(tmp_path, "f/jump/c.json").read_text())
    assert told["video"] == "jump/c"
    assert told["seconds"] == expected["jump/c"].seconds.tolist()


def test_h5py_reads_the_hdf5_file(place, tmp_path, expected):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")
    assert command(place, "--out", tmp_path / "f", "--format", "hdf5").returncode == 0
    with h5py.File(tmp_path / "f/features.h5") as file:
        for id, one in expected.items():
            np.testing.assert_array_equal(file[id]["features"], one.values)
            np.testing.assert_array_equal(file[id]["seconds"], one.seconds)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_the_webdataset_package_reads_the_tar_which_is_the_same_each_time(
    place, tmp_path, expected
):
    for name in ("f", "g"):
        assert command(place, "--out", tmp_path / name, "--format", "webdataset").returncode == 0
    data = Path(tmp_path, "f/features.tar").read_bytes()
    assert data == Path(tmp_path, "g/features.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
    assert names[:2] == ["jump/a_b.json", "jump/a_b.npy"]
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    samples = list(
        webdataset.WebDataset(str(tmp_path / "f/features.tar"), shardshuffle=False).decode()
    )
    gc.collect()  # its open file, here and not in a later test
    assert [one["json"]["video"] for one in samples] == list(IDS)
    for one in samples:
        np.testing.assert_array_equal(one["npy"], expected[one["json"]["video"]].values)


def test_a_bad_record_costs_itself_only(place, tmp_path):
    random = np.random.default_rng(0)
    for id in ("a", "b"):
        write_record(tmp_path / "flow", id, random.normal(size=(3, 40, 48, 2)).astype(np.float32))
    next(Path(tmp_path, "flow/a").glob("*00001.npy")).write_bytes(b"no")
    run = place / "runs/temporal"
    done = run_here("features", run, "--layer", "pool", "--out", "f", cwd=tmp_path)
    assert done.returncode == 1
    assert b"failed: a: " in done.stderr and b"features of 1 video" in done.stdout
    assert [path.name for path in Path(tmp_path, "f").glob("*.npz")] == ["b.npz"]


def test_what_cannot_be_asked_is_one_line_and_writes_nothing(place, tmp_path, scorer):
    run, flow, out = place / "runs/temporal", place / "flow", tmp_path / "f"
    done = run_here("features", run, "--layer", "full7", "--records", flow, "--out", out, cwd=place)
    assert done.returncode == 2 and not out.exists()
    assert b"has no layer 'full7'; it has trunk.block1, " in done.stderr
    with pytest.raises(UsageError, match=r"several layers are called 'conv': trunk\.block1\.conv"):
        record_features(scorer, opened(flow)[0][1](), "conv")
    with pytest.raises(UsageError, match=r"a format of npz, npy, .*, got 'mat'"):
        next(write_features(scorer, [], out, layer="pool", format="mat"))
    out.mkdir()
    Path(out, "mine.txt").write_text("x")
    with pytest.raises(UsageError, match=r"holds files, but no features.json"):
        list(write_features(scorer, opened(flow), out, layer="pool", format="hdf5"))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_hdf5_without_h5py_is_named(place, tmp_path, scorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InstallError, match="pip install h5py"):
        list(write_features(scorer, [], tmp_path / "f", layer="pool", format="hdf5"))
    assert not (tmp_path / "f").exists()


def test_keys_alike_in_a_webdataset_cost_the_second_video(tmp_path, place, scorer):
    [(_, open_one), *_] = opened(place / "flow")
    records = [("x/a.b", open_one), ("x/a_b", open_one)]
    told = list(write_features(scorer, records, tmp_path / "f", layer="pool", format="webdataset"))
    assert told[0] == ("x/a.b", None)
    assert "same key in a WebDataset as x/a.b" in str(told[1][1])
