"""The engine of a Dask cluster: what a lost worker costs, what is refused, what is left behind."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pool_tasks
import pytest
from command import run_here
from made_videos import moving_texture, write_video

import flowkit
from flowkit.errors import FlowkitError, InstallError, UsageError
from flowkit.extraction.extract import extract
from flowkit.extraction.request import Request
from flowkit.flow.methods import make_method
from flowkit.idt.extraction import TrackRequest, extract_tracks
from flowkit.records.layout import Storage
from flowkit.records.reading import find_records, open_record
from flowkit.stores import objects
from flowkit.stores.urls import Access, parse_url
from flowkit.video.sources import find_videos
from flowkit.workers import cluster as module
from flowkit.workers.cluster import connected
from flowkit.workers.engine import Done, Failed, Progress

FLOWKIT = (sys.executable, "-m", "flowkit_cli")


@pytest.fixture(scope="module", autouse=True)
def has_distributed():
    pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes on this machine, which start again when they are killed."""
    with connected("local", workers=2) as found:
        yield found


def outcomes_of(cluster, items, task=pool_tasks.mishap, **options):
    """What became of the items, in their order."""
    events = list(cluster.run(task, items, **{"workers": 100, **options}))
    ended = [event for event in events if not isinstance(event, Progress)]
    return sorted(ended, key=lambda event: event.index)


@pytest.mark.slow
def test_mishaps_cost_their_items_and_no_worker(cluster):
    items = list(range(16))
    items[3], items[10], items[12] = -signal.SIGSEGV, "error", "hang"
    workers = cluster._client.run(os.getpid)
    outcomes = outcomes_of(cluster, items, timeout_s=4)
    assert [outcome.index for outcome in outcomes] == list(range(16))
    done = {each.index: each.result[0] for each in outcomes if isinstance(each, Done)}
    assert done == {index: index for index in range(16) if index not in (3, 10, 12)}
    assert {
        each.index: (each.kind, each.reason) for each in outcomes if isinstance(each, Failed)
    } == {
        3: ("crash", "worker died by SIGSEGV (signal 11)"),
        10: ("error", "ValueError: wrong item"),
        12: ("timeout", "stopped after 4 s (timeout)"),
    }
    assert cluster._client.run(os.getpid) == workers


def test_an_item_that_takes_too_much_memory_is_stopped_alone(cluster):
    before, fill, after = outcomes_of(cluster, ["a", "fill", "b"], memory_bytes=500_000_000)
    assert (before.result[0], after.result[0]) == ("a", "b")
    assert fill.kind == "memory" and "(max-memory 0.5 GB)" in fill.reason


def test_children_are_used_again_and_end_with_the_run(cluster):
    outcomes = outcomes_of(cluster, range(12))
    children = {outcome.result[1] for outcome in outcomes}
    assert len(children) <= 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_what_tasks_report_comes_through(cluster):
    events = cluster.run(pool_tasks.count, range(4), workers=2)
    told = [event for event in events if isinstance(event, Progress)]
    assert {event.index for event in told} <= set(range(4)) and told
    assert all(isinstance(event.value, int) for event in told)


def test_a_killed_worker_has_its_items_done_elsewhere(cluster):
    killed = False
    done = []
    for event in cluster.run(pool_tasks.rest, range(40), workers=100):
        if isinstance(event, Done):
            done.append(event.index)
            if len(done) == 5 and not killed:
                killed = True
                os.kill(next(iter(cluster._client.run(os.getpid).values())), signal.SIGKILL)
        else:
            assert isinstance(event, Progress), event
    assert sorted(done) == list(range(40))


def test_an_item_that_kills_its_worker_twice_is_poison(cluster):
    outcomes = outcomes_of(cluster, ["a", "kill parent", *range(8)])
    poison = outcomes.pop(1)
    assert isinstance(poison, Failed) and poison.kind == "crash"
    assert poison.reason.startswith("poison: it was lost with worker tcp://")
    assert [outcome.result[0] for outcome in outcomes] == ["a", *range(8)]


def test_closing_stops_what_is_under_way_and_what_waits(cluster, tmp_path):
    task = functools.partial(pool_tasks.hang_with_mark, folder=tmp_path)
    with closing(cluster.run(task, range(50), workers=100)) as events:
        next(events)
        begun = list(tmp_path.iterdir())
    assert 1 <= len(begun) <= 2
    wait_until(lambda: not any(os.path.exists(f"/proc/{mark.name}") for mark in begun))
    assert list(tmp_path.iterdir()) == begun
    assert [outcome.result[0] for outcome in outcomes_of(cluster, ["next"])] == ["next"]


