"""A hidden layer between a network's features and its classes, from training to export."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from command import run_here
from made_training import make_job, make_split, write_videos

from flowkit.data.record_folders import RecordFolder
from flowkit.data.stacks import StackForm
from flowkit.errors import CheckpointError, UsageError
from flowkit.evaluation.features import record_features
from flowkit.evaluation.scoring import Scorer, TestViews
from flowkit.networks.checkpoints import LAST, load_net, read_checkpoint, read_tensors
from flowkit.networks.export import export_net
from flowkit.networks.streams import build_net, build_stream, count_parameters
from flowkit.networks.table import NETS, check_hidden
from flowkit.networks.weights import load_weights, read_weights
from flowkit.records.reading import open_record
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train

INPUTS = {"temporal": StackForm(2)}
UNITS = 7


def small(hidden=0, seed=0, classes=3):
    return build_net("small", INPUTS, {"main": classes}, hidden=hidden, seed=seed)


def run(job, folder, **options):
    list(train(job, folder, Ranks(0, 1, torch.device("cpu")), Machine(), **options))
    return read_tensors(folder / LAST, "weights")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Records, and a run with a hidden layer in ``top``."""
    place = tmp_path_factory.mktemp("hidden")
    records = write_videos(place / "flow")
    run(make_job(records, make_split(test=1), hidden=UNITS, recipe={"steps": 4}), place / "top")
    return place


def job_of(place, **options):
    return make_job(RecordFolder(place / "flow"), make_split(test=1), **options)


def test_the_layer_stands_between_features_and_classes():
    net, plain = small(UNITS).eval(), small()
    images = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = net.trunk(images)
        full, head = net.hidden.full, net.heads["main"]
        hidden = (features @ full.weight.T + full.bias).clamp_min(0)
        expected = hidden @ head.weight.T + head.bias
        torch.testing.assert_close(net(images), expected)
    assert (hidden > 0).any() and (hidden == 0).any()
    assert set(net.state_dict()) - set(plain.state_dict()) == {
        "hidden.full.weight",
        "hidden.full.bias",
    }
    assert all(
        torch.equal(net.trunk.state_dict()[k], v) for k, v in plain.trunk.state_dict().items()
    )


def test_dropout_works_behind_it_in_training():
    net = build_net("small", INPUTS, {"main": 3}, hidden=500, dropout=0.8).train()
    net.trunk.eval()
    net.heads["main"] = torch.nn.Identity()
    given = net(torch.randn(1, 4, 32, 32)) != 0
    assert 0.02 < given.double().mean() < 0.2, "a fifth of half of the units"


@pytest.mark.parametrize("name", [name for name, facts in NETS.items() if facts.full_layers])
def test_networks_that_have_hidden_layers_take_no_other(name):
    with pytest.raises(
        UsageError, match=rf"{name} has hidden layers of its own \(.*leave --hidden"
    ):
        check_hidden(name, 1024)
    check_hidden(name, 0)
    layers = NETS[name].full_layers
    assert len(layers) == 2 and all(layers)


@pytest.mark.parametrize("name", [name for name, facts in NETS.items() if not facts.full_layers])
def test_every_other_network_takes_one(name):
    channels = 27 if NETS[name].over_time else 3
    with torch.device("meta"):
        plain = build_stream(name, "spatial", {"main": 2}, channels=channels)
        net = build_stream(name, "spatial", {"main": 2}, channels=channels, hidden=UNITS)
    features = plain.heads["main"].in_features
    assert net.hidden.full.in_features == features and net.heads["main"].in_features == UNITS
    more = count_parameters(net) - count_parameters(plain)
    assert more == (features + 1) * UNITS - 2 * (features - UNITS)


@pytest.mark.parametrize("hidden", [-1, 1 << 17, "7", True, 1.5])
def test_odd_sizes_are_refused(hidden):
    with pytest.raises(UsageError, match="expected a hidden layer of 0 to 65,536 units"):
        small(hidden)


