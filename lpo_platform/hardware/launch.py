"""Starts the processes of a job that needs several, by torchrun's agent, with the frozen configuration of the job.

Lightning's own launcher repeats the command line, and with it a whole sweep. Here the processes of a node run
`python -m lpo_platform.commands.process <command> <run folder>` and read resolved.yaml there, so that every job of a
sweep has its own processes in its own folder. What goes wrong in them is told once, by the process that the user has
called.

Processes that somebody else has started (torchrun, Slurm) find LOCAL_RANK set and are left alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from lpo_platform.config.errors import RunFailed, UserError
from lpo_platform.runs import files, record, signals

if TYPE_CHECKING:
    from omegaconf import DictConfig

NOTES = ".processes"  # folder of a run folder while its processes run
COMMAND, PARENT = "LPO_COMMAND", "LPO_PARENT"  # environment of the processes: the user's command, who started them
GRACE = 10  # seconds that interrupted processes have to end
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]


class ProcessFailed(Exception):
    """A process ended with an error that is not the user's, with the `traceback` of that process."""

    def __init__(self, reason: str, traceback: str) -> None:
        super().__init__(reason)
        self.traceback = traceback


def rank() -> int:
    """The number of this process among those of the run, from its environment."""
    return int(os.environ.get("RANK", 0))


def processes(cfg: DictConfig) -> int:
    """How many processes this one has to start: 1 is none. UserError for several nodes, which need a launcher."""
    hardware = cfg.get("hardware") or {}
    if "LOCAL_RANK" in os.environ or hardware.get("strategy", "single") == "single":
        return 1
    if hardware.num_nodes > 1:
        raise UserError(
            f"hardware.num_nodes={hardware.num_nodes}: one call starts the processes of one node; use "
            "hydra/launcher=slurm, or launchers/torchrun.sh on every node"
        )
    if hardware.devices is not None:
        return hardware.devices
    import torch

    if hardware.accelerator == "cpu" or not torch.cuda.is_available():
        raise UserError("hardware.devices=null: torch finds no GPU to count; say how many, as in hardware.devices=2")
    return torch.cuda.device_count()


def run(primary: str, cfg: DictConfig, folder: Path, count: int) -> None:
    """Runs one job in `count` processes and waits for them.

    UserError and ProcessFailed say what went wrong in them. A signal reaches them and comes out as signals.Stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    notes = folder.resolve() / NOTES
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    frozen = OmegaConf.to_container(cfg, resolve=True)
    frozen |= {"resume": None} if "resume" in frozen else {}  # the folder says what there is to go on from
    files.write_text(folder / "resolved.yaml", record.resolved_yaml(frozen))
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=notes.parent.name, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0, monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(notes)), shutdown_timeout=GRACE,
    )  # fmt: skip
    arguments = ("-m", "lpo_platform.commands.process", primary, str(folder))
    try:
        with _environment(count), _handlers(), _silence():
            elastic_launch(settings, sys.executable)(*arguments)
    except SignalException as error:
        raise signals.Stopped(error.sigval) from None
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        raise cause(read_notes(notes), codes) from None
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def cause(notes: list[dict], codes: dict[int, int]) -> BaseException:
    """What ended the run, of what its processes have noted and their exit codes: the others only missed each other.

    A mistake of the user before a run that cannot go on, before a killed process, before the first error.
    """
    mistakes = sorted((note for note in notes if note["user"]), key=lambda note: note["rank"])
    if mistakes:
        return UserError(mistakes[0]["reason"])
    failures = sorted((note for note in notes if note.get("failed")), key=lambda note: note["rank"])
    if failures:
        return RunFailed(failures[0]["reason"])
    noted = {note["rank"] for note in notes}
    killed = [number for number, code in sorted(codes.items()) if code < 0 and number not in noted]
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        advice = " (out of memory?)" if name == "SIGKILL" else ""
        return ProcessFailed(f"process {killed[0]} was ended by {name}{advice}", "")
    if any(code == 130 for code in codes.values()):
        return KeyboardInterrupt()
    if notes:
        first = min(notes, key=lambda note: note["time"])
        return ProcessFailed(f"{first['reason']} (in process {first['rank']})", first["traceback"])
    return ProcessFailed(f"the processes ended with {codes} and without a word", "")


def read_notes(folder: Path) -> list[dict]:
    return [note for path in sorted(folder.glob("rank-*.json")) if (note := files.read_json(path)) is not None]


@contextlib.contextmanager
def _environment(count: int) -> Iterator[None]:
    """What the processes inherit; their threads share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(int(os.environ.get("OMP_NUM_THREADS", cores)), max(1, cores // count))
    before = dict(os.environ)
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # classes of the user's, too
        "PYTHONSAFEPATH": "1",
        COMMAND: json.dumps(sys.argv),
        PARENT: str(os.getpid()),
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """The agent installs handlers of signals and leaves them; a later job of a sweep has its own."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The agent tells a failure at length, in its own words; ours says what failed."""
    known = [name for name in list(logging.root.manager.loggerDict) if name.startswith("torch.distributed")]
    loggers = [logging.getLogger(name) for name in ("torch.distributed", *known)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