@pytest.mark.slow
def test_workers_in_another_folder_write_where_the_command_runs(cluster, videos, monkeypatch):
    monkeypatch.chdir(videos)
    sources = find_videos(["videos"]).sources
    request = Request(make_method("farneback-opencv"))
    list(extract(sources, Path("flow"), request, workers=4, engine=cluster.run))
    few = sources[:1]
    list(extract_tracks(few, Path("tracks"), TrackRequest(), workers=1, engine=cluster.run))
    assert len(list(find_records(videos / "flow"))) == len(sources)
    assert len(list(Path("tracks").rglob("*.npz"))) == 1


def test_workers_read_from_a_store_and_write_into_one_themselves(cluster, videos, monkeypatch):
    access = Access(scratch=str(videos / "scratch"))
    store = parse_url(f"file://{videos}/store", access)
    shutil.copytree(videos / "videos", videos / "store" / "videos")
    sources = find_videos([store / "videos"]).sources
    request = Request(make_method("farneback-opencv"), storage=Storage(pack=True))
    with monkeypatch.context() as patch:  # the client does neither
        patch.setattr(objects, "get_object", None)
        patch.setattr(objects, "put_object", None)
        outcomes = list(extract(sources, store / "flow", request, workers=4, engine=cluster.run))
    assert {one.status for one in outcomes} <= {"running", "done"}
    monkeypatch.chdir(videos)
    list(extract(find_videos(["videos"]).sources, Path("flow"), request, workers=2))
    for record in Path("flow").rglob("*.zip"):
        there = open_record(store / "flow" / record.relative_to("flow").with_suffix(""))
        assert (there.fields(0, 7) == open_record(record).fields(0, 7)).all()
    assert not list((videos / "scratch").rglob("*.*"))


def wait_until(true, *, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_items_are_taken_as_threads_become_free(cluster):
    taken = 0

    def supply():
        nonlocal taken
        while taken < 60:
            taken += 1
            yield taken

    ended = 0
    for event in cluster.run(pool_tasks.square, supply(), workers=1000):
        if isinstance(event, Done):
            ended += 1
            assert taken - ended <= 2 * 2 + module.AHEAD
    assert ended == 60


def test_no_more_than_the_workers_asked_for(cluster, tmp_path):
    taken = ended = 0

    def supply():
        nonlocal taken
        while taken < 10:
            taken += 1
            yield taken

    for event in cluster.run(pool_tasks.square, supply(), workers=1):
        if isinstance(event, Done):
            ended += 1
            assert taken - ended <= 1
    assert ended == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "expected at least 1 worker, got 0"),
        ({"workers": 1, "timeout_s": 0}, "expected a timeout of more than 0 s, got 0"),
    ],
)
def test_wrong_numbers_are_refused(cluster, options, message):
    with pytest.raises(UsageError, match=message):
        cluster.run(pool_tasks.square, [], **options)


def test_a_task_that_cannot_be_pickled_is_refused(cluster):
    with pytest.raises(UsageError, match="the task cannot be pickled"):
        cluster.run(lambda item, report: None, [1], workers=1)


def test_a_worker_with_another_version_is_named(cluster, monkeypatch):
    monkeypatch.setattr(flowkit, "__version__", "9.9")
    with pytest.raises(UsageError, match=r"expected flowkit 9.9 everywhere.*tcp://\S+\).*install"):
        cluster.check_versions()
    with pytest.raises(UsageError, match=r"worker tcp://\S+ on \S+ has flowkit .*, expected 9.9"):
        list(cluster.run(pool_tasks.square, [1], workers=1))


