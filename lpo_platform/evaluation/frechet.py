"""The Frechet distance between two sets of features (arXiv:1706.08500, Eq. 6), and its comparison of two models.

B items, N real pictures, D features.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpo_platform.evaluation.statistics import compare_sets, entry, sides_not_finite


class Frechet:
    """Frechet distances of (B, D) features to one Gaussian of mean (D,) and covariance (D, D).

    The root of its covariance A is taken once. With Y = the centred features times A^(1/2), the trace of the middle
    root is the sum of Y's singular values over (B - 1)^(1/2), found in whichever of (B, B) and (D, D) is smaller.
    """

    def __init__(self, mean: ArrayLike, cov: ArrayLike) -> None:
        self.mean, cov = np.asarray(mean, dtype=np.float64), np.atleast_2d(np.asarray(cov, dtype=np.float64))
        self.trace, self.root = np.trace(cov), _root(cov)

    def along(self, features: ArrayLike) -> NDArray[np.float64]:
        """(B, D) -> (B, 2 D): the features and what they are times the root, so that resampled rows need no product."""
        features = np.asarray(features, dtype=np.float64)
        return np.concatenate([features, features @ self.root], 1)

    def __call__(self, rows: NDArray[np.float64]) -> float:
        """Of rows of along(); nan where one is not finite."""
        if not np.isfinite(rows).all():
            return math.nan
        mean = rows.mean(0)
        own, turned = np.split((rows - mean) / math.sqrt(max(len(rows) - 1, 1)), 2, axis=1)
        gram = turned @ turned.T if len(turned) < turned.shape[1] else turned.T @ turned
        middle = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
        shift = np.square(mean[: len(self.mean)] - self.mean).sum()
        return float(max(shift + self.trace + np.square(own).sum() - 2 * middle, 0.0))


def compare_frechet(
    real: ArrayLike, before: ArrayLike, after: ArrayLike, *, resamples: int = 1_000, seed: int = 0
) -> dict[str, Any]:
    """Frechet distances of (B, D) features, before and after, to (N, D) real ones: one metric of result.json.

    The interval resamples the B conditions, the same ones on both sides; the real set is fixed.
    """
    real, before, after = (np.asarray(x, dtype=np.float64) for x in (real, before, after))
    if before.shape != after.shape or before.shape[1:] != real.shape[1:]:
        raise ValueError(f"features do not match: {real.shape}, {before.shape}, {after.shape}")
    wrong = sides_not_finite(before, after) if np.isfinite(real).all() else ["before", "after"]
    if wrong or min(len(real), len(before)) < 2:  # one picture has no covariance
        nothing = (math.nan, math.nan)
        return entry(*nothing, nothing, higher_is_better=False, items=len(before), not_finite=wrong)
    distance = Frechet(*moments(real))
    rows = distance.along(np.concatenate([before, after]))
    return compare_sets(
        lambda i: distance(rows[i]), len(before), higher_is_better=False, resamples=resamples, seed=seed
    )


def moments(features: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and unbiased covariance (D, D) of (N, D) features."""
    features = np.asarray(features, dtype=np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def _root(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(np.atleast_2d(cov))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
