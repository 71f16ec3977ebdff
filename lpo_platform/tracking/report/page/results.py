"""Before and after: the verdict in plain words, and the table of all metrics with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lpo_platform.evaluation.result_table import cautions, decimals, many, number, real
from lpo_platform.evaluation.significance import MIN_ITEMS
from lpo_platform.evaluation.statistics import NOT_FINITE, TOO_FEW, verdict
from lpo_platform.tracking.report.page.run import Run
from lpo_platform.tracking.report.page.words import counted

Metric = Mapping[str, Any]


def sentence(run: Run) -> str:
    """What was optimised, whether it rose, and whether the other metrics held, in plain words."""
    status = run.result.get("status")
    if status == "failed":
        return f"This run failed: {run.result.get('reason') or 'no reason was recorded'}"
    if run.main is None:
        unfinished = status in ("running", "interrupted")
        return "This run has no result yet." if unfinished else "This run recorded no before and after."
    count = run.result.get("samples")
    where = f" on {count} held-out items" if count else ""
    if all(map(_alone, run.metrics.values())):
        value, interval = _value(run.metrics[run.main])
        return f"{run.main} is {value} {interval}".rstrip() + f"{where}."
    guards = [name for name in run.metrics if name != run.main]
    rang = f" The sentinel rang: {counted(run.alarms)}." if run.alarms else ""
    changed = _change(run.main, run.metrics[run.main], run.option("method"))
    return f"{changed}{where}. {_guards(run.metrics, guards)}{rang}"


def results(run: Run) -> dict[str, Any]:
    """A row for each metric: of a comparison, or of a model that is compared with nothing (`alone`)."""
    alone = all(map(_alone, run.metrics.values()))
    return {
        "alone": alone,
        "rows": [
            {"name": name} | (_own(metric) if alone else _compared(metric)) for name, metric in run.metrics.items()
        ],
        "cautions": cautions(run.metrics),
        "departures": run.result.get("deviations", ()),
        "count": run.result.get("samples"),
        "fewest": MIN_ITEMS,
        "many": many(run.metrics),
    }


def _own(metric: Metric) -> dict[str, Any]:
    value, interval = _value(metric)
    return {"metric": metric, "value": value, "interval": interval}


def _compared(metric: Metric) -> dict[str, Any]:
    better = metric["higher_is_better"]
    direction = "should stay" if better is None else "higher is better" if better else "lower is better"
    direction += f", real pictures have {shown}" if (shown := real(metric)) else ""
    return numbers(metric) | {"direction": direction, "wins": _percent(metric.get("wins"))}


def _percent(wins: Sequence[float | None] | None) -> str:
    rate, low, high = (number(None if x is None else 100 * x, 0) for x in wins or (None,) * 3)
    return "" if rate == "n/a" else f"{rate}\u00a0% [{low}, {high}]"


def _alone(metric: Metric) -> bool:
    return "own_ci95" in metric


def _value(metric: Metric) -> tuple[str, str]:
    own = metric["own_ci95"]
    digits = decimals({"ci95": own})
    low, high = (number(bound, digits) for bound in own)
    return number(metric["after"], digits), "" if low == "n/a" else f"[{low}, {high}]"


def numbers(metric: Metric) -> dict[str, Any]:
    """What the six cells of a comparison show (parts.html)."""
    digits, word = decimals(metric), verdict(metric)
    low, high = (number(bound, digits, sign=True) for bound in metric["ci95"])
    sides = {side: number(metric[side], digits) for side in ("before", "after")}
    change = {"difference": number(metric["difference"], digits, sign=True), "low": low, "high": high}
    said = {"word": word, "colour": COLOURS.get(word, word), "drawn": _places(metric)}
    return {"metric": metric} | sides | change | said


def _places(metric: Metric) -> list[str]:
    """Where the ends of the interval and the difference lie on a line with 0 in its middle, on a scale of its own."""
    values = [metric["ci95"][0], metric["difference"], metric["ci95"][1]]
    if any(value is None or not math.isfinite(value) for value in values):
        return []
    reach = max(map(abs, values)) * 1.08 or 1.0
    return [f"{75 + 72 * value / reach:.1f}" for value in values]


def _change(name: str, metric: Metric, method: str | None) -> str:
    digits, word = decimals(metric), verdict(metric)
    low, high = metric["ci95"]
    numbers = f"{number(metric['difference'], digits, sign=True)}, 95\u00a0% interval "
    numbers += f"{number(low, digits, sign=True)} to {number(high, digits, sign=True)}"
    before, after = number(metric["before"], digits), number(metric["after"], digits)
    if word in COLOURS:
        return f"{name} was {before} before and {after} after; {WHY[word]}"
    who = "The run" if method is None else method.upper() if len(method) <= 4 else f"The method {method}"
    if word == "unclear":
        return f"{who} did not clearly change {name}: {before} before, {after} after ({numbers})"
    verb = "raised" if metric["difference"] > 0 else "lowered"
    wrong = ", which is worse," if word == "worse" else ""
    return f"{who} {verb} {name}{wrong} from {before} to {after} ({numbers})"


COLOURS = {TOO_FEW: "unclear", NOT_FINITE: "worse"}  # of verdicts that claim nothing
WHY = {
    TOO_FEW: f"fewer than {MIN_ITEMS} items allow no verdict",
    NOT_FINITE: "a number that is not finite allows no verdict",
}
SAID = {
    "worse": "Elsewhere it cost something",
    "changed": "These should have stayed the same",
    "better": "Better as well",
    "unclear": "Not clearly changed",
    TOO_FEW: "Too few items for a verdict",
    NOT_FINITE: "Not finite",
}


def _guards(metrics: Mapping[str, Metric], guards: Sequence[str]) -> str:
    if not guards:
        return "No guard metric was measured."
    by_verdict: dict[str, list[str]] = {}
    for name in guards:
        moved = number(metrics[name]["difference"], decimals(metrics[name]), sign=True)
        by_verdict.setdefault(verdict(metrics[name]), []).append(f"{name} {moved}")
    return " ".join(f"{said}: {', '.join(by_verdict[word])}." for word, said in SAID.items() if word in by_verdict)
