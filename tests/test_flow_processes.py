"""Flow processes against flow in the workers: the same bytes, and what it costs when one dies."""

import dataclasses
import itertools
import os
import pickle
import queue
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from made_videos import moving_texture, write_video
from stand_ins import Missing, Plain, PretendedFarneback, Quantizing, Troubled, Visible

from flowkit.errors import FlowkitError, UsageError
from flowkit.extraction.extract import extract
from flowkit.extraction.flow_client import Layout, RemoteFlow
from flowkit.extraction.flow_processes import FlowProcesses
from flowkit.extraction.flow_server import Client, FlowServer, Solver
from flowkit.extraction.messages import Usage, Work
from flowkit.extraction.request import Request
from flowkit.extraction.throughput import FILES, LOCK, START, find_bottleneck
from flowkit.flow.cuda import device
from flowkit.flow.cuda.methods import CudaFarneback, CudaTVL1
from flowkit.flow.stabilized import Stabilization
from flowkit.records.layout import Storage
from flowkit.records.reading import open_record
from flowkit.video.sources import Source
from flowkit.workers import children as child_processes

FLOATS = Storage(format="npy", rgb=False)


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Neither a process of this one's nor a socket's address; the memory never had a name."""
    before = set(children())  # of other files' tests
    yield
    for _ in range(100):
        if before.issuperset(children()):
            break
        time.sleep(0.02)
    assert before.issuperset(children())
    assert f"@flowkit-{os.getpid()}-" not in Path("/proc/net/unix").read_text()


@pytest.fixture(autouse=True)
def way(request, monkeypatch):
    """Processes are forked, whatever threads the tests have; or fresh, where a test says so.

    On a GPU it is left to them: this process has opened it, too.
    """
    if request.node.get_closest_marker("gpu"):
        return
    way = getattr(request, "param", "fork")
    monkeypatch.setattr(child_processes, "may_fork", lambda: way == "fork")
    monkeypatch.setattr(child_processes, "_count_threads", lambda: 1)


def children() -> list[str]:
    """The processes that this one has started, dead ones that nobody reaped included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                found.append(stat.parent.name)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Source]:
    """Videos of several lengths and sizes; the one named "dark" is darker than the others."""
    folder = tmp_path_factory.mktemp("videos")
    sizes = [(72, 96), (48, 64), (72, 96), (90, 50), (48, 64)]
    sources = []
    for number, size in enumerate(sizes):
        frames = moving_texture(9 + 2 * number, size=size, seed=number)
        path = write_video(folder / f"{number}.avi", frames, "mjpeg", pixel_format="yuvj420p")
        sources.append(Source(path, f"c/{number}"))
    dark = [frame // 4 for frame in moving_texture(80, seed=9)]
    path = write_video(folder / "dark.avi", dark, "mjpeg", pixel_format="yuvj420p")
    return [*sources, Source(path, "c/dark")]


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run(sources, out, request, *, gpus=(0,), workers=2, **options):
    """What became of each video, by its id, and the processes thereafter."""
    whole = {"gpus": gpus, "quantized": request.stabilize is None}
    with FlowProcesses(request.method, request.storage, **whole) as processes:
        outcomes = extract(sources, out, request, workers=workers, processes=processes, **options)
        ended = {one.source.id: one for one in outcomes if one.status != "running"}
        return ended, processes, processes.usages()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (PretendedFarneback(), {}),
        (Quantizing(), {"storage": Storage(bound=2.5, format="png")}),
        pytest.param(
            *(Plain(), {"storage": Storage(format="lz4", rgb=False), "steps": (7, 1)}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Quantizing(),
            {"storage": FLOATS, "steps": (1, 2), "backward": True, "resize": "40x30"},
            marks=pytest.mark.slow,
        ),
        (Quantizing(), {"stabilize": Stabilization(), "backward": True}),
    ],
    ids=["planes", "bound", "fields", "floats", "stabilized"],
)
def test_records_are_those_of_the_workers_byte_for_byte(
    videos, tmp_path, monkeypatch, method, options
):
    monkeypatch.setattr(
        "flowkit.extraction.request.prepare_method", lambda method: None
    )  # opens no GPU
    request = Request(method, **options)
    if request.stabilize is not None:  # which takes long
        videos = videos[:4]
    for one in extract(videos, tmp_path / "workers", request, workers=1):
        assert one.status != "failed", one.reason
    ended, _, usages = run(videos, tmp_path / "process", request)
    assert {one.status for one in ended.values()} == {"done"}
    assert tree(tmp_path / "process") == tree(tmp_path / "workers")
    assert len(tree(tmp_path / "process")) > 120
    usage, passes = usages[0], 1 if request.stabilize is None else 2
    assert usage.pairs == passes * sum(one.result.fields for one in ended.values())
    assert 0 < usage.busy_s <= usage.span_s and usage.batches < usage.pairs


