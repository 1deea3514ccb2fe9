"""Training: what each stream can learn, and that nothing but the job decides the weights."""

import csv
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import types
from collections import Counter
from contextlib import closing, contextmanager, nullcontext
from dataclasses import FrozenInstanceError, replace
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from made_training import (
    CLASSES,
    CROP,
    FIELDS,
    make_job,
    make_split,
    run_two_processes,
    write_videos,
)
from torch import nn

from flowkit import documents
from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video, train_on_all
from flowkit.data.stacks import StackForm
from flowkit.errors import (
    CheckpointError,
    InstallError,
    RecordError,
    SplitError,
    TrainingError,
    UsageError,
)
from flowkit.networks.checkpoints import BEST, LAST, load_net, read_checkpoint, read_tensors
from flowkit.networks.streams import build_stream
from flowkit.training import log, loop, saving
from flowkit.training.distributed import Ranks, choose_device, join_ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import _Window, rehearse, train
from flowkit.training.micro_batch import _try_micro_batch, activation_bytes, fitting_micro_batch
from flowkit.training.recipes import RECIPES, Recipe, make_recipe
from flowkit.training.sampling import (
    MicroBatches,
    StepClips,
    Task,
    added_classes,
    task_counts,
)
from flowkit.training.trainer import OTHER_TASK, Training, prepare
from flowkit.workers.signals import Stopped

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("records"), per_class=4)


def run(job, folder, machine=None, *, start="new", ranks=ALONE):
    return list(train(job, folder, ranks, machine or Machine(), start=start))


def weights_of(folder, name=LAST):
    return read_tensors(folder / name, "weights")


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- what the streams learn


@pytest.mark.parametrize(
    ("stream", "told_by"),
    [
        ("temporal", "motion"),
        pytest.param("temporal", "look", marks=pytest.mark.slow),
        ("spatial", "motion"),
        ("spatial", "look"),
    ],
)
def test_each_stream_learns_what_it_sees_and_nothing_else(tmp_path, stream, told_by):
    records = write_videos(tmp_path / "flow", told_by=told_by, per_class=14)
    recipe = {"steps": 30, "batch_size": 24, "drop_at": (24,), "eval_every": 30, "dropout": 0.2}
    job = make_job(records, make_split(14, heldout=8), stream=stream, recipe=recipe)
    last = run(job, tmp_path / "run")[-1]
    if (stream == "temporal") == (told_by == "motion"):
        assert last.heldout_accuracy > 0.95
    else:
        assert last.heldout_accuracy < 0.65  # chance is 1/3, 24 videos


# ---- the recipe


def test_the_papers_recipes():
    scratch = make_recipe("paper", "scratch")
    assert (scratch.steps, scratch.batch_size, scratch.momentum) == (80_000, 256, 0.9)
    rates = {step: scratch.rate(step) for step in (0, 49_999, 50_000, 69_999, 70_000, 79_999)}
    assert list(rates.values()) == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    tuned = make_recipe("paper", "fine-tune")
    assert tuned.steps == 20_000
    assert [tuned.rate(13_999), tuned.rate(14_000)] == pytest.approx([1e-2, 1e-3])
    assert make_recipe("paper", "last-layer").dropout == 0.5
    assert make_recipe("paper", "two-phase").first_phase_steps == 5_000


def test_the_second_phase_may_have_a_rate_of_its_own():
    recipe = make_recipe("paper", "two-phase", second_rate=1e-4, steps=100)
    steps = (0, 24, 25, 69, 70)  # the first phase ends at 25, the rate drops at 70
    rates = [recipe.rate(step) for step in steps]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-4, 1e-4, 1e-5])
    for numbers, message in (
        ({"mode": "scratch", "second_rate": 1e-4}, "with two phases only"),
        ({"mode": "two-phase", "second_rate": 0.0}, "second_rate above 0"),
        ({"mode": "scratch", "optimizer": "adam"}, "optimizer of sgd, rmsprop, got 'adam'"),
        ({"mode": "scratch", "draw": "clip"}, "draw of class, video, got 'clip'"),
        ({"mode": "scratch", "optimizer": "rmsprop", "momentum": 1.0}, "less than 1 with rmsprop"),
    ):
        with pytest.raises(UsageError, match=message):
            make_recipe("paper", numbers.pop("mode"), **numbers)


def test_recipes_have_sizes_for_both_streams():
    large, small = (256, 224), (128, 112)  # short side and crop, px
    assert {name: facts.sizes for name, facts in RECIPES.items()} == {
        "paper": {"spatial": large, "temporal": large},
        "paper-2016": {"spatial": large, "temporal": large},
        "short": {"spatial": small, "temporal": small},
        "pretrained": {"spatial": large, "temporal": small},
    }


def test_recipes_are_values():
    recipe = Recipe(steps=7)
    assert {recipe: "kept"}[Recipe(steps=7)] == "kept"
    with pytest.raises(FrozenInstanceError):
        recipe.steps = 8  # type: ignore[misc]


def test_another_number_of_steps_moves_the_drops_in_proportion():
    recipe = make_recipe("paper", "scratch", steps=800)
    assert (recipe.drop_at, recipe.eval_every) == ((500, 700), 160)
    assert make_recipe("paper", "scratch", steps=800, drop_at=(10,)).drop_at == (10,)


