"""Passes in pieces through kept memory: the same to the bit, and not overwritten while in use."""

import math
import multiprocessing
import os
import threading
import time
import types
from contextlib import closing, contextmanager

import pytest
import torch
from made_training import make_job, write_videos
from torch.utils._python_dispatch import TorchDispatchMode

from flowkit.data.kept_memory import Kept, KeptMemory
from flowkit.data.plane_batches import read_batch, stack_planes
from flowkit.data.stacks import StackForm
from flowkit.errors import FlowkitError
from flowkit.training import loading
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loading import Given, Loader, PassesAhead, PassLoader
from flowkit.training.trainer import EVAL_CLIPS, prepare

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)


@pytest.fixture(scope="module", params=["jpg", "lz4"])
def records(request, tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("records"), per_class=4, format=request.param)


@pytest.fixture
def training(records):
    """A training whose clips are sent as planes, 5 samples a pass."""
    training = prepare(make_job(records), ALONE, Machine(micro_batch=5))
    assert training.clips.send_planes()
    return training


@contextmanager
def reading(training, workers):
    with (
        closing(PassLoader(training.clips, 5, CPU, workers)) as loader,
        loader.reading(training.batches) as passes,
    ):
        yield passes


def stacks(training, batch):
    [form] = training.job.inputs.values()
    side = training.job.augmentation.crop
    return stack_planes(batch["temporal"], form=form, size=(side, side), device="cpu")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_passes_are_the_same_to_the_bit_however_many_workers_and_pieces(training, monkeypatch):
    found = []
    for workers, piece in ((0, 32), (1, 32), (3, 2)):
        monkeypatch.setattr(loading, "PIECE", piece)
        found.append([])
        with reading(training, workers) as passes:
            for _ in range(4):
                batch = next(passes)
                groups = [len(group.places) for group in batch["temporal"].groups]
                assert max(groups) <= piece and sum(groups) == len(batch["label"])
                found[-1] += [stacks(training, batch), batch["label"], batch["task"]]
    for one in found[1:]:
        for mine, other in zip(one, found[0], strict=True):
            assert torch.equal(mine, other)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    "workers", [*(pytest.param(few, marks=pytest.mark.slow) for few in (1, 2)), 3]
)
def test_planes_stay_until_the_next_but_one_pass_is_asked_for(training, monkeypatch, workers):
    monkeypatch.setattr(loading, "PIECE", 2)
    former, codes = None, []
    with reading(training, workers) as passes:
        for _ in range(12):
            batch = next(passes)
            time.sleep(0.03)  # in which workers read what may follow
            if former is not None:
                for group, expected in zip(former["temporal"].groups, codes, strict=True):
                    assert torch.equal(group.codes, expected)
            former, codes = batch, [group.codes.clone() for group in batch["temporal"].groups]


def test_planes_travel_in_kept_memory(training, monkeypatch):
    opened = []
    monkeypatch.setattr(
        KeptMemory, "open", lambda self, kept: opened.append(kept) or torch.zeros(kept.shape)
    )
    with reading(training, 2) as passes:
        for _ in range(3):
            batch = next(passes)
    assert len(opened) >= 3 and all(isinstance(one, Kept) for one in opened)
    assert not any(group.codes.is_shared() for group in batch["temporal"].groups)


