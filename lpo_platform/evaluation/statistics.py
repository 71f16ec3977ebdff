"""Paired comparison of two models: intervals, p-values, verdicts, wins, Frechet distance, the result table.

Numpy only, seeded, no state. B items, R resamples, D features. How an interval and its p-value are made, and how often
a verdict is wrong, stands in significance.py.
"""

import math
import sys
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
    holm,
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


def many(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The line under a table that says how many comparisons it makes, and which hold for all of them together."""
    adjusted = {name: p for name, p in holm({n: _p(metric) for n, metric in metrics.items()}).items() if p == p}
    if len(adjusted) < 2:
        return ""
    clear = [f"{name} (p {f'= {p:.3f}' if p >= 0.001 else '< 0.001'})" for name, p in adjusted.items() if p < 0.05]
    held = f"Holm-adjusted, clear are {', '.join(clear)}" if clear else "Holm-adjusted, none is clear"
    return f"{len(adjusted)} metrics at 95 %: about one in 20 would leave 0 by chance. {held}."


def beside_real(real: ArrayLike, after: ArrayLike) -> dict[str, Any]:
    """What the real pictures of the same items add to a guard's entry: their mean, and the interval of after - real."""
    real, after = _both(real, after)
    return {"real": _mean(real), "from_real_ci95": list(paired_interval(real, after))}


def cautions(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of these metrics has to know beside them, a line each: not_finite() and passed()."""
    return [*not_finite(metrics), *passed(metrics)]


def passed(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each guard that has clearly changed, and is clearly beyond the real pictures in that direction."""
    lines = []
    for name, metric in metrics.items():
        way = {"changed": 1 if (metric["difference"] or 0.0) > 0 else -1}.get(verdict(metric), 0)
        low, high = (math.nan if bound is None else bound for bound in metric.get("from_real_ci95", (None, None)))
        if way and (low > 0 if way > 0 else high < 0):
            before, after, real = (number(metric[key], decimals(metric)) for key in ("before", "after", "real"))
            went = "rose" if way > 0 else "fell"
            past = "past" if way * (metric["real"] - metric["before"]) > 0 else "further away from"
            lines.append(f"{name} {went} {past} the real pictures, from {before} to {after}; they have {real}")
    return lines


def not_finite(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each metric of which a number is not finite, and which therefore has no verdict."""
    return [
        f"{name} has no verdict: a number of the model {' and of the model '.join(metric['not_finite'])} is not finite"
        for name, metric in metrics.items()
        if metric.get("not_finite")
    ]


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
    options = {"items": len(before), "not_finite": _not_finite(before, after), "higher_is_better": higher_is_better}
    if options["not_finite"] or len(before) < MIN_ITEMS:
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
    wrong = _not_finite(before, after) if np.isfinite(real).all() else ["before", "after"]
    if wrong or min(len(real), len(before)) < 2:  # one picture has no covariance
        nothing = (math.nan, math.nan)
        return entry(*nothing, nothing, higher_is_better=False, items=len(before), not_finite=wrong)
    distance = Frechet(*moments(real))
    rows = distance.along(np.concatenate([before, after]))
    return compare_sets(
        lambda i: distance(rows[i]), len(before), higher_is_better=False, resamples=resamples, seed=seed
    )


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
    wrong = _not_finite(before, after)
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
    wrong = _not_finite(before, after) or _not_finite(first, second)
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


def moments(features: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and unbiased covariance (D, D) of (N, D) features."""
    features = np.asarray(features, dtype=np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def table(metrics: Mapping[str, Mapping[str, Any]], *, unicode: bool | None = None) -> str:
    """The metrics as aligned text: metric, before, after, difference [95 % interval], wins if there are any, verdict.

    Beside a guard stands what real pictures have, if that is known. Of one model alone (see alone()): metric and value
    [95 % interval]. `unicode=None` asks the terminal; without it
    the arrows that show where the value went are left out.
    """
    if unicode is None:
        unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    rows = [_alone(n, m) if "own_ci95" in m else _compared(n, m, unicode) for n, m in metrics.items()]
    heads = ("metric", "before", "after", "real", "difference [95 % interval]", "items better", "")
    if all("own_ci95" in metric for metric in metrics.values()):
        heads = ("metric", "value", "[95 % interval]", "real", "", "", "")
    empty = {column for column in range(1, 6) if not any(row[column] for row in rows)}
    rows = [tuple("" if column in empty else cell for column, cell in enumerate(row)) for row in [heads, *rows]]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([lines[0], ("\u2500" if unicode else "-") * max(map(len, lines)), *lines[1:]])


def _compared(name: str, metric: Mapping[str, Any], unicode: bool) -> tuple[str, ...]:
    digits = decimals(metric)
    rate, *bounds = (None if share is None else 100 * share for share in metric.get("wins", (None,)))
    wins = "" if rate is None or math.isnan(rate) else f"{rate:.0f} % {_bounds(bounds, 0)}"
    before, after = number(metric["before"], digits), number(metric["after"], digits)
    return name, before, after, real(metric, digits), change(metric), wins, _word(metric, unicode)


def _alone(name: str, metric: Mapping[str, Any]) -> tuple[str, ...]:
    own = metric["own_ci95"]
    digits = decimals({"ci95": own})
    known = all(bound is not None and math.isfinite(bound) for bound in own)  # a statistic of the set has none
    bounds = _bounds(own, digits) if known else ""
    return name, number(metric["after"], digits), bounds, real(metric, digits), "", "", ""


def real(metric: Mapping[str, Any], digits: int | None = None) -> str:
    """What real pictures have of a guard, "" where it is not known."""
    if metric.get("real") is None or math.isnan(metric["real"]):
        return ""
    return number(metric["real"], decimals(metric) if digits is None else digits)


def _bounds(interval: Sequence[float | None], digits: int, *, sign: bool = False) -> str:
    return f"[{', '.join(number(bound, digits, sign=sign) for bound in interval)}]"


def decimals(metric: Mapping[str, Any]) -> int:
    """How many decimals a metric deserves: two significant digits of its interval's width, from 1 to 6."""
    width = math.nan if None in metric["ci95"] else abs(metric["ci95"][1] - metric["ci95"][0])
    if not math.isfinite(width) or width == 0:
        return 3
    return min(6, max(1, 1 - math.floor(math.log10(width))))


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number with fixed decimals, or n/a where there is none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    value = round(value, digits) + 0.0  # no -0.000
    return f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"


def change(metric: Mapping[str, Any]) -> str:
    """The difference and its 95 % interval: `+0.033 [+0.026, +0.039]`."""
    digits = decimals(metric)
    return f"{number(metric['difference'], digits, sign=True)} {_bounds(metric['ci95'], digits, sign=True)}"


SAID = {"unclear": "unclear (interval contains 0)", TOO_FEW: "too few items for a verdict", NOT_FINITE: "not finite"}


def _word(metric: Mapping[str, Any], unicode: bool) -> str:
    word = verdict(metric)
    if word in SAID:
        return SAID[word]
    return f"{chr(0x2191) if metric['difference'] > 0 else chr(0x2193)} {word}" if unicode else word


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, *cells, word = row
    numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:-1], strict=True) if width]
    return "  ".join([name.ljust(widths[0]), *numbers, word]).rstrip()


def _wins(before: NDArray[np.float64], after: NDArray[np.float64], higher_is_better: bool) -> NDArray[np.float64]:
    """(B,): 1 for an item that got better, 0 for worse, one half for a tie."""
    return (np.sign(after - before if higher_is_better else before - after) + 1) / 2


def _p(metric: Mapping[str, Any]) -> float:
    p = metric.get("p")
    return math.nan if p is None else p


def _judged(gains: NDArray[np.float64], p: float, count: int) -> tuple[Interval, float]:
    """Interval and p-value of a difference from its resampled values and the p-value of swapped sides."""
    return reconciled(bootstrap_interval(gains, count), max(p, bootstrap_p(gains, count)))


def _not_finite(before: ArrayLike, after: ArrayLike) -> list[str]:
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


def _root(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(np.atleast_2d(cov))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