def test_the_rate_rises_during_warm_up():
    recipe = Recipe(warmup_steps=4, learning_rate=1.0)
    assert [recipe.rate(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_the_rate_falls_along_half_a_cosine():
    recipe = Recipe(steps=4, schedule="cosine", learning_rate=1.0)
    expected = [1, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.5 - 0.5 * 0.5**0.5]
    assert [recipe.rate(step) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"mode": "none"}, "scratch, fine-tune, last-layer, two-phase"),
        ({"steps": 0}, "expected steps of at least 1, got 0"),
        ({"momentum": -1}, "expected momentum of at least 0, got -1"),
        ({"learning_rate": 0}, "expected learning_rate above 0, got 0"),
        ({"segments": 0}, "expected segments of at least 1, got 0"),
        ({"trunk_rate": 0}, "expected trunk_rate above 0, got 0"),
        ({"schedule": "linear"}, "expected a schedule of drops, cosine, plateau"),
        ({"drop_at": (5, 3)}, "expected drop_at steps in rising order"),
        ({"mode": "two-phase"}, "within the 80000 steps, got 0"),
    ],
)
def test_a_recipe_is_checked(numbers, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**numbers)


# ---- batches


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_processes_and_passes_share_a_batch_without_loss_or_repeat(ranks, micro_batch):
    shares = [list(MicroBatches(3, 5, 10, micro_batch, rank, ranks)) for rank in range(ranks)]
    draws = sorted(draw for share in shares for batch in share for draw in batch)
    assert draws == list(range(30, 50))
    for rank, share in enumerate(shares):
        assert max(map(len, share)) <= micro_batch
        passes = MicroBatches(3, 5, 10, micro_batch, rank, ranks).passes
        assert len(share) == passes(3) + passes(4)


def test_the_segments_of_a_draw_are_never_parted():
    (first, second) = MicroBatches(1, 2, 4, 3, 0, 1, segments=2)
    assert (first, second) == ([8, 9, 10, 11, 12, 13], [14, 15])


def test_every_task_has_its_share_of_every_batch():
    assert [task_counts(step, 7, 2) for step in (0, 1)] == [[4, 3], [3, 4]]


def test_samples_do_not_depend_on_the_number_of_workers(records):
    job = make_job(records)
    found = []
    for workers in (0, 2):
        with (
            closing(prepare(job, ALONE, Machine(workers=workers))) as training,
            training.loader() as batches,
        ):
            found.append([tensor for _ in range(2) for tensor in chain(*next(batches))])
    for alone, shared in zip(*found, strict=True):
        assert torch.equal(alone, shared)


def test_classes_are_drawn_alike_whatever_their_number_of_videos(tmp_path):
    records = write_videos(tmp_path, per_class=6)
    train = tuple(
        v for v in make_split(6, heldout=0).train if v.class_name != "spin" or "v0" in v.id
    )
    split = Split("uneven", CLASSES, train, (), ())
    clips = StepClips(
        [Task("main", split, records)], {"temporal": StackForm(1)}, augmentation=CROP, seed=0
    )
    counts = Counter(clips[draw]["label"] for draw in range(300))
    assert all(abs(counts[label] - 100) < 30 for label in range(3))  # 3.7 deviations


def test_added_classes_train_further_rows_of_the_same_head(tmp_path, records):
    other = write_videos(tmp_path / "other", classes=("Grow", "jump", "sit"), per_class=2)
    extra = make_split(2, heldout=1, classes=("Grow", "jump", "sit"))
    task = Task("main", make_split(), records, added=(extra, other))
    assert added_classes(task.split, extra) == ("jump", "sit")
    assert task.classes == (*CLASSES, "jump", "sit")
    clips = StepClips([task], {"temporal": StackForm(2)}, augmentation=CROP, seed=0)
    counts = Counter(clips[draw]["label"] for draw in range(200))
    assert set(counts) == {0, 1, 2, 3, 4}
    assert all(abs(count - 40) < 22 for count in counts.values())  # 3.9 deviations


def test_a_class_without_training_videos_is_named(records):
    split = make_split()
    train = tuple(video for video in split.train if video.class_name != "spin")
    job = make_job(records, replace(split, train=train))
    with pytest.raises(SplitError, match="no video to train on: spin"):
        prepare(job, ALONE, Machine())


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(SplitError, match="videos of classes that are not listed: jump"):
        Split("odd", ("a", "b"), (Video("jump/v", "jump", "v"),), (), ())


def test_records_of_two_kinds_of_flow_do_not_train_together(tmp_path):
    write_videos(tmp_path, classes=CLASSES[:2], per_class=2)
    records = write_videos(tmp_path, classes=CLASSES, per_class=1, seed=1, format="npy")
    write_videos(tmp_path / "spin2", classes=("x",), per_class=1, format="jpg")
    (tmp_path / "spin2" / "x" / "v0").rename(tmp_path / "spin" / "v1")
    job = make_job(records, make_split(2, heldout=0))
    with pytest.raises(
        RecordError, match=r'spin.v1: .*not that of .*format: "jpg" on disk, "floats"'
    ):
        prepare(job, ALONE, Machine())


# ---- the same job gives the same weights


@pytest.mark.slow
def test_resumed_is_as_never_stopped_bit_for_bit(tmp_path, records, monkeypatch):
    job, machine = make_job(records), Machine(workers=2)
    straight = run(job, tmp_path / "straight", machine)

    monkeypatch.setattr(Training, "take_step", stop_at(3, Training.take_step))
    with pytest.raises(Stopped) as stopped:
        run(job, tmp_path / "resumed", machine)
    monkeypatch.undo()
    assert stopped.value.status == 75
    assert read_checkpoint(tmp_path / "resumed" / LAST).step == 3
    marker = tmp_path / "resumed" / "stopped"
    assert marker.read_text() == "stopped by SIGTERM after step 3\n"
    resumed = run(job, tmp_path / "resumed", machine, start="resume")
    assert not marker.exists()

    for name in (LAST, BEST):
        assert_same(weights_of(tmp_path / "straight", name), weights_of(tmp_path / "resumed", name))
    momentum = [read_tensors(tmp_path / run / LAST, "state") for run in ("straight", "resumed")]
    assert_same(*momentum)
    assert (resumed[-1].heldout_loss, resumed[-1].heldout_accuracy) == (
        straight[-1].heldout_loss,
        straight[-1].heldout_accuracy,
    )


