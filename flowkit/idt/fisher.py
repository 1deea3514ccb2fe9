"""Fisher vectors: a codebook (PCA and a mixture of Gaussians a descriptor), and a video's vector.

Perronnin, Sánchez & Mensink 2010 (doi 10.1007/978-3-642-15561-1_11), with the numbers of Wang &
Schmid 2013. The mixture has diagonal covariances and is fitted by expectation maximization from
k-means; sums are float64, and the same seed gives the same codebook on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowkit.errors import UsageError

ROWS = 1024  # descriptors that are looked at together: what the cache holds
KMEANS_ROUNDS = 10
SEED_ROWS = 64  # rows for each Gaussian, among which k-means++ chooses the first centers
EM_ROUNDS = 100  # most rounds of expectation maximization
STILL = 1e-3  # the change of the mean log-likelihood that ends it, as scikit-learn has it
VARIANCE_FLOOR = 1e-4  # least variance, as a share of that of all descriptors
# Least logarithm of a share: lesser ones make products denormal, which is slow
LEAST_LOG = np.float32(-50)
LEAST_VARIANCE = 1e-12  # least variance where all descriptors are alike
LEAST_WEIGHT = 1e-9  # least weight of a Gaussian, by which gradients are divided


class Statistics(NamedTuple):
    """Sums over descriptors: of posteriors (K,), of them times x and times x squared (K, D)."""

    rows: int
    zeroth: np.ndarray
    first: np.ndarray
    second: np.ndarray
    log_likelihood: float


@dataclass(frozen=True, eq=False)
class Codebook:
    """Of one descriptor of d numbers: PCA to D, and a mixture of K Gaussians there.

    mean: (d,). components: (D, d), orthonormal rows. weights: (K,), they sum to 1. means,
    variances: (K, D). All float64.
    """

    mean: np.ndarray
    components: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def project(self, descriptors: np.ndarray) -> np.ndarray:
        """Descriptors (N, d) along the components, not whitened: float32 (N, D)."""
        centered = descriptors.astype(np.float32) - self.mean.astype(np.float32)
        return centered @ self.components.T.astype(np.float32)

    def encode(self, descriptors: np.ndarray) -> np.ndarray:
        """The Fisher vector of descriptors (N, d), N at least 1: float32 (2 D K,), of length 1.

        The gradients by the means, then by the standard deviations, Gaussian by Gaussian; of each
        number the signed root is taken, and the whole is divided by its length.
        """
        found = gather(self.project(descriptors), self.weights, self.means, self.variances)
        return normalize(np.concatenate(gradients(found, self.weights, self.means, self.variances)))


def fit_codebook(descriptors: np.ndarray, gaussians: int, *, seed: int = 0) -> Codebook:
    """PCA of descriptors (N, d) to half their numbers, and `gaussians` Gaussians there.

    UsageError where there are fewer descriptors than Gaussians.
    """
    if len(descriptors) < gaussians:
        raise UsageError(f"expected at least {gaussians} tracks to fit to, got {len(descriptors)}")
    mean, components = fit_pca(descriptors, descriptors.shape[1] // 2)
    empty = np.zeros((0, 0))
    reduced = Codebook(mean, components, empty, empty, empty).project(descriptors)
    return Codebook(mean, components, *fit_mixture(reduced, gaussians, seed=seed))


def fit_pca(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean (d,) and the `count` directions of most variance (count, d) of rows (N, d).

    The largest number of a direction is positive, so that a direction has one sign.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((rows.shape[1], rows.shape[1]))
    for part in _parts(rows):
        centered = part.astype(np.float64) - mean
        scatter += centered.T @ centered
    components = np.linalg.eigh(scatter)[1][:, ::-1][:, :count].T
    largest = np.abs(components).argmax(axis=1)
    return mean, components * np.sign(components[np.arange(count), largest])[:, None]


def fit_mixture(
    rows: np.ndarray, gaussians: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (K,), means and variances (K, D) of Gaussians fitted to rows, float32 (N, D)."""
    floor = np.maximum(VARIANCE_FLOOR * rows.var(axis=0, dtype=np.float64), LEAST_VARIANCE)
    mixture = _after(_kmeans(rows, gaussians, seed), floor)
    before = -np.inf
    for _ in range(EM_ROUNDS):
        found = gather(rows, *mixture)
        mixture = _after(found, floor)
        if found.log_likelihood - before < STILL:
            break
        before = found.log_likelihood
    return mixture


