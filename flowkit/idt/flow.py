"""The flow of every level between two frames: Farneback's, by roots of two, with a median.

Wang & Schmid 2013 use OpenCV's function with other numbers: the levels shrink by the root of two,
the expansion spans 15 px, and a median filters the field of every level before the finer one
starts from it. The iterations are those of `flowkit.flow.farneback`; the expansion sums in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowkit._cv2 import cv2
from flowkit.flow import farneback, farneback_kernels
from flowkit.idt import kernels

STRIDE = np.float32(np.sqrt(2))  # ratio of two scales
POLY_N, POLY_SIGMA = 7, 1.5  # window and Gaussian of the polynomial expansion, px
WINDOW, ITERATIONS = 10, 2  # window, a Gaussian, in px and iterations at every scale
MEDIAN = 5  # px, over the field of every scale


class Size(NamedTuple):
    """Height and width of a level in px, and how many times smaller than the frame it is."""

    height: int
    width: int
    scale: np.float32


def expand(gray: np.ndarray, sizes: Sequence[Size]) -> list[np.ndarray]:
    """The polynomial expansion of a gray frame at each size: float32 (h, PLANES, columns)."""
    weights = farneback.expansion_weights(POLY_N, POLY_SIGMA)
    image = gray.astype(np.float32)
    expansions = []
    for height, width, scale in sizes:
        sigma = (float(scale) - 1) / 2
        side = max(round(5 * sigma) | 1, 3)
        smooth = cv2.GaussianBlur(image, (side, side), sigma, sigmaY=sigma)
        small = np.zeros((height, farneback_kernels.columns(width)), np.float32)
        kernels.resize(smooth, image.shape[1], np.float32(1), small, width)
        planes = np.empty((height, farneback_kernels.PLANES, small.shape[1]), np.float32)
        farneback_kernels.expand(small, width, *weights, True, planes)
        expansions.append(planes)
    return expansions


def solve(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], sizes: Sequence[Size]
) -> list[np.ndarray]:
    """The field of each level between two frames' expansions: float32 (2, h, w), u and v in px."""
    window = farneback.gaussian_window(WINDOW)
    fields: list[np.ndarray] = []
    for level in reversed(range(len(sizes))):
        height, width, _ = sizes[level]
        columns = first[level].shape[2]
        flow = np.zeros((2, height, columns), np.float32)
        if fields:
            for coarse, start in zip(fields[-1], flow, strict=True):
                kernels.resize(coarse, coarse.shape[1], STRIDE, start, width)
        edges = farneback.edge_weights(height, width, columns)
        farneback_kernels.solve_level(
            flow, first[level], second[level], width, edges, WINDOW, window, ITERATIONS
        )
        field = np.empty((2, height, width), np.float32)
        for start, filtered in zip(flow, field, strict=True):
            cv2.medianBlur(start[:, :width], MEDIAN, dst=filtered)
        fields.append(field)
    return fields[::-1]
