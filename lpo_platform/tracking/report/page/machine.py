"""Where the time went, and on which machine."""

from typing import Any

from lpo_platform.tracking.report.page.run import Run, mapping
from lpo_platform.tracking.report.page.words import duration, short


def time(run: Run) -> dict[str, Any]:
    """The phases as parts of one bar and as rows, with whatever else was logged as perf/."""
    resumed = run.environment.get("resumed")
    whole = "since it was last resumed" if resumed else "whole run"
    rows = [(whole, duration(run.result["seconds"]))] if run.result.get("seconds") else []
    logged = {name.removeprefix("perf/"): [value for _, value in points] for name, points in run.series().items()
              if name.startswith("perf/")}  # fmt: skip
    phases = {_words(name): values for name, values in logged.items() if name.endswith("_seconds")}
    for name, values in phases.items():
        repeated = f" ({len(values)} x {short(sum(values) / len(values))} s)" if len(values) > 1 else ""
        rows.append((name, f"{duration(sum(values))}{repeated}"))
    for name, values in logged.items():
        if not name.endswith("_seconds"):
            rows.append((_words(name), f"{short(sum(values) / len(values))} on average"))
    sums = {name: sum(values) for name, values in phases.items()}
    total = sum(sums.values())
    return {"rows": rows, "phases": [(name, s / total, duration(s)) for name, s in sums.items() if total]}


def _words(name: str) -> str:
    return name.removesuffix("_seconds").replace("_", " ")


def environment(run: Run) -> dict[str, Any]:
    if not run.environment:
        return {"rows": None}
    git = run.environment.get("git")
    rows = []
    for name, value in mapping(run.environment.get("machine")).items():
        words = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        rows.append((name.replace("_gib", ", GiB"), words))
    rows += [(name, str(value)) for name, value in mapping(run.environment.get("versions")).items()]
    if isinstance(git, dict):
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        rows.append(("commit", f"{git.get('commit') or 'none yet'}{dirty}"))
    return {"rows": rows}
