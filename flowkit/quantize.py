"""Displacement components to 8-bit planes and back, by a range that undoes it; pure numpy.

A plane holds codes 0..255; the range (lo, hi) in px says what codes 0 and 255 stand for, so that
``value = lo + code * (hi - lo) / 255``. Two schemes choose the range: `own_range` takes the
component's own minimum and maximum (Simonyan & Zisserman 2014, section 5), `bound_range` a fixed
+-bound. Both put zero on a code, so that what stands still comes back as standing still.
"""

from __future__ import annotations

import math

import numpy as np

CODES = 255  # steps between code 0 and code 255
ZERO_CODE = 128  # the code of zero displacement under a fixed bound


def own_range(component: np.ndarray) -> tuple[float, float]:
    """The range (lo, hi) in px of a component, float32 (H, W), by its own minimum and maximum.

    Where zero lies strictly inside, one end is widened by less than one step so that zero is
    exactly a code. A constant component has lo == hi. Both are float32 values. NaN and infinite
    displacements are refused with ValueError.
    """
    lo, hi = float(component.min()), float(component.max())
    if not (math.isfinite(lo) and math.isfinite(hi)):
        raise ValueError("expected finite displacements, got NaN or infinity in a field")
    if lo < 0 < hi:
        zero = -lo / (hi - lo) * CODES  # the place of zero, between two codes
        below = min(max(math.floor(zero), 1), CODES - 1)
        above = min(max(math.ceil(zero), 1), CODES - 1)
        step, code = min((max(-lo / k, hi / (CODES - k)), k) for k in (below, above))
        lo, hi = -code * step, (CODES - code) * step
    return float(np.float32(lo)), float(np.float32(hi))


def bound_range(bound: float) -> tuple[float, float]:
    """The range (lo, hi) in px of a fixed `bound`: code 255 is +bound and code 128 zero."""
    step = bound / (CODES - ZERO_CODE)
    return -ZERO_CODE * step, float(bound)


def quantize(component: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """The plane, uint8 (H, W), of a component, float32 (H, W) in px, under the range (lo, hi).

    Rounds to the nearest code (half to even) and clips what lies outside the range.
    """
    if hi == lo:
        return np.zeros(component.shape, np.uint8)
    scale = np.float32(CODES / (hi - lo))
    zero = -lo * CODES / (hi - lo)  # a whole number, but for rounding, where zero is a code
    if abs(zero - round(zero)) < 1e-3:
        zero = round(zero)
    codes = component * scale
    codes += np.float32(zero)
    np.rint(codes, out=codes)
    np.clip(codes, 0, CODES, out=codes)
    return codes.astype(np.uint8)


def quantize_bounded(component: np.ndarray, bound: float) -> np.ndarray:
    """The plane of a component clipped to +-bound px: zero at 128, codes 1 to 255."""
    return quantize(np.clip(component, -bound, bound), *bound_range(bound))


def code_values(lo: float, hi: float) -> np.ndarray:
    """The displacement in px that each code stands for, float32 (256,); zero is exactly zero."""
    values = np.linspace(lo, hi, CODES + 1)  # float64
    values[np.abs(values) < 1e-6 * (hi - lo)] = 0.0
    return values.astype(np.float32)


def dequantize(plane: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """The component, float32 of the plane's shape in px, that `plane` stands for."""
    return code_values(lo, hi)[plane]
