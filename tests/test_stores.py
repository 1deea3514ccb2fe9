"""Laws of addresses, of calls that are tried again, and of objects; without a server."""

import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import run_here
from made_training import make_job, make_split, write_videos
from made_videos import moving_texture, write_video

from flowkit.data.record_folders import RecordFolder, check_split, folder_ids
from flowkit.errors import NoObjectError, RecordError, StoreError, UsageError
from flowkit.extraction.extract import extract_video
from flowkit.extraction.plan import plan
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.networks.checkpoints import read_checkpoint, read_tensors
from flowkit.records.layout import Storage
from flowkit.records.packing import put_record
from flowkit.records.reading import find_records, open_record, read_sidecar
from flowkit.records.verify import delete_broken, verify_records
from flowkit.stores import objects, retries, spans
from flowkit.stores.urls import Access, Url, as_place, parse_url, read_options, without_secrets
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train
from flowkit.video.changes import source_change
from flowkit.video.sources import find_videos

DIS = make_method("dis")
_names = itertools.count()


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path):
    """An empty folder of a store, whose local copies lie below the test's own folder."""
    access = Access(scratch=str(tmp_path / "scratch"))
    path = f"memory://test-{next(_names)}" if request.param == "memory" else f"file://{tmp_path}/st"
    return parse_url(path, access)


@pytest.fixture
def quick(monkeypatch):
    """The waits between tries, which are told and not waited for."""
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    return waits


def put(url: Url, data: bytes, tmp_path: Path, *, replace: bool = True) -> Url:
    file = tmp_path / "given"
    file.write_bytes(data)
    objects.put_object(file, url, replace=replace)
    return url


# --- addresses


def test_an_address_has_the_parts_of_a_path():
    url = parse_url("s3://bucket/a/b.c/d.mp4/")
    assert (url.scheme, url.name, url.stem, url.suffix) == ("s3", "d.mp4", "d", ".mp4")
    assert str(url.parent) == "s3://bucket/a/b.c"
    assert str(url.with_name("e")) == "s3://bucket/a/b.c/e"
    assert str(url.parent / "x/y") == "s3://bucket/a/b.c/x/y"
    assert url.relative_to(parse_url("s3://bucket/a")).as_posix() == "b.c/d.mp4"
    assert str(parse_url("S3://bucket").parent) == "s3://bucket"
    with pytest.raises(ValueError, match="below"):
        url.relative_to(parse_url("s3://bucket/other"))


@pytest.mark.parametrize("text", ["a/b", "/a", "C:/x", "a:b", ""])
def test_a_path_is_no_address(text):
    assert as_place(text) == Path(text)


@pytest.mark.parametrize("text", [
    "s3://me:canary@bucket/a", "s3://canary@bucket", "https://host/a?X-Amz-Signature=canary",
    "https://host/a?token=canary",
])  # fmt: skip
def test_an_address_with_a_secret_is_refused_without_showing_it(text):
    with pytest.raises(UsageError, match="environment") as error:
        parse_url(text)
    assert "canary" not in str(error.value)
    assert "canary" not in str(without_secrets(["extract", text, "--out", f"--out={text}"]))


@pytest.mark.parametrize("text", [
    "secret=canary", "aws_secret_access_key=canary", "session_token=canary", "PASSWORD=canary",
    "key=canary", "client_kwargs.aws_access_key_id=canary", 'config={"b": [{"Key": "canary"}]}',
    "endpoint_url=https://me:canary@host",
])  # fmt: skip
def test_an_option_that_names_a_secret_is_refused_without_showing_it(text):
    with pytest.raises(UsageError, match="names a secret") as error:
        read_options([text])
    assert "canary" not in str(error.value)
    assert "canary" not in str(without_secrets(["--storage-option", text]))


def test_options_become_settings_of_the_file_system():
    access = Access(
        read_options(["anon=true", "endpoint_url=http://h:1", "client_kwargs.verify=a"])
    )
    assert access.settings() == {
        "anon": True, "endpoint_url": "http://h:1", "client_kwargs": {"verify": "a"}
    }  # fmt: skip
    with pytest.raises(UsageError, match="KEY=VALUE"):
        read_options(["anon"])


def test_a_kind_of_store_that_there_is_not_is_told_in_one_line():
    with pytest.raises(UsageError, match="unknown kind of store"):
        objects.object_state(parse_url("nosuchstore://a/b"))


