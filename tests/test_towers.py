"""Two towers joined inside: counts by formula, where joins start, what learns, what goes on."""

import pytest
import torch
from torch import nn

from flowkit.data.frames import FrameForm
from flowkit.data.stacks import StackForm
from flowkit.errors import UsageError
from flowkit.networks.joining import JOINS, SEAMS, Towers
from flowkit.networks.streams import build_stream, count_parameters
from flowkit.networks.table import NETS
from flowkit.networks.towers import (
    PUBLISHED_COUNTS,
    TowersNet,
    build_towers,
    count_towers,
    gaussian,
    pad_alike,
)
from flowkit.training.micro_batch import COPIES, activation_bytes

CLASSES = 5
INPUTS = {"spatial": FrameForm(), "temporal": StackForm(10)}
SMALL_INPUTS = {"spatial": FrameForm(), "temporal": StackForm(2)}
CNN_M, VGG = "cnn-m-2048+cnn-m-2048", "vgg16+vgg16"
MIXED = "vgg16+cnn-m-2048"
LARGER = ("efficientnet-lite1", "efficientnet-lite2")  # than lite0, and otherwise as it


def made(join="conv", *, net="small+small", seed=0, **options):
    """Joined towers of small networks, in evaluation."""
    towers = Towers(join, **options)
    return build_towers(net, SMALL_INPUTS, {"main": CLASSES}, towers, seed=seed).eval()


