"""How people read the metrics of result.json: the table in the terminal, its numbers, and the lines under it."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lpo_platform.evaluation.significance import holm
from lpo_platform.evaluation.statistics import NOT_FINITE, TOO_FEW, verdict


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


def real(metric: Mapping[str, Any], digits: int | None = None) -> str:
    """What real pictures have of a guard, "" where it is not known."""
    if metric.get("real") is None or math.isnan(metric["real"]):
        return ""
    return number(metric["real"], decimals(metric) if digits is None else digits)


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


def many(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The line under a table that says how many comparisons it makes, and which hold for all of them together."""
    adjusted = {name: p for name, p in holm({n: _p(metric) for n, metric in metrics.items()}).items() if p == p}
    if len(adjusted) < 2:
        return ""
    clear = [f"{name} (p {f'= {p:.3f}' if p >= 0.001 else '< 0.001'})" for name, p in adjusted.items() if p < 0.05]
    held = f"Holm-adjusted, clear are {', '.join(clear)}" if clear else "Holm-adjusted, none is clear"
    return f"{len(adjusted)} metrics at 95 %: about one in 20 would leave 0 by chance. {held}."


def _p(metric: Mapping[str, Any]) -> float:
    p = metric.get("p")
    return math.nan if p is None else p
