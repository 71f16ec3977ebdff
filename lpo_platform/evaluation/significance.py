"""Whether a difference may be chance: p-values of paired differences, and of several hypotheses together."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
CHUNK = 4_000_000


def sign_flip(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of (B,) paired differences whose signs would be random if nothing had changed.

    Fisher's randomisation test on their mean (Good, Permutation Tests, 2000, section 3.2). The observed signs count
    among the random ones, which bounds p below by 1 / (resamples + 1). nan for fewer than two values.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return math.nan
    generator, extreme = np.random.default_rng(seed), 0
    observed = abs(differences.sum()) * (1 - 1e-12)  # sums in another order round otherwise
    for block in blocks(len(differences), resamples):
        signs = 2.0 * generator.integers(2, size=(block, len(differences))) - 1
        extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values that hold for all hypotheses together (Holm 1979); a nan is no hypothesis and stays.

    The i-th smallest of k times k - i + 1, at most 1, and no smaller than those before it.
    """
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted, floor = dict(p_values), 0.0
    for rank, (p, name) in enumerate(known):
        floor = adjusted[name] = max(floor, min(1.0, (len(known) - rank) * p))
    return adjusted


def blocks(count: int, resamples: int) -> list[int]:
    """`resamples` rows of `count` numbers, cut so that memory is bounded."""
    rows = max(1, CHUNK // count)
    return [min(rows, resamples - done) for done in range(0, resamples, rows)]
