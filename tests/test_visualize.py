"""Fields as pictures: Middlebury's colors, the legend, arrows."""

import numpy as np
import pytest

from flowkit.errors import FlowkitError, UsageError
from flowkit.pictures.colors import colorize, draw_arrows, wheel_legend


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def constant(x, y, size=(4, 5)):
    return np.full((*size, 2), (x, y), np.float32)


@pytest.mark.parametrize(
    ("vector", "bgr"),
    [
        # places on the wheel of 55 hues by hand: 0, 13.5, 27 and 40.5
        ((1, 0), (0, 0, 255)),
        ((0, 1), (0, (221 + 238) / 2, 255)),
        ((-1, 0), (255, 255 - 46, 0)),
        ((0, -1), (255, 0, (78 + 98) / 2)),
    ],
    ids=["right", "down", "left", "up"],
)
def test_hues_of_the_four_directions(vector, bgr):
    picture = colorize(constant(*vector))
    assert picture.dtype == np.uint8
    assert picture.shape == (4, 5, 3)
    assert np.abs(picture - np.array(bgr)).max() <= 1


def test_still_is_white_without_any_scale():
    assert (colorize(constant(0, 0)) == 255).all()


def test_color_deepens_up_to_the_full_scale_and_no_further():
    half, full, beyond = (colorize(constant(x, 0), max_px=2)[0, 0] for x in (1, 2, 50))
    assert half.tolist() == [127, 127, 255]
    assert full.tolist() == beyond.tolist() == [0, 0, 255]


def test_own_largest_magnitude_is_the_scale_by_default(rng):
    field = rng.normal(0, 3, (20, 30, 2)).astype(np.float32)
    largest = float(np.hypot(field[..., 0], field[..., 1]).max())
    np.testing.assert_array_equal(colorize(field), colorize(field, max_px=largest))
    np.testing.assert_array_equal(colorize(field), colorize(4 * field))


def test_agrees_with_torchvision(rng):
    try:
        from torchvision.utils import flow_to_image
    except (ImportError, RuntimeError) as error:  # broken pairs of torch and torchvision raise it
        pytest.skip(f"torchvision cannot be imported: {error}")
    import torch

    field = rng.normal(0, 3, (60, 80, 2)).astype(np.float32)
    field[:20] = np.round(field[:20])  # the axes, too
    theirs = flow_to_image(torch.from_numpy(field).permute(2, 0, 1))  # (3, H, W) RGB
    theirs = theirs.permute(1, 2, 0).numpy()[..., ::-1].astype(int)
    assert np.abs(colorize(field) - theirs).max() <= 1


@pytest.mark.parametrize("unknown", [np.nan, np.inf, 1e10])
def test_unknown_is_black_and_sets_no_scale(unknown):
    field = constant(1, 0)
    field[2, 3, 1] = unknown
    picture = colorize(field)
    assert picture[2, 3].tolist() == [0, 0, 0]
    assert picture[0, 0].tolist() == [0, 0, 255]


def test_input_is_left_as_it_is(rng):
    field = rng.normal(0, 3, (6, 7, 2)).astype(np.float32)
    background = rng.integers(0, 255, (60, 70, 3)).astype(np.uint8)
    before = field.copy(), background.copy()
    colorize(field)
    draw_arrows(background, field, max_px=2)
    np.testing.assert_array_equal(field, before[0])
    np.testing.assert_array_equal(background, before[1])


def test_refuses_what_is_no_field():
    with pytest.raises(FlowkitError, match=r"expected a field, float32 \(H, W, 2\)"):
        colorize(np.zeros((4, 5, 3), np.float32))


@pytest.mark.parametrize("max_px", [0, -1, np.nan, np.inf])
def test_refuses_a_scale_that_is_none(max_px):
    with pytest.raises(UsageError, match="expected a full scale above 0 px, got"):
        colorize(constant(1, 0), max_px=max_px)


def test_legend_shows_each_direction_in_its_color():
    legend = wheel_legend(120, 3.5)
    assert legend.shape == (120, 120, 3)
    assert (legend[0, 0] == 255).all()
    disc = np.argwhere((legend[:98] != 255).any(axis=2))
    (top, left), (bottom, right) = disc.min(axis=0), disc.max(axis=0)
    center, radius = np.array([top + bottom, left + right]) / 2, (right - left) / 2
    for angle in np.arange(8) * np.pi / 4 + 0.1:  # off the seam between red and red
        place = center + 0.8 * radius * np.array([np.sin(angle), np.cos(angle)])
        row, column = np.round(place).astype(int)
        y, x = (np.array([row, column]) - center) / radius
        expected = colorize(constant(x, y), max_px=1)[0, 0].astype(int)
        assert np.abs(legend[row, column] - expected).max() < 15


def test_legend_says_its_scale_below_the_wheel():
    one, other = wheel_legend(120, 3.5), wheel_legend(120, 12)
    rows = np.flatnonzero((one != other).any(axis=(1, 2)))
    assert rows.size
    assert rows.min() > 95
    np.testing.assert_array_equal(one, wheel_legend(120, 3.5))


@pytest.mark.parametrize(
    ("vector", "rows", "columns"),
    [
        # one arrow in the middle, a quarter of the full scale: 0.25 x 1.5 x 80 = 30 px long
        ((1, 0), (40, 40), (40, 70)),
        ((-1, 0), (40, 40), (10, 40)),
        ((0, 1), (40, 70), (40, 40)),
        ((0, -1), (10, 40), (40, 40)),
    ],
    ids=["right", "left", "down", "up"],
)
def test_arrow_goes_where_the_field_goes_in_proportion(vector, rows, columns):
    picture = draw_arrows(
        np.zeros((80, 80, 3), np.uint8), constant(*vector, size=(20, 20)), max_px=4, spacing=80
    )
    lit = np.argwhere(picture.any(axis=2))
    shaft = lit[(lit[:, 0] == 40) if vector[1] == 0 else (lit[:, 1] == 40)]
    assert np.abs(shaft.min(axis=0) - (rows[0], columns[0])).max() <= 2
    assert np.abs(shaft.max(axis=0) - (rows[1], columns[1])).max() <= 2


def test_arrows_beyond_the_scale_have_its_length():
    black = np.zeros((80, 80, 3), np.uint8)
    full, beyond = (
        draw_arrows(black, constant(x, 0), max_px=2, spacing=20).any(axis=2) for x in (2, 9)
    )
    np.testing.assert_array_equal(full, beyond)


def test_no_arrow_where_the_field_is_unknown():
    field = constant(1, 1, size=(40, 40))
    field[:20] = np.nan
    field[:20, :20] = 1e10
    picture = draw_arrows(np.zeros((80, 80, 3), np.uint8), field, max_px=4, spacing=20)
    assert not picture[:40].any()
    assert picture[40:].any()


def test_background_is_dimmed_to_gray_between_arrows():
    background = np.full((80, 80, 3), (200, 100, 50), np.uint8)
    corner = draw_arrows(background, constant(1, 0), max_px=4, spacing=40)[0, 0]
    assert len(set(corner.tolist())) == 1
    assert 0 < corner[0] < 100
