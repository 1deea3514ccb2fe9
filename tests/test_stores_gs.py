"""Laws of `flowkit extract` between buckets of Google's store, of which an emulator runs here.

The emulator puts an object whatever the condition is; that flowkit asks for it is looked at.
"""

import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from made_videos import moving_texture, write_video

from flowkit.errors import NoObjectError
from flowkit.stores import objects
from flowkit.stores.urls import Access, parse_url

START_S = 60


@pytest.fixture(scope="module")
def store():
    """The environment of a command that finds the emulator, which has one bucket: clips."""
    pytest.importorskip("gcsfs", reason="pip install 'flowkit-video[gs]'")
    pytest.importorskip("gcp_storage_emulator", reason="pip install gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-W", "ignore", "-m", "gcp_storage_emulator", "start", "--in-memory"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([*start, f"--port={port}", "--default-bucket=clips"], **quiet)
    try:
        deadline = time.monotonic() + START_S
        while not answers(port):
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.05)
        yield os.environ | {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return not asking.connect_ex(("127.0.0.1", port))


def flowkit(store, *arguments, cwd):
    command = [sys.executable, "-m", "flowkit_cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=store, capture_output=True, text=True, timeout=300)


def members(pack: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(pack) as open_pack:
        return {name: open_pack.read(name) for name in open_pack.namelist()}


@pytest.mark.slow
def test_a_run_between_buckets_equals_one_between_folders(store, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store["STORAGE_EMULATOR_HOST"])
    (tmp_path / "videos").mkdir()
    bucket = parse_url("gs://clips", Access(scratch=str(tmp_path / "scratch")))
    for k in range(3):
        path = write_video(tmp_path / "videos" / f"{k}.avi", moving_texture(4, seed=k))
        objects.put_object(path, bucket / f"videos/{k}.avi", replace=False)
    how = ("--method", "dis", "-j", "2", "--pack")
    here = flowkit(store, "extract", "videos", "--out", "here", *how, cwd=tmp_path)
    command = ("extract", "gs://clips/videos", "--out", "gs://clips/flow", "--json", *how)
    there = flowkit(store, *command, cwd=tmp_path)
    assert here.returncode == there.returncode == 0, there.stderr
    for k in range(3):
        copy = tmp_path / f"{k}.zip"
        objects.get_object(bucket / f"flow/{k}.zip", copy)
        found, expected = members(copy), members(tmp_path / "here" / f"{k}.zip")
        source = json.loads(found.pop("record.json"))["source"]
        own = json.loads(expected.pop("record.json"))["source"]
        assert found == expected and source["sha256"] == own["sha256"] and source["etag"]
    again = flowkit(store, *command, cwd=tmp_path)
    assert json.loads(again.stdout.splitlines()[-1])["skipped"] == 3
    assert flowkit(store, "verify", "gs://clips/flow", cwd=tmp_path).returncode == 0
    absent = flowkit(store, "info", "gs://clips/nothing", cwd=tmp_path)
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_objects_are_put_where_none_is_read_by_ranges_and_removed(store, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store["STORAGE_EMULATOR_HOST"])
    url = parse_url("gs://clips/objects/a")
    (tmp_path / "given").write_bytes(b"0123456789")
    objects.put_object(tmp_path / "given", url, replace=False)
    asked = []
    gcsfs = pytest.importorskip("gcsfs")
    upload = gcsfs.core.simple_upload
    monkeypatch.setattr(
        gcsfs.core, "simple_upload", lambda *a, **b: asked.append(b["mode"]) or upload(*a, **b)
    )
    for replace in (False, True):
        objects.put_object(tmp_path / "given", url, replace=replace)
    assert asked == ["create", "overwrite"]  # "create" is the condition that none is there
    assert objects.read_range(url, 2, 5) == b"234"
    assert [one.text for one in objects.list_objects(url.parent)] == [url.text]
    objects.remove_object(url)
    with pytest.raises(NoObjectError):
        objects.object_state(url)
    objects.close_stores()
