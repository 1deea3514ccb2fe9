"""Quantization: the error is half a code at most, zero stays zero, codes are the community's."""

import numpy as np
import pytest

from flowkit.quantize import bound_range, dequantize, own_range, quantize, quantize_bounded


def random_component(rng: np.random.Generator) -> np.ndarray:
    scale, offset = rng.exponential(5), rng.normal() * rng.exponential(5)
    return (rng.normal(size=(16, 17)) * scale + offset).astype(np.float32)


@pytest.mark.parametrize("seed", range(50))
def test_own_range_comes_back_within_half_a_code(seed):
    component = random_component(np.random.default_rng(seed))
    lo, hi = own_range(component)
    back = dequantize(quantize(component, lo, hi), lo, hi)
    step = (hi - lo) / 255
    assert np.abs(back - component).max() <= 0.5 * step * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(50))
def test_own_range_is_widened_by_less_than_a_step_and_puts_zero_on_a_code(seed):
    component = random_component(np.random.default_rng(seed))
    component -= component.mean()
    lo, hi = own_range(component)
    step = (hi - lo) / 255
    # the range may end an ulp inside the extremes: it is kept in float32
    assert lo <= component.min() + 1e-5 * step and hi >= component.max() - 1e-5 * step
    assert (hi - lo) - float(component.max() - component.min()) < step
    still = dequantize(quantize(np.zeros((2, 2), np.float32), lo, hi), lo, hi)
    assert (still == 0).all()


def test_worked_by_hand():
    # -2..6: zero would fall on 63.75; code 64 widens the range least: step 6/191, lo -64 * 6/191.
    component = np.float32([[-2, 0, 6]])
    lo, hi = own_range(component)
    assert hi == pytest.approx(6) and lo == pytest.approx(-64 * 6 / 191)
    assert quantize(component, lo, hi).tolist() == [[0, 64, 255]]


@pytest.mark.parametrize("value", [0.0, 3.25, -1.5])
def test_a_constant_component_comes_back_exactly(value):
    component = np.full((3, 4), value, np.float32)
    lo, hi = own_range(component)
    assert (dequantize(quantize(component, lo, hi), lo, hi) == component).all()


def test_bound_20_is_zero_at_code_128_and_clipped():
    component = np.float32([[0, 20, -20, 35, -35, 20 / 127]])
    assert quantize_bounded(component, 20).tolist() == [[128, 255, 1, 255, 1, 129]]
    lo, hi = bound_range(20)
    assert (lo, hi) == (pytest.approx(-128 * 20 / 127), 20)
    assert dequantize(np.uint8([[128, 255]]), lo, hi).tolist() == [[0, 20]]


def test_bound_20_agrees_with_the_communitys_reading_within_a_tenth_of_a_pixel():
    values = np.linspace(-20, 20, 4001, dtype=np.float32)[None]
    codes = quantize_bounded(values, 20).astype(np.float32)
    assert np.abs((codes - 128) * 20 / 128 - values).max() < 0.25  # denseflow's rule
    assert (
        np.abs(dequantize(codes.astype(np.uint8), *bound_range(20)) - values).max() <= 10.01 / 127
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    component = np.zeros((2, 2), np.float32)
    component[1, 1] = bad
    with pytest.raises(ValueError, match="expected finite displacements"):
        own_range(component)
