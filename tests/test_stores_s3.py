"""Laws of `flowkit extract` and its kin between buckets: moto's S3 server, whole and failing."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from made_stores import CANARY, Faults, proxy, running_store
from made_videos import moving_texture, write_video

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'flowkit-video[s3]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

FEW = 5
METHOD = ("--method", "dis", "-j", "2")


@pytest.fixture(scope="module")
def store():
    with running_store() as store:
        store.make_bucket("videos")
        store.make_bucket("flow")
        yield store


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five tiny clips in two class folders."""
    return make_clips(tmp_path_factory.mktemp("clips"), range(FEW))


def make_clips(folder: Path, numbers) -> Path:
    for k in numbers:
        path = folder / ["jump", "run"][k % 2] / f"v_{k:03d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, moving_texture(3 + k % 4, size=(32, 48), seed=k))
    return folder


def upload(store, folder: Path, prefix: str) -> list[str]:
    """Put the files below a folder into the bucket of videos; their addresses."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    keys = [f"videos/{prefix}/{path.relative_to(folder).as_posix()}" for path in files]
    for key, path in zip(keys, files, strict=True):
        store.put(key, path.read_bytes())
    return [f"s3://{key}" for key in keys]


def flowkit(store, *arguments, cwd, port=None):
    """Run the command against the store, or a proxy before it; nothing it says holds the secret."""
    ran = subprocess.run(
        [sys.executable, "-m", "flowkit_cli", *map(str, arguments)],
        cwd=cwd, env=store.environment(port), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert CANARY not in ran.stdout + ran.stderr
    return ran


def summary(ran) -> dict:
    return json.loads(ran.stdout.splitlines()[-1])


def failed(ran) -> list[str]:
    lines = map(json.loads, ran.stdout.splitlines())
    return sorted(line["source"] for line in lines if line["status"] == "failed")


def records(store, prefix: str) -> dict[str, dict[str, bytes]]:
    """The files of each pack below a prefix of the bucket of flow, by its name there."""
    found = {}
    for key in store.list("flow", f"{prefix}/"):
        data = store.get(f"flow/{key}")
        assert CANARY.encode() not in data
        with zipfile.ZipFile(io.BytesIO(data)) as pack:
            found[key.removeprefix(f"{prefix}/")] = {n: pack.read(n) for n in pack.namelist()}
    return found


def local_records(out: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    for path in out.rglob("*.zip"):
        with zipfile.ZipFile(path) as pack:
            name = path.relative_to(out).as_posix()
            found[name] = {n: pack.read(n) for n in pack.namelist()}
    return found


def expect_equal_but_for_the_source(found, expected):
    """Byte for byte, but for the sidecar's entry of the source and the seal over it."""
    assert found.keys() == expected.keys()
    for name, files in expected.items():
        assert list(found[name]) == list(files), name
        for file, data in files.items():
            if file != "record.json":
                assert found[name][file] == data, f"{name}: {file}"
        ours, theirs = (json.loads(each["record.json"]) for each in (found[name], files))
        own, other = ours.pop("source"), theirs.pop("source")
        del ours["crc32"], theirs["crc32"]
        assert ours == theirs
        assert own["etag"] and own["modified_ns"] is None
        for key in ("name", "bytes", "sha256", "size", "frames_expected"):
            assert own[key] == other[key]


def extract_here(clips: Path, out: Path, store) -> dict[str, dict[str, bytes]]:
    ran = flowkit(store, "extract", clips, "--out", out, "--pack", *METHOD, cwd=clips.parent)
    assert ran.returncode == 0, ran.stderr
    return local_records(out)


@pytest.fixture(scope="module")
def local(clips, store, tmp_path_factory):
    """The records of the clips as a run between folders makes them."""
    return extract_here(clips, tmp_path_factory.mktemp("local") / "flow", store)


