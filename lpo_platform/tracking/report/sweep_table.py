"""The end of a sweep: the table of means over seeds, as sweep.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lpo_platform.runs import files, record
from lpo_platform.runs.sweep import SweepJob, read
from lpo_platform.tracking.tables.table import RunLink, grid

if TYPE_CHECKING:
    from lpo_platform.runs.seeds import Row


def conclude(folder: Path) -> tuple[list[SweepJob], str]:
    """Writes sweep.json, .md and .png and report.html; returns the jobs in order and the table ('' without results)."""
    from lpo_platform.tracking.report.collage import collage
    from lpo_platform.tracking.report.report import write_report

    sweep = read(folder)
    jobs, rows, finished = sweep.jobs, sweep.rows, sweep.finished
    status = "finished" if jobs and len(finished) == len(jobs) else "failed"
    known = files.read_json(folder / "sweep.json") or {}
    listed = [{**asdict(job), "folder": os.path.relpath(job.folder, folder)} for job in jobs]
    content = {
        **known,
        "status": status,
        "jobs": listed,
        "rows": [{**asdict(r), "difference": r.difference} for r in rows],
    }
    record.write_json(folder / "sweep.json", content)
    pictures = collage([(label or job.folder.name, job.folder) for label, job in finished])
    if pictures is not None:
        pictures.save(folder / "sweep.png")
    files.write_text(folder / "sweep.md", _markdown(folder, jobs, rows, pictures is not None))
    write_report(folder)
    return jobs, _table(rows)


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    from lpo_platform.evaluation.result_table import table

    return f"{table({_name(row): row.entry() for row in rows})}\n\n{_legend(rows)}"


def _name(row: Row) -> str:
    seeds = f"{len(row.seeds)} seeds" if len(row.seeds) > 1 else f"seed {row.seeds[0]}"
    return f"{row.metric}  {row.setting}{', ' if row.setting else ''}{seeds}"


def _legend(rows: Sequence[Row]) -> str:
    from lpo_platform.evaluation.result_table import cautions

    kinds = list(dict.fromkeys(row.interval for row in rows))
    lines = [f"Means over the seeds of a setting. 95 % interval: {'; '.join(kinds)}."]
    return "\n\n".join([*lines, *(f"{line}." for line in cautions({_name(row): row.entry() for row in rows}))])


def _markdown(folder: Path, jobs: Sequence[SweepJob], rows: Sequence[Row], pictures: bool) -> str:
    from lpo_platform.evaluation.result_table import change, decimals, number
    from lpo_platform.evaluation.statistics import verdict

    parts = [f"# Sweep {folder.resolve().name}"]
    if rows:
        heads = ["metric", "setting", "seeds", "before", "after", "difference [95 % interval]", ""]
        cells = []
        for row in rows:
            entry, digits = row.entry(), decimals(row.entry())
            cells.append([row.metric, row.setting or "all", ", ".join(map(str, row.seeds))])
            cells[-1] += [number(row.before, digits), number(row.after, digits), change(entry), verdict(entry)]
        parts += [grid(heads, cells), _legend(rows)]
    if pictures:
        parts.append("![of each setting: condition, base, trained, and what is detected in both](sweep.png)")
    runs = [RunLink(os.path.relpath(job.folder, folder)) for job in jobs]
    ends = [job.status if job.reason is None else f"{job.status}: {job.reason}" for job in jobs]
    words = [" ".join(record.redact_command(job.overrides)) for job in jobs]
    parts.append(grid(["job", "overrides", "status"], zip(runs, words, ends, strict=True)))
    return "\n\n".join(parts) + "\n"
