"""Finished runs as rows of tables: their metrics with seeds taken together, beside what the papers print."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lpo_platform.config.errors import UserError
from lpo_platform.config.paths import run_folder
from lpo_platform.evaluation.result_table import cautions, change, decimals, number
from lpo_platform.evaluation.statistics import verdict
from lpo_platform.runs import seeds, sweep
from lpo_platform.tracking.report.page.run import Run, mapping
from lpo_platform.tracking.tables.table import Code, Table

PUBLISHED = Path(__file__).with_name("published.yaml")
PAPER = "paper, not reproduced here"
COLUMNS = ("method", "model", "task", "seed", "sweep")

OWN_SETTINGS = "measured with settings of our own, without metrics=<the protocol of a paper>"


@dataclass(frozen=True)
class Outcome:
    """A finished run. label: its method, its model and what else was set, its task and seed apart; main: the metric
    that it was for; deviations: how it departs from its protocol, None where it was measured by nobody's."""

    label: str
    model: str
    task: str
    data: str
    seed: int | None
    metrics: Mapping[str, Mapping[str, Any]]
    main: str
    primary: str
    overrides: list[str]
    deviations: list[str] | None = None

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """None for a run without a result."""
        run, overrides = Run.read(folder), folder / ".hydra" / "overrides.yaml"
        if run.result.get("status") != "finished" or run.main is None:
            return None
        words = [str(word) for word in OmegaConf.load(overrides)] if overrides.is_file() else []
        method, model, task, data = (run.option(group) or "none" for group in ("method", "model", "task", "data"))
        own = [w for w in words if w.partition("=")[0] not in COLUMNS and sweep.key(w) not in sweep.FREE]
        label = ", ".join(word for word in (method, model, " ".join(own)) if word not in ("none", ""))
        seed = run.result.get("seed")
        protocol = mapping(mapping(run.config.get("metrics")).get("protocol"))
        deviations = list(run.result.get("deviations", ()))
        if not protocol:
            deviations = [OWN_SETTINGS, *deviations] if deviations else None
        return cls(label, model, task, data, seed, run.metrics, run.main, run.config_name, words, deviations)


def read(folders: Iterable[Path]) -> tuple[list[Outcome], list[Path]]:
    """The outcomes of runs, of folders with a latest run and of sweeps; and the folders of what did not finish.

    UserError for a folder that is none of these.
    """
    found, left = [], []
    for given in folders:
        if (given / "sweep.json").is_file():
            runs = [job.folder for job in sweep.read(given).jobs]
        elif (run := run_folder(str(given))) is not None:
            runs = [run]
        else:
            raise UserError(f"{given}: neither a run nor a sweep (it holds no resolved.yaml and no sweep.json)")
        for folder in runs:
            outcome = Outcome.read(folder)
            (left if outcome is None else found).append(folder if outcome is None else outcome)
    return found, left


@dataclass(frozen=True)
class Figure:
    """One metric of one setting over its seeds, as texts; of a model that is compared with nothing `after` alone."""

    seeds: str
    after: str
    before: str = ""
    change: str = ""
    verdict: str = ""
    interval: str = ""
    cautions: tuple[str, ...] = ()

    @classmethod
    def of(cls, group: Sequence[Outcome], metric: str, scale: float = 1) -> Figure | None:
        """None where no run of the group has the metric."""
        found = [(o.seed, o.metrics[metric]) for o in group if metric in o.metrics]
        for row in seeds.rows([("", seed, {metric: entry}) for seed, entry in found]):
            entry = _scaled(row.entry(), scale)
            before, after = (number(entry[side], decimals(entry)) for side in ("before", "after"))
            told = tuple(cautions({f"{group[0].label}: {metric}": row.entry()}))
            return cls(", ".join(map(str, row.seeds)), after, before, change(entry), verdict(entry), row.interval, told)
        alone = [(seed, entry) for seed, entry in found if "own_ci95" in entry and entry["after"] is not None]
        if not alone:
            return None
        entry = _scaled(
            {"after": sum(e["after"] for _, e in alone) / len(alone), "ci95": alone[0][1]["own_ci95"]}, scale
        )
        return cls(", ".join(str(seed) for seed, _ in alone), number(entry["after"], decimals(entry)))


