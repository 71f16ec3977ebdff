"""Training curves as SVG, which page.js makes to answer the pointer; without it they can be read."""

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lpo_platform.tracking.report.page.markup import absent, escape, note, pairs, short
from lpo_platform.tracking.report.page.run import Run

CHART = {"left": 54, "top": 10, "width": 254, "height": 116}
MOST_POINTS = 800
SPAN = 12  # the moving average reaches over about this part of a series

Points = list[tuple[int, float]]


def curves(run: Run) -> str:
    series = {name: points for name, points in run.series().items() if not name.startswith("perf/")}
    if not series:
        return absent("metrics.jsonl holds nothing to draw.")
    steps = max(points[-1][0] for points in series.values()) + 1
    groups: dict[str, list[str]] = {}
    for name in sorted(series, key=lambda name: (not name.startswith("train/"), name != "train/loss")):
        if len(series[name]) > 1:
            groups.setdefault(name.split("/")[0], []).append(_chart(name, series[name]))
    slider = f"<label>Smoothing <input type=range data-smooth min=0 max=50 value={100 / SPAN:.0f}></label>"
    text = note(f"{steps} optimiser steps. Faint: as logged. Strong: moving average. Point at a curve to read it.")
    text += f"<div class=controls>{slider}</div>" if groups else ""
    text += "".join(f"<h3>{escape(g)}</h3><div class=charts>{''.join(charts)}</div>" for g, charts in groups.items())
    single = [(name, short(points[0][1])) for name, points in series.items() if len(points) == 1]
    return text + (pairs(single) if single else "")


def _chart(name: str, points: Points) -> str:
    smooth = smoothed([value for _, value in points])
    x = [step for step, _ in points]
    x0, x1 = x[0], max(x[-1], x[0] + 1)
    y_ticks = ticks(*_value_range([value for _, value in points], smooth))
    y0, y1 = y_ticks[0], y_ticks[-1]

    def line(kind: str, drawn: Points) -> str:
        places = (_place(step, value) for step, value in thinned(drawn))
        return f'<polyline class="{kind}" points="{" ".join(places)}"/>'

    def _place(step: float, value: float) -> str:
        across = CHART["left"] + CHART["width"] * (step - x0) / (x1 - x0)
        down = CHART["top"] + CHART["height"] * (1 - (min(max(value, y0), y1) - y0) / (y1 - y0))
        return f"{across:.1f},{down:.1f}"

    shapes = "".join(_axes(x0, x1, y_ticks))
    shapes += line("raw", points) + line("smooth", list(zip(x, smooth, strict=True)))
    bottom = CHART["top"] + CHART["height"]
    shapes += f'<line class="cross" x1="0" x2="0" y1="{CHART["top"]}" y2="{bottom}"/>'
    box = json.dumps({**CHART, "x0": x0, "x1": x1, "y0": y0, "y1": y1})
    data = json.dumps([[step, float(f"{value:.6g}")] for step, value in thinned(points)])
    last = f"last {short(smooth[-1])}"
    svg = f'<svg viewBox="0 0 320 150" role="img" aria-label="{escape(name)} over steps, {last}">{shapes}</svg>'
    heading = f"<div class=name><span>{escape(name)}</span><output>{last}</output></div>"
    return f'<figure class=chart data-box="{escape(box)}" data-points="{escape(data)}">{heading}{svg}</figure>'


def _axes(x0: float, x1: float, y_ticks: Sequence[float]) -> Iterator[str]:
    left, right, bottom = CHART["left"], CHART["left"] + CHART["width"], CHART["top"] + CHART["height"]
    for value in y_ticks:
        y = bottom - CHART["height"] * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        yield f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
    for value in [tick for tick in ticks(x0, x1) if x0 <= tick <= x1 and tick == round(tick)]:
        x = left + CHART["width"] * (value - x0) / (x1 - x0)
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:,.0f}</text>'


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
