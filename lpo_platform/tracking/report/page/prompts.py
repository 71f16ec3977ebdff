"""Every held-out item with its scores: to sort, to search and to filter, one metric at a time."""

import json
import math
from typing import Any

from lpo_platform.evaluation.statistics import number
from lpo_platform.tracking.report.page.markup import absent, cell, escape, heads, menu, note
from lpo_platform.tracking.report.page.run import Run

MOST_ITEMS = 2000
CHANGES = ("all", "better", "worse", "changed", "same")


def prompts(run: Run) -> str:
    """The table of the main metric; page.js puts the numbers of another metric in its place when it is chosen."""
    scored = [name for name in run.metrics if any(f"{name}/after" in item for item in run.items)]
    if not scored:
        return absent("evaluation/ holds no score of single items.")
    scored.sort(key=lambda name: name != run.main)
    shown = run.items[:MOST_ITEMS]
    values = {name: [[_number(item.get(f"{name}/{side}")) for side in ("before", "after")] for item in shown]
              for name in scored}  # fmt: skip
    better = {name: run.metrics[name]["higher_is_better"] for name in scored}
    drawn = {path.stem for path in (run.folder / "samples" / "after").glob("*.png")}
    body = "".join(_row(index, item, values[scored[0]][index], str(index) in drawn) for index, item in enumerate(shown))
    columns = [("number index", "#"), ("", "prompt"), ("number", "base"), ("number", "trained"), ("number", "change")]
    data = escape(json.dumps({"values": values, "better": better}))
    words = f"{len(shown)} of {len(run.items)} items" if len(run.items) > len(shown) else f"{len(shown)} items"
    controls = menu("Metric", scored, "data-metric") + menu("Show", CHANGES, "data-change")
    controls += "<label>Prompt <input type=search data-search placeholder='contains'></label><output></output>"
    table = f'<table class="sortable items" data-items="{data}">{heads(*columns)}<tbody>{body}</tbody></table>'
    told = note(f"{words}. Click a heading to sort. A number leads to the item's pictures, where they were kept.")
    return f"{told}<div class=controls>{controls}</div><div class=window>{table}</div>"


def _row(index: int, item: dict[str, Any], pair: list[float | None], drawn: bool) -> str:
    place = f'<a href="#item-{index}">{index}</a>' if drawn else str(index)
    change = None if None in pair else pair[1] - pair[0]
    numbers = [cell(number(value, 3), "" if value is None else value) for value in pair]
    numbers.append(cell(number(change, 3, sign=True), "" if change is None else change))
    caption = escape(str(item.get("caption") or item.get("id") or ""))
    return f"<tr>{cell(place, index, kind='number index')}<td class=path>{caption}</td>{''.join(numbers)}</tr>"


def _number(value: Any) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, int | float) and math.isfinite(value) else None
