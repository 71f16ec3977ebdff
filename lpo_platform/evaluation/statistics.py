"""Paired comparison of two models: intervals, p-values, verdicts, wins.

Numpy only, seeded, no state. B items, R resamples. How an interval and its p-value are made, and how often
a verdict is wrong, stands in significance.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpo_platform.evaluation.significance import (
    MIN_ITEMS,
    RESAMPLES,
    Interval,
    blocks,
    bootstrap_interval,
    bootstrap_p,
    enough,
    reconciled,
    swap_p,
    swaps,
)

TOO_FEW, NOT_FINITE = "too few", "not finite"


def mean_interval(values: ArrayLike, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean of (B,) values; (nan, nan) for fewer than MIN_ITEMS, or if one is not finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values: one number per item, got shape {values.shape}")
    return bootstrap_interval(_means(values, resamples=resamples, seed=seed), len(values), level=level)


def paired_interval(
    before: ArrayLike, after: ArrayLike, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of mean(after - before) for (B,) values of the same items, which are resampled as pairs."""
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"before and after: the same items, got shapes {before.shape} and {after.shape}")
    return mean_interval(after - before, resamples=resamples, level=level, seed=seed)


def statistic_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    resamples: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a statistic of the whole set, called with (B,) indices into the `count` items.

    Statistics such as a Frechet distance are biased on a resample, which holds each item a varying number of
    times; the percentiles are therefore moved so that their mean is the value on the full set.
    """
    return bootstrap_interval(_statistics(statistic, count, resamples=resamples, seed=seed), count, level=level)


def beside_real(real: ArrayLike, after: ArrayLike) -> dict[str, Any]:
    """What the real pictures of the same items add to a guard's entry: their mean, and the interval of after - real."""
    real, after = _both(real, after)
    return {"real": _mean(real), "from_real_ci95": list(paired_interval(real, after))}


