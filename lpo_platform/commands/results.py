"""The command lpo-results: tables of finished runs and sweeps, alone or beside the figures of a paper.

lpo-results outputs/sweeps/2026-01-01_00-00-00
lpo-results outputs/cpo-tiny-canny outputs/cpo-tiny-hed --paper cpo --format latex
lpo-results outputs/lpo-tiny-none --metric text/alignment image/diversity
lpo-results --make outputs/table                     the README's tables; makes the runs that are missing there (hours)
lpo-results --make outputs/table --only cpo spo      some of their rows
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from lpo_platform.commands.terminal import VERSION
from lpo_platform.config.errors import UserError
from lpo_platform.config.paths import named
from lpo_platform.tracking.tables import finished_runs, planned_runs
from lpo_platform.tracking.tables.table import FORMATS, Table

README = Path(planned_runs.__file__).with_name("readme.yaml")


def main() -> None:
    """Console command lpo-results."""
    sys.exit(_results(_arguments()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "lpo-results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=VERSION)
    words = "runs, folders of runs (the newest counts) and sweeps; run= may be left out"
    parser.add_argument("folders", nargs="*", type=named, metavar="run=FOLDER", help=words)
    parser.add_argument("--format", choices=sorted(FORMATS), default="markdown")
    parser.add_argument("--paper", choices=sorted(finished_runs.published()), help="beside the figures that it states")
    parser.add_argument("--metric", nargs="+", default=[], help="other metrics than the one that each run was for")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="the tables of the README, from runs in FOLDER")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="with --make: these rows")
    return parser.parse_args()


def _results(asked: argparse.Namespace) -> int:
    try:
        tables, left = made(asked) if asked.make else read(asked)
    except UserError as error:
        print(f"lpo-results: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lpo-results: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print("\n".join(map(FORMATS[asked.format], tables)), end="")
    for folder in left:
        print(f"lpo-results: {folder}: did not finish, so it is not in the table", file=sys.stderr)
    return 1 if left and asked.make else 0


def read(asked: argparse.Namespace) -> tuple[list[Table], list[Path]]:
    if not asked.folders:
        raise UserError("no folder is given; name runs or sweeps, or --make FOLDER")
    found, left = finished_runs.read(asked.folders)
    if not found:
        unfinished = (left or asked.folders)[0]  # a sweep may have no job yet
        raise UserError(f"{unfinished}: did not finish; {instead(unfinished)}")
    if asked.paper:
        return finished_runs.beside_paper(found, asked.paper), left
    return [finished_runs.summary(found, asked.metric)], left


def instead(unfinished: Path) -> str:
    """What to give in place of a run that did not finish: the newest beside it that did."""
    beside = (file.parent for file in sorted(unfinished.parent.glob("*/result.json"), reverse=True))
    works = next((run for run in beside if finished_runs.Outcome.read(run) is not None), None)
    return f"give {works}, which did" if works else "there is nothing to show"


def made(asked: argparse.Namespace) -> tuple[list[Table], list[Path]]:
    tables = planned_runs.chosen(planned_runs.read(README), asked.only)
    failed = planned_runs.make(tables, asked.make, train)
    return [planned_runs.table(title, rows, asked.make) for title, rows in tables.items() if rows], failed


def train(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "lpo_platform", "train", *arguments]).returncode
