"""The stages of HMAX for actions: fields to directions (S1, C1), to patches (S2, C2), to times.

Jhuang, Serre, Wolf & Poggio, "A Biologically Inspired System for Action Recognition" (ICCV 2007,
doi 10.1109/ICCV.2007.4408988), the variant on optical flow. S stages match, C stages take the
largest: C1 over a window, C2 over all positions, C3 over all times. All tensors are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import conv2d, max_pool2d

DIRECTIONS = (0.0, math.pi / 2, math.pi, 3 * math.pi / 2)  # preferred: right, down, left, up
SPEEDS = (3.0, 6.0)  # preferred, px per frame
SHARPNESS = 2  # exponent of the tuning to a direction
POOL, POOL_STEP = 8, 4  # px: the window of C1 and the distance of two
SIDES = (4, 8, 12, 16)  # of prototypes, positions of C1
ENTRIES = 500  # largest of a prototype that count
SEQUENCE = 7  # frames of a prototype of S3
TINY = 1e-12  # below which a norm counts as none
ROUNDS = 20  # of trainings by which features are selected, at most


@dataclass(frozen=True, eq=False)
class Patches:
    """Prototypes of S2 of one side n: `values` (P, 4, n, n), zero where an entry does not count.

    Each is of length 1. `speeds` (P,) are the places in `SPEEDS` of the maps that each is cut from
    and matched to.
    """

    values: torch.Tensor
    speeds: torch.Tensor


def s1(fields: torch.Tensor) -> torch.Tensor:
    """Direction and speed of each pixel: fields (N, H, W, 2) px -> (N, 2, 4, H, W) in 0 to 1.

    ((1 + cos(angle to the preferred direction)) / 2)^2 exp(-|speed - preferred speed|), by speeds,
    then directions; 0 where nothing moves, which has no direction.
    """
    u, v = fields[..., 0], fields[..., 1]
    speed = torch.hypot(u, v)
    moving = speed > TINY
    cosine = torch.stack([u * math.cos(one) + v * math.sin(one) for one in DIRECTIONS], 1)
    cosine = cosine / speed.clamp_min(TINY).unsqueeze(1)
    toward = ((1 + cosine) / 2) ** SHARPNESS * moving.unsqueeze(1)  # (N, 4, H, W)
    quick = torch.stack([torch.exp(-(speed - one).abs()) for one in SPEEDS], 1)
    return quick.unsqueeze(2) * toward.unsqueeze(1)


def c1(maps: torch.Tensor) -> torch.Tensor:
    """The largest of 8 x 8 px, every 4 px: (N, 2, 4, H, W) -> (N, 2, 4, h, w)."""
    count, speeds, directions, *size = maps.shape
    pooled = max_pool2d(maps.reshape(count, speeds * directions, *size), POOL, POOL_STEP)
    return pooled.reshape(count, speeds, directions, *pooled.shape[2:])


def least_side() -> int:
    """The shortest side in px of fields that the largest prototype fits into."""
    return (max(SIDES) - 1) * POOL_STEP + POOL


def make_patches(cut: Sequence[torch.Tensor], speeds: Sequence[int]) -> Patches:
    """Prototypes of S2 out of patches (4, n, n) of C1: their largest entries, of length 1."""
    values = torch.stack(list(cut))
    flat = values.flatten(1)
    if flat.shape[1] > ENTRIES:
        kept = flat.topk(ENTRIES, dim=1).indices
        flat = torch.zeros_like(flat).scatter_(1, kept, flat.gather(1, kept))
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(TINY)
    return Patches(flat.reshape(values.shape), torch.tensor(list(speeds)))


def s2(maps: torch.Tensor, patches: Patches) -> torch.Tensor:
    """How much C1 is like each prototype at each position: (N, 2, 4, h, w) -> (N, P, h', w').

    The cosine between the prototype and the entries of C1 that count in it, at their speed; 0 where
    these are all 0.
    """
    count, _, _, height, width = maps.shape
    side = patches.values.shape[-1]
    found = maps.new_zeros(count, len(patches.values), height - side + 1, width - side + 1)
    for speed in range(len(SPEEDS)):
        own = patches.speeds == speed
        if not own.any():
            continue
        values = patches.values[own]
        counts = (values != 0).to(values.dtype)
        lengths = conv2d(maps[:, speed] ** 2, counts).clamp_min(0).sqrt()
        likeness = conv2d(maps[:, speed], values) / lengths.clamp_min(TINY)
        found[:, own] = torch.where(lengths > math.sqrt(TINY), likeness, 0.0)
    return found


def c2(responses: torch.Tensor) -> torch.Tensor:
    """The largest over all positions: (N, P, h, w) -> (N, P), a vector for each frame."""
    return responses.amax((2, 3))


def c2_of_fields(fields: torch.Tensor, prototypes: Sequence[Patches]) -> torch.Tensor:
    """The C2 vectors of fields (N, H, W, 2) px: (N, P), the prototypes of all sides one by one."""
    maps = c1(s1(fields))
    return torch.cat([c2(s2(maps, patches)) for patches in prototypes], 1)


def sequences(frames: np.ndarray) -> np.ndarray:
    """All runs of 7 consecutive C2 vectors: (F, P) -> (F - 6, 7 P); a short video is looped."""
    if len(frames) < SEQUENCE:
        frames = frames[np.arange(SEQUENCE) % len(frames)]
    runs = np.lib.stride_tricks.sliding_window_view(frames, SEQUENCE, axis=0)  # (F - 6, P, 7)
    return runs.transpose(0, 2, 1).reshape(len(runs), -1)


def s3(frames: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """How much each run of frames is like each prototype: (F, P), (Q, 7 P) -> (F - 6, Q), cosines.

    Prototypes are `sequences` of training videos.
    """
    runs = _unit(sequences(frames))
    return runs @ _unit(prototypes).T


def c3(responses: np.ndarray) -> np.ndarray:
    """The largest over time: (T, Q) -> (Q,), a vector for each video."""
    return responses.max(axis=0)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)


def select_features(vectors: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` features that linear SVMs need most, in order: int64 (count,).

    The zero-norm SVM of Weston, Elisseeff, Scholkopf & Tipping (JMLR 3, 2003): features (N, P) are
    multiplied by the size of their weights, one class against the rest and summed over the classes,
    and trained on again, until no more than `count` are left or nothing changes.
    """
    from sklearn.svm import LinearSVC

    scale = np.ones(vectors.shape[1])
    for _ in range(ROUNDS):
        machine = LinearSVC(C=1.0, random_state=0, max_iter=5000).fit(vectors * scale, labels)
        scale = scale * np.abs(machine.coef_).sum(axis=0)
        scale /= scale.max()
        if np.count_nonzero(scale > TINY) <= count:
            break
    return np.sort(np.argsort(-scale, kind="stable")[:count])
