"""How the time of a step grows, beside what its FLOPs foretell: a page of Markdown with a plot of each axis.

Time is fitted as start + FLOPs / rate. Where the start is a large part of it, operations are too small to fill the
device; a point far from the fit has another reason, which the axis names.
"""

import json
import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tqdm import tqdm

from lpo_platform.commands.benchmark.cell import Cell
from lpo_platform.commands.benchmark.report import machine, spread, value
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.runs.files import write_text
from lpo_platform.tracking.tables.table import grid

SIZE = {"width": 420, "height": 280, "left": 60, "bottom": 40, "top": 20, "right": 20}


@dataclass(frozen=True)
class Axis:
    """One axis of the page.

    Attributes:
        name: of a field of Cell or of an option of the step.
        variant: that is timed.
        why: the reason why the line departs from FLOPs alone.
    """

    name: str
    what: str
    values: tuple[int, ...]
    why: str
    variant: str = "exact"
    given: dict[str, Any] = field(default_factory=dict)

    def cell(self, model: str, number: int) -> Cell:
        cell = Cell(self.what, model, options=dict(self.given), chosen=(self.variant,))
        if self.name in ("batch", "resolution"):
            return replace(cell, **{self.name: number})
        return replace(cell, options=cell.options | {self.name: number})


def axes(model: str) -> list[Axis]:
    sides = (32, 64, 96, 128) if model == "tiny" else (256, 384, 512, 768)
    return [
        Axis("batch", "cpo", (1, 2, 4, 8, 16), "small batches: starting an operation costs the same whatever its size"),
        Axis(
            "resolution",
            "cpo",
            sides,
            "small pictures: the start of operations; large ones: attention, which waits for memory",
        ),
        Axis(
            "candidates",
            "lpo-rollout",
            (2, 4, 8),
            "the steps of the trajectory, small operations, are the same for any K",
            given={"steps": 4},
        ),
        Axis("steps", "lpo-rollout", (2, 4, 8, 16), "few steps: the text is encoded once for any number of them"),
    ]


