"""All steps in one call of limited length, the most telling first. What does not fit is named.

A cell that the JSON file holds is not measured or counted again, so that a call goes on where the last one stopped, and
counting, which needs no GPU, can be done elsewhere before (--flops-only).
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lpo_platform.commands.benchmark.cell import Cell
from lpo_platform.commands.benchmark.report import machine, ratio, table, utilisation
from lpo_platform.commands.plan.devices import peak_of
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.runs.files import read_json, write_text
from lpo_platform.tracking.tables.table import grid

REPEATS, WARMUP = 5, 2
SHARE = 0.25  # of the time left that one cell may take for its repeats
NOT_MEASURED = "not measured"
CELLS = (
    Cell("lpo-iteration", "sd15", 5),
    Cell("cpo", "sd15", 8),
    Cell("ddpo-update", "sd15", 2),
    Cell("lpo-update", "sd15", 10),
    Cell("generate", "sd15", 8),
    Cell("lrm", "sd15", 16),
    Cell("control-reward", "sd15", 2),
    Cell("cpo-dino", "sd15", 4),
    Cell("lpo-update", "sdxl", 4, chosen=("plain-ckpt", "exact", "exact-ckpt")),
    Cell("ddpo-update", "sdxl", 1, options={"steps": 4, "micro": 4}),
    Cell("ddpo-round", "sd15", 2, chosen=("plain", "exact")),
    Cell("lpo-rollout", "sd15", 5),
    Cell("lrm", "sdxl", 4),
    Cell("generate", "sdxl", 2, chosen=("plain", "exact")),
    Cell("lpo-iteration", "sdxl", 1, options={"steps": 10}),
)
# times that the first variant takes as much as ours, of the issue
GOALS = {
    ("lpo-iteration", "sd15"): {"exact": 2.0},
    ("lrm", "sd15"): {"exact": 1.7},
    ("cpo", "sd15"): {"exact": 1.55, "shared": 2.1},
    ("cpo-dino", "sd15"): {"cached": 7.0},
    ("control-reward", "sd15"): {"exact": 2.5},
    ("ddpo-update", "sd15"): {"exact": 3.0},
    ("ddpo-update", "sdxl"): {"exact": 1.3},
}


def cells(gpu: bool) -> list[Cell]:
    """On a CPU the tiny model, once for each step."""
    if gpu:
        return list(CELLS)
    first = {cell.what: cell for cell in reversed(CELLS)}
    order = sorted(first.values(), key=CELLS.index)
    few = lambda cell: {"steps": 4} if "steps" in cell.kind.options else {}  # noqa: E731
    return [replace(cell, model="tiny", batch=min(cell.batch, 4), options=few(cell)) for cell in order]


def everything(hardware: Hardware, limit: float, file: Path | None, *, count_only: bool = False) -> dict[str, Any]:
    """Measures as many cells as fit into `limit` seconds, each written to the file as soon as it is done; prints the
    tables."""
    end, device = time.monotonic() + limit, hardware.device.type
    known = (read_json(file) if file is not None and file.is_file() else None) or {"cells": {}}
    report = {"about": machine(device) | {"precision": hardware.chosen_precision}, "cells": known["cells"]}
    longest = 0.0  # what the next cell may take as well
    for cell in cells(hardware.gpu or count_only):
        found, started = report["cells"].setdefault(cell.name, {"about": None, "variants": {}}), time.monotonic()
        if started + longest < end and (not found["variants"] or (found["about"] is None and not count_only)):
            measure(cell, found, hardware, end, count_only=count_only)
            longest = max(longest, time.monotonic() - started)
            found["about"] = None if count_only else report["about"]
            if file is not None:
                write_text(file, json.dumps(report, indent=1) + "\n")
    print(page(report))
    return report


def measure(cell: Cell, found: dict[str, Any], hardware: Hardware, end: float, *, count_only: bool) -> None:
    """Measures one cell. A failure is recorded in its row, and the next cells are measured all the same."""
    started, left = time.monotonic(), end - time.monotonic()
    try:
        if not found["variants"]:
            bench = cell.build(device="meta")
            found |= {"unit": cell.kind.unit, "units": bench.units, "variants": cell.counted(bench)}
        if not count_only:
            results = cell.measured(hardware, REPEATS, WARMUP, started + SHARE * left)
            for variant, result in results.items():
                found["variants"][variant] |= result
    except RuntimeError as error:
        found["failed"] = str(error).splitlines()[0]


def page(report: dict[str, Any]) -> str:
    """A table of all goals, then one of every cell, as Markdown."""
    about, peak = report["about"], peak_of(report["about"]["gpu"])
    lines = [", ".join(f"{key} {value}" for key, value in about.items() if value is not None), "", goals(report, peak)]
    for name, found in report["cells"].items():
        state = f" ({found['failed']})" if "failed" in found else "" if found["about"] else f" ({NOT_MEASURED})"
        lines += ["", f"`{name}`{state}", ""]
        lines += [table(found["variants"], found["units"], found["unit"], peak)] if found["variants"] else []
    return "\n".join(lines)


def goals(report: dict[str, Any], peak: float | None) -> str:
    """A table of the steps that have a goal."""
    heads, rows = ["step", "ours", "goal, time", "time", "FLOPs", "memory", "% of peak FLOP/s"], []
    for cell in CELLS:
        found, wanted = report["cells"].get(cell.name), GOALS.get((cell.what, cell.model), {})
        for variant, goal in wanted.items() if found and found["variants"] else ():
            base, ours = next(iter(found["variants"].values())), found["variants"][variant]
            numbers = [ratio(base, ours, name) for name in ("seconds", "flops", "peak_bytes")]
            shown = [NOT_MEASURED if number is None else f"{number:.2f}" for number in numbers]
            used = utilisation(ours, found["units"], peak)
            shown.append(NOT_MEASURED if used is None else f"{100 * used:.0f}")
            rows.append([f"{cell.what}, {cell.model}", variant, str(goal), *shown])
    return grid(heads, rows)
