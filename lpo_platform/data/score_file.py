"""Multi-Preference Consistent Filtering: pairs whose label agrees with three automatic scores, and their score file.

Paper arXiv:2502.01051, as its released code has it (data/README.md).
"""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lpo_platform.config.errors import UserError
from lpo_platform.runs.files import write_atomically
from lpo_platform.runs.given_files import read_bytes, text_of

Strategy = Literal[1, 2, 3]
COLUMNS = ("different_flag", "aesthetic_gap", "clipscore_gap", "vqascore_gap")
AESTHETIC = {1: 0.0, 2: -0.5, 3: -1.0}  # how far the winner may be below the loser, by strategy
TIE = (0.2, 0.03, 0.07)  # gaps below which two pictures count as alike: aesthetic, CLIP, VQA


def consistent(
    different_flag: np.ndarray,
    aesthetic_gap: np.ndarray,
    clipscore_gap: np.ndarray,
    vqascore_gap: np.ndarray,
    strategy: Strategy = 2,
    *,
    absolute_ties: bool = False,
) -> np.ndarray:
    """Four columns (N,) -> mask (N,) of the rows to train on; gaps are the winner's score minus the loser's.

    A pair with a winner (different_flag 1) stays where aesthetic_gap > 0, -0.5 or -1 (strategy 1, 2, 3; the paper
    trains with 2) and the other two gaps are above 0. A tie stays where the gaps are below 0.2, 0.03 and 0.07. The
    inequalities are strict, as in the released code; the paper has >= and <=. The code takes no absolute value for
    ties, so that a tie with large negative gaps stays; `absolute_ties` compares |gap|, as the paper writes. A gap that
    is unknown (NaN) drops its row. Raises ValueError for another strategy.
    """
    if strategy not in AESTHETIC:
        raise ValueError(f"strategy {strategy!r}: must be one of {', '.join(map(str, get_args(Strategy)))}")
    gaps = (aesthetic_gap, clipscore_gap, vqascore_gap)
    bounds = (AESTHETIC[strategy], 0.0, 0.0)
    agree = np.logical_and.reduce([gap > bound for gap, bound in zip(gaps, bounds, strict=True)])
    distances = [np.abs(gap) for gap in gaps] if absolute_ties else gaps
    alike = np.logical_and.reduce([gap < bound for gap, bound in zip(distances, TIE, strict=True)])
    return np.where(np.asarray(different_flag, bool), agree, alike)


@dataclass(frozen=True)
class Scores:
    """A score file. Row i belongs to row i of the train split.

    Attributes:
        different: (N,) bool, whether the pair has a winner.
        gaps: (N, 3) float64, NaN where unknown: aesthetic (LAION predictor), CLIP (cosine) and VQA (probability) score
            of the winner minus that of the loser. For a tie it is what the file has; its sign is not documented.
    """

    different: np.ndarray
    gaps: np.ndarray

    def __len__(self) -> int:
        return len(self.different)

    def consistent(self, strategy: Strategy = 2, *, absolute_ties: bool = False) -> np.ndarray:
        """The mask (N,) of `consistent` for these rows."""
        return consistent(self.different, *self.gaps.T, strategy, absolute_ties=absolute_ties)


def read_scores(path: str | Path, rows: int | None = None) -> Scores:
    """A CSV file with a header and the four COLUMNS, others are ignored; an empty gap or `nan` is an unknown one.

    Raises UserError where the file cannot be read, lacks a column, holds anything but numbers, or has not exactly
    `rows` rows.
    """
    where = f"data.scores={path}"
    try:
        content = text_of(read_bytes(Path(path).expanduser()))
        scores = _parse(csv.reader(io.StringIO(content, newline="")), where)
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: cannot be read ({reason}); what works: a CSV file with {_names()}") from error
    if rows is not None and len(scores) != rows:
        raise UserError(
            f"{where}: {len(scores)} rows, but the train split has {rows}; scores are joined by position, so what "
            "works is one row for each row of the split, in its order"
        )
    return scores


def write_scores(path: str | Path, scores: Scores) -> None:
    """The CSV file that `read_scores` reads back exactly."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for different, gaps in zip(scores.different.tolist(), scores.gaps.tolist(), strict=True):
        writer.writerow([int(different), *("" if math.isnan(gap) else repr(gap) for gap in gaps)])
    write_atomically(Path(path), table.getvalue().encode())


def _parse(lines: Any, where: str) -> Scores:
    header = [name.strip() for name in next(lines, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; what works: a CSV file with {_names()}")
    flag, *others = (header.index(name) for name in COLUMNS)
    different, gaps = [], []
    for row in lines:
        if not row:
            continue
        if len(row) != len(header):
            raise UserError(f"{where}: line {lines.line_num} has {len(row)} values, the header {len(header)}")
        different.append(_flag(row[flag], f"{where}: line {lines.line_num}, {COLUMNS[0]}"))
        gaps.append([_gap(row[i], f"{where}: line {lines.line_num}, {header[i]}") for i in others])
    return Scores(np.array(different, bool), np.array(gaps, np.float64).reshape(-1, 3))


def _flag(text: str, where: str) -> bool:
    flags = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    if text.strip().lower() not in flags:
        raise UserError(f"{where}: {text!r}; what works: 1 for a pair with a winner, 0 for a tie")
    return flags[text.strip().lower()]


def _gap(text: str, where: str) -> float:
    try:
        gap = float(text) if text.strip() else math.nan
    except ValueError:
        gap = math.inf
    if math.isinf(gap):
        raise UserError(f"{where}: {text!r} is not a number; what works: winner's score less loser's, or nothing")
    return gap


def _names() -> str:
    return f"the columns {', '.join(COLUMNS)}"