# --- calls


class Answered(Exception):
    """An error as botocore has it."""

    def __init__(self, code, status):
        super().__init__("the store's words: canary")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class Coded(Exception):
    """An error with a code, as aiohttp has it of a body that it cannot read."""

    def __init__(self, code):
        super().__init__()
        self.code = code


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = [
    TimeoutError(), ConnectionResetError(), Answered("SlowDown", 503), Answered("500", 500),
    caused(OSError("x"), Answered("ServiceUnavailable", 503)), Answered("", 429),
    type("ClientPayloadError", (Exception,), {})(), retries.Truncated(),
    caused(type("ClientPayloadError", (Exception,), {})(), Coded(400)),
]  # fmt: skip
STAYING = [
    Answered("AccessDenied", 403), Answered("NoSuchKey", 404), FileNotFoundError(),
    PermissionError(), Answered("InvalidRequest", 400), ValueError("odd"),
    caused(PermissionError("x"), Answered("403", 403)), Answered("NotImplemented", 501),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_tried_again_and_counted(error, quick):
    answers = iter([error, error, 7])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    before = retries.retry_count()
    assert retries.call(parse_url("s3://b/k"), ask) == 7
    assert retries.retry_count() - before == len(quick) == 2
    assert 0.1 <= quick[0] <= 0.2 <= quick[1] <= 0.4


@pytest.mark.parametrize("error", STAYING, ids=repr)
def test_what_stays_ends_at_once_without_the_words_of_the_store(error, quick):
    def ask():
        raise error

    with pytest.raises(StoreError, match="s3://b/k: ") as told:
        retries.call(parse_url("s3://b/k"), ask)
    assert quick == [] and "canary" not in str(told.value) and "\n" not in str(told.value)
    assert told.value.__suppress_context__  # a traceback does not show the words either
    missing = isinstance(error, FileNotFoundError) or "NoSuchKey" in repr(vars(error))
    assert isinstance(told.value, NoObjectError) == missing


def test_a_store_that_never_answers_is_given_up_after_a_minute_at_most(quick):
    def ask():
        raise ConnectionResetError

    with pytest.raises(StoreError, match=f"after {retries.TRIES} tries"):
        retries.call(parse_url("s3://b/k"), ask)
    assert len(quick) == retries.TRIES - 1 and sum(quick) < 60


# --- objects


def test_objects_are_put_listed_read_and_removed(folder, tmp_path):
    names = ["b/2.bin", "a.bin", "b/1.bin", "b/c/x.bin"]
    for name in names:
        put(folder / name, name.encode(), tmp_path)
    listed = list(objects.list_objects(folder))
    assert sorted(url.relative_to(folder).as_posix() for url in listed) == sorted(names)
    for url in listed:
        name = url.relative_to(folder).as_posix()
        assert url.state == objects.object_state(url) and url.state.size == len(name)
        assert objects.read_object(url, 100) == name.encode()
        assert objects.read_range(url, 1, 3) == name.encode()[1:3]
        assert objects.get_object(url, tmp_path / "copy") == url.state
        assert (tmp_path / "copy").read_bytes() == name.encode()
    objects.remove_object(listed[0])
    assert not objects.is_object(listed[0])
    with pytest.raises(NoObjectError, match="no such object"):
        objects.object_state(listed[0])
    assert list(objects.list_objects(folder / "nothing")) == []


def test_a_put_that_replaces_nothing_leaves_what_is_there(folder, tmp_path):
    put(folder / "a.zip", b"first", tmp_path, replace=False)
    with pytest.raises(FileExistsError):
        put(folder / "a.zip", b"second", tmp_path, replace=False)
    assert objects.read_object(folder / "a.zip", 100) == b"first"
    put(folder / "a.zip", b"third", tmp_path)
    assert objects.read_object(folder / "a.zip", 100) == b"third"


@pytest.mark.parametrize("blocks", [0, 1, 3, 100])
def test_spans_are_the_bytes_whatever_the_cache_which_never_grows_beyond_its_size(
    folder, tmp_path, monkeypatch, blocks
):
    monkeypatch.setattr(spans, "BLOCK", 64)
    size = blocks * (64 + spans.DIGEST)
    access = Access(scratch=str(tmp_path), cache=str(tmp_path / "cache"), cache_bytes=size)
    data = np.random.default_rng(0).bytes(1000)
    url = put(parse_url(f"{folder}/x", access), data, tmp_path)
    chance = random.Random(1)
    for _ in range(60):
        start = chance.randrange(999)
        end = chance.randrange(start + 1, 1000)
        assert bytes(spans.read_span(url, start, end)) == data[start:end]
        kept = [file.stat().st_size for file in (tmp_path / "cache").glob("*")]
        assert sum(kept) <= size
    if blocks:
        spans.read_span(url, 130, 140)
        monkeypatch.setattr(spans, "read_range", None)  # what was just read is there
        assert bytes(spans.read_span(url, 129, 191)) == data[129:191]


# --- videos and records


@pytest.fixture
def clips(folder, tmp_path):
    """Three clips of a store, in two class folders, and the same in a folder of this machine."""
    here = tmp_path / "videos"
    for k, name in enumerate(["jump/v_1.mp4", "jump/v_10.mp4", "run/v_2.mp4"]):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(here / name, moving_texture(3 + k, size=(32, 48), seed=k))
        objects.put_object(here / name, folder / "videos" / name, replace=True)
    put(folder / "videos/notes.csvx", b"x", tmp_path)
    put(folder / "videos/.hidden.mp4", b"x", tmp_path)
    return here


def found(inputs, **more):
    return {one.id: str(one.path) for one in find_videos(inputs, **more).sources}


def test_videos_below_an_address_have_the_ids_of_those_in_a_folder(folder, clips):
    of_store = find_videos([folder / "videos"])
    assert [one.id for one in of_store.sources] == [one.id for one in find_videos([clips]).sources]
    assert of_store.passed_over == {".csvx": 1, "hidden": 1}
    url = f"{folder}/videos/jump/v_1.mp4"
    assert found([url]) == {"v_1": url}
    assert found([url], root=f"{folder}/videos") == {"jump/v_1": url}
    with pytest.raises(UsageError, match="no such object, and none below"):
        find_videos([f"{folder}/videos/none"])
    with pytest.raises(UsageError, match="below the root"):
        find_videos([url], root="s3://elsewhere")


def test_a_list_names_addresses_with_reasons_labels_and_escapes(folder, clips, tmp_path):
    one, two = (f"{folder}/videos/{name}" for name in ("jump/v_1.mp4", "run/v_2.mp4"))
    (tmp_path / "list.txt").write_text(
        f"# these\n{one}\tforbidden\n{two} 3\ns3://b/a\\\\b.mp4\tx\n"
    )
    assert set(found([tmp_path / "list.txt"]).values()) == {one, two, "s3://b/a\\b.mp4"}
    put(folder / "list.txt", one.encode(), tmp_path)
    assert found([folder / "list.txt"]) == {"v_1": one}


def request(**storage) -> Request:
    return Request(DIS, storage=Storage(**{"pack": True, **storage}))


def test_a_record_of_a_store_is_that_of_a_folder(folder, clips, tmp_path):
    out, here = folder / "flow", tmp_path / "flow"
    sources = find_videos([folder / "videos"]).sources
    assert plan(sources, out, request()) == list(sources)
    for source in sources:
        assert extract_video(source, out, request()).written
    for source in find_videos([clips]).sources:
        extract_video(source, here, request())
    assert not list((tmp_path / "scratch").rglob("*"))
    for url in find_records(out):
        record, own = open_record(url), open_record(here / url.relative_to(out))
        assert np.array_equal(record.fields(0, 2), own.fields(0, 2))
        assert np.array_equal(record.frame(1), own.frame(1))
        ours, theirs = record.sidecar, own.sidecar
        assert ours.pop("source")["sha256"] == theirs.pop("source")["sha256"]
        assert ours.pop("crc32") != theirs.pop("crc32") and ours == theirs
    assert len(list(find_records(out))) == 3
    assert plan(sources, out, request()) == []


def test_of_two_runs_on_one_store_the_first_stays(folder, clips):
    source, *_ = find_videos([folder / "videos"]).sources
    assert extract_video(source, folder / "flow", request()).written
    assert not extract_video(source, folder / "flow", request()).written
    with pytest.raises(RecordError, match=r"another run .* quality: 90 on disk, 50 asked for"):
        extract_video(source, folder / "flow", request(quality=50))
    with pytest.raises(UsageError, match=r"made from other parameters: quality"):
        plan([source], folder / "flow", request(quality=50))
    extract_video(source, folder / "flow", request(quality=50), overwrite=True)
    assert read_sidecar(folder / "flow/jump/v_1.zip")["request"]["quality"] == 50


def test_what_is_not_flowkits_is_never_replaced(folder, clips, tmp_path):
    source, *_ = find_videos([folder / "videos"]).sources
    put(folder / "flow/jump/v_1.zip", b"somebody's", tmp_path)
    for overwrite in (False, True):
        [planned] = plan([source], folder / "flow", request(), overwrite=overwrite)
        assert "in the place of its record" in planned.refusal
        with pytest.raises(RecordError, match="expected a stored zip"):
            extract_video(source, folder / "flow", request(), overwrite=overwrite)
    assert objects.read_object(folder / "flow/jump/v_1.zip", 100) == b"somebody's"


def test_a_store_takes_packs_only(folder, clips):
    sources = find_videos([folder / "videos"]).sources
    with pytest.raises(UsageError, match="packs: --pack"):
        plan(sources, folder / "flow", request(pack=False))


@pytest.mark.parametrize("changed, redo, refused", [("redo", 1, 0), ("keep", 0, 0), ("fail", 0, 1)])
def test_a_changed_object_is_told(folder, clips, tmp_path, changed, redo, refused):
    for source in find_videos([folder / "videos"]).sources:
        extract_video(source, folder / "flow", request())
    other = (clips / "run/v_2.mp4").read_bytes()
    put(folder / "videos/jump/v_1.mp4", other, tmp_path)
    # The same bytes put again are no change.
    put(folder / "videos/run/v_2.mp4", other, tmp_path)
    todo = plan(
        find_videos([folder / "videos"]).sources, folder / "flow", request(), changed=changed
    )
    assert [one.redo for one in todo] == [True] * redo + [False] * refused
    assert all("has changed since" in one.refusal for one in todo if refused)


def test_bytes_of_the_same_length_are_a_change_too(folder, tmp_path):
    url = put(folder / "a.mp4", b"12345", tmp_path)
    state = objects.object_state(url)
    recorded = {"name": "a.mp4", "bytes": 5, "etag": state.etag, "modified_ns": state.modified_ns}
    recorded["sha256"] = objects.hash_object(url)
    assert source_change(url, recorded) == ""
    put(url, b"54321", tmp_path)
    assert source_change(url, recorded) == "other bytes"


def test_a_damaged_video_is_named_by_its_address(folder, tmp_path):
    url = put(folder / "a.mp4", b"no video at all", tmp_path)
    [source] = find_videos([url]).sources
    with pytest.raises(ValueError, match="cannot be opened") as error:
        extract_video(source, folder / "flow", request())
    assert str(error.value).startswith(f"{url}: ")
    assert str(tmp_path / "scratch") not in str(error.value)
    assert list(objects.list_objects(folder / "flow")) == []
    shutil.rmtree(tmp_path / "scratch", ignore_errors=True)


def test_a_sidecar_names_the_etag_of_its_source(folder, clips, monkeypatch):
    source, *_ = find_videos([folder / "videos"]).sources
    state = objects.object_state(source.path)
    marked = type(state)(state.size, "0123abcd")
    monkeypatch.setattr(objects, "object_state", lambda url: marked)
    extract_video(source, folder / "flow", request())
    told = json.loads(json.dumps(read_sidecar(folder / "flow/jump/v_1.zip")))["source"]
    assert (told["etag"], told["modified_ns"]) == ("0123abcd", None)


# --- splits, training and checks


@pytest.fixture
def cached(folder, tmp_path):
    """The same folder, with a cache."""
    access = Access(scratch=str(tmp_path), cache=str(tmp_path / "cache"), cache_bytes=1 << 20)
    return parse_url(str(folder), access)


def test_a_training_on_a_store_is_that_on_a_folder(cached, tmp_path):
    if cached.scheme == "memory":
        pytest.skip("loader workers see no memory of another process")
    digests = []
    for root in (cached / "flow", tmp_path / "flow"):
        job = make_job(write_videos(root, pack=True), make_split())
        out = tmp_path / f"run-{len(digests)}"
        for _ in train(job, out, Ranks(0, 1, torch.device("cpu")), Machine(workers=2)):
            pass
        tensors = read_tensors(out / "last.json", "weights")
        digests.append({name: tensor.numpy().tobytes() for name, tensor in tensors.items()})
    assert digests[0] == digests[1] and digests[0]
    kept = list((tmp_path / "cache").iterdir())
    assert kept and all(file.stat().st_size <= spans.BLOCK + spans.DIGEST for file in kept)
    stored = read_checkpoint(tmp_path / "run-0/last.json").training["places"]["main"]["root"]
    assert stored == f"{cached}/flow"


def test_a_split_of_a_store_is_that_of_a_folder(folder, tmp_path):
    of_store, here = (
        write_videos(root, pack=True) for root in (folder / "flow", tmp_path / "flow")
    )
    assert folder_ids(of_store) == folder_ids(here)
    split = make_split()
    assert check_split(split, of_store, length=2) == check_split(split, here, length=2)
    with pytest.raises(RecordError, match="flowkit's own records in a store"):
        RecordFolder(folder / "flow", layout="tsn").find()


def test_verify_finds_one_changed_bit_in_a_store_and_deletes_only_that_record(folder, tmp_path):
    write_videos(folder / "flow", per_class=1, pack=True)
    urls = sorted(find_records(folder / "flow"))
    data = bytearray(objects.read_object(urls[1], 1 << 20))
    data[200] ^= 1
    put(urls[1], bytes(data), tmp_path)
    verdicts = list(verify_records(urls))
    assert [one.kind for one in verdicts] == ["sound", "broken", "sound"]
    assert verdicts[1].problems[0].startswith(f"{urls[1]}: ")
    assert [one.kind for one in verify_records(urls, quick=True)] == ["complete"] * 3
    assert delete_broken(verdicts[0]) == "" and delete_broken(verdicts[1]) == ""
    assert sorted(find_records(folder / "flow")) == [urls[0], urls[2]]


def test_records_of_a_folder_are_put_into_a_store_as_packs(folder, tmp_path):
    write_videos(tmp_path / "flow", per_class=1)
    [path, *_] = find_records(tmp_path / "flow")
    assert put_record(path, folder / "a.zip")
    assert not put_record(path, folder / "a.zip")
    assert path.is_dir()
    assert np.array_equal(open_record(folder / "a").fields(0, 3), open_record(path).fields(0, 3))
    assert open_record(folder / "a").sidecar == open_record(path).sidecar
    (path / "more.txt").write_text("mine")
    with pytest.raises(RecordError, match="not the record's own"):
        put_record(path, folder / "b.zip")


def test_a_process_that_closed_its_stores_has_one_thread_and_opens_them_again(folder, tmp_path):
    url = put(folder / "a", b"123", tmp_path)
    objects.close_stores()
    objects.close_stores()
    assert objects.read_object(url, 10) == b"123"


@pytest.mark.parametrize(
    "command",
    [
        "plan s3://b/videos",
        "trajectories s3://b/videos",
        "trajectories . --out s3://b/tracks",
        "unpack s3://b/flow",
        "convert s3://b/flow --out flow",
        "convert . --out s3://b/flow",
        "view s3://b/flow/a",
        "stats s3://b/flow",
        "eval s3://b/runs/temporal",
        "train temporal --out s3://b/run",
        "extract . --failures s3://b/failed.txt",
    ],
)
def test_what_takes_paths_of_this_machine_says_so_of_an_address(command, tmp_path):
    done = run_here(*command.split(), cwd=tmp_path)
    address = next(word for word in command.split() if word.startswith("s3:"))
    line = f"flowkit: error: {address}: expected a path of this machine, got an address in a store"
    assert (done.returncode, done.stderr.decode().count("\n")) == (2, 1)
    assert done.stderr.decode().startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_holds_a_secret_is_not_repeated(tmp_path):
    done = run_here("unpack", "s3://user:canary@b/flow", cwd=tmp_path)
    assert done.returncode == 2 and b"canary" not in done.stderr


@pytest.mark.parametrize("command", ["plan", "trajectories"])
def test_a_list_of_addresses_is_refused_where_paths_are_expected(command, folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"{folder}/a.avi\n")
    done = run_here(command, "list.txt", cwd=tmp_path)
    assert done.returncode == 2 and b"expected a path of this machine" in done.stderr


def test_frames_in_a_store_are_not_taken_and_the_line_says_what_to_do(folder, tmp_path):
    for number in range(3):
        put(folder / f"frames/img_{number:05d}.jpg", b"x", tmp_path)
    with pytest.raises(UsageError, match=r"passed over: 3 \.jpg.*read on this machine only"):
        find_videos([folder / "frames"])
