"""What a service shows at the end of a run: the numbers, the table and grid of the report, every item with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lpo_platform.evaluation import item_table
from lpo_platform.evaluation.statistics import verdict
from lpo_platform.tracking.loggers.service import RunLogger

SIDES = ("condition", "before", "after")
SMALL = 96
COLUMNS = ("metric", "before", "after", "difference", "low", "high", "verdict")


def log_tables(logger: RunLogger, metrics: Mapping[str, Mapping[str, Any]], folder: Path, step: int) -> None:
    """Logs the results of a finished run; the numbers have plain names, which a sweep of W&B can steer by."""
    if logger.lost:
        return
    logger.log_metrics({f"eval/{name}": metric["after"] for name, metric in metrics.items()}, step)
    rows = [[name, m["before"], m["after"], m["difference"], *m["ci95"], verdict(m)] for name, m in metrics.items()]
    logger.table("eval/table", COLUMNS, rows, step)
    found = item_table.read(folder / "evaluation" / "items.parquet")
    columns = [*SIDES, *(found[0] if found else ())]
    cells = [[*(_small(folder, side, n) for side in SIDES), *item.values()] for n, item in enumerate(found)]
    logger.table("eval/items", columns, cells, step)
    grid = folder / "samples" / "grid.png"
    if grid.is_file():  # a reward model draws nothing
        logger.pictures("eval/grid", [Image.open(grid)], ["condition, base, trained, re-detected"], step)


def _small(folder: Path, side: str, number: int) -> Image.Image | None:
    file = folder / "samples" / side / f"{number}.png"
    if not file.is_file():
        return None
    picture = Image.open(file).convert("RGB")
    picture.thumbnail((SMALL, SMALL))
    return picture