def refused(address, error=UsageError) -> str:
    """The line with which a cluster at `address` is refused."""
    with pytest.raises(error) as caught, connected(address, workers=1):
        pass
    return str(caught.value)


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:8786", ""])
def test_an_address_that_cannot_be_one_is_refused(address):
    assert f"--dask {address}: expected an address such as tcp://" in refused(address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://no.such.host.invalid:1", "x://a"])
def test_a_scheduler_that_does_not_answer_is_named(address, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    assert f"--dask {address}: no scheduler answers" in refused(address)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"address": 5}', "no JSON"])
def test_a_file_that_is_no_scheduler_file_is_refused(content, tmp_path):
    (tmp_path / "scheduler.json").write_text(content)
    line = refused(str(tmp_path / "scheduler.json"))
    assert "scheduler.json: expected a file of dask scheduler --scheduler-file" in line


def test_without_distributed_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    line = refused("local", InstallError)
    assert "--dask needs distributed" in line and "pip install 'flowkit-video[dask]'" in line


@pytest.fixture
def own_scheduler(tmp_path):
    """A scheduler and a worker of their own, and the scheduler's file."""
    file = tmp_path / "scheduler.json"
    python = (sys.executable, "-W", "ignore", "-m", "distributed.cli.dask_scheduler")
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    }
    options = ("--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    scheduler = subprocess.Popen([*python, *options], **quiet)
    wait_until(file.exists)
    python = (sys.executable, "-W", "ignore", "-m", "distributed.cli.dask_worker")
    options = ("--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard")
    worker = subprocess.Popen([*python, *options], **quiet)
    yield scheduler, file
    for process in (scheduler, worker):
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_scheduler_that_goes_ends_the_run_with_one_line(own_scheduler, monkeypatch, signum):
    monkeypatch.setattr(module, "CONNECT_S", 2.0)
    scheduler, file = own_scheduler
    done = 0
    with (
        connected(str(file), workers=1) as cluster,
        pytest.raises(FlowkitError, match=r"scheduler of .* does not answer any more"),
    ):
        for event in cluster.run(pool_tasks.rest, range(10_000), workers=100):
            done += isinstance(event, Done)
            if done == 3:
                scheduler.send_signal(signum)
    assert done >= 3


@pytest.fixture
def videos(tmp_path):
    """A folder of six short videos."""
    for number in range(6):
        path = tmp_path / "videos" / f"c{number % 2}" / f"{number}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, moving_texture(8, seed=number))
    return tmp_path


def contents(folder):
    """The bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


QUICK = ("extract", "videos", "--method", "farneback-opencv", "-j", "2")


@pytest.mark.parametrize("option", [("--gpu",), ("--gpus", "all"), ("--method", "tvl1-cuda")])
def test_gpus_are_refused_with_the_way_that_there_is(videos, option):
    done = run_here("extract", "videos", *option, "--dask", "local", cwd=videos)
    assert done.returncode == 2
    assert b"--dask does not go with --gpu: " in done.stderr and b"--shard" in done.stderr


def test_an_address_that_is_none_stops_the_command_before_any_work(videos):
    done = run_here(*QUICK, "--dask", "nowhere", cwd=videos)
    assert done.returncode == 2 and b"--dask nowhere: expected" in done.stderr
    assert not (videos / "flow").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [QUICK, ("trajectories", "videos", "-j", "2")])
def test_a_cluster_makes_the_same_records(videos, command):
    (videos / "videos" / "broken.avi").write_bytes(b"no video")
    here = subprocess.run([*FLOWKIT, *command, "--out", "here"], cwd=videos, capture_output=True)
    there = subprocess.run(
        [*FLOWKIT, *command, "--out", "there", "--dask", "local"], cwd=videos, capture_output=True
    )
    assert here.returncode == there.returncode == 1
    assert b"6 done, 0 there already, 1 failed" in there.stderr and b"2 workers" in there.stderr
    assert contents(videos / "here") == contents(videos / "there") != {}


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_client_leaves_finished_records_and_no_process(videos, signum, status):
    command = (*QUICK, "--method", "tvl1", "--tvl1-warps", "200", "--dask", "local")
    with subprocess.Popen(
        [*FLOWKIT, *command], cwd=videos, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        program.stderr.readline()  # what is to be done
        assert "2 threads" in program.stderr.readline()
        wait_until(lambda: list(videos.glob("flow/.incomplete/*/*")))
        os.killpg(program.pid, signum)
        errors = program.communicate()[1]
    assert (program.returncode, errors.count("\n")) == (status, 1)
    assert f"stopped by {signal.Signals(signum).name}" in errors
    assert not list(videos.glob("flow/.incomplete"))
    assert run_here("verify", "flow", cwd=videos).returncode in (0, 2)
