"""The networks: the 2014 paper's layer table, torchvision's with 2L channels, what may learn."""

import importlib
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from flowkit.errors import InstallError, UsageError
from flowkit.networks.streams import (
    build_stream,
    count_parameters,
    share_first_layer,
    torchvision_weights,
    widen_first_layer,
)
from flowkit.networks.table import NETS, check_input_side


def on_meta(name, stream="temporal", heads=None, channels=20, **options):
    with torch.device("meta"):
        return build_stream(name, stream, heads or {"main": 101}, channels=channels, **options)


@pytest.mark.parametrize(
    ("stream", "channels", "count"), [("spatial", 3, 90_627_813), ("temporal", 20, 90_707_781)]
)
def test_the_2014_network_has_the_published_number_of_parameters(stream, channels, count):
    assert count_parameters(on_meta("cnn-m-2048", stream, channels=channels)) == count


def test_the_2014_network_follows_the_layer_table():
    net = on_meta("cnn-m-2048", "spatial", channels=3).eval()
    x, shapes = torch.empty(1, 3, 224, 224, device="meta"), {}
    for name, layer in net.trunk.named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    assert shapes["conv1"] == (96, 109, 109)
    assert shapes["pool1"] == (96, 54, 54)
    assert shapes["conv2"] == (256, 26, 26)
    assert shapes["pool2"] == (256, 13, 13)
    assert shapes["conv5"] == (512, 13, 13)
    assert shapes["pool5"] == (512, 6, 6)
    assert (shapes["full6"], shapes["full7"]) == ((4096,), (2048,))


def test_the_temporal_network_is_the_spatial_one_without_the_second_normalization():
    spatial = [name for name, _ in on_meta("cnn-m-2048", "spatial").trunk.named_children()]
    temporal = [name for name, _ in on_meta("cnn-m-2048", "temporal").trunk.named_children()]
    assert [name for name in spatial if name not in temporal] == ["norm2"]


def test_local_response_normalization_is_krizhevskys():
    net = on_meta("cnn-m-2048", "spatial")
    x = torch.randn(1, 8, 1, 1) * 30
    found = net.trunk.norm1(x)[0, :, 0, 0]
    values = x[0, :, 0, 0]
    by_hand = [
        values[i] / (2 + 1e-4 * (values[max(i - 2, 0) : i + 3] ** 2).sum()) ** 0.75
        for i in range(8)
    ]
    torch.testing.assert_close(found, torch.stack(by_hand))


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("slow-fusion", "i3d")])
@pytest.mark.parametrize(
    ("stream", "channels"),
    [pytest.param("spatial", 3, marks=pytest.mark.slow), ("temporal", 20)],
)
def test_every_network_serves_either_stream(name, stream, channels):
    net = on_meta(name, stream, channels=channels)
    assert net(torch.empty(2, channels, 224, 224, device="meta")).shape == (2, 101)


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50", "inception-v3"])
def test_torchvision_networks_keep_their_parameters_but_for_first_layer_and_head(name):
    from torchvision import models

    options = {"aux_logits": False, "init_weights": False} if name == "inception-v3" else {}
    with torch.device("meta"):
        theirs = getattr(models, name.replace("-", "_"))(**options)
    assert count_parameters(on_meta(name, heads={"main": 1000}, channels=3)) == count_parameters(
        theirs
    )


def test_several_heads_lie_side_by_side_and_come_apart_again():
    net = build_stream("small", "temporal", {"ucf101": 5, "hmdb51": 3}, channels=4).eval()
    logits = net(torch.randn(2, 4, 32, 32))
    parts = net.split_logits(logits)
    assert {task: part.shape for task, part in parts.items()} == {
        "ucf101": (2, 5),
        "hmdb51": (2, 3),
    }
    torch.testing.assert_close(torch.cat(list(parts.values()), 1), logits)


def test_the_seed_and_nothing_else_decides_the_fresh_weights():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_stream("small", "spatial", {"main": 2}, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = build_stream("small", "spatial", {"main": 2}, seed=5).state_dict()
    other = build_stream("small", "spatial", {"main": 2}, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.block1.conv.weight"], other["trunk.block1.conv.weight"])


def test_all_fresh_weights_of_the_2014_network_are_normal_and_its_biases_zero():
    weights = build_stream("cnn-m-2048", "temporal", {"main": 2}, channels=4).trunk.state_dict()
    for name, layer in weights.items():
        if name.endswith("bias"):
            assert not layer.any()
        else:
            deviation = math.sqrt(0.8 / layer[0].numel())
            assert layer.mean().abs() < 0.05 * deviation
            assert layer.std() == pytest.approx(deviation, rel=0.02)
            beyond = (layer.abs() > 2 * deviation).float().mean()
            assert beyond == pytest.approx(0.0455, abs=0.005)  # of a normal distribution


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_fresh_heads_give_every_class_nearly_the_same_score(name):
    net = build_stream(name, "temporal", {"main": 10}, channels=6)
    logits = net(3 * torch.randn(16, 6, 64, 64, generator=torch.Generator().manual_seed(0)))
    loss = nn.functional.cross_entropy(logits, torch.arange(16) % 10).item()
    assert loss == pytest.approx(math.log(10), rel=0.1)


@pytest.mark.parametrize("name", ["cnn-m-2048", "vgg16", "resnet18", "inception-v3", "small"])
def test_dropout_is_set_in_every_network(name):
    net = on_meta(name, dropout=0.85)
    ratios = {module.p for module in net.modules() if isinstance(module, nn.Dropout)}
    assert ratios == {0.85}


def test_only_the_last_layer_learns():
    net = build_stream("resnet18", "spatial", {"main": 2})
    net.train_top(0)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        "heads.main.weight",
        "heads.main.bias",
    }
    before = {name: value.clone() for name, value in net.trunk.state_dict().items()}
    net.train()(torch.randn(2, 3, 32, 32))
    after = net.trunk.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch statistics, too


def test_frozen_statistics_are_those_of_all_normalizations_but_the_first():
    net = build_stream("resnet18", "spatial", {"main": 2})
    net.frozen_statistics = True
    before = {name: value.clone() for name, value in net.trunk.state_dict().items()}
    net.train()(torch.randn(2, 3, 32, 32))
    after = net.trunk.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}


