"""Training curves as SVG, which page.js makes to answer the pointer; without it they can be read."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpo_platform.tracking.report.page.run import Run
from lpo_platform.tracking.report.page.words import short

CHART = {"left": 54, "top": 10, "width": 254, "height": 116}
BOTTOM = CHART["top"] + CHART["height"]
MOST_POINTS = 800
SPAN = 12  # the moving average reaches over about this part of a series

Points = list[tuple[int, float]]


def curves(run: Run) -> dict[str, Any]:
    """The charts of the series in groups, and the values that were logged once."""
    series = {name: points for name, points in run.series().items() if not name.startswith("perf/")}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(series, key=lambda name: (not name.startswith("train/"), name != "train/loss")):
        if len(series[name]) > 1:
            groups.setdefault(name.split("/")[0], []).append(_chart(name, series[name]))
    return {
        "steps": max(points[-1][0] for points in series.values()) + 1 if series else None,
        "groups": groups,
        "single": [(name, short(points[0][1])) for name, points in series.items() if len(points) == 1],
        "smoothing": f"{100 / SPAN:.0f}",
        "left": CHART["left"],
        "right": CHART["left"] + CHART["width"],
        "top": CHART["top"],
        "bottom": BOTTOM,
    }


def _chart(name: str, points: Points) -> dict[str, Any]:
    """One curve as the template draws it: `rows` and `columns` are its grid, with what stands beside each line."""
    smooth = smoothed([value for _, value in points])
    x = [step for step, _ in points]
    x0, x1 = x[0], max(x[-1], x[0] + 1)
    y_ticks = ticks(*_value_range([value for _, value in points], smooth))
    y0, y1 = y_ticks[0], y_ticks[-1]

    def across(step: float) -> float:
        return CHART["left"] + CHART["width"] * (step - x0) / (x1 - x0)

    def down(value: float) -> float:
        return CHART["top"] + CHART["height"] * (1 - (min(max(value, y0), y1) - y0) / (y1 - y0))

    def line(drawn: Points) -> str:
        return " ".join(f"{across(step):.1f},{down(value):.1f}" for step, value in thinned(drawn))

    whole = [tick for tick in ticks(x0, x1) if x0 <= tick <= x1 and tick == round(tick)]
    return {
        "name": name,
        "last": f"last {short(smooth[-1])}",
        "box": json.dumps({**CHART, "x0": x0, "x1": x1, "y0": y0, "y1": y1}),
        "data": json.dumps([[step, float(f"{value:.6g}")] for step, value in thinned(points)]),
        "rows": [(down(value), _tick(value)) for value in y_ticks],
        "columns": [(across(value), f"{value:,.0f}") for value in whole],
        "raw": line(points),
        "smooth": line(list(zip(x, smooth, strict=True))),
    }


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving average over a SPANth of the series, so that it does not lag; one-sided at the ends."""
    reach, count = len(values) // (2 * SPAN), len(values)
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    low = np.maximum(np.arange(count) - reach, 0)
    high = np.minimum(np.arange(count) + reach + 1, count)
    return ((total[high] - total[low]) / (high - low)).tolist()


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most about `most` points that keep the extremes: the lowest and highest of each stretch."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept: set[int] = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` of them, the first at or below `low` and the last at or above `high`."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(f for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    return [step * k for k in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _value_range(values: Sequence[float], smooth: Sequence[float]) -> tuple[float, float]:
    """What the axis must show: the average in full, the raw values but for the outermost hundredth."""
    cut = 1.0 if len(values) >= 50 else 0.0
    low, high = np.percentile(values, [cut, 100 - cut])
    return min(float(low), min(smooth)), max(float(high), max(smooth))


def _tick(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.6g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
