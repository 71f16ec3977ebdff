"""Where the time went, and on which machine."""

from lpo_platform.tracking.report.page.markup import absent, duration, escape, pairs, short
from lpo_platform.tracking.report.page.run import Run, mapping


def time(run: Run) -> str:
    """The phases as parts of one bar and as a table, with whatever else was logged as perf/."""
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
    return (
        _bar({name: sum(values) for name, values in phases.items()}) + pairs(rows)
        if rows
        else absent("No times are on record.")
    )


def _words(name: str) -> str:
    return name.removesuffix("_seconds").replace("_", " ")


def _bar(seconds: dict[str, float]) -> str:
    total = sum(seconds.values())
    if not total:
        return ""
    parts = (
        f'<span style="flex-grow:{value / total:.4f}" title="{escape(name)}: {duration(value)}">'
        f"{escape(name) if value > 0.12 * total else ''}</span>"
        for name, value in seconds.items()
    )
    return f"<div class=phases>{''.join(parts)}</div>"


def environment(run: Run) -> str:
    if not run.environment:
        return absent("env.json is missing.")
    git = run.environment.get("git")
    rows = []
    for name, value in mapping(run.environment.get("machine")).items():
        words = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        rows.append((name.replace("_gib", ", GiB"), words))
    rows += [(name, str(value)) for name, value in mapping(run.environment.get("versions")).items()]
    if isinstance(git, dict):
        dirty = " with uncommitted changes" if git.get("dirty") else ""
        rows.append(("commit", f"{git.get('commit') or 'none yet'}{dirty}"))
    return pairs(rows)
