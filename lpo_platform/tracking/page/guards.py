"""The guard rails: what the sentinel of a run found while it trained."""

from lpo_platform.tracking.page.markup import absent, cell, escape, heads, note, short
from lpo_platform.tracking.page.run import Run


def guards(run: Run) -> str:
    """A row for every alarm of sentinel.json: {step, metric, kind, message}."""
    if run.alarms is None:
        return absent("Not watched: this run had no sentinel.")
    if not run.alarms:
        return '<p><span class="tag better">silent</span> The sentinel watched this run and found nothing.</p>'
    columns = heads(("number", "step"), ("", "metric"), ("", "kind"), ("", "what it found"))
    body = "".join(
        "<tr>"
        + cell(escape(_step(alarm.get("step"))), alarm.get("step"))
        + "".join(f"<td class=path>{escape(str(alarm.get(key, '')))}</td>" for key in ("metric", "kind", "message"))
        + "</tr>"
        for alarm in run.alarms
    )
    count = f"{len(run.alarms)} alarm{'s' if len(run.alarms) > 1 else ''}"
    said = f'<p><span class="tag worse">{count}</span> Look at the pictures before you trust the scores.</p>'
    told = note("An alarm names a metric that went the wrong way while what was trained for rose.")
    return f'{said}<div class=scroll><table class="sortable small">{columns}<tbody>{body}</tbody></table></div>{told}'


def _step(step: object) -> str:
    return short(step) if isinstance(step, int | float) else str(step or "")