def images(frames=1, batch=2, side=32, seed=0):
    """Frames and stacks of the same moments."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, frames, 3, side, side, generator=generator),
        torch.randn(batch, frames, 4, side, side, generator=generator),
    )


def conv_count(inputs, outputs, *sides):
    """Weights and biases of a convolution or, without sides, of a fully connected layer."""
    area = 1
    for side in sides:
        area *= side
    return inputs * outputs * area + outputs


def cnn_m_counts(channels):
    """The parameters of CNN-M-2048, layer by layer, from its table."""
    return {
        "conv1": conv_count(channels, 96, 7, 7),
        "conv2": conv_count(96, 256, 5, 5),
        "conv3": conv_count(256, 512, 3, 3),
        "conv4": conv_count(512, 512, 3, 3),
        "conv5": conv_count(512, 512, 3, 3),
        "full6": conv_count(512 * 6 * 6, 4096),
        "full7": conv_count(4096, 2048),
    }


def cnn_m_joined(seam, join, classes, *, kept=False, over_time=False):
    """The formula: both towers up to the seam, the join, and what is above it."""
    spatial, temporal = cnn_m_counts(3), cnn_m_counts(20)
    last = {"relu2": "conv2", "relu3": "conv3", "relu4": "conv4", "relu5": "conv5"}[seam]
    below = list(spatial).index(last) + 1
    channels = 256 if seam == "relu2" else 512
    above = sum(list(spatial.values())[below:]) + conv_count(2048, classes)
    count = sum(list(spatial.values())[:below]) + sum(list(temporal.values())[:below])
    count += above * (2 if kept else 1)
    if over_time:
        return count + conv_count(2 * channels, channels, 3, 3, 3)
    if join == "conv":
        return count + conv_count(2 * channels, channels, 1, 1)
    if join == "cat":
        return count + 512 * 6 * 6 * 4096
    return count


def test_the_parameters_of_the_published_rows_are_those_of_the_formula():
    counts = {row.row: count_towers(CNN_M, INPUTS, 101, row.towers) for row in PUBLISHED_COUNTS}
    assert counts == {
        "late: sum at the softmax": 181_335_594,
        "sum at relu5": cnn_m_joined("relu5", "sum", 101),
        "max at relu5": cnn_m_joined("relu5", "max", 101),
        "cat at relu5": cnn_m_joined("relu5", "cat", 101),
        "conv at relu5": cnn_m_joined("relu5", "conv", 101),
        "bilinear at relu5, trunks": 13_137_248,
        "conv at relu2": cnn_m_joined("relu2", "conv", 101),
        "conv at relu3": cnn_m_joined("relu3", "conv", 101),
        "conv at relu4": cnn_m_joined("relu4", "conv", 101),
        "conv at relu5 and full8": cnn_m_joined("relu5", "conv", 101, kept=True)
        + conv_count(2 * 101, 101),
        "conv at relu5, temporal kept": cnn_m_joined("relu5", "conv", 101, kept=True),
        "conv3d at relu5, temporal kept": cnn_m_joined(
            "relu5", "conv", 101, kept=True, over_time=True
        ),
        "conv3d at relu5": cnn_m_joined("relu5", "conv", 101, over_time=True),
    }
    assert counts["sum at relu5"] == 97_236_421
    assert counts["cat at relu5"] == 172_733_893
    assert counts["conv at relu5"] == 97_761_221
    assert counts["conv3d at relu5, temporal kept"] == 195_491_882


@pytest.mark.parametrize(
    ("net", "classes", "towers", "count"),
    [
        (VGG, 101, None, 269_358_474),
        (VGG, 101, Towers(keep="temporal"), 269_883_274),
        (VGG, 101, Towers(over_time="conv3d", frames=5, keep="temporal"), 283_514_762),
        (VGG, 101, Towers(over_time="conv3d", frames=5), 163_555_109),
        (MIXED, 101, None, 225_382_122),
        (MIXED, 101, Towers(keep="temporal"), 225_906_922),
        (MIXED, 101, Towers(over_time="conv3d", frames=5, keep="temporal"), 239_538_410),
        (CNN_M, 51, None, 181_130_694),
        (CNN_M, 51, Towers(), 97_658_771),
        (CNN_M, 51, Towers(over_time="conv3d", frames=5, keep="temporal"), 195_286_982),
    ],
)
def test_other_networks_have_the_parameters_that_adding_up_their_layers_gives(
    net, classes, towers, count
):
    assert count_towers(net, INPUTS, classes, towers) == count


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGER else ())
        for name, facts in NETS.items()
        if facts.seams
    ],
)
@pytest.mark.parametrize("seam", [pytest.param("relu2", marks=pytest.mark.slow), "relu5"])
def test_a_tower_cut_and_put_together_again_is_the_network(net, seam):
    with torch.device("meta"):
        whole = build_stream(net, "spatial", {"main": CLASSES})
        other = build_stream(net, "temporal", {"main": CLASSES}, channels=4)
        parts = TowersNet(whole, other, Towers("sum", (seam,)))
        x = torch.empty(1, 1, 3, 224, 224)
        assert parts(x, torch.empty(1, 1, 4, 224, 224)).shape == (1, CLASSES)
    layers = [*parts.below["spatial"].named_children(), *parts.above["joined"].named_children()]
    assert [name for name, _ in layers] == [name.replace(".", "_") for name in whole.layers()]


@pytest.mark.parametrize(
    ("net", "seam"),
    [
        ("small", "relu2"),
        ("small", "relu5"),
        ("resnet18", "relu4"),
        ("bninception", "relu4"),
        ("efficientnet-lite0", "relu3"),
    ],
)
def test_a_sum_with_a_tower_of_zeros_is_the_other_network(net, seam):
    alone = build_stream(net, "spatial", {"main": CLASSES}, seed=1).eval()
    other = build_stream(net, "temporal", {"main": CLASSES}, channels=4).eval()
    frames, stacks = images(side=64)
    expected = alone(frames.flatten(0, 1))
    joined = TowersNet(alone, other, Towers("sum", (seam,))).eval()
    joined.maps = lambda stream, x: (
        type(joined).maps(joined, stream, x) * float(stream == "spatial")
    )
    torch.testing.assert_close(joined(frames, stacks), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "seam", "join"),
    [
        *(("small+small", seam, join) for seam in SEAMS for join in ("conv", "cat")),
        ("resnet18+resnet18", "relu3", "conv"),
        pytest.param("resnet18+resnet18", "relu3", "cat", marks=pytest.mark.slow),
        pytest.param("bninception+bninception", "relu3", "conv", marks=pytest.mark.slow),
        ("bninception+bninception", "relu3", "cat"),
    ],
)
def test_conv_and_cat_start_equal_to_sum(net, join, seam):
    given = images(side=64)
    expected = made("sum", net=net, at=(seam,))(*given)
    torch.testing.assert_close(
        made(join, net=net, at=(seam,))(*given), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("seam", ["relu4", "relu5"])
def test_no_relu_follows_a_join_of_signed_maps(seam):
    net = "efficientnet-lite0+efficientnet-lite0"
    given = images(side=64)
    expected = made("sum", net=net, at=(seam,))(*given)
    found = made("conv", net=net, at=(seam,))
    torch.testing.assert_close(found(*given), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(found.join.relu, nn.ReLU) == (seam == "relu5")


def test_cat_before_a_maximum_starts_as_the_sum_of_what_it_leaves():
    """A maximum of sums is no sum of maxima, so after pool5 a cat is near its sum and not equal."""
    spatial, temporal = (nn.MaxPool2d(3, 2, ceil_mode=True)(torch.rand(1, 4, 13, 13)) for _ in "ab")
    layer = nn.Linear(4 * 36, 3)
    from flowkit.networks.towers import _widen

    expected = layer((spatial + temporal).flatten(1))
    _widen(layer, 4)
    torch.testing.assert_close(layer(torch.cat([spatial, temporal], 1).flatten(1)), expected)


def test_max_takes_the_larger_of_each_two():
    a, b = torch.randn(2, 2, 3, 4, 4)
    join = made("max").join
    assert torch.equal(join(a, b), torch.where(a > b, a, b))


def test_conv3d_starts_at_a_quarter_and_three_quarters():
    join = made(over_time="conv3d", frames=5, at=("relu3",)).join
    a, b = torch.rand(2, 1, 64, 1, 1)
    found = join(a.expand(5, 64, 6, 6), b.expand(5, 64, 6, 6)).unflatten(0, (1, 5))
    expected = (0.25 * a + 0.75 * b).expand(1, 64, 4, 4)
    torch.testing.assert_close(found[:, 2, :, 1:-1, 1:-1], expected)


def test_the_gaussian_of_conv3d_is_that_of_the_authors_program():
    cube = gaussian()
    assert cube.sum().item() == pytest.approx(1)
    found = [cube[1, 1, 1], cube[1, 1, 0], cube[1, 0, 0], cube[0, 0, 0]]
    assert [round(v.item(), 6) for v in found] == [0.092261, 0.055959, 0.033941, 0.020586]


@pytest.mark.parametrize(("net", "side"), [("cnn-m-2048", 6), ("vgg16", 7), ("small", 1)])
def test_five_moments_become_one_map(net, side):
    with torch.device("meta"):
        joined = build_towers(
            f"{net}+{net}",
            SMALL_INPUTS,
            {"main": CLASSES},
            Towers(over_time="pool3d", frames=5, keep="temporal"),
        )
        shapes = []
        for part in joined.above.values():
            pool = next(one for one in part if type(one).__name__ == "PoolOverTime")
            pool.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
        given = [torch.empty(2, 5, channels, 224, 224) for channels in (3, 4)]
        assert joined(*given).shape == (2, 2 * CLASSES)  # in training both losses' logits
    assert [(shape[0], *shape[2:]) for shape in shapes] == [(2, side, side)] * 2


def test_the_mean_over_moments_is_the_mean_of_moments_asked_alone():
    given = images(frames=3)
    together = made(frames=3)(*given)
    alone = made(frames=1)
    each = [alone(*(stream[:, k : k + 1] for stream in given)) for k in range(3)]
    torch.testing.assert_close(together, torch.stack(each).mean(0))


def test_the_order_of_moments_matters_to_conv3d_and_not_to_pool3d():
    given = images(frames=3)
    shuffled = [stream[:, [1, 2, 0]] for stream in given]
    pooled, filtered = (
        made("conv", frames=3, over_time=name, at=("relu3",)) for name in ("pool3d", "conv3d")
    )
    torch.testing.assert_close(pooled(*given), pooled(*shuffled))
    assert not torch.allclose(filtered(*given), filtered(*shuffled), rtol=1e-3)


def test_a_moment_is_answered_alike_in_any_batch():
    net = made(frames=3, over_time="conv3d")
    given = images(frames=3, batch=3)
    alone = torch.cat([net(*(stream[k : k + 1] for stream in given)) for k in range(3)])
    torch.testing.assert_close(net(*given), alone)


def test_a_kept_temporal_tower_answers_as_it_did_alone():
    spatial = build_stream("small", "spatial", {"main": CLASSES}).eval()
    temporal = build_stream("small", "temporal", {"main": CLASSES}, channels=4, seed=1).eval()
    frames, stacks = images()
    expected = temporal(stacks.flatten(0, 1))
    joined = TowersNet(spatial, temporal, Towers(keep="temporal")).train()
    for module in joined.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    logits = joined(frames, stacks)
    both = joined.split_outputs(logits)["main"]
    torch.testing.assert_close(both[1], expected)
    torch.testing.assert_close(joined.eval()(frames, stacks), (both[0] + both[1]) / 2)
    torch.testing.assert_close(joined.split_logits(logits)["main"], (both[0] + both[1]) / 2)


@pytest.mark.parametrize(("join", "of_both"), [("sum", torch.add), ("max", torch.maximum)])
def test_logits_joined_at_full8_are_the_one_output(join, of_both):
    kept = made(join, keep="temporal")
    late = made(join, keep="temporal", at=("relu5", "full8"))
    kept.train()
    for module in kept.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    given = images()
    torch.testing.assert_close(late(*given), of_both(*kept.split_outputs(kept(*given))["main"]))


def test_conv_at_full8_starts_as_the_sum_of_logits():
    given = images()
    late, plain = (made(join, keep="temporal", at=("relu5", "full8")) for join in ("conv", "sum"))
    torch.testing.assert_close(late(*given), plain(*given))


@pytest.mark.parametrize("over_time", ["mean", "conv3d"])
@pytest.mark.parametrize("keep", ["none", "temporal"])
def test_gradients_reach_the_join_and_none_is_below_it(over_time, keep):
    net = made(keep=keep, over_time=over_time, frames=2, at=("relu4",)).train()
    net.train_top(0)
    net(*images(frames=2)).square().sum().backward()
    below = {name for name, p in net.named_parameters() if name.startswith("below.")}
    reached = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert below
    assert not below & reached
    assert "join.conv.weight" in reached
    assert {name.split(".")[1] for name in reached if name.startswith("above.")} == set(net.above)
    net.train_top(None)
    net(*images(frames=2)).square().sum().backward()
    grads = [net.below[stream].block1.conv.weight.grad for stream in ("spatial", "temporal")]
    assert all(grad.any() for grad in grads)


def test_below_the_join_batch_statistics_stay_even_where_weights_learn():
    net = made(net="resnet18+resnet18", at=("relu3",))
    net.train_top(None)
    net.train()
    below = [m for m in net.below.modules() if isinstance(m, nn.BatchNorm2d)]
    above = [m for m in net.above.modules() if isinstance(m, nn.BatchNorm2d)]
    assert below
    assert not any(norm.training for norm in below)
    assert all(norm.training for norm in above)
    before = [norm.running_mean.clone() for norm in below]
    net(*images(batch=4, side=64))
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(below, before, strict=True))


@pytest.mark.parametrize("top_blocks", [0, None])
def test_five_moments_of_vgg16_in_a_batch_of_eight_fit_into_24_gb(top_blocks):
    """By the count of the memory trial: weights with their copies, activations, gradients."""
    with torch.device("meta"):
        towers = Towers(over_time="conv3d", frames=5, keep="temporal")
        net = build_towers(VGG, INPUTS, {"main": 101}, towers)
    net.train_top(top_blocks)
    each = 2 * activation_bytes(net, [(5, 3, 224, 224), (5, 20, 224, 224)])
    assert 8 * each + 4 * COPIES * count_parameters(net) < 24e9


def test_recomputed_activations_give_the_same_gradients():
    net, given = made(at=("relu3",)).train(), images()
    net.train_top(None)
    found = []
    for net.checkpointing in (False, True):
        torch.manual_seed(0)
        net.zero_grad()
        net(*given).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_bilinear_sums_the_products_of_all_channels_over_places():
    net, given = made("bilinear"), images()
    a, b = net.maps("spatial", given[0]), net.maps("temporal", given[1])
    expected = sum(
        torch.einsum("nc,nd->ncd", a[:, :, y, x], b[:, :, y, x])
        for y in range(a.shape[2])
        for x in range(a.shape[3])
    )
    torch.testing.assert_close(net(*given), expected.flatten(1), rtol=1e-4, atol=1e-4)


def test_the_smaller_map_gets_a_row_and_a_column_of_zeros_below_and_right():
    a, b = torch.rand(1, 2, 14, 14), torch.rand(1, 2, 13, 13)
    same, padded = pad_alike(a, b)
    assert same is a
    assert torch.equal(padded[:, :, :13, :13], b)
    assert not padded[:, :, 13].any()
    assert not padded[:, :, :, 13].any()
    with pytest.raises(UsageError, match="one row or column at most"):
        pad_alike(a, torch.rand(1, 2, 12, 14))


def test_vgg16_and_cnn_m_are_joined_at_relu5():
    with torch.device("meta"):
        net = build_towers(MIXED, SMALL_INPUTS, {"main": 3}, Towers(keep="temporal")).eval()
        given = [torch.empty(1, 1, channels, 224, 224) for channels in (3, 4)]
        assert net(*given).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"join": "product"}, "expected join of sum"),
        ({"at": ("full6",)}, "joined at one of relu2"),
        ({"at": ("relu3", "relu5")}, "joined at one of relu2"),
        ({"at": ("full8",)}, "joined at one of relu2"),
        ({"at": ("relu5", "full8"), "keep": "temporal", "frames": 5}, "--frames 1"),
        ({"at": ("relu5", "full8")}, "--keep temporal"),
        ({"at": ("relu5", "full8"), "keep": "temporal", "join": "cat"}, "not by cat"),
        ({"over_time": "pool3d"}, "two frames or more"),
        ({"over_time": "conv3d", "frames": 5, "join": "sum"}, "a join itself"),
        ({"join": "bilinear", "at": ("relu4",)}, "bilinear join is at relu5"),
        ({"frames": 0}, "at least one frame"),
        ({"gap": (3, 2)}, "1 <= A <= B"),
    ],
)
def test_what_cannot_be_joined_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        Towers(**options)


@pytest.mark.parametrize(
    ("net", "at", "words"),
    [
        ("inception-v3+inception-v3", "relu5", "inception-v3 cannot be cut"),
        ("small+resnet18", "relu4", "joined at relu5 only"),
        ("cnn-m-2048+vgg16", "relu5", "its own size of maps alone"),
        ("small+resnet18", "relu5", "256 and 512 channels"),
        ("small", "relu5", "SPATIAL\\+TEMPORAL"),
    ],
)
def test_networks_that_cannot_be_joined_are_refused_by_name(net, at, words):
    with pytest.raises(UsageError, match=words):
        made(net=net, at=(at,))


@pytest.mark.parametrize("join", [name for name in JOINS if name != "bilinear"])
def test_a_net_restored_from_its_weights_gives_the_same_logits(join):
    given = images()
    net = made(join, keep="temporal")
    again = made(join, keep="temporal", seed=9)
    again.load_state_dict(net.state_dict())
    assert torch.equal(net(*given), again(*given))
