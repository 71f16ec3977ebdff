"""lpo-doctor: every check in turn, on a few samples, in a temporary folder."""

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from omegaconf import DictConfig

from lpo_platform.commands import build, job
from lpo_platform.commands.doctor import input_checks, resource_checks, reward_checks, weight_checks
from lpo_platform.commands.doctor.finding import Finding, failed
from lpo_platform.commands.doctor.first_step import Checkup
from lpo_platform.commands.doctor.small_run import few, small
from lpo_platform.commands.fit import fit
from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.rows import Chosen, Rows
from lpo_platform.hardware.distributed import lead
from lpo_platform.hardware.hardware import Hardware

FAILED = "failed"  # a file in the folder, for who started the processes


def doctor(cfg: DictConfig, folder: Path) -> None:
    """Prints a line for every check; leaves the file FAILED in the folder if one failed."""
    count = 0
    for finding in examine(cfg, folder):
        count += finding.state == "FAILED"
        if lead():
            print(finding, flush=True)
    if lead():
        print(f"\n{count} check{'s' * (count > 1)} failed" if count else "\nnothing failed", flush=True)
        if count:
            (folder / FAILED).touch()


def examine(cfg: DictConfig, folder: Path) -> Iterator[Finding]:
    """The findings one by one; folder: for caches, a checkpoint and an export, all small."""
    hardware: Hardware = build.create(cfg.hardware)
    short = small(cfg, hardware.processes)
    assembled: list[job.Job] = []
    yield from checked("set-up", lambda: assembled.append(assemble(short, folder)) or ())
    yield from checked("memory", lambda: resource_checks.room(cfg, Path.cwd()))
    if not assembled:
        return
    (ready,) = assembled
    yield from checked("data", lambda: resource_checks.readable(ready))
    rows: list[Rows | None] = []
    yield from checked("columns", lambda: rows.append(ready.rows()) or [resource_checks.columns(ready, made(rows[0]))])
    if not rows:
        return
    yield from checked("labels", lambda: [reward_checks.labels(ready, made(rows[0]))])
    look = input_checks.Look.at(ready)
    yield from checked("prompt", lambda: [input_checks.prompt(look)])
    yield from checked("guidance", lambda: input_checks.guidance(look))
    yield from checked("reward", lambda: reward_checks.reward(look))
    yield from training(look, rows[0], folder)


def made(rows: Rows | None) -> Chosen | None:
    """All of the few rows that can be used."""
    if rows is None:
        return None
    rows.fill()
    return rows.usable()


def training(look: input_checks.Look, rows: Rows | None, folder: Path) -> Iterator[Finding]:
    """Two steps of the method itself, and what they have done."""
    ready = look.job
    before = look.output(look.samples[0].caption, look.control)
    settings = build.create(ready.cfg.callbacks)
    checkup = Checkup(folder, averaged=settings.ema_decay is not None, stops=False)

    def steps() -> Iterable[Finding]:
        method, evaluator = job.method_of(ready), build.create(ready.cfg.metrics)
        fit(ready, method, rows, evaluator, settings, folder, checkup=checkup)
        return ()

    problem = list(checked("training", steps))
    found = {finding.check: finding for finding in checkup.findings}
    yield from found.values()
    yield from problem
    if problem:
        return
    yield from checked("step", lambda: [weight_checks.step(look, before, found.get("round"))])
    yield from checked("reference", lambda: [weight_checks.reference(look, before)])
    yield from checked("condition", lambda: [input_checks.condition(look)])
    yield from checked("save", lambda: [weight_checks.saved(look, folder / "export")])


def assemble(cfg: DictConfig, folder: Path) -> job.Job:
    """The job with few rows, its caches in the folder."""
    ready = job.assemble(cfg)
    ready.data, ready.cache = few(ready.data), folder / "cache"
    return ready


def checked(check: str, work: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check. A check that raises an error has failed."""
    try:
        yield from work()
    except UserError as error:
        yield failed(check, str(error).replace("\n", ", "), "")
    except Exception as error:
        if os.environ.get("LPO_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        last = traceback.format_exception_only(error)[-1].strip()
        yield failed(check, last, "LPO_DEBUG=1 shows where")
