"""Laws of `flowkit extract` and its kin between buckets: moto's S3 server, whole and failing."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from made_stores import CANARY, Faults, proxy, running_store
from made_training import CLASSES, write_videos
from made_videos import moving_texture, write_video

from flowkit.scores.files import read_scores

FEW = 5
METHOD = ("--method", "dis", "-j", "2")


@pytest.fixture(scope="module")
def store():
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'flowkit-video[s3]'")
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_workers_of_dask_read_and_write_the_buckets(store, clips, local, tmp_path):
    pytest.importorskip("distributed")
    upload(store, clips, "dask")
    command = ("extract", "s3://videos/dask", "--out", "s3://flow/dask", "--json", *METHOD)
    dask = ("--dask", "local", "-j", 2, "--scratch", tmp_path / "scratch")
    ran = flowkit(store, *command, *dask, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert summary(ran)["done"] == FEW
    expect_equal_but_for_the_source(records(store, "dask"), local)
    assert list((tmp_path / "scratch").rglob("*")) == []


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
    # aiohttp renews by itself a connection that was used before and is found reset.
    assert summary(ran)["retries"] >= faults.seen["busy"]
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


@pytest.mark.slow
def test_forty_clips_through_a_store_that_fails_equal_a_local_run(store, tmp_path):
    (tmp_path / "forty").mkdir()
    forty = make_clips(tmp_path / "forty", range(40))
    expected = extract_here(forty, tmp_path / "flow", store)
    upload(store, forty, "forty")
    faults = Faults(busy=0.1, reset=0.05, cut=0.02, delay_s=1.0, seed=7)
    for out, port_of in (("forty", None), ("forty-shaky", faults)):
        with proxy(store, port_of or Faults()) as port:
            ran = flowkit(
                store, "extract", "s3://videos/forty", "--out", f"s3://flow/{out}", "--json",
                *METHOD, cwd=tmp_path, port=port,
            )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert summary(ran)["done"] == 40
        assert (summary(ran)["retries"] > 0) == (port_of is not None)
        expect_equal_but_for_the_source(records(store, out), expected)
    assert faults.seen["busy"] and faults.seen["reset"] and faults.seen["cut"]
    # Ten more and a changed one: ten and one named without --changed redo, eleven with it.
    make_clips(tmp_path / "forty", range(40, 50))
    urls = upload(store, forty, "forty")
    store.put(urls[3].removeprefix("s3://"), (forty / "jump/v_000.mp4").read_bytes())
    for out, more, count in (("forty", (), 10), ("forty-shaky", ("--changed", "redo"), 11)):
        ran = flowkit(
            store, "extract", "s3://videos/forty", "--out", f"s3://flow/{out}", "--json", *METHOD,
            *more, cwd=tmp_path,
        )  # fmt: skip
        assert summary(ran)["done"] == count
        assert failed(ran) == ([] if more else [urls[3]])
        assert ran.returncode == (0 if more else 1)


@pytest.mark.slow
def test_a_client_killed_between_any_two_puts_leaves_whole_records_only(store, clips, tmp_path):
    """Killed at each put in turn, before the server has heard of it or when it has answered."""
    upload(store, clips, "killed")
    for number in range(1, FEW + 1):
        prefix = f"killed-{number}"
        command = ["extract", "s3://videos/killed", "--out", f"s3://flow/{prefix}", *METHOD]
        killing = Faults(kill_at=number, kill_after=number % 2 == 0)
        with proxy(store, killing) as port:
            client = subprocess.Popen(
                [sys.executable, "-m", "flowkit_cli", *command, "--scratch", "scratch"],
                cwd=tmp_path, env=store.environment(port),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            killing.victim = client
            assert client.wait(timeout=300) == -signal.SIGKILL
        left = records(store, prefix)  # opens every pack and reads all of it: none is cut short
        assert number - 1 <= len(left) <= number + 1
    again = flowkit(store, *command, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert summary(again)["skipped"] == len(left)
    assert summary(again)["done"] == FEW - len(left)


@pytest.mark.slow
def test_streams_learn_score_and_predict_from_a_bucket_as_from_a_folder(store, tmp_path):
    write_videos(tmp_path / "flow", per_class=8, pack=True)
    put = flowkit(store, "pack", "flow", "--out", "s3://flow/learn", cwd=tmp_path)
    assert put.returncode == 0, put.stderr
    again = flowkit(store, "pack", "flow", "--out", "s3://flow/learn", cwd=tmp_path)
    assert f"0 put, {8 * len(CLASSES)} there already" in again.stderr
    tiny = ("--L", "2", "--recipe", "short", "--steps", "4", "--short-side", "36", "--crop", "32")
    found = {}
    for where in ("s3://flow/learn", "flow"):
        runs = f"runs-{len(found)}"
        for command in (
            ("split", "make", where, "--folds", "2", "--out", f"{runs}/split.json"),
            ("split", "check", f"{runs}/split.json", "--records", where, "--L", "2"),
            ("train", "temporal", "--records", where, "--runs", runs, "--seed", "1", *tiny),
            ("eval", "--records", where, "--runs", runs, "--part", "test"),
        ):
            ran = flowkit(store, *command, cwd=tmp_path)
            assert ran.returncode == 0, ran.stderr
        scores = read_scores(tmp_path / runs / "temporal/scores-test.npz")
        found[where] = (scores.videos, scores.values.tobytes())
    assert found["s3://flow/learn"] == found["flow"]
    spatial = ("spatial", "--records", "s3://flow/learn", "--runs", "runs-1", *tiny[2:])
    assert flowkit(store, "train", *spatial, cwd=tmp_path).returncode == 0
    clip = write_video(tmp_path / "a.mp4", moving_texture(6, size=(36, 44)))
    store.put("videos/predict/a.mp4", clip.read_bytes())
    told = [
        json.loads(
            flowkit(
                store, "predict", video, "--spatial", "runs-1/spatial", "--json", cwd=tmp_path
            ).stdout
        )
        for video in ("s3://videos/predict/a.mp4", "a.mp4")
    ]
    assert [one.pop("video") for one in told] == ["s3://videos/predict/a.mp4", "a.mp4"]
    assert told[0] == told[1]
    absent = ("predict", "s3://videos/predict/b.mp4", "--spatial", "runs-1/spatial")
    missing = flowkit(store, *absent, cwd=tmp_path)
    assert missing.returncode == 1 and "no such object" in missing.stderr


def command_lines() -> set[str]:
    """What `ps` shows of every process."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_no_secret_is_seen_of_a_run_that_fails(store, clips, tmp_path):
    urls = upload(store, clips, "secret")
    faults = Faults(forbidden=frozenset(url.removeprefix("s3://") for url in urls))
    command = ["extract", "s3://videos/secret", "--out", "s3://flow/secret", "--json", *METHOD]
    seen = set()
    with proxy(store, faults) as port:
        client = subprocess.Popen(
            [sys.executable, "-m", "flowkit_cli", "-vv", *command,
             "--log", "log", "--failures", "failed.txt"],
            cwd=tmp_path, env=store.environment(port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while client.poll() is None:
            seen |= command_lines()
            time.sleep(0.05)
        said = client.stdout.read()
        client.stdout.close()
    assert client.returncode == 1 and "forbids" in said
    texts = [said, *seen, *(path.read_text() for path in tmp_path.iterdir())]
    assert any("failed.txt" in text for text in seen)
    assert len(texts) > 3 and not any(CANARY in text for text in texts)
    refused = ("--storage-option", f"secret={CANARY}"), ("--root", f"s3://me:{CANARY}@videos")
    for more in refused:
        ran = flowkit(store, "--log", "log", *command, *more, cwd=tmp_path)
        assert ran.returncode == 2 and "environment" in ran.stderr
    assert CANARY not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_settings_of_a_store_are_options(store, clips, tmp_path):
    upload(store, clips, "options")
    environment = store.environment()
    del environment["AWS_ENDPOINT_URL"]
    ran = subprocess.run(
        [sys.executable, "-m", "flowkit_cli", "extract", "s3://videos/options", "--dry-run",
         "--storage-option", f"endpoint_url={store.address}", "--out", "s3://flow/options"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "s3://videos/options/jump/v_000.mp4 -> s3://flow/options/jump/v_000" in ran.stdout
    other = flowkit(
        store, "extract", "s3://videos/options", "--out", "s3://flow/o", "--layout",
        "twostreamfusion", cwd=tmp_path,
    )  # fmt: skip
    assert other.returncode == 2 and "a store holds packs" in other.stderr
