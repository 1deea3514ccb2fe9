"""timm's networks: the features of timm's own, from its weights; skipped where timm is absent."""

import sys

import pytest
import torch
from torch import nn

from flowkit.data.augment import RGB_MEAN, RGB_STD
from flowkit.errors import InstallError, UsageError
from flowkit.networks.streams import build_stream
from flowkit.networks.table import net_facts
from flowkit.networks.weights import load_weights, read_weights

NAMES = ("resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100")


def test_without_timm_its_networks_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InstallError, match=r"pip install 'flowkit-video\[timm\]'"):
        net_facts("timm/resnet18")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_timms_weights_gives_timms_features_of_timms_pixels(tmp_path, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build_stream(f"timm/{name}", "spatial", {"main": 7}).eval()
    loaded = load_weights(
        ours, read_weights(str(tmp_path / "weights.pth"), f"timm/{name}"), {"main": "abcdefg"}
    )
    assert loaded.first_layer == "as it was"
    rgb = torch.rand(2, 3, 64, 64)  # in 0..1
    config = timm.get_pretrained_cfg(name)

    def standardized(mean, std):
        mean, std = (torch.tensor(one, dtype=torch.float32)[:, None, None] for one in (mean, std))
        return (rgb - mean) / std

    theirs.reset_classifier(0)
    with torch.no_grad():
        expected = theirs(standardized(config.mean, config.std))
        found = ours.trunk(standardized(RGB_MEAN, RGB_STD))
    spread = float(expected.std())
    assert spread > 1e-5
    torch.testing.assert_close(found / spread, expected / spread, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_flow_enters_the_first_layer_that_timm_names(name):
    pytest.importorskip("timm")
    net = build_stream(f"timm/{name}", "temporal", {"main": 3}, channels=20)
    facts = net_facts(f"timm/{name}")
    first = net.trunk.get_submodule(facts.first_layer)
    assert isinstance(first, nn.Conv2d) and first.in_channels == 20
    assert net.eval()(torch.zeros(2, 20, 64, 64)).shape == (2, 3)
    assert facts.size[1] == 224 < facts.size[0]


def test_a_network_that_timm_does_not_know_is_refused():
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match=r"timm/none-such: .*none-such"):
        net_facts("timm/none-such")
