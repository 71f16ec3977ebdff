"""Writes what was measured as Markdown."""

import statistics
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psutil
import torch

from lpo_platform.commands.benchmark.measure import Result
from lpo_platform.runs.record import cpu_model
from lpo_platform.tracking.tables.table import grid


def machine(device: str) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    load = psutil.getloadavg()[0]
    about = {"cpu": cpu_model(), "threads": torch.get_num_threads(), "load": round(load, 1), "gpu": gpu}
    return about | {"torch": torch.__version__, "date": datetime.now().strftime("%Y-%m-%d %H:%M")}


RATIOS = {
    "flops": "FLOPs",
    "seconds": "time",
    "cpu_seconds": "CPU time",
    "peak_bytes": "memory",
    "counted_bytes": "counted memory",
    "predicted_seconds": "predicted time",
}


def value(result: Result, name: str) -> float | None:
    """The value, or the median where there are several."""
    found = result.get(name)
    return statistics.median(found) if isinstance(found, list) else found


def ratio(base: Result, result: Result, name: str) -> float | None:
    """How many times as much `base` takes."""
    theirs, ours = value(base, name), value(result, name)
    return theirs / ours if theirs and ours else None


def spread(result: Result, name: str) -> str:
    low, high = min(result[name]), max(result[name])
    return f"{value(result, name):.3g} ({low:.3g} to {high:.3g})"


def utilisation(result: Result, units: int, peak: float | None) -> float | None:
    """The counted FLOPs per median second as a share of the device's FLOP/s."""
    seconds = value(result, "seconds")
    return result["flops"] * units / seconds / peak if seconds and peak else None


def table(results: dict[str, Result], units: int, unit: str, peak: float | None = None) -> str:
    """A row for each variant, ratios against each plain variant (above 1: ours takes less).

    A result holds `flops` per unit and what was measured of a step of that many units; peak: FLOP/s of the device.
    """
    columns: dict[str, tuple[str, Callable[[Result], str]]] = {
        f"TFLOP / {unit}": ("flops", lambda r: f"{r['flops'] / 1e12:.3g}"),
        "host waits / step": ("waits", lambda r: str(r["waits"])),
        "s / step (min to max)": ("seconds", lambda r: spread(r, "seconds")),
        f"{unit}s / s": ("seconds", lambda r: f"{units / value(r, 'seconds'):.3g}"),
        "CPU s / step (min to max)": ("cpu_seconds", lambda r: spread(r, "cpu_seconds")),
        "peak GiB": ("peak_bytes", lambda r: f"{r['peak_bytes'] / 2**30:.2f}"),
        "counted GiB": ("counted_bytes", lambda r: f"{r['counted_bytes'] / 2**30:.2f}"),
    }
    columns |= {
        "kernels / step": ("kernels", lambda r: f"{r['kernels']:,}"),
        "GB moved / step": ("moved_bytes", lambda r: f"{r['moved_bytes'] / 1e9:.3g}"),
        "s / step, predicted": ("predicted_seconds", lambda r: f"{r['predicted_seconds']:.3g}"),
        "% of peak FLOP/s, predicted": ("predicted_share", lambda r: f"{100 * r['predicted_share']:.0f}"),
    }
    if peak:
        columns["% of peak FLOP/s"] = ("seconds", lambda r: f"{100 * utilisation(r, units, peak):.0f}")
    there = {name for result in results.values() for name in result}
    columns = {head: column for head, column in columns.items() if column[0] in there}
    compared = {name: said for name, said in RATIOS.items() if name in there}
    bases = [name for name in results if name.startswith("plain")]
    heads = ["variant", *columns, *(f"{base} / this: {', '.join(compared.values())}" for base in bases)]
    rows = []
    for variant, result in results.items():
        row = [show(result) if name in result else result.get("failed", "-") for name, show in columns.values()]
        for base in bases:
            found = (ratio(results[base], result, name) for name in compared)
            row.append(", ".join("-" if number is None else f"{number:.2f}" for number in found))
        rows.append([variant, *row])
    return grid(heads, rows)


def against_published(counted: dict[str, float], published: dict[str, float]) -> str:
    """A table of what was counted here beside what the stock classes need, both in GFLOP."""
    both = {name: (counted[name] / 1e9, gflop) for name, gflop in published.items() if name in counted}
    rows = [[name, f"{a:.1f}", f"{b:.1f}", f"{100 * (a / b - 1):+.1f} %"] for name, (a, b) in both.items()]
    return grid(["", "counted, GFLOP", "stock classes, GFLOP", "difference"], rows)
