"""The report of a run or of a sweep: one HTML page that needs nothing but itself, made from the files of the folder.

Every text that comes from the run is escaped. Without JavaScript it can be read; sorting, filters and the values of
the curves need it.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lpo_platform.runs import files
from lpo_platform.runs import sweep as sweeps
from lpo_platform.tracking.report.page import leaderboard
from lpo_platform.tracking.report.page.configuration import configuration
from lpo_platform.tracking.report.page.curves import curves
from lpo_platform.tracking.report.page.machine import environment, time
from lpo_platform.tracking.report.page.pictures import pictures
from lpo_platform.tracking.report.page.prompts import prompts
from lpo_platform.tracking.report.page.results import results, sentence
from lpo_platform.tracking.report.page.run import Run, mapping
from lpo_platform.tracking.report.page.words import counted, duration, short

PARTS = Path(__file__).with_name("page")
PAGES = Environment(
    loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
PAGES.filters["short"] = short


def write_report(folder: str | Path) -> Path:
    """Writes report.html into the folder of a run or of a sweep from what lies there, and returns its path."""
    path = Path(folder) / "report.html"
    files.write_text(path, render(Path(folder)))
    return path


def render(folder: Path, *, live: bool = False) -> str:
    """The page; a live one asks the server that it came from whether there is a newer one."""
    if (folder / "sweep.json").is_file():
        sweep = sweeps.read(folder)
        sections = {
            "Leaderboard": leaderboard.leaderboard(sweep),
            "Settings": leaderboard.settings(sweep),
            "Jobs": leaderboard.jobs(sweep),
        }
        name, jobs = f"Sweep {folder.resolve().name}", f"{len(sweep.jobs)} jobs"
        return _page(name, jobs, leaderboard.sentence(sweep), sections, live=live)
    run = Run.read(folder)
    sections = {
        "Before and after": results(run),
        "Guard rails": {"alarms": run.alarms, "counted": counted(run.alarms or ())},
        "Held-out pictures": pictures(run),
        "Prompt by prompt": prompts(run),
        "Training curves": curves(run),
        "What was run": configuration(run),
        "Time": time(run),
        "Machine": environment(run),
    }
    version = str(mapping(run.environment.get("versions")).get("lpo-platform", ""))
    return _page(title(run), subtitle(run), sentence(run), sections, live=live, version=version)


def _page(
    title: str, subtitle: str, verdict: str, sections: dict[str, dict[str, Any]], *, live: bool, version: str = ""
) -> str:
    """The template of a section has the name of its heading."""
    drawn = []
    for heading, values in sections.items():
        name = heading.lower().replace(" ", "-")
        drawn.append((heading, name, PAGES.get_template(f"{name}.html").render(values)))
    head = {"title": title, "subtitle": subtitle, "verdict": verdict, "footer": f"lpo-platform {version}".strip()}
    return PAGES.get_template("page.html").render(head, sections=drawn, live=live)


def title(run: Run) -> str:
    """Method, task and model in words, or the folder's name."""
    method, model, task = (run.option(group) for group in ("method", "model", "task"))
    if run.config.get("run"):
        return f"Evaluation of {run.config['run']}"
    if method is None:
        return run.folder.resolve().name or "run"
    words = [method.upper() if len(method) <= 4 else method.replace("_", " ")]
    words += ["on", task] if task not in (None, "none") else []
    return " ".join([*words, f"with model {model}"] if model else words)


def subtitle(run: Run) -> str:
    resolved = run.folder.resolve()
    parts = [f"{resolved.parent.name}/{resolved.name}", f"status: {run.result.get('status', 'unknown')}"]
    if run.result.get("seed") is not None:
        parts.append(f"seed {run.result['seed']}")
    if run.result.get("seconds"):
        parts.append(duration(run.result["seconds"]))
    return " \u00b7 ".join(parts)
