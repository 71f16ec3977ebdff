"""Tables whose runs are stated in a file: making those runs that are missing, and the tables of what there is."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lpo_platform.config.errors import UserError
from lpo_platform.evaluation.result_table import change, decimals, number
from lpo_platform.evaluation.statistics import NOT_FINITE, TOO_FEW, verdict
from lpo_platform.runs import resume
from lpo_platform.tracking.tables.finished_runs import Outcome, command
from lpo_platform.tracking.tables.table import Code, Table

Start = Callable[[list[str]], int]


@dataclass(frozen=True)
class Row:
    """One line of a table: `run` is a command line that `seeds` complete, {x} in it the folder of row x at seed 0."""

    name: str
    metric: str
    run: list[str]
    title: str | None = None
    seeds: tuple[int, ...] = (0,)

    def folder(self, root: Path, seed: int) -> Path:
        return root / f"{self.name}-{seed}"

    def overrides(self, root: Path) -> list[str]:
        return [re.sub(r"\{(\w+)\}", lambda found: str(root / f"{found[1]}-0"), word) for word in self.run]


def read(file: Path) -> dict[str, list[Row]]:
    """The tables of a file and their rows."""
    tables: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {table["title"]: [Row(**{**row, "seeds": tuple(row.get("seeds", (0,)))}) for row in table["rows"]]
            for table in tables}  # fmt: skip


def chosen(tables: dict[str, list[Row]], names: Sequence[str]) -> dict[str, list[Row]]:
    """The named rows of each table, all where none is named. UserError for a name that no row has."""
    known = {row.name for rows in tables.values() for row in rows}
    if unknown := sorted(set(names) - known):
        raise UserError(f"--only {unknown[0]}: no such row; there are {', '.join(sorted(known))}")
    return {title: [row for row in rows if not names or row.name in names] for title, rows in tables.items()}


def make(tables: dict[str, list[Row]], root: Path, start: Start) -> list[Path]:
    """Makes every run that is not finished, in the order of the file; returns the folders of those that failed.

    `start` runs lpo-train with these arguments and returns its exit code. What was interrupted goes on where it
    stopped; a run that needs the folder of one that failed fails, too.
    """
    wanted = list(_runs(tables, root))
    failed = []
    for number_, (row, seed, folder) in enumerate(wanted, start=1):
        if resume.finished(folder):
            continue
        print(f"{number_} of {len(wanted)}: {folder.name}", file=sys.stderr, flush=True)
        if (folder / ".hydra" / "overrides.yaml").is_file():
            code = start([f"resume={folder}"])
        else:
            code = start([*row.overrides(root), f"seed={seed}", f"hydra.run.dir={folder}"])
        if code == 130:
            raise KeyboardInterrupt
        if code:
            failed.append(folder)
    return failed


def _runs(tables: dict[str, list[Row]], root: Path) -> Iterator[tuple[Row, int, Path]]:
    seen: set[Path] = set()
    for row in (row for rows in tables.values() for row in rows):
        for seed in row.seeds:
            folder = row.folder(root, seed)
            if folder not in seen:
                yield row, seed, folder
            seen.add(folder)


def table(title: str, rows: Sequence[Row], root: Path) -> Table:
    """A line for each row with a title: the base, and for each seed the difference with its interval."""
    seeds = sorted({seed for row in rows if row.title for seed in row.seeds})
    lines = [_line(row, seeds, root) for row in rows if row.title]
    heads = ["", "before", *(f"seed {seed}" for seed in seeds), "command"]
    return Table(title, heads, lines, ["Differences on the held-out items with 95 % intervals."])


def _line(row: Row, seeds: Sequence[int], root: Path) -> list[str]:
    found = {seed: outcome for seed in row.seeds if (outcome := Outcome.read(row.folder(root, seed))) is not None}
    entries = {seed: outcome.metrics[row.metric] for seed, outcome in found.items() if row.metric in outcome.metrics}
    first = next(iter(entries.values()), None)
    before = "" if first is None else number(first["before"], decimals(first))
    cells = [_said(entries[seed]) if seed in entries else "not run" * (seed in row.seeds) for seed in seeds]
    return [row.title or "", before, *cells, _command(row, list(found.values()), root)]


def _said(entry: dict[str, Any]) -> str:
    """The difference with its interval, or why there is none."""
    return word if (word := verdict(entry)) in (TOO_FEW, NOT_FINITE) else change(entry)


def _command(row: Row, found: Sequence[Outcome], root: Path) -> Code:
    return command(found) if found else Code(" ".join(["lpo-train", *row.overrides(root)]))
