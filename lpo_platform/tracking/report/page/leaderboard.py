"""A sweep's page: its settings with their seeds taken together, how to repeat each, and what each draws."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpo_platform.evaluation.result_table import cautions, change
from lpo_platform.evaluation.statistics import NOT_FINITE, TOO_FEW, verdict
from lpo_platform.runs import record
from lpo_platform.runs.sweep import Sweep, SweepJob, repeat
from lpo_platform.tracking.report.page.pictures import embedded, kinds
from lpo_platform.tracking.report.page.results import numbers
from lpo_platform.tracking.report.page.run import Run, alarms
from lpo_platform.tracking.report.page.words import counted, duration

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


def leaderboard(sweep: Sweep) -> dict[str, Any]:
    places, main = list(sweep.settings), {id(row) for row in main_rows(sweep)}
    return {
        "rows": [
            {"name": row.metric, "setting": row.setting or "all", "seeds": row.seeds, "main": id(row) in main}
            | {"place": places.index(row.setting)}
            | numbers(row.entry())
            for row in sweep.rows
        ],
        "metrics": list(dict.fromkeys(row.metric for row in sweep.rows)),
        "intervals": "; ".join(dict.fromkeys(row.interval for row in sweep.rows)),
        "cautions": cautions({f"{row.metric} ({row.setting or 'all'})": row.entry() for row in sweep.rows}),
    }


def main_rows(sweep: Sweep) -> list["Row"]:
    """For each setting the row of the metric that its runs were for."""
    main = {setting: Run.read(jobs[0].folder).main for setting, jobs in sweep.settings.items()}
    return [row for row in sweep.rows if row.metric == main[row.setting]]


def settings(sweep: Sweep) -> dict[str, Any]:
    """Each setting with the command that repeats it, its jobs, and the first pictures of one of them."""
    return {
        "settings": [
            {
                "name": setting or "all jobs",
                "commands": "\n".join(map(shlex.join, repeat(jobs[0].primary, [job.overrides for job in jobs]))),
                "jobs": [{"seed": job.seed, "report": _address(sweep.folder, job)} for job in jobs],
                "pictures": _sheet(jobs[0].folder / "samples"),
            }
            for setting, jobs in sweep.settings.items()
        ]
    }


def _sheet(samples: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The first items of a job, a line for each kind of picture."""
    columns, names = kinds(samples)
    first = names[:SHOWN_EACH]
    return [
        (words, [embedded(samples / kind / f"{name}.png", SHOWN_SIDE) for name in first])
        for kind, words in columns.items()
    ]


def jobs(sweep: Sweep) -> dict[str, Any]:
    return {"jobs": [_job(sweep.folder, job) for job in sweep.jobs]}


def _job(folder: Path, job: SweepJob) -> dict[str, Any]:
    rang = alarms(job.folder)
    return {
        "name": job.folder.name,
        "number": job.number,
        "report": _address(folder, job),
        "overrides": " ".join(record.redact_command(job.overrides)),
        "status": job.status,
        "colour": {"finished": "better", "failed": "worse", "foreign": "worse"}.get(job.status, "unclear"),
        "alarms": counted(rang) if rang else "",
        "reason": job.reason,
        "seconds": job.seconds,
        "time": duration(job.seconds) if job.seconds else "",
    }


def _address(folder: Path, job: SweepJob) -> str:
    """Of the page of a job, from that of the sweep; empty where it has none."""
    return f"{os.path.relpath(job.folder, folder)}/report.html" if (job.folder / "report.html").is_file() else ""
