"""Wherever a verdict is printed, a metric of too few items and one that is not finite have none, and say so."""

import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from toys import report as toy_report

from lpo_platform.commands import diff
from lpo_platform.commands.export import card
from lpo_platform.commands.export.trained import Trained
from lpo_platform.evaluation.result_table import cautions, table
from lpo_platform.evaluation.statistics import beside_real, compare
from lpo_platform.runs import files, record, sweep
from lpo_platform.tracking.loggers import final_tables
from lpo_platform.tracking.report import sweep_table
from lpo_platform.tracking.report.page.leaderboard import leaderboard
from lpo_platform.tracking.report.page.run import Run
from lpo_platform.tracking.report.report import PAGES, write_report
from lpo_platform.tracking.tables import finished_runs, planned_runs
from lpo_platform.tracking.tables.table import FORMATS

WORDS = {"few": "too few", "wrong": "not finite"}
CLAIMS = ("\u2191 better", ">better<", "| better", '"better"', "\u2193 worse", ">worse<", "raised", "Best by")
MAIN = "canny/f1"


def metric(kind: str) -> dict:
    """Of a difference that would be as clear as can be: five items, or one number that is infinite."""
    if kind == "guard":
        return guard()
    before, after = np.linspace(0.2, 0.4, 5 if kind == "few" else 100), np.full(5 if kind == "few" else 100, 0.9)
    after[0] = math.inf if kind == "wrong" else after[0]
    return compare({MAIN: before}, {MAIN: after}, {MAIN: True})


def guard() -> dict:
    """An area of .12 that grew to .21, of pictures whose real ones have .16."""
    noise = np.random.default_rng(0).normal(0, 0.01, (3, 100))
    before, after, real = (level + noise[i] for i, level in enumerate((0.125, 0.215, 0.165)))
    found = compare({MAIN: before}, {MAIN: after}, {MAIN: None})
    return {MAIN: found[MAIN] | beside_real(real, after)}


def run(folder: Path, kind: str) -> Path:
    toy_report.make_run(folder, pictures=1, side=16, steps=2, count=6)
    OmegaConf.save(["task=canny"], folder / ".hydra" / "overrides.yaml")
    result = files.read_json(folder / "result.json")
    record.write_json(folder / "result.json", {**result, "metrics": metric(kind)})
    return folder


def of_sweep(folder: Path, kind: str) -> Path:
    """Two settings, one of which has two seeds."""
    for number, (beta, seed) in enumerate([(9, 0), (9, 1), (500, 0)]):
        job = run(folder / f"{number}-cpo", kind)
        OmegaConf.save([f"method.beta={beta}", "task=canny", f"seed={seed}"], job / ".hydra" / "overrides.yaml")
        hydra = {"job": {"num": number, "name": "train"}, "runtime": {"choices": toy_report.CHOICES}}
        OmegaConf.save({"hydra": hydra}, job / ".hydra" / "hydra.yaml")
        (job / ".hydra" / "config.yaml").write_text((job / "resolved.yaml").read_text())
        record.write_json(job / "result.json", files.read_json(job / "result.json") | {"seed": seed})
    record.write_json(folder / "sweep.json", {})
    return folder


def terminal(folder: Path) -> str:
    metrics = Run.read(folder).metrics
    return "\n".join([table(metrics, unicode=True), *cautions(metrics)])


def logged(folder: Path) -> str:
    class Service:
        def __init__(self) -> None:
            self.lost, self.tables = False, {}

        def log_metrics(self, *given: object) -> None: ...

        def pictures(self, *given: object) -> None: ...

        def table(self, name: str, columns: object, rows: list, step: int) -> None:
            self.tables[name] = rows

    service = Service()
    final_tables.log_tables(service, Run.read(folder).metrics, folder, 1)
    return json.dumps(service.tables["eval/table"])


def planned(folder: Path) -> str:
    (folder / "row").mkdir(exist_ok=True)
    run(folder / "row" / "a-0", "few" if "few" in folder.name else "wrong")
    return FORMATS["markdown"](planned_runs.table("t", [planned_runs.Row("a", MAIN, [], "title")], folder / "row"))


def summary(folder: Path) -> str:
    return FORMATS["markdown"](finished_runs.summary(finished_runs.read([folder])[0]))


PLACES: dict[str, tuple[Callable, Callable[[Path], str]]] = {
    "terminal": (run, terminal),
    "report": (run, lambda folder: write_report(folder).read_text()),
    "card": (run, lambda folder: card._results(Trained(Run.read(folder), {}, "raw", "raw"))),
    "logger": (run, logged),
    "results.py": (run, summary),
    "results.py --make": (run, planned),
    "results.py of a sweep": (of_sweep, summary),
    "sweep, terminal": (of_sweep, lambda folder: sweep_table.conclude(folder)[1]),
    "sweep.md": (of_sweep, lambda folder: sweep_table.conclude(folder) and (folder / "sweep.md").read_text()),
    "sweep's page": (of_sweep, lambda folder: write_report(folder).read_text()),
    "leaderboard": (of_sweep, lambda f: PAGES.get_template("leaderboard.html").render(leaderboard(sweep.read(f)))),
}


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("place", PLACES)
def test_no_verdict_is_printed_where_there_is_none(place: str, kind: str, tmp_path: Path) -> None:
    make, show = PLACES[place]
    shown = show(make(tmp_path / kind, kind))
    # a menu of the page offers the items that got better
    text = re.sub(r"<(script|select|style)\b.*?</\1>", "", shown, flags=re.DOTALL)
    assert WORDS[kind] in text
    for claim in CLAIMS:
        assert claim not in text, claim


@pytest.mark.parametrize("place", sorted(PLACES.keys() - {"logger", "results.py --make"}))
def test_a_guard_that_passes_the_real_pictures_is_warned_of_beside_their_value(place: str, tmp_path: Path) -> None:
    make, show = PLACES[place]
    text = html.unescape(show(make(tmp_path / "guard", "guard")))
    assert re.search(r"canny/f1.* rose past the real pictures, from 0\.1\d+ to 0\.2\d+; they have 0\.16\d*", text)
    if place in ("terminal", "card", "sweep, terminal"):
        assert re.search(r"real +(difference|\|)", text)


def test_a_diff_of_five_items_has_no_verdict(tmp_path: Path) -> None:
    sides = []
    for value in (0.1, 0.9):
        rows = {str(i): {"caption": "a cat", f"{MAIN}/after": value + i / 100} for i in range(5)}
        sides.append(diff.Side({}, items=rows))
    found = diff.paired(MAIN, {"higher_is_better": True}, *sides)
    assert "too few, paired over 5 items" in diff._metric(MAIN, {"a": None, "b": None, "paired": found})