def test_a_checkpoint_has_it_and_its_features_and_exports_are_of_it(place, tmp_path):
    checkpoint, net = load_net(place / "top")
    assert checkpoint.hidden == UNITS and net.hidden.full.out_features == UNITS
    scorer = Scorer(place / "top", views=TestViews(2, "flip"))
    assert ", hidden layer of 7, step" in scorer.describe()["about"]
    record = open_record(place / "flow/grow/v0")
    found = record_features(scorer, record, "hidden").values
    pooled = torch.from_numpy(record_features(scorer, record, "trunk").values)
    assert found.shape == (2, UNITS) and (found >= 0).all() and pooled.shape == (2, 256)
    seen = []
    scorer.net.hidden.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    list(scorer.logits(record))
    np.testing.assert_allclose(found, torch.cat(seen).unflatten(0, (2, -1)).mean(1), atol=1e-6)
    assert export_net(place / "top", tmp_path / "net.pt", format="torchscript") < 1e-5


def test_a_stopped_training_goes_on_bit_for_bit(place, tmp_path):
    straight = run(job_of(place, hidden=UNITS), tmp_path / "straight")
    half = job_of(place, hidden=UNITS)
    stopping = train(half, tmp_path / "run", Ranks(0, 1, torch.device("cpu")), Machine())
    for _ in range(3):  # a step is told before its checkpoint is written
        next(stopping)
    stopping.close()
    assert 0 < read_checkpoint(tmp_path / "run" / LAST).step < 6
    resumed = run(half, tmp_path / "run", start="resume")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    with pytest.raises(UsageError, match="hidden: 7 on disk, 0 asked for"):
        run(job_of(place), tmp_path / "run", start="resume")


def test_the_last_layer_alone_means_this_one_too(place, tmp_path):
    before = read_tensors(place / "top", "weights")
    recipe = {"mode": "last-layer", "steps": 2}
    job = job_of(place, hidden=UNITS, weights=str(place / "top"), recipe=recipe)
    after = run(job, tmp_path / "run")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {
        *("hidden.full.weight", "hidden.full.bias"),
        *("heads.main.weight", "heads.main.bias"),
    }


def test_weights_bring_their_hidden_layer_where_it_fits(place):
    weights = read_weights(str(place / "top"), "small")
    classes = {"main": ("spin", "new", "grow")}
    net = small(UNITS, seed=3)
    assert load_weights(net, weights, classes).kept_classes == {"main": 2}
    assert torch.equal(net.hidden.full.weight, weights.hidden["full.weight"])
    with pytest.raises(CheckpointError, match="hidden layer of 7, and the network has none: give"):
        load_weights(small(), weights, classes)
    with pytest.raises(CheckpointError, match="hidden layer of 7, not of 8: give --hidden 7"):
        load_weights(small(8), weights, classes)
    head = {"weight": torch.ones(1, 256), "bias": torch.ones(1)}
    plain = replace(weights, hidden={}, heads={"main": (("spin",), head)})
    fresh = small(UNITS, seed=4)
    kept = fresh.hidden.full.weight.clone()
    assert load_weights(fresh, plain, classes).kept_classes == {}
    assert torch.equal(fresh.hidden.full.weight, kept)


def test_towers_are_joined_without_one(place):
    run(job_of(place, stream="spatial", recipe={"steps": 1}), place / "spatial")
    done = run_here(
        "train",
        "towers",
        "--spatial",
        "spatial",
        "--temporal",
        "top",
        "--recipe",
        "short",
        cwd=place,
    )
    assert done.returncode == 2
    assert b"--temporal top: has a hidden layer of 7, and networks are joined" in done.stderr


def test_the_command_trains_and_resumes_with_it(place):
    tiny = ("--L", 2, "--recipe", "short", "--short-side", 36, "--crop", 32, "--batch-size", 4)
    asked = ("train", "temporal", *tiny, "-j", 0, "--out", "here", "--hidden", 5, "--steps", 1)
    done = run_here(*asked, cwd=place)
    assert done.returncode == 0 and b"small, hidden layer of 5, 39" in done.stderr, done.stderr
    assert read_checkpoint(place / "here").hidden == 5
    done = run_here(
        "train", "temporal", "--out", "here", "--resume", "--steps", 2, "-j", 0, cwd=place
    )
    assert done.returncode == 0, done.stderr
    done = run_here(*asked[:2], "--recipe", "paper", "--hidden", 5, "--dry-run", cwd=place)
    assert done.returncode == 2 and b"cnn-m-2048 has hidden layers of its own" in done.stderr
