"""A task of a job that submitit has started, on Slurm or on this machine, as one process of a run.

A job of several tasks is one run of as many processes. Task 0 holds the run folder and reports for all; every task
starts one process of `lpo_platform.commands.process` with torchrun's variables and watches it. The tasks agree through
files, since a job may cover several nodes and the folder is what they share. When a process fails, every task ends its
own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from lpo_platform.config.errors import UserError
from lpo_platform.hardware import launch
from lpo_platform.runs import files, record

if TYPE_CHECKING:
    from omegaconf import DictConfig

PATIENCE = 600  # seconds that a task waits for task 0, which may start later
LOOK = 0.2  # seconds between two looks at the files
GO, STOP = "go", "stop"


@dataclass(frozen=True)
class SlurmTask:
    """This task's place in its job. files: what the tasks of this attempt of the job tell each other."""

    rank: int
    count: int
    environment: dict[str, str]
    files: Path


def task() -> SlurmTask | None:
    """This process's task, None in a job of one task and outside of jobs."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    import submitit
    from submitit.helpers import TorchDistributedEnvironment

    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return None
    there = TorchDistributedEnvironment()
    variables = {
        "MASTER_ADDR": "127.0.0.1" if job.num_nodes == 1 else there.master_addr,
        "MASTER_PORT": str(there.master_port),
        "RANK": str(there.rank),
        "WORLD_SIZE": str(there.world_size),
        "LOCAL_RANK": str(there.local_rank),
        "LOCAL_WORLD_SIZE": str(there.local_world_size),
        "GROUP_RANK": str(job.node),
    }
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    return SlurmTask(there.rank, there.world_size, variables, Path(os.environ["SUBMITIT_FOLDER"]) / f"tasks-{attempt}")


def lead(task: SlurmTask, primary: str, cfg: DictConfig, folder: Path) -> None:
    """Task 0: freezes the configuration, lets the others go, runs its process.

    UserError and ProcessFailed say what went wrong in any of them.
    """
    notes = folder / launch.NOTES
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    frozen = OmegaConf.to_container(cfg, resolve=True)
    again = {"resume": None} if "resume" in frozen else {}
    files.write_text(folder / "resolved.yaml", record.resolved_yaml({**frozen, **again}))
    say(task, GO)
    code = _run(task, primary, folder)
    if found := launch.read_notes(notes):
        raise launch.cause(found, {0: code})
    if code == 130:
        raise KeyboardInterrupt
    shutil.rmtree(notes, ignore_errors=True)


def follow(task: SlurmTask, primary: str, folder: Path) -> None:
    """Every other task: runs its process when task 0 says so; what goes wrong in it, task 0 tells."""
    word = _listen(task)
    if word is None:
        raise UserError(f"task {task.rank} waited {PATIENCE} s for task 0; both must see the folder {task.files}")
    if word == GO:
        _run(task, primary, folder)


def say(task: SlurmTask, word: str) -> None:
    """Tells the other tasks GO or STOP. The first word counts."""
    task.files.mkdir(parents=True, exist_ok=True)
    if not (task.files / "word").exists():
        files.write_text(task.files / "word", word)


def _listen(task: SlurmTask) -> str | None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            return (task.files / "word").read_text(encoding="utf-8")
        except FileNotFoundError:
            time.sleep(LOOK)
    return None


def _run(task: SlurmTask, primary: str, folder: Path) -> int:
    """One process of the run, ended early when another task's has failed; its exit code."""
    environment = {
        **os.environ,
        **task.environment,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        launch.COMMAND: json.dumps(sys.argv),
        launch.PARENT: str(os.getpid()),
    }
    command = [sys.executable, "-m", "lpo_platform.commands.process", primary, str(folder.resolve())]
    notes = folder / launch.NOTES
    # a session of its own: Slurm's signals are for the task, which answers them
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while process.poll() is None and not launch.read_notes(notes):
            time.sleep(LOOK)
        if process.poll() is None:
            _end(process)
        elif process.returncode not in (0, 130) and not (notes / f"rank-{task.rank}.json").exists():
            _note_death(notes / f"rank-{task.rank}.json", task.rank, process.returncode)
    finally:
        process.kill()
    return process.wait()


def _end(process: subprocess.Popen) -> None:
    """Lets a process that waits for a failed one end by itself, and its own error be noted, before it is killed."""
    try:
        process.wait(launch.GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def _note_death(path: Path, rank: int, code: int) -> None:
    """What a process that was killed could not write itself; its time is before the errors that it causes."""
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    advice = " (out of memory?)" if name == "SIGKILL" else ""
    reason = f"a process was ended by {name}{advice}"
    record.write_json(path, {"rank": rank, "user": False, "reason": reason, "traceback": "", "time": 0.0})
