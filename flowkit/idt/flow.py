"""The flow of every level between two frames: Farneback's, by roots of two, with a median.

Wang & Schmid 2013 use OpenCV's function with other numbers: the levels shrink by the root of two,
the expansion spans 15 px, and a median filters the field of every level before the finer one
starts from it. All is in float32, as `flowkit.idt.flow_kernels` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from flowkit._cv2 import cv2
from flowkit.flow import farneback
from flowkit.flow.farneback_kernels import PLANES, columns
from flowkit.idt import flow_kernels

STRIDE = np.float32(np.sqrt(2))  # ratio of two scales
POLY_SIGMA = 1.5  # px, of the Gaussian of the polynomial expansion
ITERATIONS = 2  # at every scale


class Size(NamedTuple):
    """Height and width of a level in px, and how many times smaller than the frame it is."""

    height: int
    width: int
    scale: np.float32


@lru_cache(maxsize=16)
def smoothing(scale: float) -> np.ndarray:
    """The Gaussian under which the frame is made so many times smaller, from its center outward."""
    sigma = (scale - 1) / 2
    side = max(round(5 * sigma) | 1, 3)
    return np.ascontiguousarray(cv2.getGaussianKernel(side, sigma, cv2.CV_32F)[side // 2 :, 0])


def expand(gray: np.ndarray, sizes: Sequence[Size]) -> list[np.ndarray]:
    """The polynomial expansion of a gray frame at each size, as `flow_kernels.expand` gives it."""
    weights, inverse = farneback.expansion_weights(flow_kernels.POLY_N, POLY_SIGMA)
    inverse = inverse.astype(np.float32)
    expansions = []
    for height, width, scale in sizes:
        small = np.empty((height, columns(width)), np.float32)
        small[:, width:] = 0
        flow_kernels.shrink(gray, smoothing(float(scale)), small, width)
        pixels = np.empty(height * width * PLANES + flow_kernels.SPARE, np.float32)
        flow_kernels.expand(small, width, weights, inverse, pixels)
        expansions.append(pixels)
    return expansions


def solve(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], sizes: Sequence[Size]
) -> list[np.ndarray]:
    """The field of each level between two frames' expansions: float32 (2, h, w), u and v in px."""
    window = farneback.gaussian_window(2 * flow_kernels.HALF)
    fields = [np.empty((2, 0, 0), np.float32)]
    for level in reversed(range(len(sizes))):
        height, width, _ = sizes[level]
        field = np.empty((2, height, width), np.float32)
        edges = farneback.edge_weights(height, width, columns(width))
        flow_kernels.find_field(
            fields[-1], STRIDE, first[level], second[level], edges, window, ITERATIONS, field
        )
        fields.append(field)
    return fields[:0:-1]
