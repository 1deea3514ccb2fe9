"""Updates and networks against the formulas, written out in plain torch."""

import math

import numpy as np
import pytest
import torch
from made_training import CLASSES, make_job, make_split, write_videos
from scipy.io import savemat
from torch.nn import functional

from flowkit.data.datasets import TestClips
from flowkit.data.splits import train_on_all
from flowkit.networks.streams import build_stream
from flowkit.networks.weights import load_weights, read_weights
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.sampling import Task
from flowkit.training.trainer import prepare

ALONE = Ranks(0, 1, torch.device("cpu"))
CNN_M = (  # name, stride, padding of the convolutions of Chatfield et al. 2014, CNN-M-2048
    ("conv1", 2, 0),
    ("conv2", 2, 1),
    ("conv3", 1, 1),
    ("conv4", 1, 1),
    ("conv5", 1, 1),
)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("records"), per_class=4)


def step_inputs(training, step):
    """All clips of a step as a batch: inputs, labels and the place of their tasks."""
    size = training.job.recipe.batch_size
    samples = [training.clips[draw] for draw in range(step * size, (step + 1) * size)]
    inputs = torch.stack([sample["temporal"] for sample in samples])
    return inputs, *(torch.tensor([s[key] for s in samples]) for key in ("label", "task"))


