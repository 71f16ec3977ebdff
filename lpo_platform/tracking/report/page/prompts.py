"""Every held-out item with its scores: to sort, to search and to filter, one metric at a time."""

import json
import math
from typing import Any

from lpo_platform.evaluation.result_table import number
from lpo_platform.tracking.report.page.run import Run

MOST_ITEMS = 2000


def prompts(run: Run) -> dict[str, Any]:
    """The rows of the main metric; page.js puts the numbers of another metric in their place when it is chosen."""
    scored = [name for name in run.metrics if any(f"{name}/after" in item for item in run.items)]
    scored.sort(key=lambda name: name != run.main)
    shown = run.items[:MOST_ITEMS]
    values = {name: [[_number(item.get(f"{name}/{side}")) for side in ("before", "after")] for item in shown]
              for name in scored}  # fmt: skip
    better = {name: run.metrics[name]["higher_is_better"] for name in scored}
    drawn = {path.stem for path in (run.folder / "samples" / "after").glob("*.png")}
    return {
        "metrics": scored,
        "count": f"{len(shown)} of {len(run.items)} items" if len(run.items) > len(shown) else f"{len(shown)} items",
        "data": json.dumps({"values": values, "better": better}),
        "rows": [_row(item, *values[scored[0]][i], str(i) in drawn) for i, item in enumerate(shown) if scored],
    }


def _row(item: dict[str, Any], before: float | None, after: float | None, drawn: bool) -> dict[str, Any]:
    change = None if before is None or after is None else after - before
    numbers = [(number(before, 3), before), (number(after, 3), after), (number(change, 3, sign=True), change)]
    return {"caption": str(item.get("caption") or item.get("id") or ""), "drawn": drawn, "numbers": numbers}


def _number(value: Any) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, int | float) and math.isfinite(value) else None
