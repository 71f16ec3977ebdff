"""A sweep as a whole: its folder, which of its jobs are done, which failed, and what its seeds say together.

A sweep is its folder: everything here is read from the files that the jobs leave, so it holds for jobs of this process,
of other processes and of other machines alike, and a sweep that is started again in its folder goes on with what is
missing.
"""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from lpo_platform.config import stored
from lpo_platform.config.errors import UserError
from lpo_platform.runs import files, foreign, record, resume

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lpo_platform.runs.seeds import Row

# Groups and keys of a command line with which a sweep may go on in its folder although they have changed.
FREE = ("hardware", "logger", "name", "resume", "hydra")


@dataclass(frozen=True)
class SweepJob:
    """One job, as its folder shows it. status: finished, failed, interrupted (it left no end), running or foreign."""

    folder: Path
    number: int
    overrides: list[str]
    seed: int | None
    status: str
    reason: str | None
    seconds: float | None
    metrics: dict[str, dict[str, Any]]
    primary: str

    @classmethod
    def read(cls, folder: Path) -> SweepJob:
        result = files.read_json(folder / "result.json")
        result = result if isinstance(result, dict) else {}
        hydra = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.job
        status, reason = result.get("status"), result.get("reason")
        if status not in ("finished", "failed", "interrupted"):
            status, reason = "interrupted", "it ended without a result (killed, or out of memory or time)"
        config = OmegaConf.to_container(stored.load(folder / ".hydra/config.yaml"), resolve=True)
        if found := foreign.differences(folder, config):
            status, reason = "foreign", f"its folder holds a run with another configuration ({foreign.keys(found)})"
        if resume.in_use(folder):
            status, reason = "running", "another process works in its folder"
        return cls(
            folder,
            int(hydra.get("num") or 0),
            [str(item) for item in OmegaConf.load(folder / ".hydra" / "overrides.yaml")],
            result.get("seed"),
            status,
            None if status == "finished" else str(reason).splitlines()[0],
            result.get("seconds"),
            result.get("metrics") or {},
            str(hydra.get("name") or "train"),
        )


def folder_of(cfg: DictConfig) -> Path:
    """Where a sweep goes, as a literal path: `${now:}` would have another value later."""
    return Path(str(cfg.hydra.sweep.dir))


def begin(folder: Path, overrides: Sequence[str]) -> None:
    """Puts a sweep on record; UserError where the folder holds a sweep over something else."""
    known = files.read_json(folder / "sweep.json")
    wanted = _essential(overrides)
    if isinstance(known, dict) and _essential(known.get("overrides", [])) != wanted:
        held = shlex.join(known.get("overrides", []))
        raise UserError(f"hydra.sweep.dir={folder} holds another sweep ({held}); give this one a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    before = known if isinstance(known, dict) else {}
    now = {"status": "running", "overrides": record.redact_command(overrides)}
    record.write_json(folder / "sweep.json", {**before, **now})
    record.link_latest(folder)


def _essential(overrides: Sequence[str]) -> list[str]:
    return sorted(item for item in record.redact_command(overrides) if key(item) not in FREE)


def key(override: str) -> str:
    """The group, or the first part of the key, that an override sets."""
    return override.partition("=")[0].lstrip("+~").replace("/", ".").split(".")[0]


def objective(folder: Path, direction: str) -> float | None:
    """What a sweeper improves: the gain of a job, with the sign changed for a sweeper that minimises, Optuna's
    default."""
    value = gain(folder)
    return value if value is None or "max" in direction else -value


def gain(folder: Path) -> float | None:
    """The difference of the first metric with a direction, turned so that more is better; None where it has none."""
    result = files.read_json(folder / "result.json")
    if not isinstance(result, dict) or result.get("status") != "finished":
        return None
    for metric in result["metrics"].values():
        if metric["higher_is_better"] is not None:
            difference = metric["difference"]
            return difference if metric["higher_is_better"] or difference is None else -difference
    return None


def wait(folder: Path) -> None:
    """Waits until nothing of a sweep is in Slurm's queue or at work in its folder."""
    numbers = {path.name.partition("_")[0] for path in folder.glob(".submitit/*/*_submission.sh")}
    while _queued() & numbers or any(map(resume.in_use, runs(folder))):
        time.sleep(2)


def _queued() -> set[str]:
    """The numbers of the jobs, or of the arrays, in Slurm's queue."""
    if shutil.which("squeue") is None:
        return set()
    return set(subprocess.run(["squeue", "-h", "-o", "%F"], capture_output=True, text=True).stdout.split())


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder shows it: jobs in their order, `labels` their settings, `rows` what the seeds say."""

    folder: Path
    jobs: list[SweepJob]
    labels: list[str]
    rows: list[Row]

    @property
    def finished(self) -> list[tuple[str, SweepJob]]:
        both = zip(self.labels, self.jobs, strict=True)
        return [(label, job) for label, job in both if job.status == "finished"]

    @property
    def settings(self) -> dict[str, list[SweepJob]]:
        """The finished jobs of each setting."""
        found: dict[str, list[SweepJob]] = {}
        for label, job in self.finished:
            found.setdefault(label, []).append(job)
        return found


def repeat(primary: str, lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """What runs these overrides again: one command if they are all combinations of some values, else one for each."""
    kept = (tuple(w for w in record.redact_command(line) if key(w) not in ("hydra", "resume")) for line in lines)
    lines = list(dict.fromkeys(kept))
    keys = [[item.partition("=")[0] for item in line] for line in lines]
    alike = all(own == keys[0] for own in keys)
    columns = [list(dict.fromkeys(column)) for column in zip(*lines, strict=True)] if alike else []
    if not alike or math.prod(map(len, columns)) != len(lines):
        return [[f"lpo-{primary}", *line] for line in lines]
    several = ["-m"] if len(lines) > 1 else []
    joined = [",".join([column[0], *(item.partition("=")[2] for item in column[1:])]) for column in columns]
    return [[f"lpo-{primary}", *several, *joined]]


def read(folder: Path) -> Sweep:
    """What lies in a sweep's folder, whether it is at work or at its end."""
    from lpo_platform.runs import seeds

    jobs = sorted(map(SweepJob.read, runs(folder)), key=lambda job: job.number)
    labels = [setting(own) for own in distinct([job.overrides for job in jobs])]
    both = zip(labels, jobs, strict=True)
    rows = seeds.rows([(label, job.seed, job.metrics) for label, job in both if job.status == "finished"])
    return Sweep(folder, jobs, labels, rows)


def runs(folder: Path) -> Iterator[Path]:
    """The run folders below a folder, but not what lies inside a run (its evaluations)."""
    for child in sorted(folder.iterdir()):
        if (child / ".hydra" / "overrides.yaml").is_file():
            yield child
        elif child.is_dir() and not child.name.startswith("."):
            yield from runs(child)


def distinct(overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job's overrides those that not all jobs have."""
    common = set.intersection(*(set(items) for items in overrides)) if overrides else set()
    return [[item for item in items if item not in common] for items in overrides]


def setting(own: Sequence[str]) -> str:
    """What tells a job from those with other settings, its seed apart: `method.beta=100`; '' where nothing does."""
    return " ".join(item for item in own if not item.startswith("seed="))
