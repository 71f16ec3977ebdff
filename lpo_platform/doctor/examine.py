"""lpo-doctor: every check in turn, on a few samples, in a temporary folder."""

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from omegaconf import DictConfig

from lpo_platform import build
from lpo_platform.config import UserError
from lpo_platform.distributed import lead
from lpo_platform.doctor import inputs, judged, kept, resources
from lpo_platform.doctor.checkup import Checkup
from lpo_platform.doctor.finding import Finding, failed
from lpo_platform.doctor.small import few, small
from lpo_platform.hardware import Hardware

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
    made: list[build.Job] = []
    yield from checked("set-up", lambda: made.append(assemble(short, folder)) or ())
    yield from checked("memory", lambda: resources.room(cfg, Path.cwd()))
    if not made:
        return
    job = made[0]
    yield from checked("data", lambda: resources.readable(job))
    rows: list[object] = []
    yield from checked("columns", lambda: rows.append(job.rows()) or [resources.columns(job, rows[0])])
    if not rows:
        return
    yield from checked("labels", lambda: [judged.labels(job, rows[0])])
    look = inputs.Look.at(job)
    yield from checked("prompt", lambda: [inputs.prompt(look)])
    yield from checked("guidance", lambda: inputs.guidance(look))
    yield from checked("reward", lambda: judged.reward(look))
    yield from training(look, rows[0], folder)


def training(look: inputs.Look, rows: object, folder: Path) -> Iterator[Finding]:
    """Two steps of the method itself, and what they have done."""
    job = look.job
    before = look.output(look.samples[0].caption, look.control)
    settings = build.create(job.cfg.callbacks)
    checkup = Checkup(folder, averaged=settings.ema_decay is not None, stops=False)

    def train() -> Iterable[Finding]:
        method, evaluator = build.method_of(job), build.create(job.cfg.metrics)
        build.fit(job, method, rows, evaluator, settings, folder, None, checkup=checkup)
        return ()

    problem = list(checked("training", train))
    found = {finding.check: finding for finding in checkup.findings}
    yield from found.values()
    yield from problem
    if problem:
        return
    yield from checked("step", lambda: [kept.step(look, before, found.get("round"))])
    yield from checked("reference", lambda: [kept.reference(look, before)])
    yield from checked("condition", lambda: [inputs.condition(look)])
    yield from checked("save", lambda: [kept.saved(look, folder / "export")])


def assemble(cfg: DictConfig, folder: Path) -> build.Job:
    """The job with few rows, its caches in the folder."""
    job = build.assemble(cfg)
    job.data, job.cache = few(job.data), folder / "cache"
    return job


def checked(check: str, work: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that breaks has failed."""
    try:
        yield from work()
    except UserError as error:
        yield failed(check, str(error).replace("\n", ", "), "")
    except Exception as error:
        if os.environ.get("LPO_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        last = traceback.format_exception_only(error)[-1].strip()
        yield failed(check, last, "LPO_DEBUG=1 shows where")
