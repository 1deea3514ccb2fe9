"""Slow fusion against its paper: extents, parameters by hand, functional calls, and a motion."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_records import write_record
from made_training import make_job
from made_videos import moving_texture
from torch.nn import functional

from flowkit.data.augment import Augmentation
from flowkit.data.frames import FrameForm
from flowkit.data.inputs import Inputs
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError
from flowkit.networks import slow_fusion
from flowkit.networks.checkpoints import read_checkpoint, read_filters, read_tensors
from flowkit.networks.export import export_net
from flowkit.networks.streams import build_net, count_parameters
from flowkit.networks.table import NETS
from flowkit.networks.towers import make_convolutional
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train

INPUTS: Inputs = {"spatial": FrameForm(10)}


def on_meta(frames=10):
    with torch.device("meta"):
        return build_net("slow-fusion", {"spatial": FrameForm(frames)}, {"main": 101}).eval()


@pytest.fixture(scope="module")
def net():
    return build_net("slow-fusion", INPUTS, {"main": 5}, seed=1).eval()


def test_parameters_are_those_of_the_layers_counted_by_hand():
    filters = [
        96 * (3 * 4 * 11 * 11 + 1),
        256 * (96 * 2 * 5 * 5 + 1),
        384 * (256 * 2 * 3 * 3 + 1),
        384 * (384 * 3 * 3 + 1),
        256 * (384 * 3 * 3 + 1),
    ]
    connected = [4096 * (256 * 6 * 6 + 1), 4096 * (4096 + 1), 101 * (4096 + 1)]
    assert count_parameters(on_meta()) == sum(filters) + sum(connected) == 60_298_821
    assert count_parameters(on_meta(11)) == 60_298_821 + 96 * 3 * 11 * 11


@pytest.mark.parametrize("frames", [10, 11])
def test_layers_have_the_extents_of_the_paper(frames):
    x, shapes = torch.empty(1, 3 * frames, 170, 170, device="meta"), {}
    for name, layer in on_meta(frames).trunk.named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    assert shapes["volume"] == (3, frames, 170, 170)
    assert (shapes["conv1"], shapes["pool1"]) == ((96, 4, 54, 54), (96, 4, 27, 27))
    assert (shapes["conv2"], shapes["pool2"]) == ((256, 2, 27, 27), (256, 2, 13, 13))
    assert (shapes["conv3"], shapes["conv4"]) == ((384, 1, 13, 13), (384, 13, 13))
    assert (shapes["conv5"], shapes["pool5"]) == ((256, 13, 13), (256, 6, 6))
    assert (shapes["full6"], shapes["full7"]) == ((4096,), (4096,))


def lrn(maps):
    """k 2, n 5, alpha 1e-4, beta 0.5 over neighboring channels: (B, C, ...), written out."""
    padded = functional.pad(maps.movedim(1, -1) ** 2, (2, 2))
    sums = padded.unfold(-1, 5, 1).sum(-1).movedim(-1, 1)
    return maps / (2 + 1e-4 * sums) ** 0.5


def test_forward_is_that_of_plain_convolutions_of_frames(net):
    """Every moment of a filter over time as a sum of filters of single frames."""
    weights = dict(net.trunk.named_parameters())

    def over_time(moments, name, extent, **how):
        """The maps of each moment (B, C, h, w): every second window of `extent` of them."""
        filters, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return [
            functional.relu(
                sum(
                    functional.conv2d(moments[first + k], filters[:, :, k], **how)
                    for k in range(extent)
                )
                + bias[:, None, None]
            )
            for first in range(0, len(moments) - extent + 1, 2)
        ]

    stacks = torch.randn(1, 30, 170, 170, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moments = list(stacks.split(3, 1))  # R1 G1 B1, R2 G2 B2, ...
        moments = over_time(moments, "conv1", 4, stride=3)
        moments = [functional.max_pool2d(lrn(one), 2) for one in moments]
        moments = over_time(moments, "conv2", 2, padding=2)
        moments = [functional.max_pool2d(lrn(one), 2) for one in moments]
        [x] = over_time(moments, "conv3", 2, padding=1)
        for name in ("conv4", "conv5"):
            x = functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
            x = functional.relu(x)
        x = functional.max_pool2d(x, 2).flatten(1)
        for name in ("full6", "full7"):
            x = functional.relu(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
        expected = x @ net.heads.main.weight.T + net.heads.main.bias
        found = net(stacks)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    make_convolutional(net)  # of another size, for views of the whole frame
    with torch.no_grad():
        torch.testing.assert_close(net(stacks), found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frames", [pytest.param(10, marks=pytest.mark.slow), 11])
def test_every_frame_is_seen_and_their_order_counts(frames, monkeypatch):
    monkeypatch.setattr(slow_fusion, "WIDTH", 64)
    inputs: Inputs = {"spatial": FrameForm(frames)}
    net = build_net("slow-fusion", inputs, {"main": 5}, seed=1).eval()
    stacks = torch.randn(1, 3 * frames, 170, 170, generator=torch.Generator().manual_seed(0))
    stacks.requires_grad_()
    net(stacks).square().sum().backward()
    assert (stacks.grad.unflatten(1, (frames, 3)).abs().amax((0, 2, 3, 4)) > 0).all()
    with torch.no_grad():
        turned = stacks.unflatten(1, (frames, 3)).flip(1).flatten(1, 2)
        assert not torch.allclose(net(turned), net(stacks), rtol=1e-2)


def test_other_inputs_and_sizes_are_refused():
    for inputs, got in (
        ({"spatial": FrameForm()}, "got 3 channels of the spatial stream"),
        ({"spatial": FrameForm(9)}, "got 27 channels of the spatial stream"),
        ({"temporal": StackForm(15)}, "got 30 channels of the temporal stream"),
    ):
        with pytest.raises(UsageError, match=r"a stack of 10 or 11 frames .*--stack 10") as caught:
            build_net("slow-fusion", inputs, {"main": 5})
        assert got in str(caught.value)
    with pytest.raises(UsageError, match="slow-fusion takes a crop of 170 px, got 224 px"):
        make_job(
            RecordFolder("none"),
            net="slow-fusion",
            frames=FrameForm(10),
            augmentation=Augmentation(crop=224, short_side=256),
        )


MOTIONS = {"up": (0, -3), "down": (0, 3), "still": (0, 0)}


@pytest.mark.slow
def test_slow_fusion_learns_a_motion_that_no_frame_shows(tmp_path, monkeypatch):
    """Textures that rise, fall or stay, each video of its own; fewer filters of a smaller input."""
    monkeypatch.setattr(slow_fusion, "FILTERS", (16, 32, 32, 32, 32))
    monkeypatch.setattr(slow_fusion, "GRID", 2)  # of an input of 62 px
    monkeypatch.setattr(slow_fusion, "WIDTH", 64)
    monkeypatch.setitem(NETS, "slow-fusion", replace(NETS["slow-fusion"], sides=(62, 62)))
    parts = {"train": [], "heldout": []}
    for label, (name, step) in enumerate(MOTIONS.items()):
        for number in range(24):
            seed = label * 100 + number
            frames = np.stack(moving_texture(11, size=(64, 72), step=step, seed=seed))
            fields = np.zeros((10, 64, 72, 2), np.float32)
            write_record(tmp_path / "flow", f"{name}/v{number}", fields, frames=frames, rgb=True)
            part = "heldout" if number < 8 else "train"
            parts[part].append(Video(f"{name}/v{number}", name, f"{name}{number}"))
    split = Split("made", tuple(MOTIONS), tuple(parts["train"]), tuple(parts["heldout"]), ())
    job = make_job(
        RecordFolder(tmp_path / "flow"),
        split,
        net="slow-fusion",
        frames=FrameForm(10),
        augmentation=Augmentation(crop=62, short_side=64, jitter=0.0),
        recipe={
            "steps": 100,
            "batch_size": 24,
            "learning_rate": 0.03,
            "drop_at": (90,),
            "eval_every": 100,
            "dropout": 0.0,
            "clip_norm": 5.0,
        },
    )
    run = tmp_path / "run"
    machine = Machine(channels_last=True)
    *_, last = train(job, run, Ranks(0, 1, torch.device("cpu")), machine)
    assert last.heldout_accuracy > 0.8  # chance is 1/3, 24 videos
    assert read_checkpoint(run).inputs == INPUTS
    assert read_tensors(run, "weights")["trunk.conv1.weight"].shape == (16, 3, 4, 11, 11)
    assert read_filters(run)["spatial"].shape == (16, 12, 11, 11)
    assert export_net(run, tmp_path / "net.pt", format="torchscript") < 1e-4
