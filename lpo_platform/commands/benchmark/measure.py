"""FLOPs, time and memory of a step, whatever the step is."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

from lpo_platform.commands.benchmark.bench import Bench
from lpo_platform.commands.plan.count import flops

Result = dict[str, Any]


def part_flops(bench: Bench) -> dict[str, int]:
    """FLOPs of one forward of each part."""
    with torch.no_grad():
        return {name: flops(run) for name, run in bench.parts().items()}


def timed(bench: Bench, variant: str) -> tuple[float, float]:
    """Seconds of one step, and on CUDA the peak of allocated bytes, else the process's CPU seconds.

    CPU seconds say the same on a machine that is busy with something else; seconds do not.
    """
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, busy = time.perf_counter(), time.process_time()
    bench.step(variant)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() if cuda else time.process_time() - busy


def interleaved(
    bench: Bench, variants: Iterable[str], repeats: int, warmup: int, until: float | None = None
) -> dict[str, Result]:
    """Seconds of every repeat, one variant after the other in each round; the warm-up rounds are dropped.

    A variant that has no room on the GPU is left out of the rounds and says so. until: time.monotonic() after which no
    round starts but the first one that counts.
    """
    results: dict[str, Result] = {variant: {} for variant in variants}
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(warmup + repeats):
        if until is not None and number > warmup and time.monotonic() > until:
            break
        rounds.append({})
        for variant in [name for name, result in results.items() if "failed" not in result]:
            try:
                rounds[-1][variant] = timed(bench, variant)
            except torch.cuda.OutOfMemoryError:
                results[variant] = {"failed": "out of memory"}
        spent = ", ".join(f"{variant} {seconds:.2f} s" for variant, (seconds, _) in rounds[-1].items())
        print(f"round {number + 1} of {warmup + repeats}: {spent}", file=sys.stderr, flush=True)
    for variant in [name for name, result in results.items() if "failed" not in result]:
        seconds, others = zip(*(r[variant] for r in rounds[warmup:]), strict=True)
        other = {"peak_bytes": max(others)} if bench.device.type == "cuda" else {"cpu_seconds": list(others)}
        results[variant] = {"seconds": list(seconds)} | other
    return results


def resident() -> dict[str, int]:
    """Resident bytes of this process now and at its peak.

    From /proc, because Linux lets a child inherit its parent's ru_maxrss; other systems keep one figure each.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return {name: int(fields[key].split()[0]) * 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}
    if sys.platform == "win32":
        memory = psutil.Process().memory_info()
        return {"now": memory.rss, "peak": memory.peak_wset}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"now": peak, "peak": peak}


def peak(bench: Bench, variant: str) -> dict[str, int]:
    """Peak resident set of this process, which should do nothing else, over one step."""
    before = resident()["now"]
    bench.step(variant)
    return {"peak_bytes": resident()["peak"], "model_bytes": before}
