"""Networks of the user's own: trained and asked as any other, and run only where they are named."""

import json
import re
import sys
from pathlib import Path

import made_nets
import numpy as np
import pytest
import torch
from command import run_here
from made_training import make_job, make_split, run_two_processes, write_videos

from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.stacks import StackForm
from flowkit.errors import CheckpointError, UsageError
from flowkit.evaluation.features import record_features
from flowkit.evaluation.scoring import Scorer, TestViews
from flowkit.networks.checkpoints import LAST, load_net, read_checkpoint, read_tensors
from flowkit.networks.export import export_net
from flowkit.networks.own import check_learns
from flowkit.networks.streams import build_net
from flowkit.records.reading import open_record
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train
from flowkit.training.sampling import Task
from flowkit.training.trainer import prepare

INPUTS = {"temporal": StackForm(2)}
CPU = Ranks(0, 1, torch.device("cpu"))
WRONG = {
    "absent": "has no attribute 'absent'",
    "one_argument": r"with 4 channels and 3 classes, it raised TypeError: one_argument\(\) takes 1",
    "raises": "it raised RuntimeError: no weights here$",
    "leaves": "it raised SystemExit: bye",
    "not_callable": "it raised TypeError: 'int' object is not callable",
    "number": r"expected a function that gives a torch\.nn\.Module, got int",
    "fixed_classes": r"in evaluation, expected logits float32 \(2, 3\), got float32 \(2, 1000\)",
    "rgb_only": r"float32 \(2, 4, 32, 32\) in evaluation, it raised RuntimeError: Given groups",
    "Double": r"expected logits float32 \(2, 3\), got float64 \(2, 3\)",
    "Extra": r"its state_dict\(\) holds _extra_state, which is no tensor",
    "Random": "answers the same clips differently each time in evaluation",
}
CANNOT_LEARN = {
    "GivesTwo": r"in training, expected what its last layer takes, float32 \(2, 8\), got tuple",
    "Unused": r"2 of 5 parameters get no gradient, aux\.weight first",
    "Detached": r"3 of 3 parameters get no gradient",
    "InPlace": "its backward pass raised RuntimeError: one of the variables needed",
    "Drawn": r"answers differently each time it is made, .* \(register_buffer\)",
    "counted": r"is not made alike each time: its state_dict\(\) lacks trunk\.net\d+\.0\.weight",
    "all_frozen": "none of its parameters learns",
}


def build(name, heads=None, **options):
    given = {"own": f"made_nets:{name}", "side": 32, "dropout": 0.0, **options}
    return build_net(f"made_nets:{name}", INPUTS, heads or {"main": 3}, **given)


def job_of(place, name="plain", **options):
    recipe = {"dropout": 0.0, **options.pop("recipe", {})}
    own = f"made_nets:{name}"
    records = RecordFolder(place / "flow")
    split = make_split(test=1)
    return make_job(records, split, net=own, own=own, recipe=recipe, **options)


