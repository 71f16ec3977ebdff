"""How often a metric is called clear although nothing has changed: simulated for every kind of metric.

`pytest -m slow -s -k no_effect tests` prints the table of lpo_platform/evaluation/significance.py.
"""

from collections.abc import Callable

import numpy as np
import pytest
from toys.instances import first

from lpo_platform.evaluation.frechet import compare_frechet
from lpo_platform.evaluation.statistics import compare, compare_pooled, compare_sets, verdict

Draw = Callable[[np.random.Generator, int], dict]
COUNTS = (6, 8, 12, 20, 50, 200)
AT_MOST = 0.06
SEED = 7


def of_means(draw: Callable[[np.random.Generator, int], np.ndarray], own: float, *, resamples: int) -> Draw:
    """Both sides of an item share its difficulty; `own` is the part that each draws for itself."""

    def found(generator: np.random.Generator, count: int) -> dict:
        shared = generator.normal(size=count)
        before, after = (shared + own * draw(generator, count) for _ in range(2))
        return compare({"m": before}, {"m": after}, {"m": True}, resamples=resamples)["m"]

    return found


def binary(generator: np.random.Generator, count: int) -> dict:
    chance = generator.beta(1, 1, count)
    before, after = ((generator.random(count) < chance).astype(float) for _ in range(2))
    return compare({"m": before}, {"m": after}, {"m": True}, resamples=1000)["m"]


def f1(generator: np.random.Generator, count: int) -> dict:
    """True positives, false positives and false negatives of pictures whose number of edges and difficulty differ."""
    size, difficulty = np.exp(generator.normal(4, 0.8, count)), generator.normal(0, 0.7, count)

    def side() -> np.ndarray:
        hit = size / (1 + np.exp(-difficulty - 0.5 * generator.normal(size=count)))
        return np.stack([generator.poisson(hit), generator.poisson(size - hit), generator.poisson(size - hit)], 1)

    pool = lambda sums: 2 * sums[:, 0] / (2 * sums[:, 0] + sums[:, 1] + sums[:, 2]).clip(1)  # noqa: E731
    return compare_pooled(side(), side(), pool, higher_is_better=True, resamples=300)


def miou(generator: np.random.Generator, count: int) -> dict:
    """Intersections and unions of 12 classes, of which a picture shows three and a wrong one."""
    shown = generator.permuted(np.tile(np.arange(12), (count, 1)), axis=1)[:, :3]

    def side() -> np.ndarray:
        counts, rows = np.zeros((count, 2, 12)), np.arange(count)[:, None]
        union = generator.integers(20, 400, shown.shape)
        counts[rows, 0, shown], counts[rows, 1, shown] = union * generator.beta(2, 2, shown.shape), union
        np.add.at(counts, (rows[:, 0], 1, generator.integers(12, size=count)), generator.integers(0, 60, count))
        return counts

    def pool(sums: np.ndarray) -> np.ndarray:
        there = sums[:, 1] > 0
        return np.where(there, sums[:, 0] / sums[:, 1].clip(1e-9), 0).sum(1) / there.sum(1)

    return compare_pooled(side(), side(), pool, higher_is_better=True, resamples=300)


def frechet(width: int) -> Draw:
    """Of pictures that share half of their variance with the real ones of the same items."""

    def found(generator: np.random.Generator, count: int) -> dict:
        mixing = np.linalg.cholesky(0.3 * np.ones((width, width)) + 0.7 * np.eye(width)).T
        real = generator.normal(size=(count, width))
        sides = (0.7 * real + 0.75 * generator.normal(size=real.shape) for _ in range(2))
        before, after = (side @ mixing + 0.1 for side in sides)
        return compare_frechet(real @ mixing, before, after, resamples=100)

    return found


def average_precision(generator: np.random.Generator, count: int) -> dict:
    """Of one to three objects a picture, and as many detections and one more, ranked by score over the whole set."""
    objects = generator.integers(1, 4, count)
    picture = [np.repeat(np.arange(count) + side * count, objects + 1) for side in (0, 1)]
    picture, wanted = np.concatenate(picture), np.tile(objects, 2)
    order = generator.permutation(len(picture))
    picture, hit = picture[order], generator.random(len(picture)) < 0.55

    def statistic(items: np.ndarray) -> float:
        times = np.bincount(items, minlength=2 * count)[picture]
        precision = np.cumsum(times * hit) / np.cumsum(times).clip(1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float((best * times * hit).sum() / wanted[items].sum())

    return compare_sets(statistic, count, higher_is_better=True, resamples=200)


KINDS: dict[str, Draw] = {
    "mean, normal": of_means(lambda g, n: g.normal(size=n), 0.5, resamples=1000),
    "mean, skewed": of_means(lambda g, n: g.lognormal(size=n), 1.0, resamples=1000),
    "mean, 0 or 1": binary,
    "pooled F1": f1,
    "pooled mIoU": miou,
    "Frechet, 4 features": frechet(4),
    "Frechet, 32 features": frechet(32),
    "average precision": average_precision,
}


def clear(kind: str, count: int, runs: int) -> float:
    """The share of clear verdicts in `runs` comparisons without an effect, all of whose numbers agree."""
    generator, found = np.random.default_rng([SEED, count]), 0
    for _ in range(runs):
        metric = KINDS[kind](generator, count)
        excluded = metric["ci95"][0] > 0 or metric["ci95"][1] < 0
        assert excluded == (metric["p"] < 0.05) == (verdict(metric) in ("better", "worse"))
        found += excluded
    return found / runs


@pytest.mark.parametrize("kind", first(KINDS, keep=3))
def test_verdicts_on_no_effect_are_rarely_clear(kind: str) -> None:
    """6 % and two standard errors of so short a simulation."""
    runs = {6: 150, 20: 100} if kind.startswith(("mean", "pooled")) else {6: 10, 20: 30}
    share = sum(clear(kind, count, times) * times for count, times in runs.items()) / sum(runs.values())
    assert share <= AT_MOST + 2 * (0.05 * 0.95 / sum(runs.values())) ** 0.5


def comparisons(kind: str, count: int) -> int:
    """Fewer where one takes longer: a statistic of few items is resampled more often, one of many items is larger."""
    most = 500 if kind.startswith("Frechet") else 1000 if kind.startswith("average") else 2000
    return most // 5 if count < 20 and most < 2000 else most // 2 if count == 200 else most


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_effect_is_clear_in_at_most_six_percent(kind: str) -> None:
    shares = [clear(kind, count, comparisons(kind, count)) for count in COUNTS]
    print(f"\n    {kind:22}" + "".join(f"{100 * share:7.1f}" for share in shares))
    assert max(shares) <= AT_MOST