def scaling(model: str, hardware: Hardware, folder: Path, repeats: int) -> dict[str, Any]:
    """Measures every axis; writes scaling.md, scaling.json and a picture of each axis into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"about": machine(hardware.device.type) | {"model": model}, "axes": {}}
    lines = ["# How time grows", "", ", ".join(f"{key} {value}" for key, value in report["about"].items() if value)]
    if not hardware.gpu:
        lines += ["", "Seconds are CPU seconds; those over processes pass on the wall."]
    for axis in axes(model):
        points = [point(axis.cell(model, number), hardware, repeats) | {"x": number} for number in tqdm(axis.values)]
        report["axes"][axis.name] = points
        title = f"{axis.what} ({axis.variant}) over {axis.name}"
        lines += ["", f"## {title}", "", *section(axis.name, title, points, folder, axis.why)]
    if not hardware.gpu:
        report["axes"]["processes"] = points = over_processes(model, (1, 2), repeats)
        why = "processes share the memory's bandwidth and wait for the slowest; the sum of gradients is sent as well"
        title = "cpo (exact) over processes, each with a batch of its own"
        lines += ["", f"## {title}", "", *section("processes", title, points, folder, why)]
    write_text(folder / "scaling.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "scaling.md", "\n".join(lines) + "\n")
    print(f"{folder / 'scaling.md'}")
    return report


def point(cell: Cell, hardware: Hardware, repeats: int) -> dict[str, Any]:
    """FLOPs of a step and the seconds of each repeat, on a CPU the process's own: another's work does not count."""
    (variant,) = cell.variants
    bench = cell.build(device="meta")
    flops = cell.counted(bench)[variant]["flops"] * bench.units
    found = cell.measured(hardware, repeats, 1)[variant]
    return {"flops": flops, "seconds": found.get("cpu_seconds", found.get("seconds", []))}


def fit(points: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """(start, seconds per FLOP), neither below 0, of time = start + FLOPs * that: least squares of relative errors."""
    seconds = torch.tensor([value(p, "seconds") for p in points], dtype=torch.float64)
    terms = torch.tensor([[1.0, p["flops"]] for p in points], dtype=torch.float64)
    alone = 1 / float((terms[:, 1] / seconds).mean())
    if len({p["flops"] for p in points}) < 2:
        return 0.0, alone
    scale = terms.abs().amax(0)
    found = (
        torch.linalg.lstsq(terms / scale / seconds[:, None], torch.ones_like(seconds)[:, None]).solution[:, 0] / scale
    )
    start, rate = found.tolist()
    return (start, rate) if start >= 0 and rate > 0 else (0.0, alone)


def section(name: str, title: str, points: list[dict[str, Any]], folder: Path, why: str) -> list[str]:
    """The plot, the table, and how far each point lies from FLOPs alone."""
    points = [p for p in points if p["seconds"]]
    start, rate = fit(points)
    last = points[-1]
    foretold = [p["flops"] * value(last, "seconds") / last["flops"] for p in points]
    write_text(folder / f"{name}.svg", plot(title, name, points, foretold))
    heads = [name, "TFLOP", "s (min to max)", "s, by FLOPs from the last", "measured / that"]
    rows = [
        [str(p["x"]), f"{p['flops'] / 1e12:.3g}", spread(p, "seconds"), f"{by:.3g}", f"{value(p, 'seconds') / by:.2f}"]
        for p, by in zip(points, foretold, strict=True)
    ]
    law = f"Fitted: {1000 * start:.0f} ms + FLOPs / {1 / rate / 1e9:.3g} GFLOP/s. " if start else ""
    return [f"![{title}]({name}.svg)", "", grid(heads, rows), "", f"{law}Where it departs: {why}."]


def plot(title: str, name: str, points: Sequence[dict[str, Any]], foretold: Sequence[float]) -> str:
    """Both axes logarithmic: dots are medians, the line is what FLOPs foretell."""
    measured = [value(p, "seconds") for p in points]
    xs, every = [p["x"] for p in points], [*measured, *foretold]
    right, bottom = SIZE["width"] - SIZE["right"], SIZE["height"] - SIZE["bottom"]

    def part(number: float, low: float, high: float) -> float:
        return math.log(number / low) / math.log(high / low) if high > low else 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        across = SIZE["left"] + (right - SIZE["left"]) * part(x, min(xs), max(xs))
        return across, bottom - (bottom - SIZE["top"]) * part(y, min(every) / 1.2, max(every) * 1.2)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, xs, foretold))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#1f6feb"/>' for x, y in map(place, xs, measured))
    marks = "".join(
        f'<text x="{place(x, y)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{x}</text>'
        f'<text x="{SIZE["left"] - 6}" y="{place(x, y)[1] + 4:.1f}" text-anchor="end">{y:.2g}</text>'
        for x, y in zip(xs, measured, strict=True)
    )
    box = f'viewBox="0 0 {SIZE["width"]} {SIZE["height"]}" font-family="sans-serif" font-size="11" role="img"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}><title>{title}</title>'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<path d="M{SIZE["left"]} {SIZE["top"]}V{bottom}H{right}" fill="none" stroke="#888"/>{marks}'
        f'<polyline points="{line}" fill="none" stroke="#888" stroke-dasharray="5 4"/>{dots}'
        f'<text x="{right}" y="{SIZE["height"] - 6}" text-anchor="end">'
        f"{name}; dots: seconds a step, line: by FLOPs</text></svg>\n"
    )


def over_processes(model: str, counts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Each process takes its own step of CPO and then the mean of all gradients, as DDP does."""
    cell = Cell("cpo", model, 2, chosen=("exact",))
    bench, found = cell.build(device="meta"), []
    flops = cell.counted(bench)["exact"]["flops"] * bench.units
    for count in counts:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        context = mp.get_context("spawn")
        queue = context.SimpleQueue()
        mp.spawn(_process, (count, port, cell, repeats, queue), count)
        found.append({"x": count, "flops": flops, "seconds": queue.get()})
    return found


def _process(rank: int, count: int, port: int, cell: Cell, repeats: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=count)
    bench, seconds = cell.build(), []
    for _ in range(1 + repeats):
        dist.barrier()
        started = time.perf_counter()
        bench.step("exact")
        for weight in bench.method.policy.parameters():
            dist.all_reduce(weight.grad)
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        queue.put(seconds[1:])
    dist.barrier()
    dist.destroy_process_group()