@pytest.mark.parametrize(
    ("name", "top_blocks", "prefixes"),
    [
        ("cnn-m-2048", 2, {"trunk.full6", "trunk.full7"}),
        ("vgg16", 3, {"trunk.features.28", "trunk.classifier.0", "trunk.classifier.3"}),
        ("resnet18", 1, {"trunk.layer4"}),
        ("inception-v3", 2, {"trunk.Mixed_7b", "trunk.Mixed_7c"}),
    ],
)
def test_top_blocks_are_the_last_ones(name, top_blocks, prefixes):
    net = on_meta(name)
    net.train_top(top_blocks)
    learning = [n for n, p in net.named_parameters() if p.requires_grad and "heads" not in n]
    assert {next(p for p in prefixes if n.startswith(p + ".")) for n in learning} == prefixes
    net.train_top(None)
    assert all(p.requires_grad for p in net.parameters())


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(UsageError, match="small: expected 0 to 4 blocks to train, got 5"):
        on_meta("small").train_top(5)


def test_widened_filters_answer_to_gray_as_the_rgb_filters_do():
    weight = torch.randn(4, 3, 5, 5)
    gray = torch.randn(1, 1, 9, 9)
    rgb = nn.functional.conv2d(gray.expand(1, 3, 9, 9), weight)
    wide = nn.functional.conv2d(gray.expand(1, 20, 9, 9), widen_first_layer(weight, 20))
    torch.testing.assert_close(wide, rgb * 20 / 3, rtol=1e-4, atol=1e-4)


def test_shared_filters_answer_to_flow_as_the_rgb_filters_to_its_mean_in_red_and_green():
    weight, stack = torch.randn(4, 3, 5, 5), torch.randn(1, 20, 9, 9)
    x, y = stack[:, 0::2].mean(1), stack[:, 1::2].mean(1)
    image = torch.stack([x, y, torch.zeros_like(x)], 1)
    shared = nn.functional.conv2d(stack, share_first_layer(weight, 20, "temporal"))
    torch.testing.assert_close(shared, nn.functional.conv2d(image, weight), rtol=1e-4, atol=1e-4)


def test_a_class_count_a_task_name_and_a_dropout_are_checked():
    with pytest.raises(UsageError, match="task main: expected at least two classes, got 1"):
        on_meta("small", heads={"main": 1})
    with pytest.raises(UsageError, match=r"expected a word as a task's name, got 'a\.b'"):
        on_meta("small", heads={"a.b": 2})
    with pytest.raises(UsageError, match="expected a word as a task's name, got 'keys'"):
        on_meta("small", heads={"keys": 2})
    with pytest.raises(UsageError, match="at least 0 and below 1, got 1"):
        on_meta("small", dropout=1)
    with pytest.raises(UsageError, match=r"cnn-m-2048, .* got 'alexnet'"):
        on_meta("alexnet")


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("cnn-m-2048", 112, "cnn-m-2048 takes a crop of 224 px, got 112 px"),
        ("inception-v3", 64, "75 to 1,024 px, got 64 px"),
    ],
)
def test_an_input_too_small_is_refused(name, side, message):
    with pytest.raises(UsageError, match=message):
        check_input_side(name, side)
    check_input_side(name, 224)


def test_without_torchvision_its_networks_say_how_to_get_it_and_ours_work(monkeypatch):
    original = importlib.import_module

    def broken(name):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return original(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(InstallError, match=r"nms does not exist.*install"):
        on_meta("resnet18")
    on_meta("cnn-m-2048")


def test_unknown_torchvision_weights_are_named(monkeypatch):
    with pytest.raises(UsageError, match="for resnet18 IMAGENET1K_V1, DEFAULT, got imagenet"):
        torchvision_weights("resnet18", "imagenet")
    with pytest.raises(UsageError, match="torchvision has no weights of cnn-m-2048"):
        torchvision_weights("cnn-m-2048", "IMAGENET1K_V1")


def test_weights_that_cannot_be_fetched_say_where_to_put_them(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(UsageError, match=r"not at .*resnet18-f37072fd\.pth.*put the file there"):
        torchvision_weights("resnet18", "IMAGENET1K_V1")


@pytest.mark.slow
def test_importing_the_networks_does_not_import_torchvision():
    code = "import sys, flowkit.training.loop; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