def run(job, folder, machine=None, **options):
    list(train(job, folder, CPU, machine or Machine(), **options))
    return read_tensors(folder / LAST, "weights")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Records, and the runs of both streams with networks of own code."""
    place = tmp_path_factory.mktemp("own-nets")
    write_videos(place / "flow")
    run(job_of(place, recipe={"steps": 2}), place / "runs/temporal")
    run(job_of(place, "Block", stream="spatial", recipe={"steps": 2}), place / "runs/spatial")
    return place


def images(count=4, channels=4):
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["plain", "Block", "no_linear", "log_softmax", "Peeks"])
def test_it_answers_as_the_module_that_the_function_makes(name):
    net = build(name, seed=5).eval()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = getattr(made_nets, name)(4, 3).eval()
    with torch.no_grad():
        assert torch.equal(net(images()), module(images()))
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in module.parameters())


def test_the_layer_of_the_classes_is_the_last_linear_one_that_gives_the_logits():
    net = build("plain", dropout=0.4)
    assert set(net.state_dict()) >= {"trunk.0.weight", "heads.main.weight", "heads.main.bias"}
    assert net.trunk[-1].p == 0.4 and net.trunk(images()).shape == (4, 10)
    assert "top.classes" in dict(build("Block").trunk.named_modules())
    for name in ("no_linear", "log_softmax", "Peeks"):
        net = build(name)
        assert not net.heads and net.tasks == ("main",)
        assert net.split_logits(net(images()))["main"].shape == (4, 3)
        for options in ({"dropout": 0.5}, {"hidden": 7}):
            with pytest.raises(
                UsageError, match=r"--dropout and --hidden stand before .* not known"
            ):
                build(name, **options)


def test_several_tasks_and_a_hidden_layer_have_heads_of_flowkits():
    net = build("plain", {"main": 3, "other": 2}, hidden=7, dropout=0.2)
    parts = net.split_logits(net(images()))
    assert {task: part.shape for task, part in parts.items()} == {"main": (4, 3), "other": (4, 2)}
    assert net.hidden.full.in_features == 10 and net.heads["other"].in_features == 7
    parts = build("no_linear", {"main": 3, "other": 2}).split_logits(net(images()))
    assert [part.shape[1] for part in parts.values()] == [3, 2]


@pytest.mark.parametrize("name", WRONG)
def test_what_a_function_does_wrong_is_one_line(name):
    with pytest.raises(UsageError, match=WRONG[name]) as raised:
        build(name)
    assert str(raised.value).startswith(f"network made_nets:{name}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", CANNOT_LEARN)
def test_what_cannot_learn_is_one_line_before_any_step(place, tmp_path, name):
    with pytest.raises(UsageError, match=CANNOT_LEARN[name]) as raised:
        run(job_of(place, name), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / LAST).exists()


def test_a_module_that_was_given_before_is_refused():
    options = {"own": "made_nets:the_same_again", "dropout": 0.0, "side": 32}
    inputs = {"spatial": FrameForm()}
    net = build_net("made_nets:the_same_again", inputs, {"main": 3}, **options)
    with pytest.raises(UsageError, match="gave the same module twice"):
        build_net("made_nets:the_same_again", inputs, {"main": 3}, **options)
    assert net.heads


@pytest.mark.parametrize("name", ["", "no_such_module"])
def test_a_module_that_is_not_there_is_named(name):
    with pytest.raises(UsageError, match=rf"network {name}:f: cannot be imported: "):
        build_net(f"{name}:f", INPUTS, {"main": 3}, own=f"{name}:f", side=32)


def test_a_trial_leaves_the_network_as_it_was():
    net = build("plain")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.random.get_rng_state()
    check_learns(net, (4, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_no_checkpoint_runs_it_by_itself(place, monkeypatch):
    monkeypatch.setattr(made_nets, "plain", None)
    path = place / "runs/temporal"
    checkpoint = read_checkpoint(path)
    assert checkpoint.net == "made_nets:plain"
    for ask in (load_net, Scorer, lambda path: export_net(path, "x.pt", format="torchscript")):
        with pytest.raises(
            UsageError, match=r"is own code, made_nets:plain, .* --net made_nets:plain"
        ):
            ask(path)
    with pytest.raises(UsageError, match="runs only where it is named"):
        checkpoint.build()
    with pytest.raises(UsageError, match="made_nets:plain: --net names another, made_nets:Block"):
        load_net(path, own="made_nets:Block")
    with pytest.raises(UsageError, match="made_nets:plain: --net names another, Block"):
        load_net(path, own=made_nets.Block)


def test_the_function_itself_is_taken_too(place):
    _, named = load_net(place / "runs/temporal", own="made_nets:plain")
    _, given = load_net(place / "runs/temporal", own=made_nets.plain)
    with torch.no_grad():
        assert torch.equal(named(images()), given(images()))
    scorer = Scorer(place / "runs/temporal", views=TestViews(2, "flip"), own=made_nets.plain)
    [values] = scorer.score([open_record(place / "flow/grow/v0")])
    assert values.shape == (3,) and abs(values.sum() - 1) < 1e-5


def test_other_networks_take_no_own_code(tmp_path):
    with pytest.raises(UsageError, match="its network is small, no own code: leave --net out"):
        build_net("small", INPUTS, {"main": 3}, own="made_nets:plain")


@pytest.mark.parametrize("name", ["plain", "no_linear", "frozen_first", "Tied"])
def test_a_stopped_training_goes_on_bit_for_bit(place, tmp_path, name):
    job = job_of(place, name, recipe={"segments": 2, "batch_size": 4}, seed=3)
    straight = run(job, tmp_path / "straight")
    stopping = train(job, tmp_path / "run", CPU, Machine())
    for _ in range(3):  # a step is told before its checkpoint is written
        next(stopping)
    stopping.close()
    assert 0 < read_checkpoint(tmp_path / "run" / LAST).step < 6
    resumed = run(job, tmp_path / "run", start="resume")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_passes_of_few_clips_give_the_gradient_of_the_batch(place, tmp_path):
    whole = run(job_of(place, "Block", recipe={"steps": 2}), tmp_path / "whole")
    parts = run(
        job_of(place, "Block", recipe={"steps": 2}), tmp_path / "parts", Machine(micro_batch=3)
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)


def test_what_it_raises_on_the_way_names_it(place, tmp_path):
    job = job_of(place)  # whose last batch normalization learns of two clips or more
    with pytest.raises(
        UsageError, match=r"given float32 \(1, 4, 32, 32\) in training, it raised Val"
    ):
        run(job, tmp_path, Machine(micro_batch=7))


def test_what_it_prints_is_no_answer(capsys):
    build("talks")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "made\n")


@pytest.mark.slow
def test_two_processes_train_it_as_one(place, tmp_path):
    ranks = run_two_processes(RecordFolder(place / "flow"), tmp_path / "two", "made_nets:plain")
    learned = [name for name in ranks[0] if "running" not in name]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in learned)
    assert any("running_mean" in name for name in ranks[0])


def test_what_the_function_froze_stays(place, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = made_nets.frozen_first(4, 3).state_dict()
    after = run(job_of(place, "frozen_first", recipe={"steps": 2}), tmp_path)
    assert torch.equal(after["trunk.0.weight"], before["0.weight"])
    assert not torch.equal(after["trunk.3.weight"], before["3.weight"])


def test_modes_that_tell_the_head_from_the_rest(place, tmp_path):
    before = read_tensors(place / "runs/temporal", "weights")
    weights = str(place / "runs/temporal")
    recipe = {"steps": 2, "mode": "last-layer"}
    after = run(job_of(place, weights=weights, recipe=recipe), tmp_path / "last")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {"heads.main.weight", "heads.main.bias"}
    recipe = {"steps": 3, "mode": "two-phase", "first_phase_steps": 1, "top_blocks": 1}
    after = run(job_of(place, recipe=recipe), tmp_path / "two")  # on what the function gives
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = made_nets.plain(4, 3).state_dict()
    assert torch.equal(after["trunk.0.weight"], made["0.weight"])
    assert not torch.equal(after["trunk.4.weight"], made["4.weight"])
    for recipe in ({"mode": "last-layer"}, {"trunk_rate": 0.5}):
        with pytest.raises(UsageError, match=r"layer of the classes from the rest, .* not known"):
            run(job_of(place, "no_linear", recipe=recipe), tmp_path / "none")


def test_weights_of_a_run_keep_the_rows_of_known_classes(place):
    job = job_of(place, "Block", stream="spatial", weights=str(place / "runs/spatial"))
    tensors = read_tensors(place / "runs/spatial", "weights")
    net = job.build()
    assert torch.equal(net.heads["main"].weight, tensors["heads.main.weight"])
    with pytest.raises(
        UsageError, match=r"starts from a run of it; other weights are loaded by its"
    ):
        job_of(place, weights="imagenet").build()
    with pytest.raises(
        CheckpointError, match="expected a made_nets:plain, it is a made_nets:Block"
    ):
        job_of(place, weights=str(place / "runs/spatial")).build()


def test_names_that_change_from_run_to_run_are_told(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MADE_NET_NAME", "first")
    job = job_of(place, "renamed", recipe={"steps": 1})
    run(job, tmp_path)
    monkeypatch.setenv("MADE_NET_NAME", "second")
    for ask in (
        lambda: load_net(tmp_path, own=made_nets.renamed),
        lambda: prepare(job, CPU, Machine(), resume=tmp_path / LAST),
    ):
        with pytest.raises(
            CheckpointError,
            match=r"json: its weights do not fit its network: lacks trunk\.second\.0\.weight",
        ) as raised:
            ask()
        assert "\n" not in str(raised.value)


def test_several_tasks_are_trained(place, tmp_path):
    records = RecordFolder(place / "flow")
    tasks = tuple(Task(name, make_split(test=1), records) for name in ("main", "aux"))
    weights = run(job_of(place, tasks=tasks, recipe={"steps": 1}), tmp_path)
    assert {"heads.main.weight", "heads.aux.weight"} <= weights.keys()
    checkpoint, net = load_net(tmp_path, own=made_nets.plain)
    assert list(checkpoint.tasks) == ["main", "aux"] and net(images()).shape == (4, 6)


def test_features_of_what_is_not_known_are_refused_by_name(place, tmp_path):
    run(job_of(place, "no_linear", recipe={"steps": 1}), tmp_path)
    scorer = Scorer(tmp_path, views=TestViews(2, "center"), own=made_nets.no_linear)
    record = open_record(place / "flow/grow/v0")
    with pytest.raises(
        UsageError, match=r"trunk is what the layer of the classes sees, which is not"
    ):
        record_features(scorer, record, "trunk")
    assert record_features(scorer, record, "trunk.0").values.shape == (2, 5)
    scorer = Scorer(place / "runs/temporal", views=TestViews(2, "center"), own=made_nets.plain)
    assert record_features(scorer, record, "trunk").values.shape == (2, 10)


def test_whole_frames_are_for_networks_that_take_any_size(place, tmp_path):
    whole = TestViews(1, "whole")
    Scorer(place / "runs/temporal", views=whole, own=made_nets.plain)
    run(job_of(place, "FixedSide", recipe={"steps": 1}), tmp_path)
    Scorer(tmp_path, own=made_nets.FixedSide)
    with pytest.raises(
        UsageError, match=r"given float32 \(2, 4, 32, 33\) in evaluation, it raised"
    ):
        Scorer(tmp_path, views=whole, own=made_nets.FixedSide)


@pytest.mark.parametrize("format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_export_gives_the_same(place, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX is not installed: pip install onnxruntime")
        pytest.importorskip("onnxscript", reason="ONNX is not installed: pip install onnxscript")
    options = {"format": format, "own": "made_nets:plain"}
    assert export_net(place / "runs/temporal", tmp_path / "net", **options) < 1e-3


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    return lambda *arguments: run_here(*arguments, cwd=place)


FEW = ("--moments", 2, "--views", "center", "--device", "cpu")
NAMES = ("--net", "made_nets:plain", "--net", "made_nets:Block")
ASKS = {
    "eval": ("eval", "--part", "test", *FEW),
    "predict": ("predict", "flow", "--temporal", "runs/temporal", *FEW),
    "features": ("features", "runs/temporal", "--out", "features", *FEW),
    "export": ("export", "runs/temporal", "--format", "torchscript"),
    "resume": ("train", "temporal", "--resume", "--steps", 3, "-j", 0),
}


@pytest.mark.parametrize("ask", ASKS)
def test_every_command_is_given_it_again(here, ask):
    done = here(*ASKS[ask])
    assert done.returncode == 2
    [line] = done.stderr.decode().splitlines()
    assert re.search(
        r"is own code, (made_nets:\w+), .* only where it is named: --net \1 names", line
    )
    done = here(*ASKS[ask], "--net", "made_nets:no_linear")
    assert done.returncode == 2
    [line] = done.stderr.decode().splitlines()
    assert re.search(r"is own code, made_nets:\w+: --net names another, made_nets:no_linear", line)


def test_commands_take_its_runs_as_any_other(here, place):
    done = here("eval", *FEW, *NAMES)
    assert done.returncode == 0, done.stderr
    for name in ("fuse", "report"):
        done = here(name)
        assert done.returncode == 0, done.stderr
    done = here("features", "runs/temporal", "--out", "features", *FEW, *NAMES[:2])
    assert done.returncode == 0, done.stderr
    with np.load(next((place / "features").rglob("*.npz"))) as file:
        assert file["features"].shape == (2, 10)
    done = here("export", "runs/temporal", "--format", "torchscript", *NAMES[:2])
    assert done.returncode == 0, done.stderr
    done = here("eval", *FEW, *NAMES, "--net", "made_nets:no_linear")
    assert done.returncode == 2 and b"--net made_nets:no_linear: expected the own" in done.stderr
    done = here("train", "towers", "--recipe", "short")
    assert done.returncode == 2 and b"made_nets:Block cannot be cut into a tower" in done.stderr
    done = here("view", "runs/temporal", "--out", "filters.png")
    assert done.returncode == 1 and b"made_nets:plain, own code" in done.stderr
    assert here("verify", "runs/temporal").returncode == 0


TINY = ("--L", 2, "--short-side", 36, "--crop", 32, "--batch-size", 4, "-j", 0, "--device", "cpu")


def test_train_takes_it_by_name_and_goes_on_by_name(here, place):
    asked = ("train", "temporal", "--net", "made_nets:plain", *TINY, "--out", "mine")
    done = here(*asked, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert b"recipe short: made_nets:plain, 1,2" in done.stderr
    assert b"weights as its function gives them, mode scratch" in done.stderr
    assert b"next: flowkit eval mine --net made_nets:plain" in done.stdout
    go_on = ("train", "temporal", "--out", "mine", "--resume", "--steps", 3, "-j", 0)
    done = here(*go_on, "--net", "made_nets:plain")
    assert done.returncode == 0 and b"goes on at step 2 of 3" in done.stderr, done.stderr
    done = here("eval", "mine", "--cv", 2, "--part", "heldout", *FEW, "--net", "made_nets:plain")
    assert done.returncode == 0, done.stderr
    done = here("train", "temporal", *TINY, "--net", "made_nets:raises", "--out", "other")
    assert done.returncode == 2 and not (place / "other").exists()
    assert b"it raised RuntimeError: no weights here" in done.stderr


def test_the_networks_of_the_docs_train(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/own.md").read_text()
    [block] = re.findall(r"```python\n(# mynets\.py.*?)```", page, re.S)
    assert len(block.splitlines()) <= 25
    (tmp_path / "mynets.py").write_text(block)
    write_videos(tmp_path / "flow")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    asked = ("train", "temporal", "--net", "mynets:my_net", *TINY, "--steps", 2)
    done = run_here(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_here("eval", *FEW, "--net", "mynets:my_net", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["part"] for one in told] == ["test", "heldout"] or told
    monkeypatch.delitem(sys.modules, "mynets")