def summary(outcomes: Sequence[Outcome], metrics: Sequence[str] = ()) -> Table:
    """A line for each setting and task: the metric that it was for, or those that are named."""
    rows, intervals, told = [], [], []
    for group in _groups(outcomes, lambda o: (o.label, o.task)):
        for metric in metrics or [group[0].main]:
            if (f := Figure.of(group, metric)) is not None:
                rows.append([group[0].label, metric, f.seeds, f.before, f.after, f.change, f.verdict, command(group)])
                intervals.append(f.interval)
                told += [f"{line}." for line in f.cautions]
    heads = ["setting", "metric", "seeds", "before", "after", "difference [95 % interval]", "", "command"]
    kinds = [kind for kind in dict.fromkeys(intervals) if kind]
    notes = [f"Means over the seeds. Interval: {'; '.join(kinds)}."] if kinds else []
    notes += told + departures([outcome for outcome in outcomes if outcome.deviations])
    return Table("Results", heads, rows, notes)


def beside_paper(outcomes: Sequence[Outcome], name: str) -> list[Table]:
    """The tables of a paper with a line for the base and one for the trained model of each setting."""
    return [_beside(outcomes, table) for table in published()[name]]


def published() -> dict[str, list[dict[str, Any]]]:
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))


def _beside(outcomes: Sequence[Outcome], table: Mapping[str, Any]) -> Table:
    rows, shown = [[name, *figures, PAPER] for name, figures in table["rows"].items()], []
    for group in _groups(outcomes, lambda o: o.label):
        cells = [_cells(group, column) for column in table["columns"].values()]
        if any(trained != "-" for _, trained in cells):
            on = f"on {', '.join(dict.fromkeys(o.data for o in group))}"
            base, trained = zip(*cells, strict=True)
            if any(cell != "-" for cell in base):
                rows.append([f"before: {group[0].label}, {on}", *base, "ours, the base of the next line"])
            rows.append([f"{group[0].label}, {on}", *trained, command(group)])
            shown += group
    notes = [f"{table['source']}: {PAPER}. {table['note']}"]
    if len(rows) == len(table["rows"]):
        notes.append("None of the given runs measured any of this.")
    else:
        notes.append("Ours: mean over the seeds, in brackets the difference to the base and its 95 % interval. "
                     "They compare with the paper's only where model, data and protocol are the paper's.")  # fmt: skip
        notes += departures(shown)
    return Table(table["title"], ["method", *table["columns"], "source"], rows, notes)


def departures(outcomes: Sequence[Outcome]) -> list[str]:
    """A note for each setting and task that says in what it was not measured as a paper did."""
    notes = []
    for group in _groups(outcomes, lambda o: (o.label, o.task)):
        name = ", ".join(word for word in (group[0].label, group[0].task) if word != "none")
        lines = list(dict.fromkeys(line for outcome in group for line in outcome.deviations or ()))
        if any(outcome.deviations is None for outcome in group) and OWN_SETTINGS not in lines:
            lines.insert(0, OWN_SETTINGS)
        if lines:
            notes.append(f"Not as in the protocol, {name}: {'; '.join(lines)}.")
    return notes


def _cells(group: Sequence[Outcome], column: Mapping[str, Any]) -> tuple[str, str]:
    """What a setting has in a column of a paper, before and after."""
    kept = [o for o in group if column.get("task", o.task) == o.task and column.get("data", o.data) == o.data]
    if "data" not in column:
        kept = [o for o in kept if o.data != "humanart"]
    found = [f for metric in column["metric"] if (f := Figure.of(kept, metric, column.get("scale", 1))) is not None]
    before = "/".join(f.before for f in found if f.before)
    after = "/".join(f"{f.after} ({f.change})" if f.change else f.after for f in found)
    return before or "-", after or "-"


def _scaled(entry: Mapping[str, Any], scale: float) -> dict[str, Any]:
    known = (name for name in ("before", "after", "difference", "real") if name in entry)
    numbers = {name: scale * entry[name] for name in known}
    return {**entry, **numbers, "ci95": [None if bound is None else scale * bound for bound in entry["ci95"]]}


def _groups(outcomes: Sequence[Outcome], key: Callable[[Outcome], Hashable]) -> list[list[Outcome]]:
    found: dict[Hashable, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(key(outcome), []).append(outcome)
    return list(found.values())


def command(group: Sequence[Outcome]) -> Code:
    commands = sweep.repeat(group[0].primary, [outcome.overrides for outcome in group])
    return Code("; ".join(map(shlex.join, commands)))
