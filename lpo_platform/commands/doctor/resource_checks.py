"""Whether the run has what it needs: rows that can be read, memory, disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from lpo_platform.commands.doctor.finding import Finding, doubtful, failed, ok, skipped
from lpo_platform.commands.job import Job
from lpo_platform.commands.plan.budget import ROOM
from lpo_platform.commands.plan.bytes import disk, memory, size
from lpo_platform.commands.plan.plan import half
from lpo_platform.commands.plan.rates import device_of
from lpo_platform.commands.plan.work import activations, assemble
from lpo_platform.config.errors import UserError
from lpo_platform.data.source import Source, first


def readable(job: Job) -> Iterator[Finding]:
    """The first rows of both splits."""
    for name in ("train", "test"):
        source: Source = getattr(job.drawn, name)
        found = first(source, len(source))
        if not found:
            advice = "check data.path and the names of its columns"
            yield failed("data", f"none of the first {len(source)} rows of {name} can be read", advice)
        elif len(found) < len(source):
            what = f"{len(source) - len(found)} of the first {len(source)} rows of {name} cannot be read"
            yield doubtful("data", what, "they are left out; look at them if there are many")
        else:
            yield ok("data", f"the first {len(found)} rows of {name} can be read")


def columns(job: Job, rows: object) -> Finding:
    """Whether training samples have what the method asks for."""
    if rows is None:
        return skipped("columns", "the method makes its samples itself")
    missing = [name for name in job.needs() if name not in rows[0]]
    if missing:
        return failed("columns", f"the samples have no {', '.join(missing)}", "check data= and task=")
    return ok("columns", f"samples have {', '.join(job.needs())}")


def room(cfg: DictConfig, folder: Path) -> Iterator[Finding]:
    """lpo-plan's estimates against this machine; folder: where the run would write."""
    try:
        job, device = assemble(cfg), device_of("auto" if cfg.hardware.accelerator != "cpu" else "cpu")
    except UserError as error:
        yield skipped("memory", f"lpo-plan cannot tell: {error}")
        return
    small = half(cfg, device)
    needed, there = sum(memory(job, activations(job), half=small).values()), ROOM * device.memory
    there /= 1 if device.gpu else job.hardware.local_processes
    what = f"about {size(needed)} for each process, {size(there)} are free"
    if needed > there:
        yield doubtful("memory", what, "lpo-plan with the same arguments says what to change")
    else:
        yield ok("memory", what)
    written, free = sum(disk(job, half=small).values()), shutil.disk_usage(folder).free
    what = f"checkpoints, exports and caches take {size(written)}, {size(free)} are free in {folder}"
    if written > free:
        yield failed("space", what, "free space, or run from a folder on a larger disk")
    else:
        yield ok("space", what)