def compare(
    before: Mapping[str, ArrayLike],
    after: Mapping[str, ArrayLike],
    higher_is_better: Mapping[str, bool | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The `metrics` of result.json from (B,) values per metric, in the order of `before`.

    An item whose value is nan on both sides (a metric that is undefined there) is left out of that metric. Any other
    value that is not finite leaves the metric without a verdict, which then names the side. Raises ValueError if the
    three mappings do not name the same metrics.
    """
    if not set(before) == set(after) == set(higher_is_better):
        raise ValueError(f"metrics differ: {sorted(before)}, {sorted(after)}, {sorted(higher_is_better)}")
    result = {}
    for name in before:
        better, (first, second) = higher_is_better[name], _both(before[name], after[name])
        result[name] = _of_means(first, second, better, resamples=resamples, seed=seed)
        if better is not None:
            known = np.isfinite(first) & np.isfinite(second)
            wins = _wins(first[known], second[known], better)
            result[name]["wins"] = [_mean(wins), *mean_interval(wins, resamples=resamples, seed=seed)]
    return result


def _of_means(
    before: NDArray[np.float64], after: NDArray[np.float64], higher_is_better: bool | None, *, resamples: int, seed: int
) -> dict[str, Any]:
    """The entry of the mean of (B,) values."""
    wrong = sides_not_finite(before, after)
    options = {"items": len(before), "not_finite": wrong, "higher_is_better": higher_is_better}
    if wrong or len(before) < MIN_ITEMS:
        return entry(_mean(before), _mean(after), (math.nan, math.nan), **options)
    changes, gains = after - before, _means(after - before, resamples=resamples, seed=seed)
    flipped = (signs @ changes / len(changes) for signs in swaps(len(changes), resamples=resamples, seed=seed))
    p = swap_p(float(changes.mean()), np.concatenate(list(flipped)))
    return entry(_mean(before), _mean(after), *_judged(gains, p, len(changes)), **options)


def entry(
    before: float,
    after: float,
    interval: Interval,
    p: float = math.nan,
    *,
    higher_is_better: bool | None,
    items: int | None = None,
    not_finite: Sequence[str] = (),
) -> dict[str, Any]:
    """One metric in result.json's form; higher_is_better None for what should rather stay as it is.

    p: that there is no difference. items: how many it is made of. not_finite: the sides, "before" and "after", that
    have a number which is not finite; such a side has no value. compare() adds `wins`, the share of items that got
    better and its interval.
    """
    values = {"before": float(before), "after": float(after)} | dict.fromkeys(not_finite, math.nan)
    found = {
        **values,
        "difference": values["after"] - values["before"],
        "ci95": [float(interval[0]), float(interval[1])],
        "higher_is_better": higher_is_better,
        "p": p,
        "items": items,
    }
    return found | ({"not_finite": list(not_finite)} if not_finite else {})


def alone(metrics: Mapping[str, Mapping[str, Any]], values: Mapping[str, ArrayLike]) -> dict[str, dict[str, Any]]:
    """The metrics of one model, which is compared with none: `after` alone, and as `own_ci95` the interval of the mean
    of its (B,) values; a statistic of the whole set has none."""
    nothing = {"before": math.nan, "difference": math.nan, "ci95": [math.nan, math.nan], "p": math.nan}
    result = {}
    for name, metric in metrics.items():
        own = np.asarray(values.get(name, ()), dtype=np.float64)
        kept = {key: value for key, value in metric.items() if key != "wins"}
        result[name] = kept | nothing | {"own_ci95": list(mean_interval(own[~np.isnan(own)]))}
    return result


def verdict(metric: Mapping[str, Any]) -> str:
    """ "better" or "worse" ("changed" without a direction) if the interval excludes 0, else "unclear".

    "not finite" where a number is not, and "too few" for fewer than MIN_ITEMS items: of these nothing is claimed.
    """
    if metric.get("not_finite"):
        return NOT_FINITE
    low, high = (math.nan if bound is None else bound for bound in metric["ci95"])
    items = metric.get("items")
    if not (math.isfinite(low) and math.isfinite(high)) or (items is not None and items < MIN_ITEMS):
        return TOO_FEW
    if not (low > 0 or high < 0):
        return "unclear"
    if metric["higher_is_better"] is None:
        return "changed"
    return "better" if (low > 0) == metric["higher_is_better"] else "worse"


def compare_sets(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    higher_is_better: bool,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """A statistic of the whole set: one metric of result.json.

    statistic: of (B,) indices into both sides, one after the other: i is item i before, count + i the same item after.
    The interval resamples the items, the same ones on both sides, and is moved as in statistic_interval; the p-value
    swaps the sides of items at random.
    """
    everyone, resamples = np.arange(count), enough(resamples, count)
    before, after = statistic(everyone), statistic(everyone + count)
    options = {"higher_is_better": higher_is_better, "items": count}
    wrong = sides_not_finite(before, after)
    if wrong or count < MIN_ITEMS:
        return entry(before, after, (math.nan, math.nan), **options, not_finite=wrong)
    gain = lambda i: statistic(i + count) - statistic(i)  # noqa: E731
    gains = _statistics(gain, count, resamples=resamples, seed=seed)
    swapped = [
        statistic(everyone + count * (row > 0)) - statistic(everyone + count * (row < 0))
        for signs in swaps(count, resamples=resamples, seed=seed)
        for row in signs
    ]
    p = swap_p(after - before, np.array(swapped))
    return entry(before, after, *_judged(gains, p, count), **options)


def compare_pooled(
    before: ArrayLike,
    after: ArrayLike,
    pool: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    higher_is_better: bool,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """A metric of summed counts, such as mIoU over a set: one metric of result.json.

    before, after: (B, ...) counts of the same items. pool: (R, ...) sums -> (R,). Interval and p-value are made as in
    compare_sets.
    """
    before, after = (np.asarray(x, dtype=np.float64) for x in (before, after))
    if before.shape != after.shape:
        raise ValueError(f"before and after: the same items, got shapes {before.shape} and {after.shape}")
    count, options = len(before), {"higher_is_better": higher_is_better, "items": len(before)}
    first, second = (float(pool(x.sum(0, keepdims=True))[0]) for x in (before, after))
    wrong = sides_not_finite(before, after) or sides_not_finite(first, second)
    if wrong or count < MIN_ITEMS:
        return entry(first, second, (math.nan, math.nan), **options, not_finite=wrong)
    resamples = enough(resamples, count)
    flat = [x.reshape(count, -1) for x in (before, after)]

    def change(shares: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """(R,) differences, of (R, B) shares: how often each item's counts stand before and after, on either side."""
        own, other = shares
        sides = (own @ flat[0] + other @ flat[1], own @ flat[1] + other @ flat[0])
        low, high = (pool(side.reshape(-1, *before.shape[1:])) for side in sides)
        return high - low

    def often(index: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.stack([np.bincount(row, minlength=count) for row in index]).astype(np.float64)

    drawn = _resampled(count, resamples=resamples, seed=seed)
    gains = np.concatenate([change((weights, 0 * weights)) for weights in map(often, drawn)])
    swapped = [
        change(((signs > 0).astype(np.float64), (signs < 0).astype(np.float64)))
        for signs in swaps(count, resamples=resamples, seed=seed)
    ]
    p = swap_p(second - first, np.concatenate(swapped))
    return entry(first, second, *_judged(gains - gains.mean() + (second - first), p, count), **options)


def _wins(before: NDArray[np.float64], after: NDArray[np.float64], higher_is_better: bool) -> NDArray[np.float64]:
    """(B,): 1 for an item that got better, 0 for worse, one half for a tie."""
    return (np.sign(after - before if higher_is_better else before - after) + 1) / 2


def _judged(gains: NDArray[np.float64], p: float, count: int) -> tuple[Interval, float]:
    """Interval and p-value of a difference from its resampled values and the p-value of swapped sides."""
    return reconciled(bootstrap_interval(gains, count), max(p, bootstrap_p(gains, count)))


def sides_not_finite(before: ArrayLike, after: ArrayLike) -> list[str]:
    """Which sides have a number that is not finite."""
    sides = {"before": before, "after": after}
    return [side for side, values in sides.items() if not np.isfinite(np.asarray(values)).all()]


def _means(values: NDArray[np.float64], *, resamples: int, seed: int) -> NDArray[np.float64]:
    """(R,) means of resampled values; none where they allow no interval."""
    if len(values) < MIN_ITEMS or not np.isfinite(values).all():
        return np.empty(0)
    drawn = _resampled(len(values), resamples=resamples, seed=seed)
    return np.concatenate([values[index].mean(axis=1) for index in drawn])


def _statistics(
    statistic: Callable[[NDArray[np.int64]], float], count: int, *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Of resampled items, moved so that their mean is the value on the full set; none for fewer than MIN_ITEMS."""
    if count < MIN_ITEMS:
        return np.empty(0)
    index = (row for block in _resampled(count, resamples=resamples, seed=seed) for row in block)
    values = np.array([statistic(row) for row in index])
    return values - values.mean() + statistic(np.arange(count))


def _resampled(count: int, *, resamples: int, seed: int):
    """(r, B) blocks of random indices, `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    for rows in blocks(count, resamples):
        yield generator.integers(count, size=(rows, count))


def _both(before: ArrayLike, after: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"before and after: one number per item, got shapes {before.shape} and {after.shape}")
    keep = ~(np.isnan(before) & np.isnan(after))
    return before[keep], after[keep]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan
