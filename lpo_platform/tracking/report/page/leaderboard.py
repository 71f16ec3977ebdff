"""A sweep's page: its settings with their seeds taken together, how to repeat each, and what each draws."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lpo_platform.evaluation.statistics import NOT_FINITE, TOO_FEW, cautions, change, verdict
from lpo_platform.runs import record
from lpo_platform.runs.sweep import Job, Sweep, repeat
from lpo_platform.tracking.report.page.guards import counted
from lpo_platform.tracking.report.page.markup import absent, cell, duration, escape, heads, menu, note, picture
from lpo_platform.tracking.report.page.pictures import kinds
from lpo_platform.tracking.report.page.results import numbers
from lpo_platform.tracking.report.page.run import Run, alarms

if TYPE_CHECKING:
    from lpo_platform.runs.seeds import Row

SHOWN_EACH, SHOWN_SIDE = 6, 128


def sentence(sweep: Sweep) -> str:
    """How many jobs finished, which did not, and the best setting where the settings share their main metric."""
    left = [job for job in sweep.jobs if job.status != "finished"]
    said = [f"{len(sweep.jobs) - len(left)} of {len(sweep.jobs)} jobs finished."]
    said += [f"{job.folder.name} {job.status}: {job.reason}." for job in left]
    main = [row for row in main_rows(sweep) if verdict(row.entry()) not in (TOO_FEW, NOT_FINITE)]
    if len(main) > 1 and len({row.metric for row in main}) == 1 and main[0].higher_is_better is not None:
        best = max(main, key=lambda row: row.difference if row.higher_is_better else -row.difference)
        entry = best.entry()
        said.append(f"Best by {best.metric}: {best.setting or 'all'}, {change(entry)}, {verdict(entry)}.")
        said.append(f"The best of {len(main)} settings looks better than it is.")
    return " ".join(said)


def leaderboard(sweep: Sweep) -> str:
    if not sweep.rows:
        return absent("No job has a result yet.")
    settings = sweep.settings
    main = {id(row) for row in main_rows(sweep)}
    columns = [("", "setting"), ("", "metric"), ("", "seeds"), ("number", "before"), ("number", "after")]
    columns += [("number", "difference"), ("", "95\u00a0% interval"), ("", ""), ("", "verdict")]
    body = "".join(_row(row, list(settings).index(row.setting), id(row) in main) for row in sweep.rows)
    names = list(dict.fromkeys(row.metric for row in sweep.rows))
    choice = menu("Metric", ["each setting's own", "all", *names], "data-rows")
    intervals = "; ".join(dict.fromkeys(row.interval for row in sweep.rows))
    words = f"Means over the seeds of a setting. 95\u00a0% interval: {intervals}. Click a heading to sort."
    table = f'<table class="metrics sortable">{heads(*columns)}<tbody>{body}</tbody></table>'
    named = {f"{row.metric} ({row.setting or 'all'})": row.entry() for row in sweep.rows}
    warned = "".join(note(f"{line}.") for line in cautions(named))
    return f"<div class=controls>{choice}</div>{table}{warned}{note(words)}"


def _row(row: "Row", place: int, main: bool) -> str:
    mark = f' data-metric="{escape(row.metric)}"{" data-main" if main else ""}'
    name = row.setting or "all"
    seeds = ", ".join(map(str, row.seeds))
    cells = [
        cell(f'<a href="#setting-{place}">{escape(name)}</a>', name, kind="name"),
        cell(escape(row.metric), row.metric, kind="path"),
        cell(escape(seeds), len(row.seeds), kind="seeds", label="seeds"),
        *numbers(row.entry()),
    ]
    return f"<tr{mark}>{''.join(cells)}</tr>"


def main_rows(sweep: Sweep) -> list["Row"]:
    """For each setting the row of the metric that its runs were for."""
    main = {setting: Run.read(jobs[0].folder).main for setting, jobs in sweep.settings.items()}
    return [row for row in sweep.rows if row.metric == main[row.setting]]


def settings(sweep: Sweep) -> str:
    """Each setting with the command that repeats it, its jobs and their pictures."""
    if not sweep.settings:
        return absent("No job has finished yet.")
    return "".join(_setting(sweep, place, *item) for place, item in enumerate(sweep.settings.items()))


def _setting(sweep: Sweep, place: int, setting: str, jobs: Sequence[Job]) -> str:
    links = ", ".join(_link(sweep.folder, job, f"seed {job.seed}") for job in jobs)
    commands = "\n".join(map(shlex.join, repeat(jobs[0].primary, [job.overrides for job in jobs])))
    command = f"<pre class=command>{escape(commands)}</pre>"
    title = f"<h3>{escape(setting or 'all jobs')}</h3>"
    return f'<div class=setting id="setting-{place}">{title}{command}<p>Reports: {links}</p>{_sheet(jobs[0])}</div>'


def _sheet(job: Job) -> str:
    """The first items of a job, a line for each kind of picture."""
    samples = job.folder / "samples"
    columns, names = kinds(samples)
    if not columns:
        return ""
    names = names[:SHOWN_EACH]
    lines = (
        f"<span>{words}</span>" + "".join(picture(samples / kind / f"{n}.png", words, SHOWN_SIDE) for n in names)
        for kind, words in columns.items()
    )
    return f'<div class="sheet pictures" style="--columns:{len(names)}">{"".join(lines)}</div>'


def jobs(sweep: Sweep) -> str:
    columns = heads(("", "job"), ("", "overrides"), ("", "status"), ("number", "time"))
    body = "".join(_job(sweep.folder, job) for job in sweep.jobs)
    return f'<table class="metrics sortable small">{columns}<tbody>{body}</tbody></table>'


def _job(folder: Path, job: Job) -> str:
    colour = {"finished": "better", "failed": "worse", "foreign": "worse"}.get(job.status, "unclear")
    rang = alarms(job.folder)
    rings = f' <span class="tag worse">{counted(rang)}</span>' if rang else ""
    reason = f"<br>{escape(job.reason)}" if job.reason else ""
    cells = [
        cell(_link(folder, job, job.folder.name), job.number, kind="name"),
        cell(escape(" ".join(record.redact_command(job.overrides))), kind="path mono wide"),
        cell(f'<span class="tag {colour}">{job.status}</span>{rings}{reason}', job.status, kind="path wide"),
        cell(duration(job.seconds) if job.seconds else "", job.seconds or ""),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _link(folder: Path, job: Job, words: str) -> str:
    if not (job.folder / "report.html").is_file():
        return escape(words)
    return f'<a href="{escape(os.path.relpath(job.folder, folder))}/report.html">{escape(words)}</a>'