def stop_at(step, take_step):
    """`take_step`, during which SIGTERM comes at the `step`-th step."""

    def with_signal(training, batches):
        if training.step + 1 == step:  # to the loader's processes, too, as batch systems send it
            for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                os.kill(process.pid, signal.SIGTERM)
        return take_step(training, batches)

    return with_signal


def test_killed_without_notice_it_goes_on_from_the_last_checkpoint(tmp_path, records):
    job = make_job(records)
    run(job, tmp_path / "straight")
    for progress in train(job, tmp_path / "killed", ALONE, Machine()):
        if progress.step == 6:
            break  # what a kill leaves before this step's checkpoint
    assert read_checkpoint(tmp_path / "killed" / LAST).step == 4
    run(job, tmp_path / "killed", start="resume")
    assert_same(weights_of(tmp_path / "straight"), weights_of(tmp_path / "killed"))
    rows = [(tmp_path / run / "log.csv").read_text() for run in ("straight", "killed")]
    steps = [[row["step"] for row in csv.DictReader(text.splitlines())] for text in rows]
    assert steps[0] == steps[1] == ["2", "4", "6"]


def test_a_signal_during_the_held_out_part_is_answered_and_that_part_asked_again(
    tmp_path, records, monkeypatch
):
    job = make_job(records)
    straight = run(job, tmp_path / "straight")
    ask = Training.ask_heldout

    def ask_with_signal(training, is_stopped):
        signal.raise_signal(signal.SIGINT)  # in this thread, unlike os.kill
        return ask(training, is_stopped)

    monkeypatch.setattr(Training, "ask_heldout", ask_with_signal)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    try:
        with pytest.raises(Stopped) as stopped:
            run(job, tmp_path / "stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert stopped.value.status == 130
    resumed = run(job, tmp_path / "stopped", start="resume")
    assert [(p.step, p.heldout_loss) for p in resumed] == [
        (p.step, p.heldout_loss) for p in straight
    ]


def test_signals_are_answered_as_before_once_a_training_is_over(tmp_path, records):
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    run(make_job(records, recipe={"steps": 1, "drop_at": ()}), tmp_path)
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_training_leaves_the_global_random_numbers_alone(tmp_path, records):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    run(make_job(records, recipe={"steps": 2}), tmp_path, Machine(workers=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_passes_of_any_size_make_the_same_step(records):
    job = make_job(records, recipe={"dropout": 0.0})
    found = []
    for micro_batch in (None, 3):
        training = prepare(job, ALONE, Machine(micro_batch=micro_batch))
        with training.loader() as batches:
            losses = [training.take_step(batches)[0][0] for _ in range(3)]
        found.append((losses, training.net.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


def test_stacks_made_on_the_device_make_the_same_steps(tmp_path, records):
    planes = write_videos(tmp_path, per_class=4, format="png")
    job = make_job(planes, recipe={"dropout": 0.0, "learning_rate": 1e-3})
    losses = []
    for as_planes in (False, True):
        training = prepare(job, ALONE, Machine())
        if as_planes:
            assert training.clips.send_planes()
        with training.loader() as batches:
            losses.append([training.take_step(batches)[0][0] for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert not prepare(make_job(records), ALONE, Machine()).clips.send_planes()  # floats


class Shared(nn.Module):
    """A stand-in for a network of several processes: notes which passes share their gradients."""

    def __init__(self, net):
        super().__init__()
        self.net, self.shares, self.is_shared = net, [], True

    @contextmanager
    def no_sync(self):
        self.is_shared = False
        yield
        self.is_shared = True

    def forward(self, *inputs):
        self.shares.append(self.is_shared)
        return self.net(*inputs)


def test_only_the_last_pass_of_a_step_shares_its_gradients(records, monkeypatch):
    monkeypatch.setattr("flowkit.training.trainer.DistributedDataParallel", Shared)
    job = make_job(records, recipe={"batch_size": 6, "dropout": 0.0})
    training = prepare(job, ALONE, Machine(micro_batch=2))
    training.model = shared = Shared(training.net)
    monkeypatch.setattr(training, "_choose_what_learns", lambda: None)  # keeps that model
    with training.loader() as batches:
        for _ in range(2):
            training.take_step(batches)
    assert shared.shares == [False, False, True] * 2


@pytest.mark.slow
def test_batch_statistics_are_the_mean_of_all_processes(tmp_path, records):
    first, second = run_two_processes(records, tmp_path / "two", "resnet18")
    saved = weights_of(tmp_path / "two")
    for name, tensor in saved.items():
        if name.endswith(("running_mean", "running_var")):
            assert not torch.equal(first[name], second[name])  # of each one's own passes
            torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
        else:
            assert torch.equal(tensor, first[name]) and torch.equal(tensor, second[name])


@pytest.mark.slow
def test_two_processes_make_the_same_steps_as_one(tmp_path, records):
    first, second = run_two_processes(records, tmp_path / "two", "small")
    recipe = {"steps": 3, "batch_size": 7, "dropout": 0.0, "eval_every": 3}
    run(make_job(records, recipe=recipe), tmp_path / "one")
    assert_same(first, second)
    assert_same(first, weights_of(tmp_path / "two"))
    torch.testing.assert_close(first, weights_of(tmp_path / "one"), rtol=1e-4, atol=1e-6)
    ours, theirs = (read_checkpoint(tmp_path / run).progress["heldout"] for run in ("one", "two"))
    assert ours == pytest.approx(theirs, rel=1e-4)


# ---- several tasks


def test_segments_of_a_video_have_one_loss_of_the_mean_of_their_logits(records):
    job = make_job(records, recipe={"segments": 3, "batch_size": 4, "dropout": 0.0})
    training = prepare(job, ALONE, Machine())
    samples = [training.clips[number] for number in range(12)]
    with torch.no_grad():
        logits = training.net(torch.stack([sample["temporal"] for sample in samples]))
    labels = torch.tensor([sample["label"] for sample in samples[::3]])
    expected = nn.functional.cross_entropy(logits.view(4, 3, -1).mean(1), labels)
    with training.loader() as batches:
        losses, _ = training.take_step(batches)
    assert losses == pytest.approx([float(expected)], rel=1e-5)


def test_passes_of_any_size_make_the_same_step_of_segments(records):
    job = make_job(records, recipe={"segments": 3, "batch_size": 4, "dropout": 0.0})
    weights = []
    for micro_batch in (100, 4, 1):  # 4, 1 and 1 videos of a pass
        training = prepare(job, ALONE, Machine(micro_batch=micro_batch))
        with training.loader() as batches:
            training.take_step(batches)
        weights.append(training.net.state_dict())
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


def test_the_trunk_takes_its_share_of_the_learning_rate(records):
    moved = {}
    for share in (1.0, 0.25):
        recipe = {"trunk_rate": share, "dropout": 0.0, "weight_decay": 0.0, "momentum": 0.0}
        training = prepare(make_job(records, recipe=recipe), ALONE, Machine())
        before = {name: one.clone() for name, one in training.net.state_dict().items()}
        with training.loader() as batches:
            training.take_step(batches)
        after = training.net.state_dict()
        moved[share] = {name: after[name] - before[name] for name in before}
    for name, whole in moved[1.0].items():
        expected = whole if name.startswith("heads.") else 0.25 * whole
        torch.testing.assert_close(moved[0.25][name], expected, rtol=1e-3, atol=1e-7)
    assert moved[1.0]["trunk.block1.conv.weight"].abs().max() > 1e-5


def test_heads_get_gradients_only_from_their_own_videos(records):
    tasks = tuple(Task(name, make_split(), records) for name in ("ucf101", "hmdb51"))
    training = prepare(make_job(records, tasks=tasks), ALONE, Machine())
    own, other = (training.net.heads[name].weight for name in ("ucf101", "hmdb51"))
    with training.loader() as batches:
        [inputs], labels = next(batches)
    mine = labels[0] != OTHER_TASK
    training.take_step(iter([([inputs[mine]], [one[mine] for one in labels])]))
    assert own.grad.abs().sum() > 0
    assert other.grad.abs().sum() == 0
    assert training.net.trunk.block1.conv.weight.grad.abs().sum() > 0


def test_the_loss_of_several_tasks_is_the_sum_of_their_means(records):
    tasks = tuple(Task(name, make_split(), records) for name in ("a", "b"))
    training = prepare(make_job(records, tasks=tasks, recipe={"dropout": 0.0}), ALONE, Machine())
    with training.loader() as batches:
        inputs, labels = next(batches)
    parts = training.net.split_logits(training.net(*inputs)).values()
    by_hand = []
    for logits, label in zip(parts, labels, strict=True):
        mine = label != OTHER_TASK
        right = logits.log_softmax(1)[mine].gather(1, label[mine][:, None])
        by_hand.append(-right.mean().item())
    losses, _ = training.take_step(iter([(inputs, labels)]))
    assert losses == pytest.approx(by_hand, rel=1e-4)


def test_an_auxiliary_data_set_trains_on_all_its_videos():
    split = make_split(6, heldout=2, test=2)
    together = train_on_all(split)
    assert len(together.train) == 18
    assert not together.heldout + together.test


def test_two_tasks_train_and_the_first_chooses_the_best(tmp_path, records):
    tasks = (Task("a", make_split(), records), Task("b", train_on_all(make_split()), records))
    progress = run(make_job(records, tasks=tasks), tmp_path)[-1]
    assert set(progress.losses) == {"a", "b"}
    assert progress.loss == pytest.approx(sum(progress.losses.values()))
    assert list(read_checkpoint(tmp_path).tasks) == ["a", "b"]
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert header.endswith("loss_a,loss_b,accuracy_a,accuracy_b")


# ---- what learns


def test_two_phases_train_the_heads_and_then_the_top_blocks(tmp_path, records):
    run(make_job(records, recipe={"steps": 1, "drop_at": ()}), tmp_path / "first")
    recipe = {"mode": "two-phase", "first_phase_steps": 2, "top_blocks": 1, "steps": 4}
    job = make_job(records, weights=str(tmp_path / "first"), recipe=recipe)
    training = prepare(job, ALONE, Machine())
    changed = []
    with training.loader() as batches:
        for _ in range(4):
            before = {name: value.clone() for name, value in training.net.state_dict().items()}
            training.take_step(batches)
            after = training.net.state_dict()
            names = {name for name in before if not torch.equal(before[name], after[name])}
            changed.append({".".join(name.split(".")[:2]) for name in names})
    heads = {"heads.main"}
    assert changed == [heads, heads, heads | {"trunk.block4"}, heads | {"trunk.block4"}]


@pytest.mark.parametrize(
    "numbers", [{}, {"optimizer": "rmsprop", "second_rate": 1e-4, "draw": "video"}]
)
def test_two_phases_are_resumed_bit_for_bit(tmp_path, records, numbers):
    run(make_job(records, recipe={"steps": 1, "drop_at": ()}), tmp_path / "first")
    recipe = {"mode": "two-phase", "first_phase_steps": 1, "steps": 4, **numbers}
    job = make_job(records, weights=str(tmp_path / "first"), recipe=recipe)
    run(job, tmp_path / "straight")
    next(train(job, tmp_path / "killed", ALONE, Machine()))
    run(job, tmp_path / "killed", start="resume")
    assert_same(weights_of(tmp_path / "straight"), weights_of(tmp_path / "killed"))


@pytest.mark.parametrize("mode", ["last-layer", "two-phase"])
def test_training_on_top_needs_weights(records, mode):
    with pytest.raises(UsageError, match=f"mode {mode} trains on top of given weights"):
        make_job(records, recipe={"mode": mode, "first_phase_steps": 1})


# ---- the best step


def test_the_test_part_is_never_read(tmp_path, records):
    split = make_split(5, heldout=1, test=1)  # the videos v4 have no records
    run(make_job(records, split), tmp_path)
    assert read_checkpoint(tmp_path).progress["best"]["step"] in (2, 4, 6)


def test_the_best_checkpoint_is_that_of_the_best_held_out_accuracy(tmp_path, records, monkeypatch):
    answers = iter([(1.0, 0.5), (0.9, 0.75), (0.5, 0.75), (0.1, 0.5)])
    monkeypatch.setattr(Training, "ask_heldout", lambda *_: next(answers))
    run(make_job(records, recipe={"steps": 8}), tmp_path)
    best = read_checkpoint(tmp_path)
    assert (best.step, best.progress["best"]["accuracy"]) == (6, 0.75)
    assert read_checkpoint(tmp_path / LAST).step == 8
    kept = {path.name for path in tmp_path.glob("step-*")}
    assert kept == {
        "step-00000006.safetensors",
        "step-00000008.safetensors",
        "step-00000008.state.safetensors",
    }


def test_without_a_held_out_part_the_last_step_is_the_best(tmp_path, records):
    run(make_job(records, make_split(heldout=0)), tmp_path)
    assert read_checkpoint(tmp_path).step == 6


# ---- checkpoints


def test_a_checkpoint_says_all_that_is_needed_to_use_it(tmp_path, records):
    job = make_job(records)
    run(job, tmp_path)
    checkpoint, net = load_net(tmp_path)
    assert checkpoint.tasks == {"main": CLASSES}
    assert checkpoint.inputs == {"temporal": StackForm(2)}
    assert (checkpoint.short_side, checkpoint.crop) == (36, 32)
    assert checkpoint.training["recipe"]["batch_size"] == 8
    assert not net.training
    record = records.open(records.find()["spin/v0"])
    checkpoint.check_record(record)


def test_records_that_do_not_fit_a_checkpoint_are_refused(tmp_path, records):
    run(make_job(records), tmp_path / "run")
    checkpoint = read_checkpoint(tmp_path / "run")
    other = write_videos(tmp_path / "flow", per_class=1, format="png")
    with pytest.raises(RecordError, match=r'format: "lossless planes" on disk, "floats"'):
        checkpoint.check_record(other.open(other.find()["spin/v0"]))
    both = replace(checkpoint, inputs={"temporal": StackForm(2, bidirectional=True)})
    with pytest.raises(RecordError, match="holds no backward fields of step 1"):
        both.check_record(records.open(records.find()["spin/v0"]))
    replace(checkpoint, inputs={"spatial": FrameForm()}).check_record(
        other.open(other.find()["spin/v0"])
    )


@pytest.mark.parametrize("survivors", range(7))
def test_killed_while_it_writes_the_checkpoint_before_is_whole(
    tmp_path, records, monkeypatch, survivors
):
    job = make_job(records)
    training = prepare(job, ALONE, Machine())
    training.save(tmp_path, LAST)
    training.finish_saving()
    before = weights_of(tmp_path)
    with training.loader() as batches:
        training.take_step(batches)
    sync, count = documents.sync, 0

    def sync_some(path):
        nonlocal count
        count += 1
        if count > survivors:
            raise KeyboardInterrupt
        sync(path)

    with monkeypatch.context() as patched:
        patched.setattr(documents, "sync", sync_some)
        with pytest.raises(KeyboardInterrupt) if survivors < 6 else nullcontext():
            training.save(tmp_path, LAST)
            training.finish_saving()
    if survivors < 5:  # weights, state, last.json: a sync before the rename of each, and one after
        assert read_checkpoint(tmp_path / LAST).step == 0
        assert_same(weights_of(tmp_path), before)
    training.save(tmp_path, LAST)
    training.finish_saving()
    assert read_checkpoint(tmp_path / LAST).step == 1
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_without_a_held_out_part_checkpoints_go_by_time(tmp_path, records, monkeypatch):
    saved = []
    write = saving.write_checkpoint
    monkeypatch.setattr(
        saving,
        "write_checkpoint",
        lambda folder, names, one, *rest: (
            saved.append((one.step, names)),
            write(folder, names, one, *rest),
        ),
    )
    job = make_job(records, make_split(heldout=0), recipe={"steps": 4, "eval_every": 1})
    run(job, tmp_path / "seldom")
    assert saved == [(4, (LAST, BEST))]
    saved.clear()
    monkeypatch.setattr(loop, "SAVE_S", 0.0)
    run(job, tmp_path / "often")
    assert saved == [(1, (LAST,)), (2, (LAST,)), (3, (LAST,)), (4, (LAST, BEST))]


def test_the_last_step_is_told_once_whenever_lines_are_due(tmp_path, records, monkeypatch):
    monkeypatch.setattr(loop, "LOG_S", 0.0)
    told = run(make_job(records, make_split(), recipe={"steps": 3, "eval_every": 2}), tmp_path)
    assert [(one.step, one.heldout_loss is not None) for one in told] == [
        (1, False),
        (2, True),
        (3, True),
    ]
    assert "nan" not in (tmp_path / "log.csv").read_text()


@pytest.mark.parametrize("step", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_between_checkpoints_by_time_it_goes_on_bit_for_bit(
    tmp_path, records, monkeypatch, step
):
    job = make_job(records, make_split(heldout=0), recipe={"steps": 4})
    run(job, tmp_path / "straight")
    monkeypatch.setattr(loop, "SAVE_S", 0.0)
    for progress in train(job, tmp_path / "killed", ALONE, Machine()):
        if progress.step == step + 1:
            break  # what a kill leaves before this step's checkpoint
    assert read_checkpoint(tmp_path / "killed" / LAST).step == step
    run(job, tmp_path / "killed", start="resume")
    for name in (LAST, BEST):
        assert_same(weights_of(tmp_path / "straight", name), weights_of(tmp_path / "killed", name))
    rows = list(csv.DictReader((tmp_path / "killed" / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]


def test_a_checkpoint_is_of_its_moment_whatever_steps_follow(tmp_path, records, monkeypatch):
    training, may_write = prepare(make_job(records), ALONE, Machine()), threading.Event()
    write = saving.write_checkpoint
    monkeypatch.setattr(
        saving, "write_checkpoint", lambda *given: (may_write.wait(60), write(*given))
    )
    before = {name: value.clone() for name, value in training.net.state_dict().items()}
    training.save(tmp_path, LAST)
    with training.loader() as batches:
        training.take_step(batches)
        training.take_step(batches)
    may_write.set()
    training.finish_saving()
    assert read_checkpoint(tmp_path / LAST).step == 0
    assert_same(weights_of(tmp_path), before)
    assert not torch.equal(next(training.net.parameters()), next(iter(before.values())))


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path, records, monkeypatch):
    def full(*_):
        raise CheckpointError("no space left")

    monkeypatch.setattr(saving, "write_checkpoint", full)
    monkeypatch.setattr(loop, "SAVE_S", 0.0)
    job, told = make_job(records, make_split(heldout=0)), []
    before = threading.active_count()
    with pytest.raises(CheckpointError, match="no space left"):
        told += train(job, tmp_path, ALONE, Machine())
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no flowkit checkpoint there"),
        ("{", "expected a flowkit checkpoint, in JSON"),
        ("{}", "expected a flowkit checkpoint"),
        ('{"format": "flowkit checkpoint", "version": 9}', "got version 9"),
        ('{"format": "flowkit checkpoint", "version": 1}', "not of this format"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / BEST).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / BEST)


def test_only_the_last_checkpoint_can_be_resumed(tmp_path, records):
    run(make_job(records), tmp_path)
    with pytest.raises(CheckpointError, match=r"names no file of state; it has: weights"):
        read_tensors(tmp_path / BEST, "state")


def test_a_folder_that_holds_a_training_is_not_overwritten_unasked(tmp_path, records):
    job = make_job(records, recipe={"steps": 2})
    run(job, tmp_path)
    with pytest.raises(UsageError, match="step 2: --resume"):
        run(job, tmp_path)
    assert run(job, tmp_path, start="resume") == []  # it is done
    other = make_job(records, recipe={"steps": 4})
    assert run(other, tmp_path, start="overwrite")[-1].step == 4


@pytest.mark.parametrize("start", ["new", "resume", "overwrite"])
@pytest.mark.parametrize("name", ["log.csv", BEST, "split.json", "curves.svg"])
def test_a_training_replaces_no_file_of_another_program(tmp_path, records, name, start):
    (tmp_path / name).write_text("thesis")
    with pytest.raises(UsageError, match=f"files of another program .*: {name}; move them away"):
        run(make_job(records), tmp_path, start=start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_training_leaves_what_is_beside_it(tmp_path, records):
    for name in ("step-1.safetensors", "notes.txt"):
        (tmp_path / name).write_text("theirs")
    run(make_job(records, recipe={"steps": 2}), tmp_path)
    assert (tmp_path / "step-1.safetensors").read_text() == "theirs"
    assert (tmp_path / "notes.txt").read_text() == "theirs"
    (tmp_path / LAST).unlink()  # killed before its first checkpoint: begins again
    (tmp_path / BEST).unlink()
    assert run(make_job(records, recipe={"steps": 2}), tmp_path)[-1].step == 2


def test_a_training_is_not_resumed_with_other_options(tmp_path, records):
    run(make_job(records, recipe={"steps": 2}), tmp_path)
    other = make_job(records, recipe={"steps": 2, "learning_rate": 0.5})
    with pytest.raises(UsageError, match=r"recipe\.learning_rate: 0\.01 on disk, 0\.5"):
        run(other, tmp_path, start="resume")


# ---- errors


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoiled(records):
    job = make_job(records, recipe={"learning_rate": 1e30})
    training = prepare(job, ALONE, Machine())
    with (
        training.loader() as batches,
        pytest.raises(TrainingError, match=r"the loss is .*lower the learning rate"),
    ):
        for _ in range(6):
            before = {name: value.clone() for name, value in training.net.state_dict().items()}
            training.take_step(batches)
    assert_same(training.net.state_dict(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named_in_one_line_from_any_worker(tmp_path, workers):
    records = write_videos(tmp_path / "flow", per_class=1)
    for plane in tmp_path.glob("flow/grow/v0/*.npy"):
        plane.write_bytes(b"damaged")
    with (
        pytest.raises(RecordError, match=r"flow.grow.v0") as error,
        closing(
            prepare(make_job(records, make_split(1, 0)), ALONE, Machine(workers=workers))
        ) as training,
        training.loader() as batches,
    ):
        for _ in range(3):
            training.take_step(batches)
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()


def test_videos_without_records_are_named_or_skipped(records):
    split = make_split(5, heldout=0)
    with pytest.raises(SplitError, match="no flow record: grow/v4"):
        prepare(make_job(records, split), ALONE, Machine())
    training = prepare(make_job(records, split, missing="skip"), ALONE, Machine())
    assert (training.clips.skipped, training.clips.counts) == (3, [12])


def test_a_job_is_checked_before_anything_is_read(records):
    nowhere = RecordFolder(Path("nowhere"))
    with pytest.raises(UsageError, match="cnn-m-2048 takes a crop of 224 px, got 32 px"):
        make_job(nowhere, net="cnn-m-2048")
    with pytest.raises(UsageError, match="expected a StackForm of the temporal stream"):
        make_job(nowhere, inputs={"temporal": None})
    with pytest.raises(UsageError, match="spatial and temporal, got rgb"):
        make_job(nowhere, inputs={"rgb": None})
    tasks = tuple(Task(name, make_split(), nowhere) for name in "abc")
    with pytest.raises(UsageError, match="at least one clip for each of 3 tasks, got 2"):
        make_job(nowhere, tasks=tasks, recipe={"batch_size": 2})
    with pytest.raises(UsageError, match="at least 1 clip, got 0"):
        Machine(micro_batch=0)


def test_a_missing_device_is_named():
    with pytest.raises(UsageError, match=r"expected a device such as cpu, .* got 'tpu9'"):
        choose_device("tpu9")
    with pytest.raises(UsageError, match=r"expected a device such as cpu, .* got 'mps'"):
        choose_device("mps")
    with pytest.raises(UsageError, match="cuda:99: this machine has"):
        choose_device("cuda:99")
    with join_ranks("cpu") as ranks:
        assert ranks == ALONE


def test_processes_take_the_gpu_of_their_rank_or_share_the_one_that_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(choose_device(None, rank)) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    assert [str(choose_device("cuda:1", rank)) for rank in (0, 1)] == ["cuda:1", "cuda:1"]
    with pytest.raises(UsageError, match="cuda:2: this machine has 2"):
        choose_device("cuda", 2)


# ---- memory


def test_activations_are_counted_without_computing():
    net = build_stream("small", "temporal", {"main": 3}, channels=4)
    small, large = (activation_bytes(net, [(4, side, side)]) for side in (32, 64))
    assert 3.5 < large / small < 4.5
    net.train_top(0)  # nothing but the head's input is kept
    assert activation_bytes(net, [(4, 64, 64)]) < large / 50


def test_a_batch_that_does_not_fit_is_taken_in_passes(monkeypatch):
    net = build_stream("small", "temporal", {"main": 3}, channels=4)
    shapes, cpu = [(4, 64, 64)], torch.device("cpu")
    each = 2 * activation_bytes(net, shapes)
    weights = 20 * sum(p.numel() for p in net.parameters())
    for fits, expected in ((1000, 256), (100, 64), (1, 1)):
        monkeypatch.setattr(
            "flowkit.training.micro_batch._free_bytes",
            lambda n=fits: (n * each + weights) / 0.6 + 9,
        )
        assert fitting_micro_batch(net, shapes, 256, cpu, bf16=False) == expected
    monkeypatch.setattr("flowkit.training.micro_batch._free_bytes", lambda: weights / 0.6)
    with pytest.raises(UsageError, match=r"small: one clip of .* GB beside the weights"):
        fitting_micro_batch(net, shapes, 256, cpu, bf16=False)


class Full(torch.nn.Module):
    """A network with batch statistics for which more than `most` clips are too many."""

    def __init__(self, most):
        super().__init__()
        self.name, self.most, self.tried = "full", most, []
        self.layers = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 1, 1))

    def forward(self, x):
        self.tried.append((len(x), torch.is_autocast_enabled("cuda")))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layers(x)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_tries_halves_of_a_batch_and_keeps_nothing_of_them(monkeypatch, bf16):
    kept: list[str] = []
    stand_ins = {
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda: True,
        "get_rng_state": lambda device: "state",
        "set_rng_state": lambda state, device: kept.append(state),
        "amp.common.amp_definitely_not_available": lambda: False,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(f"torch.cuda.{name}", stand_in)
    net, cpu = Full(4), torch.device("cpu")
    assert _try_micro_batch(net, [(4, 8, 8)], 14, cpu, bf16=bf16) == 4
    assert net.tried == [(size, bf16) for size in (14, 7, 4)]
    assert kept == ["state"]
    assert all(parameter.grad is None for parameter in net.parameters())
    for name, tensor in Full(4).named_buffers():
        assert torch.equal(tensor, net.get_buffer(name))
    with pytest.raises(UsageError, match=r"full: not even one clip of .* fits on cpu"):
        _try_micro_batch(Full(0), [(4, 8, 8)], 2, cpu, bf16=bf16)


def test_a_rehearsal_counts_and_writes_nothing(tmp_path, records, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = rehearse(make_job(records), ALONE, Machine(micro_batch=3))
    net = build_stream("small", "temporal", {"main": 3}, channels=4)
    assert found.parameters == found.learning == sum(p.numel() for p in net.parameters())
    assert (found.micro_batch, found.passes) == (3, 3)
    assert found.bytes > 4 * found.parameters
    assert found.seconds > 6 * found.seconds_per_step
    assert list(tmp_path.iterdir()) == []


# ---- options of the machine, and what is told


@pytest.mark.parametrize("options", [{"bf16": True}, {"channels_last": True}])
def test_options_of_the_machine_change_results_by_rounding_only(records, options):
    job = make_job(records, recipe={"dropout": 0.0, "learning_rate": 1e-3})
    losses = []
    for machine in (Machine(), Machine(**options)):
        training = prepare(job, ALONE, machine)
        filters = next(p for p in training.net.parameters() if p.dim() == 4)
        is_last = filters.is_contiguous(memory_format=torch.channels_last)
        assert is_last == machine.channels_last
        with training.loader() as batches:
            losses.append([training.take_step(batches)[0][0] for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=0.05 if "bf16" in options else 1e-4)


def test_tensorboard_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InstallError, match=r"cannot be imported.*pip install tensorboard"):
        log.TrainingLog(tmp_path, 0, tensorboard=True)


def test_tensorboard_is_told_what_the_csv_says(tmp_path, records, monkeypatch):
    told = {}

    class Board:
        def __init__(self, folder, purge_step):
            told["place"] = (folder, purge_step)

        def add_scalar(self, name, value, step):
            told[name, step] = value

        def close(self):
            told["closed"] = True

    module = types.SimpleNamespace(SummaryWriter=Board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run(make_job(records), tmp_path, Machine(tensorboard=True))
    assert told.pop("place") == (str(tmp_path / "tensorboard"), 1)
    assert told.pop("closed")
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    expected = {
        (name, int(row["step"])): float(value)
        for row in rows
        for name, value in row.items()
        if name != "step"
    }
    assert told == pytest.approx(expected)


def test_a_batch_that_is_taken_in_passes_says_so(records, caplog):
    caplog.set_level(logging.INFO, "flowkit")
    job = make_job(records, recipe={"batch_size": 6})
    for micro_batch, said in ((6, ""), (4, "6 is made up on 1 processes in 2 passes of at most 4")):
        caplog.clear()
        prepare(job, ALONE, Machine(micro_batch=micro_batch))
        assert said in caplog.text and ("is made up" in caplog.text) == bool(said)


def test_a_training_that_begins_again_begins_without_the_old_checkpoints(
    tmp_path, records, monkeypatch
):
    def stop(*args, **options):
        raise KeyboardInterrupt

    run(make_job(records), tmp_path)
    assert {BEST, LAST} <= {file.name for file in tmp_path.iterdir()}
    monkeypatch.setattr("flowkit.training.loop.prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        run(make_job(records), tmp_path, start="overwrite")
    assert not {BEST, LAST} & {file.name for file in tmp_path.iterdir()}


def test_the_log_has_a_row_after_20_steps_or_10_seconds(records, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    window = _Window(make_job(records), 0)
    for step in range(20):
        assert not window.is_long, step
        window.add([0.5], [1])
    assert window.is_long
    window = _Window(make_job(records), 20)
    for seconds, is_long in ((9.5, False), (10.0, True), (10.5, True)):
        now[0] = 100.0 + seconds
        assert window.is_long == is_long


def test_a_training_tells_its_rate_and_draws_its_curves(tmp_path, records):
    last = run(make_job(records), tmp_path)[-1]
    assert (last.step, last.steps, last.seconds_left) == (6, 6, 0)
    assert last.learning_rate == pytest.approx(1e-3)
    assert last.samples_per_s > 0
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert float(rows[-1]["heldout_accuracy"]) == last.heldout_accuracy
    picture = ElementTree.parse(tmp_path / "curves.svg")
    lines = picture.iterfind(".//{*}polyline")
    assert [len(line.get("points").split()) for line in lines] == [len(rows)] * 4
    for panel in picture.getroot().iterfind("{*}svg"):
        title, *texts = [text.text for text in panel.iterfind(".//{*}text")]
        assert ("100%" in texts) == (title == "accuracy")


def test_fields_and_moments_of_the_made_videos_fit(records):
    assert records.open(records.find()["grow/v0"]).field_count() == FIELDS


@pytest.mark.slow
def test_a_training_begins_and_descends_without_the_compiler_of_torch():
    """The compiler takes as long to import as torch does, and sympy a third of that."""
    program = (
        "import sys, torch\n"
        "from flowkit.networks.streams import build_stream\n"
        "from flowkit.training.descent import Descent, Group\n"
        "from flowkit.training.micro_batch import fitting_micro_batch\n"
        "with torch.device('meta'):  # the command counts parameters so\n"
        "    build_stream('cnn-m-2048', 'temporal', {'main': 3}, channels=4)\n"
        "net = build_stream('cnn-m-2048', 'temporal', {'main': 3}, channels=4)\n"
        "fitting_micro_batch(net, [(4, 224, 224)], 2, torch.device('cpu'), bf16=False)\n"
        "one = torch.nn.Parameter(torch.ones(2)); one.grad = torch.ones(2)\n"
        "Descent([Group([one], 1.0, 0.1)], 0.9).step(0.1)\n"
        "assert not {'torch._dynamo', 'torchvision', 'sympy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