def test_flow_that_is_quantized_far_away_cannot_be_stabilized(videos, tmp_path):
    request = Request(Quantizing(), stabilize=Stabilization())
    with (
        FlowProcesses(request.method, request.storage, gpus=[0]) as processes,
        pytest.raises(UsageError, match="quantized=False"),
    ):
        list(extract(videos, tmp_path, request, workers=1, processes=processes))


@pytest.mark.gpu
@pytest.mark.parametrize("method", [CudaTVL1(), CudaFarneback()], ids=["tvl1", "farneback"])
@pytest.mark.parametrize("storage", [Storage(), Storage(bound=2.5), FLOATS])
def test_on_a_gpu_records_are_those_of_a_worker_that_has_the_gpu(videos, tmp_path, method, storage):
    try:
        device.count_gpus()
    except FlowkitError as error:
        pytest.skip(str(error))
    request = Request(method, storage=storage)
    for one in extract(videos, tmp_path / "worker", request, workers=1):
        assert one.status != "failed", one.reason
    ended, _, _ = run(videos, tmp_path / "process", request, workers=4)
    assert {one.status for one in ended.values()} == {"done"}
    assert tree(tmp_path / "process") == tree(tmp_path / "worker")


def test_more_frames_than_there_is_room_for(tmp_path):
    """A window of 64 pairs has room for 66 frames; 100 frames from first to second need more."""
    path = write_video(tmp_path / "a.avi", moving_texture(170, size=(32, 48), step=(1, 0)))
    request = Request(Plain(), steps=(100, 1), storage=FLOATS)
    for one in extract([Source(path, "a")], tmp_path / "workers", request, workers=1):
        assert one.status != "failed", one.reason
    ended, _, _ = run([Source(path, "a")], tmp_path / "process", request)
    assert ended["a"].status == "done"
    assert tree(tmp_path / "process") == tree(tmp_path / "workers")


def test_memory_holds_a_window_of_any_size():
    for size in ((1, 1), (256, 340), (1080, 1920), (4320, 7680)):
        for quantized in (True, False):
            layout = Layout(size, quantized)
            frames, results = layout.view(np.zeros(layout.total_bytes, np.uint8).data)
            assert 4 <= len(results) == len(frames) - 2 <= 64
            assert {frame.shape for frame in frames} == {size}
            assert results[0].nbytes == size[0] * size[1] * (2 if quantized else 8)
            assert not np.shares_memory(frames[-1], results[0])
    assert Layout((256, 340), True).window == 64
    assert Layout((1080, 1920), True).window == 4


def test_memory_running_out_halves_batches_and_is_told_once(videos, tmp_path, caplog):
    request = Request(Troubled("small GPU"))
    ended, processes, _ = run(videos, tmp_path / "flow", request)
    assert {one.status for one in ended.values()} == {"done"}
    told = [record.message for record in caplog.records if "memory" in record.message]
    assert len(told) == 1 and told[0].startswith("GPU 0 ran out of memory: batches were halved, ")
    [note] = processes.notes()
    assert note.startswith("GPU 0 ran out of memory: batches were halved")
    assert 1 <= int(note.split(" to ")[1].split()[0]) <= 3


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("not finite", "got NaN or infinity"),
        ("no memory", "no memory for 1 pair"),
    ],
)
def test_a_pair_that_cannot_be_computed_costs_its_video_only(videos, tmp_path, trouble, reason):
    ended, _, _ = run(videos, tmp_path, Request(Troubled(trouble, dark=50)))
    assert {name for name, one in ended.items() if one.status == "done"} == {
        f"c/{n}" for n in range(5)
    }
    assert reason in ended["c/dark"].reason


def test_no_video_waits_for_ever_where_none_can_be_computed(videos, tmp_path):
    ended, _, _ = run(videos, tmp_path, Request(Troubled("no memory", dark=300)))
    assert {one.reason for one in ended.values()} == {"no memory for 1 pair"} and len(ended) == 6


