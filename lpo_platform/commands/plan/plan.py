"""lpo-plan: memory, FLOPs, time and disk of a run before anything of it runs, with every assumption shown."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.job_log import quiet
from lpo_platform.commands.plan.budget import ROOM, largest
from lpo_platform.commands.plan.bytes import counts, disk, memory, reading, size
from lpo_platform.commands.plan.devices import DEVICES
from lpo_platform.commands.plan.rates import Device, device_of
from lpo_platform.commands.plan.reading import Reading
from lpo_platform.commands.plan.settings import Settings
from lpo_platform.commands.plan.work import Piece, PlannedJob, activations, assemble, before_training, pieces, steps
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF, KEPT
from lpo_platform.config.signature import attribute


@dataclass(frozen=True)
class Plan:
    """What a run will take. seconds: of computing alone, data and rewards of pictures not included."""

    job: PlannedJob
    device: Device
    settings: Settings
    memory: dict[str, float]
    disk: dict[str, float]
    pieces: list[Piece]
    reading: Reading | None
    folder: Path
    """Where the run will be; caches are in the current folder."""

    @property
    def first_step(self) -> dict[str, float]:
        """Seconds of what precedes the first step: half of the evaluation's pictures, and the samples of a step."""
        before: dict[str, float] = {}
        for piece in self.pieces:
            if piece.name.startswith("evaluation"):
                before["the base is evaluated"] = piece.flops * piece.times / 2 / self.rate
            elif piece.name == "rollouts of a round":
                before["the first round is played"] = piece.flops / self.rate
            elif piece.name != "optimiser step":
                made = f"{self._made_at_once:,} samples are made"
                before[made] = before.get(made, 0) + piece.flops * self._made_at_once / self.rate
        return before

    @property
    def _made_at_once(self) -> int:
        """Samples that are made before the first step, by all processes: whole groups."""
        job = self.job
        if before_training(job):
            return self.reading.distinct
        group = job.cfg.hardware.micro_batch or 32
        return -(-job.method.batch // (group * job.hardware.processes)) * group * job.hardware.processes

    @property
    def flops(self) -> float:
        return sum(piece.flops * piece.times for piece in self.pieces)

    @property
    def rate(self) -> float:
        """FLOP/s of all processes."""
        full = 0.5 if self.device.gpu and not half(self.job.cfg, self.device) else 1.0  # TF32 is half as fast
        return self.device.peak * full * self.settings.utilisation * self.job.hardware.processes

    @property
    def seconds(self) -> float:
        return self.flops / self.rate

    @property
    def fits(self) -> bool:
        return sum(self.memory.values()) <= ROOM * self.device.memory


def half(cfg: DictConfig, device: Device) -> bool:
    precision = cfg.hardware.precision
    return precision.endswith("-mixed") or (precision == "auto" and device.gpu)


def plan(cfg: DictConfig, settings: Settings, folder: Path = Path()) -> Plan:
    """Counts everything; nothing is loaded, read or trained. UserError where the model's shape is not known."""
    quiet()
    device = device_of(settings.device)
    small = half(cfg, device)
    if cfg.hardware.micro_batch == "auto":
        gb = cfg.hardware.memory_gb
        micro = largest(cfg, device.memory if gb is None else 1e9 * gb, half=small)
        cfg = OmegaConf.merge(cfg, {"hardware": {"micro_batch": micro}})
    job = assemble(cfg)
    read = reading(job, half=small)
    found = memory(job, activations(job), half=small), disk(job, half=small), pieces(job, read)
    return Plan(job, device, settings, *found, read, folder)


def advice(found: Plan) -> tuple[list[str], float]:
    """Overrides that make the run fit, none of them useless, and the bytes that a process then needs."""
    cfg, given, needed = found.job.cfg, [], sum(found.memory.values())
    for override in OPTIONS:
        if needed <= ROOM * found.device.memory:
            break
        for change in override(cfg, found.job.hardware.processes):
            changed = OmegaConf.merge(cfg, OmegaConf.create(change.values))
            try:
                job = assemble(changed)
                total = sum(memory(job, activations(job), half=half(changed, found.device)).values())
            except UserError:
                continue
            if total < 0.97 * needed:
                cfg, needed = changed, total
                given = [word for word in given if word.split("=")[0] != change.words.split("=")[0]] + [change.words]
            if needed <= ROOM * found.device.memory:
                break
    return given, needed


@dataclass(frozen=True)
class Change:
    """What an override says, and what it does to the configuration."""

    words: str
    values: dict


def _checkpointing(cfg: DictConfig, processes: int) -> Iterator[Change]:
    if not cfg.hardware.gradient_checkpointing:
        yield Change("hardware.gradient_checkpointing=true", {"hardware": {"gradient_checkpointing": True}})


def _smaller(cfg: DictConfig, processes: int) -> Iterator[Change]:
    """Every smaller micro-batch that divides, largest first."""
    own = cfg.method.batch // processes
    for micro in range((cfg.hardware.micro_batch or own) - 1, 0, -1):
        if own % micro == 0:
            yield Change(f"hardware.micro_batch={micro}", {"hardware": {"micro_batch": micro}})


def _packed(cfg: DictConfig, processes: int) -> Iterator[Change]:
    smaller = attribute(cfg.optim._target_, "smaller")
    if smaller and cfg.hardware.strategy != "fsdp":
        node = OmegaConf.load(CONF / "optim" / f"{smaller}.yaml")
        yield Change(f"optim={smaller}", {"optim": {"_target_": node._target_}})


def _sharded(cfg: DictConfig, processes: int) -> Iterator[Change]:
    whole = "" not in attribute(cfg.tune._target_, "unsharded", {})
    if processes > 1 and cfg.hardware.strategy == "ddp" and whole:
        yield Change("hardware=fsdp", {"hardware": {"strategy": "fsdp"}})


def _lora(cfg: DictConfig, processes: int) -> Iterator[Change]:
    node = OmegaConf.load(CONF / "tune" / "lora.yaml")
    learns, instead = (attribute(tune._target_, "trains") for tune in (cfg.tune, node))
    if learns == instead and cfg.tune._target_ != node._target_:
        yield Change("tune=lora", {"tune": node})


def _raw(cfg: DictConfig, processes: int) -> Iterator[Change]:
    if cfg.callbacks.ema_decay is not None:
        words = "callbacks.ema_decay=null callbacks.evaluate=raw"
        yield Change(words, {"callbacks": {"ema_decay": None, "evaluate": "raw"}})


# what changes no result comes first
OPTIONS = (_checkpointing, _smaller, _sharded, _packed, _raw, _lora)


def text(found: Plan) -> str:
    """The plan as a person reads it."""
    job, numbers = found.job, counts(found.job)
    needed = sum(found.memory.values())
    several = f"{job.hardware.processes} x " if job.hardware.processes > 1 else ""
    heading = f"{job.cfg.model.name} on {several}{found.device.name}"
    lines = [
        heading,
        "",
        *_aligned([("parameters", f"{numbers.trained:,}", "are trained"), ("", f"{numbers.frozen:,}", "are frozen")]),
    ]
    lines += ["", f"memory of a process: {size(needed)} of {size(found.device.memory)}"]
    lines += _aligned([("", name, size(value)) for name, value in found.memory.items() if value])
    lines += ["", f"computing: {_flop(found.flops)}, {_duration(found.seconds)}"]
    lines += _aligned(
        [
            ("", f"{p.name}", f"{_flop(p.flops)} x {p.times:,.0f}", _duration(p.flops * p.times / found.rate))
            for p in found.pieces
        ]
    )
    before = found.first_step
    lines += ["", f"first step: after {_duration(sum(before.values()))}, plus loading"]
    lines += _aligned([("", name, _duration(seconds)) for name, seconds in before.items()])
    lines += ["", *data(found)] if found.reading else []
    lines += ["", f"disk: {size(sum(found.disk.values()))}", *map(_shown, disks(found))]
    lines += _aligned([("", name, size(value)) for name, value in found.disk.items() if value])
    lines += ["", "arithmetic", f"  {job.hardware.arithmetic(job.method.batch)}; {steps(job):,.0f} steps"]
    lines += ["", "assumed", *(f"  {line}" for line in assumptions(found))]
    return "\n".join([*lines, "", *verdict(found, needed)])


def data(found: Plan) -> list[str]:
    """What is read of the training samples, and what is kept of it."""
    read, cfg = found.reading, KEPT | OmegaConf.to_container(found.job.cfg.data)
    rows = "an unknown number of rows" if read.rows is None else f"{read.rows:,} rows"
    times = f"{read.reads / read.rows:.3g} times each" if read.rows else "each a different one"
    lines = [f"data: {rows}, of which the run reads {read.reads:,}, {times}"]
    lines.append(f"  {read.reads / found.seconds:.3g} rows are read in a second")
    limits = f"data.cache={cfg['cache']} within data.cache_gb={cfg['cache_gb']:g}"
    lines.append(f"  {read.kept:,} rows are kept, for {limits}")
    if read.makes > read.distinct:
        lines.append(f"  rows that are read again and not kept are made again: {read.makes:,} for {read.distinct:,}")
    return lines


def assumptions(found: Plan) -> list[str]:
    """The assumptions behind the numbers."""
    device, use = found.device, found.settings.utilisation
    rate = "measured by a matrix product here" if found.settings.device in ("auto", "cpu") else "its maker's dense bf16"
    lines = [
        f"{device.peak / 1e12:.3g} TFLOP/s, {rate}, of which {use:.0%} are reached (plan.device=, plan.utilisation=)",
        "detectors, rewards of pictures and reading of data cost nothing",
        "activations as the meta device makes them with fused attention; a GPU's libraries add about 1 GB",
    ]
    if found.reading and found.reading.rows is None:
        lines.append("every sample that a step sees is another one: with fewer in the data, more is kept, less is made")
    return lines + found.job.method.assumed()


@dataclass(frozen=True)
class Disk:
    """What is written below a folder, and what is free there."""

    folder: Path
    needed: float
    free: float


def disks(found: Plan) -> list[Disk]:
    """The disk where the run will be, and that of the caches where it is another one."""
    caches = sum(value for name, value in found.disk.items() if name.startswith("cache"))
    run, here = _there(found.folder), Path.cwd()
    needed = {run: sum(found.disk.values()) - caches}
    place = run if os.stat(run).st_dev == os.stat(here).st_dev else here
    needed[place] = needed.get(place, 0) + caches
    return [Disk(folder, value, shutil.disk_usage(folder).free) for folder, value in needed.items()]


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _shown(disk: Disk) -> str:
    return f"  {size(disk.needed)} in {disk.folder}, where {size(disk.free)} are free"


def verdict(found: Plan, needed: float) -> list[str]:
    lines = []
    if not found.fits:
        words, then = advice(found)
        if then <= ROOM * found.device.memory:
            lines.append(f"does not fit; what works: {' '.join(words)}  ({size(then)})")
        else:
            tried = f" even with {' '.join(words)} ({size(then)})" if words else ""
            lines.append(f"does not fit{tried}; what works: a device with more memory, or a smaller model.resolution")
    for place in disks(found):
        if place.needed > place.free:
            lines.append(f"the disk of {place.folder} is too small: free space, or use a folder on a larger one")
    other = f" on this CPU; for another device: plan.device=<{', '.join(DEVICES)}>" * (not found.device.gpu)
    return lines or ["fits" + other]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    align = lambda cell, width, column: cell.ljust(width) if column < 2 else cell.rjust(width)  # noqa: E731
    return [
        "  ".join(align(*cell, column) for column, cell in enumerate(zip(row, widths, strict=True))) for row in rows
    ]


def _flop(number: float) -> str:
    power = next((power for power in (18, 15, 12, 9) if number >= 10**power), 9)
    return f"{number / 10**power:.3g} { {18: 'EFLOP', 15: 'PFLOP', 12: 'TFLOP', 9: 'GFLOP'}[power] }"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
