"""What the jobs of a sweep say together: per setting the mean over its seeds, with an interval that names its kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95

Metric = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One metric of one setting: `differences` holds trained minus base of each seed, in the order of `seeds`."""

    setting: str
    metric: str
    seeds: list[int | None]
    before: float
    after: float
    differences: list[float]
    ci95: tuple[float, float]
    interval: str
    higher_is_better: bool | None

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
        }


def rows(results: Sequence[tuple[str, int | None, Mapping[str, Metric]]]) -> list[Row]:
    """(setting, seed, metrics of result.json) of every finished job -> metric by metric, setting by setting.

    Both keep the order in which they first appear. A run in which a metric has no number is left out of its row.
    """
    found: dict[tuple[str, str], list[tuple[int | None, Metric]]] = {}
    settings = list(dict.fromkeys(setting for setting, _, _ in results))
    names = list(dict.fromkeys(name for _, _, metrics in results for name in metrics))
    for setting, seed, metrics in results:
        for name, metric in metrics.items():
            if all(isinstance(metric[side], int | float) for side in ("before", "after")):
                found.setdefault((name, setting), []).append((seed, metric))
    keys = [(name, setting) for name in names for setting in settings if (name, setting) in found]
    return [_row(setting, name, found[name, setting]) for name, setting in keys]


def _row(setting: str, name: str, runs: list[tuple[int | None, Metric]]) -> Row:
    metrics = [metric for _, metric in runs]
    before, after = ([float(m[side]) for m in metrics] for side in ("before", "after"))
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if len(runs) == 1:
        low, high = (math.nan if bound is None else float(bound) for bound in metrics[0]["ci95"])
        interval = "paired bootstrap over the held-out items of the one run"
    else:
        low, high = student_interval(differences)
        interval = f"Student t over {len(runs)} seeds"
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
    )


def student_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """mean +- t s / sqrt(n), t the quantile of Student's distribution with n - 1 degrees of freedom (Student 1908).

    It is about the seeds: how far the mean over other seeds of the same setting may lie. ValueError below two values.
    """
    if len(values) < 2:
        raise ValueError("an interval over seeds needs two of them")
    array = np.asarray(values, dtype=np.float64)
    half = student_quantile(len(array) - 1, level) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half), float(array.mean() + half)


def student_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t for which Student's distribution puts `level` in [-t, t]; by Simpson's rule and bisection, to 1e-6."""
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4, 2

    def inside(t: float) -> float:
        x = np.linspace(0.0, t, len(weights))
        density = constant * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
        return 2 * float(weights @ density) * t / (len(weights) - 1) / 3

    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return (low + high) / 2
