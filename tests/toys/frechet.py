"""The Frechet distance of two Gaussians by its formula."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def frechet_distance(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """Frechet distance of Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)); Eq. 6 of arXiv:1706.08500.

    The trace of the root is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: no complex roots, and
    singular covariances (fewer items than features) need no offset on the diagonal, unlike in the reference
    implementation.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(x, dtype=np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    root = _root(cov_a)
    middle = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * middle
    return float(max(distance, 0.0))


def _root(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(np.atleast_2d(cov))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
