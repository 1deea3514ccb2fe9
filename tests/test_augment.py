"""Random changes of a clip, and a frame as the network takes it, against hand-made values."""

import numpy as np
import pytest
import torch

from flowkit.data.augment import PCA_DIRECTIONS, PCA_VALUES, Augmentation, frame_input
from flowkit.data.clips import View, ten_views
from flowkit.errors import UsageError

SIZE = (240, 320)


def draws(augmentation, count=500, seed=0):
    random = np.random.default_rng(seed)
    return [augmentation.draw(SIZE, random) for _ in range(count)]


@pytest.mark.parametrize("crops", ["random", "corner", "multi-scale", "center"])
def test_half_of_the_clips_are_flipped_unless_flips_are_left_out(crops):
    flips = [draw.view.flip for draw in draws(Augmentation(crops=crops))]
    assert 0.4 < np.mean(flips) < 0.6
    assert not any(draw.view.flip for draw in draws(Augmentation(crops=crops, flip=False)))


def test_crops_are_the_kind_asked_for():
    corners = set(ten_views(SIZE))
    assert {draw.view for draw in draws(Augmentation(crops="corner"))} == corners
    assert {draw.view for draw in draws(Augmentation(crops="center"))} == {
        view for view in corners if (view.top, view.left) == (16, 58)
    }
    assert len({draw.view for draw in draws(Augmentation())}) > 480
    sides = {draw.view.height for draw in draws(Augmentation(crops="multi-scale"))}
    assert sides == {256, 224, 192, 168}


def test_leaving_flips_out_changes_nothing_else():
    with_flips, without = draws(Augmentation()), draws(Augmentation(flip=False))
    for one, other in zip(with_flips, without, strict=True):
        assert (one.view.top, one.view.left) == (other.view.top, other.view.left)
        np.testing.assert_array_equal(one.color, other.color)


def test_color_changes_are_along_the_principal_components():
    colors = np.array([draw.color for draw in draws(Augmentation(jitter=0.1), 4000)])
    along = colors @ np.linalg.inv(PCA_DIRECTIONS).T
    np.testing.assert_allclose(along.std(axis=0), 0.1 * PCA_VALUES, rtol=0.05)
    np.testing.assert_allclose(PCA_DIRECTIONS @ PCA_DIRECTIONS.T, np.eye(3), atol=1e-3)
    assert all((draw.color == 0).all() for draw in draws(Augmentation(jitter=0), 5))


def test_frame_is_rgb_in_torchvisions_scale():
    from torchvision.transforms.functional import normalize, to_tensor

    frame = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    found = frame_input(frame, View((9, 12), 0, 0, 9, 12), (9, 12))
    expected = normalize(
        to_tensor(frame[..., ::-1].copy()), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_frame_is_cropped_and_flipped():
    frame = np.zeros((6, 8, 3), np.uint8)
    frame[2, 3] = (255, 0, 0)  # blue
    found = frame_input(frame, View((6, 8), 1, 2, 4, 5, flip=True), (4, 5))
    blue = found[2] > found[2].min()
    assert found.shape == (3, 4, 5) and np.argwhere(blue).tolist() == [[1, 3]]


def test_color_is_added_before_normalizing():
    frame = np.full((4, 4, 3), 100, np.uint8)
    whole = View((4, 4), 0, 0, 4, 4)
    color = np.float32([0.1, -0.2, 0.3])
    change = frame_input(frame, whole, (4, 4), color) - frame_input(frame, whole, (4, 4))
    np.testing.assert_allclose(change[:, 0, 0], color / [0.229, 0.224, 0.225], rtol=1e-5)


@pytest.mark.parametrize("frame", [(512, 640), (128, 160)])
def test_frame_is_rescaled_to_the_views_frame_before_the_crop(frame):
    rows = np.linspace(0, 255, frame[0]).astype(np.uint8)
    picture = np.repeat(rows[:, None, None], frame[1], 1).repeat(3, 2)
    found = frame_input(picture, View((256, 320), 64, 0, 128, 128), (64, 64))
    middle = (found[0] * 0.229 + 0.485)[31:33].mean()
    assert found.shape == (3, 64, 64) and abs(middle - 0.5) < 0.01


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crops": "any"}, "crops of random, corner"),
        ({"crop": 300}, "a crop within the short side of 256"),
        ({"jitter": -1}, "a jitter of at least 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Augmentation(**options)