@pytest.mark.parametrize(
    ("way", "trouble", "death"),
    [
        ("fork", "killed", "SIGKILL (signal 9)"),
        ("spawn", "GPU lost", "exit status 70: CUDA failed with CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
    indirect=["way"],
)
def test_a_flow_process_that_dies_costs_the_videos_in_flight_and_is_started_again(
    videos, tmp_path, caplog, trouble, death
):
    method = Troubled(trouble, dark=50, once=str(tmp_path / "happened"))
    dark_first = [videos[-1], *videos[:2]]
    ended, processes, _ = run(dark_first, tmp_path / "flow", Request(method), workers=1)
    reason = ended["c/dark"].reason
    assert reason.startswith("the flow process of GPU 0") and reason.endswith(death)
    assert [one.status for one in ended.values()] == ["failed", "done", "done"]
    assert processes.notes() == [reason]
    [said] = [record.message for record in caplog.records]
    assert said.startswith(reason) and "again" in said
    ended, _, _ = run(dark_first[:1], tmp_path / "flow", Request(method), workers=1)
    assert ended["c/dark"].status == "done"


def test_a_flow_process_that_dies_twice_ends_the_run(videos, tmp_path):
    method = Troubled("killed", dark=50)
    sources = [dataclasses.replace(videos[-1], id=str(number)) for number in range(5)]
    ended, processes, usages = run(sources, tmp_path, Request(method), workers=1)
    assert list(ended) == ["0", "1"] and {one.status for one in ended.values()} == {"failed"}
    assert processes.problem.endswith("SIGKILL (signal 9), for the second time")
    assert usages == {}


def test_a_flow_process_that_dies_between_two_videos_costs_none(videos, tmp_path):
    request = Request(Plain())
    with FlowProcesses(Plain(), request.storage, gpus=[0]) as processes:
        process = processes.seats[0].process
        process.kill()
        process.wait()
        outcomes = extract(videos, tmp_path, request, workers=2, processes=processes)
        statuses = [one.status for one in outcomes if one.status != "running"]
        assert statuses == ["done"] * 6
        assert processes.seats[0].process is not process


@pytest.mark.parametrize("way", ["fork", "spawn"], indirect=True)
def test_videos_are_spread_over_gpus(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,9")
    request = Request(Visible(), storage=FLOATS)
    ended, _, usages = run(videos, tmp_path, request, gpus=(2, 0))
    assert {one.status for one in ended.values()} == {"done"}
    gpus = {name: open_record(tmp_path / name).fields(0, 1).max() for name in ended}
    assert set(gpus.values()) == {9.0, 5.0}
    for gpu, name in ((2, 9.0), (0, 5.0)):
        mine = [ended[video].result.fields for video in ended if gpus[video] == name]
        assert usages[gpu].pairs == sum(mine) > 0


@pytest.mark.parametrize(
    ("gpus", "visible", "message"),
    [
        ([], None, r"expected distinct GPUs such as 0,1, got \[\]"),
        ([1, 1], None, r"got \[1, 1\]"),
        ([2], "4,6", "CUDA_VISIBLE_DEVICES is '4,6', got 2"),
    ],
)
def test_gpus_that_are_none_are_refused(monkeypatch, gpus, visible, message):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match=message):
        FlowProcesses(Plain(), Storage(), gpus=gpus)


@pytest.mark.parametrize("way", ["fork", "spawn"], indirect=True)
def test_a_gpu_that_cannot_be_used_is_an_error_at_the_start():
    with pytest.raises(UsageError, match="GPU 1: no GPU here"):
        FlowProcesses(Missing(), Storage(), gpus=[1]).__enter__()


def test_a_dead_worker_is_forgotten(videos, tmp_path):
    """Its pairs wait no longer, and the others' flow comes."""
    request = Request(Plain())
    with FlowProcesses(Plain(), request.storage, gpus=[0]) as processes:
        remote = processes.assign(0)
        frames = [np.full((24, 32), value, np.uint8) for value in range(40)]
        pairs = list(itertools.pairwise(frames))
        place = f"/proc/{processes.seats[0].process.pid}/fd"
        before = len(os.listdir(place))
        for _ in range(10):
            child = os.fork()
            if child == 0:
                stream = remote.compute(iter(pairs * 5))
                next(stream)
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
        assert len(list(remote.compute(iter(pairs)))) == len(pairs)
        assert len(os.listdir(place)) < before + 5


def test_strangers_are_turned_away_and_do_no_harm():
    with FlowProcesses(Plain(), Storage(), gpus=[0]) as processes:
        remote = processes.assign(0)
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as rude:
            silent.connect(f"\0{remote.address}")
            rude.connect(f"\0{remote.address}")
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert rude.recv(100) == b""
            pair = (np.zeros((20, 20), np.uint8),) * 2
            assert len(list(remote.compute([pair, pair]))) == 2


def test_no_pairs_need_no_process_and_sizes_may_not_change():
    assert list(RemoteFlow("nowhere", quantized=False).compute([])) == []
    small, large = np.zeros((20, 20), np.uint8), np.zeros((20, 30), np.uint8)
    with FlowProcesses(Plain(), Storage(), gpus=[0]) as processes:
        stream = processes.assign(0).compute([(small, small), (large, large)])
        with pytest.raises(FlowkitError, match=r"\(20, 20\) throughout, instead got \(2"):
            list(stream)
    with pytest.raises(FlowkitError, match="the flow process died before it had computed"):
        list(RemoteFlow("nowhere", quantized=False).compute([(small, small)]))


@pytest.mark.slow
def test_a_timeout_costs_a_video_that_waits_for_its_flow(videos, tmp_path):
    request = Request(Troubled("slow", dark=50))
    ended, _, _ = run(videos, tmp_path, request, workers=1, timeout_s=3)
    assert ended["c/dark"].reason == "stopped after 3 s (timeout)"
    assert sum(one.status == "done" for one in ended.values()) == 5


def test_the_place_of_a_process_travels():
    remote = RemoteFlow("flowkit-1-ff", quantized=True)
    assert pickle.loads(pickle.dumps(remote)) == remote


def test_a_second_batch_waits_until_it_is_half_full_or_alone():
    server = FlowServer(lambda message: None, [Solver(Work(Plain(), False, None))])
    client = Client(None, (1024, 1024), [np.zeros((2, 2), np.uint8)] * 2, [])  # 8 in a batch
    taken: queue.Queue = queue.Queue()

    def gather():
        taken.put(len(server._gather()[0]))

    def asked(pairs):
        server.ask(client, [(number, 0, 1) for number in range(pairs)])

    threading.Thread(target=gather, daemon=True).start()
    asked(2)
    assert taken.get(timeout=10) == 2  # alone
    threading.Thread(target=gather, daemon=True).start()
    asked(3)
    with pytest.raises(queue.Empty):
        taken.get(timeout=0.2)
    asked(1)
    assert taken.get(timeout=10) == 4
    asked(20)
    assert [len(server._gather()[0]) for _ in range(3)] == [8, 8, 4]


# --- which stage held it up ---

SECONDS = {"decode": 10.0, "flow": 5.0, "encode": 20.0, "write": 5.0}


def test_in_workers_the_slowest_stage_is_the_bottleneck():
    found = find_bottleneck(1000, SECONDS, 4)
    assert found.rates == {"decode": 400, "flow": 800, "encode": 200, "write": 800}
    assert (found.bottleneck, found.busy) == ("encode", None) and "--no-rgb" in found.advice
    assert find_bottleneck(1000, {**SECONDS, "flow": 90.0}, 4).bottleneck == "flow"


def test_a_start_that_takes_longer_than_the_work_is_the_bottleneck():
    found = find_bottleneck(1000, SECONDS, 4, start_s=6.0, work_s=5.0)
    assert found.bottleneck == START and "more videos" in found.advice
    assert find_bottleneck(1000, SECONDS, 4, start_s=4.0, work_s=5.0).bottleneck == "encode"


def test_writing_is_told_apart_from_the_making_of_files():
    seconds = {**SECONDS, "write": 30.0}
    found = find_bottleneck(1000, seconds, 4, creating_s=20.0)
    assert found.bottleneck == FILES and "--pack" in found.advice
    found = find_bottleneck(1000, seconds, 4, creating_s=10.0)
    assert found.bottleneck == "write" and "disk" in found.advice
    assert find_bottleneck(1000, SECONDS, 4, creating_s=5.0).bottleneck == "encode"


def test_a_flow_process_that_has_no_core_left_is_the_bottleneck():
    locked = Usage(pairs=900, batches=10, span_s=10.0, busy_s=9.9, processor_s=9.0)
    found = find_bottleneck(1000, SECONDS, 4, {0: locked})
    assert found.bottleneck == LOCK and "--gpus" in found.advice
    free = dataclasses.replace(locked, processor_s=6.0)
    assert find_bottleneck(1000, SECONDS, 4, {0: free}).bottleneck == "flow"
    idle = dataclasses.replace(free, busy_s=3.0)
    slow = {**SECONDS, "decode": 40.0}
    assert find_bottleneck(1000, slow, 4, {0: idle}).bottleneck == "decode"
    slow = {**SECONDS, "write": 40.0}
    assert find_bottleneck(1000, slow, 4, {0: idle}, creating_s=30.0).bottleneck == FILES


def test_a_busy_gpu_is_the_bottleneck_and_an_idle_one_is_not():
    busy = Usage(pairs=900, batches=10, span_s=10.0, busy_s=9.0)
    idle = Usage(pairs=900, batches=10, span_s=10.0, busy_s=3.0)
    found = find_bottleneck(1000, SECONDS, 4, {0: busy})
    assert found.bottleneck == "flow" and "--gpus" in found.advice and found.busy == 0.9
    assert found.rates["flow"] == pytest.approx(1000 / 900 * 100)
    assert find_bottleneck(1000, SECONDS, 4, {0: idle}).bottleneck == "encode"
    waiting = find_bottleneck(1000, {**SECONDS, "flow": 90.0}, 4, {0: idle})
    assert waiting.bottleneck == "flow" and "-j" in waiting.advice
    assert find_bottleneck(2000, SECONDS, 4, {0: busy, 1: busy}).rates["flow"] == pytest.approx(
        2 * found.rates["flow"]
    )