def gather(
    rows: np.ndarray, weights: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> Statistics:
    """The sums over rows, float32 (N, D), under a mixture, and their mean log-likelihood."""
    zeroth, first, second = np.zeros(len(means)), np.zeros(means.shape), np.zeros(means.shape)
    total = 0.0
    for part in _parts(rows):
        logs = log_densities(part, weights, means, variances)
        largest = logs.max(axis=1, keepdims=True)
        shares = np.exp(np.maximum(logs - largest, LEAST_LOG))
        sums = shares.sum(axis=1, keepdims=True)
        shares /= sums
        total += float((np.log(sums) + largest).sum(dtype=np.float64))
        zeroth += shares.sum(axis=0, dtype=np.float64)
        first += shares.T @ part
        second += shares.T @ (part * part)
    return Statistics(len(rows), zeroth, first, second, total / max(1, len(rows)))


def log_densities(
    rows: np.ndarray, weights: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    """log(weight times density) of each row under each Gaussian: float32 (N, K)."""
    inverse = 1 / variances
    constant = (
        np.log(weights)
        - 0.5 * (np.log(2 * np.pi * variances) + means**2 * inverse).sum(axis=1)
    )  # fmt: skip
    linear = rows @ (means * inverse).T.astype(np.float32)
    square = (rows * rows) @ inverse.T.astype(np.float32)
    return constant.astype(np.float32) + linear - np.float32(0.5) * square


def gradients(
    found: Statistics, weights: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The normalized gradients by means and by standard deviations, float64 (D K,) each.

    u_k = 1/(N sqrt(pi_k)) sum_n q_nk (x_n - mu_k)/sigma_k, and
    v_k = 1/(N sqrt(2 pi_k)) sum_n q_nk [((x_n - mu_k)/sigma_k)^2 - 1].
    """
    roots = found.rows * np.sqrt(weights)[:, None]
    zeroth = found.zeroth[:, None]
    by_mean = (found.first - zeroth * means) / (roots * np.sqrt(variances))
    spread = found.second - 2 * means * found.first + zeroth * (means**2 - variances)
    by_deviation = spread / (np.sqrt(2) * roots * variances)
    return by_mean.ravel(), by_deviation.ravel()


def normalize(vector: np.ndarray) -> np.ndarray:
    """The signed root of each number, the whole of length 1: float32; zero stays zero."""
    rooted = np.sign(vector) * np.sqrt(np.abs(vector))
    length = np.linalg.norm(rooted)
    return (rooted / (length if length > 0 else 1)).astype(np.float32)


def _after(found: Statistics, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mixture of most likelihood for posteriors of these sums."""
    counts = np.maximum(found.zeroth, LEAST_WEIGHT * found.rows)
    means = found.first / counts[:, None]
    variances = np.maximum(found.second / counts[:, None] - means**2, floor)
    return counts / counts.sum(), means, variances


def _kmeans(rows: np.ndarray, count: int, seed: int) -> Statistics:
    """The sums over the nearest rows of each of `count` centers."""
    from sklearn.cluster import kmeans_plusplus

    rng = np.random.default_rng(seed)
    some = rows[np.sort(rng.permutation(len(rows))[: SEED_ROWS * count])]
    centers = kmeans_plusplus(some, count, random_state=seed)[0].astype(np.float64)
    for _ in range(KMEANS_ROUNDS):
        found = _nearest(rows, centers)
        there = found.zeroth > 0
        centers[there] = found.first[there] / found.zeroth[there, None]
    return _nearest(rows, centers)


def _nearest(rows: np.ndarray, centers: np.ndarray) -> Statistics:
    zeroth, first, second = np.zeros(len(centers)), np.zeros(centers.shape), np.zeros(centers.shape)
    lengths = (0.5 * (centers**2).sum(axis=1)).astype(np.float32)
    for part in _parts(rows):
        places = (part @ centers.T.astype(np.float32) - lengths).argmax(axis=1)
        shares = np.zeros((len(part), len(centers)), np.float32)
        shares[np.arange(len(part)), places] = 1
        zeroth += shares.sum(axis=0, dtype=np.float64)
        first += shares.T @ part
        second += shares.T @ (part * part)
    return Statistics(len(rows), zeroth, first, second, 0.0)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[first : first + ROWS] for first in range(0, len(rows), ROWS))
