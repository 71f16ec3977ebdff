"""What was measured, as Markdown."""

import os
import platform
import statistics
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch


def machine(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(models, f":{name}").split(":", 1)[1].strip()
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    load = os.getloadavg()[0]
    about = {"cpu": name, "threads": torch.get_num_threads(), "load": round(load, 1), "gpu": gpu}
    return about | {"torch": torch.__version__, "date": datetime.now().strftime("%Y-%m-%d %H:%M")}


def ratio(results: dict[str, dict[str, Any]], base: str, variant: str, value: Callable[[dict], float]) -> str:
    """How many times more `base` takes than `variant`."""
    return f"{value(results[base]) / value(results[variant]):.2f}"


def table(results: dict[str, dict[str, Any]], units: int, unit: str) -> str:
    """A row for each variant, ratios against each plain variant that ran (above 1: ours takes less).

    A result holds `flops` per unit and what was measured of a step of that many units.
    """
    measures: list[tuple[str, Callable[[dict], float]]] = [("FLOPs", lambda r: r["flops"])]
    head = ["variant", f"TFLOP / {unit}"]
    first = next(iter(results.values()))
    if "seconds" in first:
        measures.append(("time", lambda r: statistics.median(r["seconds"])))
        head += ["s / step (min to max)", f"{unit}s / s"]
    if "cpu_seconds" in first:
        measures.append(("CPU time", lambda r: statistics.median(r["cpu_seconds"])))
        head += ["CPU s / step (min to max)"]
    if "peak_bytes" in first:
        measures.append(("memory", lambda r: r["peak_bytes"]))
        head += ["peak GiB"]
    bases = [name for name in results if name.startswith("plain")]
    head += [f"{base} / this: {', '.join(name for name, _ in measures)}" for base in bases]
    rows = [head, ["---"] * len(head)]
    for variant, result in results.items():
        row = [variant, f"{result['flops'] / 1e12:.3g}"]
        if "seconds" in result:
            low, middle, high = (f(result["seconds"]) for f in (min, statistics.median, max))
            row += [f"{middle:.3g} ({low:.3g} to {high:.3g})", f"{units / middle:.3g}"]
        if "cpu_seconds" in result:
            low, middle, high = (f(result["cpu_seconds"]) for f in (min, statistics.median, max))
            row += [f"{middle:.3g} ({low:.3g} to {high:.3g})"]
        if "peak_bytes" in result:
            row += [f"{result['peak_bytes'] / 2**30:.2f}"]
        row += [", ".join(ratio(results, base, variant, value) for _, value in measures) for base in bases]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def against_published(counted: dict[str, float], published: dict[str, float], source: str) -> str:
    rows = [f"| | counted, GFLOP | {source} | difference |", "|---|---|---|---|"]
    for name, gflop in published.items():
        if name in counted:
            here = counted[name] / 1e9
            rows.append(f"| {name} | {here:.1f} | {gflop:.1f} | {100 * (here / gflop - 1):+.1f} % |")
    return "\n".join(rows)
