"""The guard rails: what the sentinel of a run found while it trained."""

from collections.abc import Sequence

from lpo_platform.tracking.report.page.markup import absent, cell, escape, heads, note, short
from lpo_platform.tracking.report.page.run import Run


def guards(run: Run) -> str:
    """A row for every alarm of sentinel.json: {step, metric, kind, message}."""
    if run.alarms is None:
        return absent("Not watched: this run had no sentinel.")
    if not run.alarms:
        return '<p><span class="tag better">silent</span> The sentinel watched this run and found nothing.</p>'
    columns = heads(("", "metric"), ("number", "step"), ("", "kind"), ("", "what it found"))
    body = "".join(
        "<tr>"
        + cell(escape(str(alarm.get("metric", ""))), kind="name")
        + cell(escape(_step(alarm.get("step"))), alarm.get("step"), label="step")
        + cell(escape(str(alarm.get("kind", ""))), kind="path")
        + cell(escape(str(alarm.get("message", ""))), kind="path wide")
        + "</tr>"
        for alarm in run.alarms
    )
    said = (
        f'<p><span class="tag worse">{counted(run.alarms)}</span> Look at the pictures before you trust the scores.</p>'
    )
    told = note(
        "hacked: a score that nothing was trained for fell while the trained one rose. "
        "drift: the look of the pictures moved one way, look after look."
    )
    return f'{said}<table class="metrics sortable small">{columns}<tbody>{body}</tbody></table>{told}'


def counted(alarms: Sequence[object]) -> str:
    return f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}"


def _step(step: object) -> str:
    return short(step) if isinstance(step, int | float) else str(step or "the end")