def test_a_run_between_buckets_equals_one_between_folders(store, clips, local, tmp_path):
    upload(store, clips, "plain")
    command = ("extract", "s3://videos/plain", "--out", "s3://flow/plain", "--json", *METHOD)
    ran = flowkit(store, *command, "--scratch", tmp_path / "scratch", "--log", "log", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert summary(ran)["done"] == FEW and summary(ran)["retries"] == 0
    expect_equal_but_for_the_source(records(store, "plain"), local)
    assert list((tmp_path / "scratch").rglob("*")) == []
    assert CANARY not in (tmp_path / "log").read_text()
    again = flowkit(store, *command, cwd=tmp_path)
    assert (summary(again)["done"], summary(again)["skipped"]) == (0, FEW)


def test_a_store_that_fails_now_and_then_gives_the_same_bytes(store, clips, local, tmp_path):
    upload(store, clips, "shaky")
    faults = Faults(busy=0.1, reset=0.05, cut=0.02, delay_s=0.2, seed=4)
    with proxy(store, faults) as port:
        ran = flowkit(
            store, "extract", "s3://videos/shaky", "--out", "s3://flow/shaky", "--json", *METHOD,
            cwd=tmp_path, port=port,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert faults.seen["busy"] and faults.seen["reset"]
    assert summary(ran)["done"] == FEW
    assert summary(ran)["retries"] >= faults.seen["busy"] + faults.seen["reset"]
    assert f"asked again {summary(ran)['retries']} times" in ran.stderr
    expect_equal_but_for_the_source(records(store, "shaky"), local)


@pytest.mark.slow
def test_what_is_forbidden_or_missing_fails_alone_and_is_the_next_runs_list(store, clips, tmp_path):
    urls = upload(store, clips, "barred")
    missing = "s3://videos/barred/jump/none.mp4"
    forbidden = urls[2]
    (tmp_path / "all.txt").write_text("\n".join([*urls, missing]))
    faults = Faults(forbidden=frozenset({forbidden.removeprefix("s3://")}))
    places = ("--root", "s3://videos/barred", "--out", "s3://flow/barred", "--json", *METHOD)
    with proxy(store, faults) as port:
        first = flowkit(
            store, "extract", "all.txt", *places, "--failures", "failures.txt",
            cwd=tmp_path, port=port,
        )  # fmt: skip
    assert first.returncode == 1
    assert failed(first) == sorted([forbidden, missing])
    assert summary(first)["done"] == FEW - 1 and summary(first)["retries"] == 0
    lines = (tmp_path / "failures.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == sorted([forbidden, missing])
    store.put(missing.removeprefix("s3://"), store.get(urls[0].removeprefix("s3://")))
    seen = Faults()
    with proxy(store, seen) as port:
        again = flowkit(store, "extract", "failures.txt", *places, cwd=tmp_path, port=port)
    assert again.returncode == 0 and summary(again)["done"] == 2
    touched = {key for _, key in seen.asked if key.endswith((".mp4", ".zip"))}
    assert {key.rpartition("/")[2].partition(".")[0] for key in touched} == {
        Path(forbidden).stem, "none"
    }  # fmt: skip


@pytest.mark.slow
def test_a_clip_that_changed_is_redone_only_where_that_is_asked_for(store, clips, tmp_path):
    urls = upload(store, clips, "moving")
    places = ("s3://videos/moving", "--out", "s3://flow/moving", "--json", *METHOD)
    assert flowkit(store, "extract", *places, cwd=tmp_path).returncode == 0
    store.put(urls[0].removeprefix("s3://"), store.get(urls[1].removeprefix("s3://")))
    (tmp_path / "added").mkdir()
    upload(store, make_clips(tmp_path / "added", range(100, 102)), "moving")
    told = flowkit(store, "extract", *places, cwd=tmp_path)
    assert told.returncode == 1 and failed(told) == [urls[0]] and summary(told)["done"] == 2
    redone = flowkit(store, "extract", *places, "--changed", "redo", cwd=tmp_path)
    assert redone.returncode == 0 and summary(redone)["done"] == 1
    assert summary(flowkit(store, "extract", *places, cwd=tmp_path))["skipped"] == FEW + 2
