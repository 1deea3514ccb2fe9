"""Records as WebDataset: read back by the webdataset package, in shards of bounded size."""

import gc
import io
import json
import zipfile

import numpy as np
import pytest
from command import run_here
from made_records import write_record

from flowkit.records.packing import pack_record
from flowkit.records.reading import open_record

# the package leaves the files that it reads to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FIELDS = np.random.default_rng(0).normal(0, 2, (3, 8, 10, 2)).astype(np.float32)


@pytest.fixture
def flow(tmp_path):
    for name in ("jump/a", "jump/b.c", "sit.up/d"):
        write_record(tmp_path / "flow", name, FIELDS, format="png")
    pack_record(tmp_path / "flow/jump/a")
    return tmp_path / "flow"


def pack(flow, out="shards", *options):
    return run_here("pack", flow, "--webdataset", out, *options, cwd=flow.parent)


def samples(folder):
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    gc.collect()
    return found


def test_the_webdataset_package_reads_every_record_back(flow, tmp_path):
    done = pack(flow)
    assert done.returncode == 0, done.stderr
    assert b"wrote 3 records into 1 tar file in shards" in done.stderr
    found = samples(tmp_path / "shards")
    assert [one["__key__"] for one in found] == ["jump/a", "jump/b_c", "sit.up/d"]
    for sample in found:
        sidecar = json.loads(sample["json"])
        assert sidecar["format"] == "flowkit flow record" and sidecar["frames"] == 4
        assert zipfile.ZipFile(io.BytesIO(sample["zip"])).read("record.json") == sample["json"]
        kept = tmp_path / "one.zip"
        kept.write_bytes(sample["zip"])
        np.testing.assert_allclose(open_record(kept).fields(0, 3), FIELDS, atol=0.05)
    assert (flow / "jump/a.zip").exists() and (flow / "jump/b.c/record.json").exists()


def test_shards_are_bounded_and_the_same_bytes_from_folders_and_packs(flow, tmp_path):
    for out in ("one", "two"):
        assert pack(flow, out, "--shard-size", "20KB").returncode == 0
        if out == "one":
            pack_record(flow / "sit.up/d")
    shards = sorted((tmp_path / "one").glob("*.tar"))
    assert [path.name for path in shards] == [f"flow-{k:06d}.tar" for k in range(len(shards))]
    assert len(shards) == 3 and all(path.stat().st_size <= 20_480 for path in shards)
    for path in shards:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert len(samples(tmp_path / "one")) == 3


def test_a_bad_record_is_named_and_the_rest_is_written(flow, tmp_path):
    file = flow / "jump/b.c/flow_x_00002.png"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    done = pack(flow)
    assert done.returncode == 1 and b"failed: jump/b.c: " in done.stderr
    assert [one["__key__"] for one in samples(tmp_path / "shards")] == ["jump/a", "sit.up/d"]


def test_two_of_one_key_and_shards_that_are_there_are_refused(flow, tmp_path):
    write_record(flow, "jump/b_c", FIELDS)
    done = pack(flow)
    assert done.returncode == 1 and b"jump/b_c: has the same key" in done.stderr
    before = (tmp_path / "shards/flow-000000.tar").read_bytes()
    done = pack(flow)
    assert done.returncode == 2 and b"there already, and not replaced" in done.stderr
    assert (tmp_path / "shards/flow-000000.tar").read_bytes() == before
    assert not (tmp_path / "shards/.incomplete").exists()


def test_other_layouts_and_empty_folders_say_so(tmp_path):
    write_record(tmp_path / "flow", "a", FIELDS, format="png", bound=5, layout="denseflow")
    done = pack(tmp_path / "flow")
    assert done.returncode == 1 and b"flowkit convert --layout flowkit" in done.stderr
    (tmp_path / "none").mkdir()
    done = pack(tmp_path / "none", "x")
    assert done.returncode == 1 and b"no flow records there" in done.stderr