def test_three_updates_are_those_of_plain_gradient_descent(records):
    tasks = (
        Task("main", make_split(), records),
        Task("aux", train_on_all(make_split(classes=CLASSES[:2])), records),
    )
    recipe = {
        "steps": 3,
        "batch_size": 7,  # of which one task has four and the other three, in turn
        "learning_rate": 0.1,
        "warmup_steps": 1,
        "drop_at": (2,),
        "drop_factor": 0.3,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "clip_norm": 0.5,
        "dropout": 0.0,
    }
    job = make_job(records, tasks=tasks, recipe=recipe)
    training = prepare(job, ALONE, Machine(micro_batch=3))
    with training.loader() as batches:
        told = [training.take_step(batches) for _ in range(3)]

    net = job.build().train()
    velocity = [torch.zeros_like(parameter) for parameter in net.parameters()]
    was_clipped = []
    for step, rate in enumerate((0.05, 0.1, 0.03)):  # warmed up, whole, dropped
        inputs, labels, places = step_inputs(training, step)
        main, aux = net(inputs).split([3, 2], 1)
        losses = [
            functional.cross_entropy(logits[places == place], labels[places == place])
            for place, logits in enumerate((main, aux))
        ]
        right = [
            int((logits[places == place].argmax(1) == labels[places == place]).sum())
            for place, logits in enumerate((main, aux))
        ]
        net.zero_grad()
        sum(losses).backward()
        norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in net.parameters()))
        was_clipped.append(norm > 0.5)
        with torch.no_grad():
            for parameter, v in zip(net.parameters(), velocity, strict=True):
                gradient = parameter.grad * min(1.0, 0.5 / norm) + 0.01 * parameter
                v.mul_(0.8).add_(gradient)
                parameter -= rate * v
        assert told[step][0] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
        assert told[step][1] == right
    assert any(was_clipped)
    for ours, plain in zip(training.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


def test_the_held_out_part_is_asked_as_a_plain_loop_does_it(records):
    job = make_job(records, recipe={"dropout": 0.9})
    training = prepare(job, ALONE, Machine())
    loss, accuracy = training.ask_heldout(lambda: False)
    assert training.net.training

    net = job.build().eval()
    clips = TestClips(
        job.tasks[0].split,
        records,
        inputs=job.inputs,
        part="heldout",
        moments=2,
        views="center",
        crop=32,
        short_side=36,
    )
    losses, right = [], []
    for place, label in enumerate(clips.labels):
        with torch.no_grad():
            moments = [net(clips[2 * place + k]["temporal"])[0].softmax(0) for k in range(2)]
        probabilities = (moments[0] + moments[1]) / 2
        losses.append(-math.log(probabilities[label]))
        right.append(int(probabilities.argmax()) == label)
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert accuracy == np.mean(right)


def gradient_of_a_step(records, machine):
    training = prepare(make_job(records, recipe={"dropout": 0.0}), ALONE, machine)
    with training.loader() as batches:
        training.take_step(batches)
    return torch.cat([p.grad.flatten().double() for p in training.net.parameters()])


def test_bfloat16_gives_a_gradient_of_the_same_direction(records):
    exact, rounded = (gradient_of_a_step(records, Machine(bf16=bf16)) for bf16 in (False, True))
    assert not torch.equal(exact, rounded)
    assert functional.cosine_similarity(exact, rounded, dim=0) > 0.995
    assert rounded.norm() == pytest.approx(float(exact.norm()), rel=0.05)


def test_the_held_out_part_is_asked_in_bfloat16_where_the_training_is(records):
    exact, rounded = (
        prepare(make_job(records), ALONE, Machine(bf16=bf16)).ask_heldout(lambda: False)
        for bf16 in (False, True)
    )
    assert rounded[0] != exact[0]
    assert rounded[0] == pytest.approx(exact[0], rel=0.01)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_gradient_where_nothing_is_dropped(records):
    plain, compiled = (gradient_of_a_step(records, Machine(compile=on)) for on in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-6)


def test_passes_of_two_phases_are_sized_for_the_second(records, monkeypatch):
    learning = []

    def note(net, shapes, share, device, *, bf16):
        learning.append({name for name, p in net.named_parameters() if p.requires_grad})
        return share

    monkeypatch.setattr("flowkit.training.trainer.fitting_micro_batch", note)
    recipe = {"mode": "two-phase", "first_phase_steps": 2, "top_blocks": 1}
    job = make_job(records, recipe=recipe, weights="unused.pth")
    monkeypatch.setattr(type(job), "build", lambda self: fresh_small(3))
    training = prepare(job, ALONE, Machine())
    assert {name.split(".")[1] for name in learning[0]} == {"block4", "main"}
    now = {name for name, p in training.net.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in now} == {"heads"}  # as the first phase has it


def fresh_small(classes):
    return build_stream("small", "temporal", {"main": classes}, channels=4)


# ---- the 2014 network


def cnn_m_by_hand(x, weights, *, second_norm):
    """Features of CNN-M-2048 by functional calls alone, after ReLU 7; no dropout."""
    for name, stride, padding in CNN_M:
        x = functional.conv2d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding
        ).relu()
        if name == "conv1" or (name == "conv2" and second_norm):
            squares = functional.pad(x**2, (0, 0, 0, 0, 2, 2))  # of two channels on each side
            sums = sum(squares[:, k : k + x.shape[1]] for k in range(5))
            x = x / (2 + 1e-4 * sums) ** 0.75
        if name in ("conv1", "conv2", "conv5"):
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    for name in ("full6", "full7"):
        x = functional.linear(x.flatten(1), weights[f"{name}.weight"], weights[f"{name}.bias"])
        x = x.relu()
    return x


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "channels"), [("spatial", 3), ("temporal", 4)])
def test_the_2014_network_is_its_layers_called_one_by_one(stream, channels):
    net = build_stream("cnn-m-2048", stream, {"main": 5}, channels=channels, dropout=0.9).eval()
    x = 50 * torch.randn(1, channels, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = cnn_m_by_hand(x, net.trunk.state_dict(), second_norm=stream == "spatial")
        head = net.heads["main"]
        expected = functional.linear(features, head.weight, head.bias)
        assert (features == 0).float().mean() > 0.2  # rectified
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_whole_network_of_matconvnet_gives_its_own_features(tmp_path):
    net = build_stream("cnn-m-2048", "spatial", {"main": 2}, seed=1)
    theirs = {name: tensor.clone() for name, tensor in net.trunk.state_dict().items()}
    layers = []
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "full6", "full7"):
        weight = theirs[f"{name}.weight"]
        if name == "full6":
            weight = weight.view(4096, 512, 6, 6)
        elif name == "full7":
            weight = weight.view(2048, 4096, 1, 1)
        filters = weight.permute(2, 3, 1, 0).numpy()  # (O, I, h, w) -> (h, w, I, O)
        bias = theirs[f"{name}.bias"].numpy()[:, None]
        blobs = np.empty((1, 2), object)
        blobs[0, 0], blobs[0, 1] = filters, bias
        layers.append({"name": name.replace("full", "fc"), "type": "conv", "weights": blobs})
        layers.append({"name": f"relu{name[-1]}", "type": "relu"})
    average = np.broadcast_to([123.7, 116.8, 103.9], (224, 224, 3)).copy()
    cells = np.empty((1, len(layers)), object)
    cells[0] = layers
    savemat(
        tmp_path / "net.mat",
        {"layers": cells, "meta": {"normalization": {"averageImage": average}}},
    )

    pixels = torch.randint(
        256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(2)
    ).float()
    own = build_stream("cnn-m-2048", "spatial", {"main": 2}, seed=9).eval()
    load_weights(own, read_weights(str(tmp_path / "net.mat"), "cnn-m-2048"), {})
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    color = torch.tensor([123.7, 116.8, 103.9])[:, None, None]
    with torch.no_grad():
        found = own.trunk((pixels / 255 - mean) / deviation)
        expected = cnn_m_by_hand(pixels - color, theirs, second_norm=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
