"""Checkpoints of earlier versions: what one of version 1 says is still read and still used."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_training import make_job, make_split, write_videos
from safetensors.torch import load_file, save_file

from flowkit.data.frames import FrameForm
from flowkit.data.inputs import inputs_from_json
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError
from flowkit.networks.checkpoints import LAST, CheckpointError, load_net, read_checkpoint
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train

# JSON that flowkit 0.1.0 wrote for the job of `made_training.make_job`, and its tensors' shapes.
VERSION_1 = Path(__file__).with_name("version_1")
INPUTS = {"temporal": {"temporal": StackForm(2)}, "spatial": {"spatial": FrameForm()}}


@pytest.fixture(params=["temporal", "spatial"])
def old_run(tmp_path, request):
    """The stream and the folder of a run of version 1."""
    folder = tmp_path / request.param
    folder.mkdir()
    shutil.copy(VERSION_1 / f"{request.param}.json", folder / LAST)
    shapes = json.loads((VERSION_1 / f"{request.param}-tensors.json").read_text())
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for ending in ("", ".state"):
        save_file(tensors, folder / f"step-00000006{ending}.safetensors")
    return request.param, folder


def test_a_checkpoint_of_version_1_is_read_with_its_weights(old_run):
    stream, folder = old_run
    checkpoint, net = load_net(folder / LAST)
    assert checkpoint.inputs == INPUTS[stream]
    assert (checkpoint.net, checkpoint.step, checkpoint.crop) == ("small", 6, 32)
    for name, tensor in load_file(folder / "step-00000006.safetensors").items():
        torch.testing.assert_close(net.state_dict()[name], tensor)


def test_a_training_of_version_1_is_resumed(old_run, tmp_path):
    stream, folder = old_run
    records = write_videos(tmp_path / "flow", format="png")
    ranks = Ranks(0, 1, torch.device("cpu"))
    job = make_job(records, stream=stream)
    list(train(job, folder, ranks, Machine(), start="resume"))  # nothing is left to do
    other = make_job(records, make_split(heldout=2), stream=stream, seed=3)
    with pytest.raises(UsageError, match=r"seed: 0 on disk, 3 asked"):
        list(train(other, folder, ranks, Machine(), start="resume"))


def test_a_later_version_is_refused_by_its_number(old_run):
    _, folder = old_run
    data = json.loads((folder / LAST).read_text())
    (folder / LAST).write_text(json.dumps(data | {"version": 99}))
    with pytest.raises(CheckpointError, match="of versions 1 to 2, got version 99: a later"):
        read_checkpoint(folder / LAST)


def test_inputs_that_do_not_fit_their_stream_are_refused():
    with pytest.raises(UsageError, match="expected a StackForm of the temporal stream"):
        inputs_from_json({"temporal": None})
    with pytest.raises(TypeError, match="length"):
        inputs_from_json({"spatial": {"length": 10}})
    with pytest.raises(UsageError, match="expected streams of spatial and temporal"):
        inputs_from_json({})
