"""The end of a run as a guest shows it: numbers, the table and the grid of the report, every item with its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lpo_platform.evaluation import item_table
from lpo_platform.tracking.loggers.service import Guest

SIDES = ("condition", "before", "after")
SMALL = 96
COLUMNS = ("metric", "before", "after", "difference", "low", "high")


def tell(guest: Guest, metrics: Mapping[str, Mapping[str, Any]], folder: Path, step: int) -> None:
    """Of a finished run: the numbers under plain names, which a sweep of W&B can steer by."""
    guest.log_metrics({f"eval/{name}": metric["after"] for name, metric in metrics.items()}, step)
    rows = [[name, m["before"], m["after"], m["difference"], *m["ci95"]] for name, m in metrics.items()]
    guest.table("eval/table", COLUMNS, rows, step)
    found = item_table.read(folder / "evaluation" / "items.parquet")
    columns = [*SIDES, *(found[0] if found else ())]
    cells = [[*(_small(folder, side, n) for side in SIDES), *item.values()] for n, item in enumerate(found)]
    guest.table("eval/items", columns, cells, step)
    grid = folder / "samples" / "grid.png"
    if grid.is_file():  # a reward model draws nothing
        guest.pictures("eval/grid", [Image.open(grid)], ["condition, base, trained, re-detected"], step)


def _small(folder: Path, side: str, number: int) -> Image.Image | None:
    file = folder / "samples" / side / f"{number}.png"
    if not file.is_file():
        return None
    picture = Image.open(file).convert("RGB")
    picture.thumbnail((SMALL, SMALL))
    return picture
