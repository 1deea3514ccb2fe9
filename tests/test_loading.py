"""Passes in pieces through kept memory: the same to the bit, and not overwritten while in use."""

import time

import pytest
import torch
from made_training import make_job, write_videos

from flowkit.data.kept_memory import Kept, KeptMemory
from flowkit.data.plane_batches import stack_planes
from flowkit.errors import FlowkitError
from flowkit.training import loading
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loading import PassesAhead
from flowkit.training.trainer import prepare

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)


@pytest.fixture(params=["jpg", "lz4"])
def training(request, tmp_path):
    """A training whose clips are sent as planes, 5 samples a pass."""
    job = make_job(write_videos(tmp_path, per_class=4, format=request.param))
    training = prepare(job, ALONE, Machine(micro_batch=5))
    assert training.clips.send_planes()
    return training


def stacks(training, batch):
    [form] = training.job.inputs.values()
    side = training.job.augmentation.crop
    return stack_planes(batch["temporal"], form=form, size=(side, side), device="cpu")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_passes_are_the_same_to_the_bit_however_many_workers_and_pieces(training, monkeypatch):
    found = []
    for workers, piece in ((0, 32), (1, 2), (3, 2), (2, 32)):
        monkeypatch.setattr(loading, "PIECE", piece)
        found.append([])
        with loading.loading_passes(training.clips, training.batches, CPU, workers) as passes:
            for _ in range(4):
                batch = next(passes)
                groups = [len(group.places) for group in batch["temporal"]]
                assert max(groups) <= piece and sum(groups) == len(batch["label"])
                found[-1] += [stacks(training, batch), batch["label"], batch["task"]]
    for one in found[1:]:
        for mine, other in zip(one, found[0], strict=True):
            assert torch.equal(mine, other)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_planes_stay_until_the_next_but_one_pass_is_asked_for(training, monkeypatch, workers):
    monkeypatch.setattr(loading, "PIECE", 2)
    former, codes = None, []
    with loading.loading_passes(training.clips, training.batches, CPU, workers) as passes:
        for _ in range(12):
            batch = next(passes)
            time.sleep(0.03)  # in which workers read what may follow
            if former is not None:
                for group, expected in zip(former["temporal"], codes, strict=True):
                    assert torch.equal(group.codes, expected)
            former, codes = batch, [group.codes.clone() for group in batch["temporal"]]


def test_planes_travel_in_kept_memory(training, monkeypatch):
    opened = []
    monkeypatch.setattr(
        KeptMemory, "open", lambda self, kept: opened.append(kept) or torch.zeros(kept.shape)
    )
    with loading.loading_passes(training.clips, training.batches, CPU, 2) as passes:
        for _ in range(3):
            batch = next(passes)
    assert len(opened) >= 3 and all(isinstance(one, Kept) for one in opened)
    assert not any(group.codes.is_shared() for group in batch["temporal"])


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
        yield {"label": torch.tensor([1])}
        raise FlowkitError("v7: is damaged")

    batches = PassesAhead(passes(), CPU)
    batches.fetch()
    assert next(batches)["label"] == 1
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
        loading.loading([1], CPU, 0),
    ):
        raise RuntimeError(f"DataLoader worker is killed by {said}")
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$"), loading.loading([1], CPU, 0):
        raise RuntimeError("mat1 and mat2")


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