def test_memory_is_planned_for_what_is_on_its_way():
    clip = 20 * 224 * 224
    for samples, workers in ((256, 16), (256, 1), (64, 4), (8, 16)):
        size, slots, slot_bytes = loading.plan_memory(clip, samples, workers)
        pieces = -(-samples // size)
        assert slots >= 2 + 2 * pieces / workers and slot_bytes >= min(size, samples) * clip
        assert workers * slots * slot_bytes <= 2 << 30
    assert loading.plan_memory(clip, 256, 16)[0] == 32
    assert loading.plan_memory(20 * 256 * 340, 256, 16)[0] < 32  # whole planes: smaller pieces
    assert loading.plan_memory(20 * 1080 * 1920, 256, 16) is None
    assert loading.plan_memory(clip, 256, 0) is None


def test_what_has_no_room_in_a_slot_travels_as_before():
    memory = KeptMemory(1, 2, 100)
    memory.begin_batch()
    values, kept = memory.take((3, 5))
    values[:] = 7
    assert memory.take((86,)) is None and memory.take((36,))[1].offset == 64
    assert (memory.open(kept) == 7).all()
    memory.begin_batch()
    assert memory.take((100,))[1].offset == 128 and memory.take((1,)) is None
    memory.begin_batch()
    assert memory.take((1,))[1].offset == 0


def test_the_next_pass_is_fetched_while_one_is_computed(tmp_path):
    job = make_job(write_videos(tmp_path, per_class=4), recipe={"dropout": 0.0})
    found = []
    for ahead in (False, True):
        training, taken = prepare(job, ALONE, Machine(micro_batch=5)), []
        with training.loader() as passes:
            counted = (taken.append(training.step) or batch for batch in passes)
            batches = PassesAhead(counted, CPU) if ahead else counted
            told = [training.take_step(batches) for _ in range(2)]
        found.append((told, training.net.state_dict()))
        assert len(taken) == 2 * training.passes + ahead
        assert taken[training.passes] == (0 if ahead else 1)  # before the first step has ended
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_what_fails_while_it_is_fetched_ends_the_step_that_wants_it():
    def passes():
        yield Given([], [torch.tensor([1])])
        raise FlowkitError("v7: is damaged")

    batches = PassesAhead(passes(), CPU)
    batches.fetch()
    assert next(batches).labels == [1]
    batches.fetch()
    with pytest.raises(FlowkitError, match="v7"):
        next(batches)
    assert list(PassesAhead(iter(()), CPU)) == []


@pytest.mark.parametrize(
    "said", ["unable to write to file </torch_1_2>: No space left", "Bus error"]
)
def test_too_little_shared_memory_is_said_in_one_line(said):
    with (
        pytest.raises(FlowkitError, match=r"too small .*--shm-size"),
        Loader([1], 0).reading([]),
    ):
        raise RuntimeError(f"DataLoader worker is killed by {said}")
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$"), Loader([1], 0).reading([]):
        raise RuntimeError("mat1 and mat2")


def test_where_shared_memory_is_small_fewer_processes_load_and_a_line_says_so(
    tmp_path, monkeypatch, caplog
):
    job = make_job(write_videos(tmp_path, per_class=4))
    batch = 4 * math.prod(job.shapes[0]) * EVAL_CLIPS  # the larger one
    found = []
    for free, processes in ((10**9, 4), (2 * 3 * batch, 3), (64, 0)):
        small = types.SimpleNamespace(f_frsize=1, f_bavail=free)
        monkeypatch.setattr(os, "statvfs", lambda path, small=small: small)
        caplog.clear()
        with closing(prepare(job, ALONE, Machine(workers=2))) as training:
            assert len(multiprocessing.active_children()) == processes
            assert ("--shm-size" in caplog.text) == (processes < 4)
            with training.loader() as passes:
                found.append(training.take_step(passes))
            found[-1] += training.ask_heldout(lambda: False)
    assert found[0] == found[1] == found[2]


def test_memory_is_given_back_when_the_gpu_has_used_it(monkeypatch):
    happened = []

    class Event:
        def __init__(self):
            self.number = max(number for what, number in happened if what == "handed out")

        def synchronize(self):
            happened.append(("used", self.number))

    class Stream:
        def record_event(self):
            return Event()

    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream())
    monkeypatch.setattr(loading, "_join", lambda pieces, memory: pieces)
    passes, pieces = [[0, 1, 2], [3, 4], [5]], iter(["0 1", "2", "3 4", "5"])
    for number, batch in enumerate(loading._joined(pieces, passes, 2, None, torch.device("cuda"))):
        happened.append(("handed out", number))
        assert batch == (["0 1", "2"], ["3 4"], ["5"])[number]
    handed, used = "handed out", "used"
    assert happened == [(handed, 0), (handed, 1), (used, 0), (handed, 2), (used, 1)]


def test_loader_processes_are_there_before_the_network_and_the_gpu(tmp_path, monkeypatch):
    job, seen = make_job(write_videos(tmp_path, per_class=4)), []
    build, threads = type(job).build, threading.active_count()

    def note(self):
        alone = threading.active_count() == threads
        seen.append((len(multiprocessing.active_children()), alone, torch.cuda.is_initialized()))
        return build(self)

    monkeypatch.setattr(type(job), "build", note)
    with closing(prepare(job, ALONE, Machine(workers=2))) as training:
        assert seen == [(4, True, False)]  # two for training, two for the held-out part
        pids = {process.pid for process in multiprocessing.active_children()}
        with training.loader() as passes:
            training.take_step(passes)
        for _ in range(2):
            assert training.ask_heldout(lambda: False)
        assert {process.pid for process in multiprocessing.active_children()} == pids
    assert not multiprocessing.active_children()


def test_a_training_that_cannot_begin_leaves_no_process(tmp_path, monkeypatch):
    job = make_job(write_videos(tmp_path, per_class=4))
    monkeypatch.setattr(type(job), "build", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(job, ALONE, Machine(workers=1))
    assert not multiprocessing.active_children()


class Copies(TorchDispatchMode):
    """Notes, of each copy to the device "meta", whether this process waits for it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_to_copy" in str(function) and (kwargs or {}).get("device") == torch.device("meta"):
            self.waits.append(not kwargs.get("non_blocking"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mean", [True, False])
def test_no_copy_to_the_device_is_waited_for(training, mean, monkeypatch):
    tensor = torch.tensor
    # Values given to a device are waited for
    monkeypatch.setattr(torch, "tensor", lambda values, dtype=None: tensor(values, dtype=dtype))
    form = StackForm(2, mean_subtract=mean)
    clips = [training.clips[number]["temporal"].clips[0]._replace(form=form) for number in range(4)]
    with Copies() as copies:
        made = stack_planes(read_batch(clips), form=form, size=(32, 32), device="meta")
    assert made.shape == (4, 4, 32, 32)
    assert len(copies.waits) >= 4 and not any(copies.waits)


def test_the_next_inputs_are_made_in_a_stream_of_their_own(monkeypatch):
    happened, current = [], ["main"]

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            happened.append(f"{self.name} waits for {other.name}")

    class Tensor:
        def record_stream(self, stream):
            happened.append(f"kept for {stream.name}")

    @contextmanager
    def inside(stream):
        before, current[0] = current[0], stream.name
        yield
        current[0] = before

    def passes():
        for number in range(2):
            happened.append(f"pass {number} in {current[0]}")
            yield Given([Tensor()], [Tensor()])

    monkeypatch.setattr("torch.cuda.Stream", lambda device: Stream("side"))
    monkeypatch.setattr("torch.cuda.stream", inside)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream(current[0]))
    ahead = PassesAhead(passes(), torch.device("cuda"))
    next(ahead)
    ahead.fetch()
    next(ahead)
    given = ["main waits for side", "kept for main", "kept for main"]
    assert happened == ["pass 0 in side", *given, "pass 1 in side", *given]
