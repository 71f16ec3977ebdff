"""What the jobs of a sweep say together: per setting the mean over its seeds, with an interval that names its kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
NORMAL = 1.959963985  # half the width of a 95 % interval in standard errors

Metric = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One metric of one setting: `differences` holds trained minus base of each seed, in the order of `seeds`.

    items: how many held-out items the seed with the fewest has, None where a run did not say. not_finite: the sides on
    which a seed has a number that is not finite. real: what real pictures have of a guard; from_real_ci95: the interval
    of what the trained models have more than these.
    """

    setting: str
    metric: str
    seeds: list[int | None]
    before: float
    after: float
    differences: list[float]
    ci95: tuple[float, float]
    interval: str
    higher_is_better: bool | None
    items: int | None = None
    not_finite: list[str] = field(default_factory=list)
    real: float | None = None
    from_real_ci95: tuple[float, float] | None = None

    @property
    def difference(self) -> float:
        return self.after - self.before

    def entry(self) -> dict[str, Any]:
        """The form that evaluation.statistics shows and judges."""
        return {
            "before": self.before,
            "after": self.after,
            "difference": self.difference,
            "ci95": list(self.ci95),
            "higher_is_better": self.higher_is_better,
            "items": self.items,
            "not_finite": self.not_finite,
        } | ({} if self.real is None else {"real": self.real, "from_real_ci95": self.from_real_ci95})


def rows(results: Sequence[tuple[str, int | None, Mapping[str, Metric]]]) -> list[Row]:
    """(setting, seed, metrics of result.json) of every finished job -> metric by metric, setting by setting.

    Both keep the order in which they first appear. A run in which a metric has no number is left out of its row. One
    whose number is not finite stays in it, and the row then claims nothing.
    """
    found: dict[tuple[str, str], list[tuple[int | None, Metric]]] = {}
    settings = list(dict.fromkeys(setting for setting, _, _ in results))
    names = list(dict.fromkeys(name for _, _, metrics in results for name in metrics))
    for setting, seed, metrics in results:
        for name, metric in metrics.items():
            numbers = all(isinstance(metric[side], int | float) for side in ("before", "after"))
            if numbers or metric.get("not_finite"):
                found.setdefault((name, setting), []).append((seed, metric))
    keys = [(name, setting) for name in names for setting in settings if (name, setting) in found]
    return [_row(setting, name, found[name, setting]) for name, setting in keys]


def _row(setting: str, name: str, runs: list[tuple[int | None, Metric]]) -> Row:
    metrics = [metric for _, metric in runs]
    before, after = ([math.nan if m[side] is None else float(m[side]) for m in metrics] for side in ("before", "after"))
    differences = [b - a for a, b in zip(before, after, strict=True)]
    low, high = _interval(differences, [metric["ci95"] for metric in metrics])
    if len(runs) == 1:
        interval = "paired bootstrap over the held-out items of the one run"
    elif math.isnan(low):
        interval = "none where a seed has too few items or a number that is not finite"
    else:
        interval = f"Student t over {len(runs)} seeds, widened by the error that the held-out items leave"
    real = from_real = None
    if all(metric.get("real") is not None for metric in metrics):
        real = float(np.mean([metric["real"] for metric in metrics]))
        beyond = [b - metric["real"] for b, metric in zip(after, metrics, strict=True)]
        from_real = _interval(beyond, [metric["from_real_ci95"] for metric in metrics])
    return Row(
        setting,
        name,
        [seed for seed, _ in runs],
        float(np.mean(before)),
        float(np.mean(after)),
        differences,
        (low, high),
        interval,
        metrics[0]["higher_is_better"],
        min((n for m in metrics if (n := m.get("items")) is not None), default=None),
        sorted({side for m in metrics for side in m.get("not_finite", ())}, reverse=True),
        real,
        from_real,
    )


def _interval(differences: Sequence[float], of_items: Sequence[Sequence[float | None]]) -> tuple[float, float]:
    """Of the mean over seeds, of whose differences each has its own interval over the items; nan where one has none."""
    bounds = [[math.nan if bound is None else float(bound) for bound in own] for own in of_items]
    if len(differences) == 1:
        low, high = bounds[0]
        return low, high
    if not np.isfinite(bounds).all():
        return math.nan, math.nan
    return seed_interval(differences, [(high - low) / (2 * NORMAL) for low, high in bounds])


def seed_interval(
    differences: Sequence[float], item_errors: Sequence[float], level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the mean difference of n >= 2 seeds that were all measured on the same held-out items.

    The seeds' spread s says how far other seeds may lie, but not what other items would have shown, since all seeds
    share them: the squared standard errors add, s^2 / n + mean(item_errors^2), with the degrees of freedom of such a
    sum (Satterthwaite 1946). An error of a run that is not finite (too few items) is left out. Cautious: what seed and
    item do together is in both terms.
    """
    if len(differences) < 2:
        raise ValueError("an interval over seeds needs two of them")
    array, errors = np.asarray(differences, dtype=np.float64), np.asarray(item_errors, dtype=np.float64)
    seeds, known = array.var(ddof=1) / len(array), errors[np.isfinite(errors)]
    total = seeds + (float(np.mean(known**2)) if len(known) else 0.0)
    degrees = (len(array) - 1) * (total / seeds) ** 2 if seeds > 0 else math.inf
    half = float(stdtrit(degrees, (1 + level) / 2)) * math.sqrt(total)
    return float(array.mean() - half), float(array.mean() + half)
