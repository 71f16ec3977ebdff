"""Before and after: the verdict in plain words, and the table of all metrics with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lpo_platform.evaluation.significance import MIN_ITEMS
from lpo_platform.evaluation.statistics import NOT_FINITE, TOO_FEW, cautions, decimals, many, number, real, verdict
from lpo_platform.tracking.report.page.guards import counted
from lpo_platform.tracking.report.page.markup import absent, cell, escape, heads, note
from lpo_platform.tracking.report.page.run import Run

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


def results(run: Run) -> str:
    if not run.metrics:
        return absent("result.json holds no metrics.")
    deviations = "".join(note(f"Not as published: {line}.") for line in run.result.get("deviations", ()))
    if all(map(_alone, run.metrics.values())):
        return _values(run) + "".join(note(f"{line}.") for line in cautions(run.metrics)) + deviations
    columns = [("", "metric"), ("number", "before"), ("number", "after"), ("number", "difference")]
    head = heads(*columns, ("", "95\u00a0% interval"), ("", ""), ("", "verdict"), ("number", "win rate"))
    body = "".join(_row(name, metric) for name, metric in run.metrics.items())
    count = run.result.get("samples")
    words = f"Same held-out conditions, prompts and noise before and after{f' ({count} items)' if count else ''}. "
    words += "The interval is a paired bootstrap of the difference; \u201cunclear\u201d means that it contains 0. "
    words += f"Fewer than {MIN_ITEMS} items have no verdict. "
    words += f"Win rate: the share of items that got better, a tie counting half. {many(run.metrics)}"
    wrong = "".join(note(f"{line}.") for line in cautions(run.metrics))
    return f'<table class="metrics sortable">{head}<tbody>{body}</tbody></table>{wrong}{note(words)}{deviations}'


def _row(name: str, metric: Metric) -> str:
    better, wins = metric["higher_is_better"], _percent(metric.get("wins"))
    direction = "should stay" if better is None else "higher is better" if better else "lower is better"
    direction += f", real pictures have {shown}" if (shown := real(metric)) else ""
    first = cell(f"{escape(name)}<br><span class=note>{direction}</span>", name, kind="name")
    rate = cell(wins, metric["wins"][0], kind="number wide", label="win rate") if wins else cell("", "")
    return f"<tr>{first}{''.join(numbers(metric))}{rate}</tr>"


def _percent(wins: Sequence[float | None] | None) -> str:
    rate, low, high = (number(None if x is None else 100 * x, 0) for x in wins or (None,) * 3)
    return "" if rate == "n/a" else f"{rate}\u00a0% [{low}, {high}]"


def _values(run: Run) -> str:
    """The metrics of a model that is compared with nothing."""
    body = "".join(
        f"<tr>{cell(escape(name), name, kind='path')}{cell(value, metric['after'])}"
        f"{cell(interval, kind='number start')}</tr>"
        for name, metric in run.metrics.items()
        for value, interval in [_value(metric)]
    )
    head = heads(("", "metric"), ("number", "value"), ("", "95\u00a0% interval"))
    words = "One model alone. The interval is a bootstrap of the mean over the items; a statistic of the set has none."
    return f'<table class="sortable small">{head}<tbody>{body}</tbody></table>{note(words)}'


def _alone(metric: Metric) -> bool:
    return "own_ci95" in metric


def _value(metric: Metric) -> tuple[str, str]:
    own = metric["own_ci95"]
    digits = decimals({"ci95": own})
    low, high = (number(bound, digits) for bound in own)
    return number(metric["after"], digits), "" if low == "n/a" else f"[{low}, {high}]"


def numbers(metric: Metric) -> list[str]:
    """Six cells: before, after, difference, its interval in figures and drawn, the verdict."""
    digits, word = decimals(metric), verdict(metric)
    low, high = metric["ci95"]
    return [
        cell(number(metric["before"], digits), metric["before"], label="before"),
        cell(number(metric["after"], digits), metric["after"], label="after"),
        cell(number(metric["difference"], digits, sign=True), metric["difference"], label="difference"),
        cell(f"[{number(low, digits, sign=True)}, {number(high, digits, sign=True)}]", low, kind="number start"),
        cell(_interval_picture(metric, word), kind="drawn"),
        cell(f'<span class="tag {COLOURS.get(word, word)}">{word}</span>', word, kind="said"),
    ]


def _interval_picture(metric: Metric, word: str) -> str:
    """The interval as a bar against a line at 0, on a scale of its own."""
    values = [metric["ci95"][0], metric["difference"], metric["ci95"][1]]
    if any(value is None or not math.isfinite(value) for value in values):
        return ""
    reach = max(map(abs, values)) * 1.08 or 1.0
    low, middle, high = (75 + 72 * value / reach for value in values)
    shape = '<line x1="75" x2="75" y1="1" y2="21" class="zero"/>'
    shape += f'<line x1="{low:.1f}" x2="{high:.1f}" y1="11" y2="11" stroke="var(--{word})" stroke-width="3"/>'
    shape += f'<circle cx="{middle:.1f}" cy="11" r="4.5" fill="var(--{word})"/>'
    label = f"interval of the difference against 0: {word}"
    return f'<svg class="interval" viewBox="0 0 150 22" role="img" aria-label="{label}">{shape}</svg>'


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
    "changed": "What should rather stay changed",
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
