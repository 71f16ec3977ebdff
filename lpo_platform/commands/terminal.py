"""What all commands share: the name before each message, the form of paths, the threads of torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

from lpo_platform import __version__

VERSION = f"lpo-platform {__version__}"  # what --version prints


@dataclass
class Command:
    """One console command.

    Args:
        name: as the user types it.
        primary: the file of conf/ that its configuration begins with.
        work: what it does with a configuration in a folder; None is what the table of commands names.
        code: the exit status, the worst of its jobs.
        sweep: the folder of several jobs.
    """

    name: str
    primary: str
    work: Callable[[DictConfig, Path], object] | None = None
    code: int = 0
    sweep: Path | None = None


def set_threads() -> None:
    """Lets idle OpenMP threads sleep: on a shared machine spinning ones make torch tens of times slower.

    Must run before torch is imported; what the user has set stays.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def say(command: Command, text: str) -> None:
    print(f"{command.name}: {text}", file=sys.stderr, flush=True)


def shown(folder: Path) -> str:
    """A path as a person would type it: relative where it lies below the current directory."""
    return os.path.relpath(folder) if Path(folder).resolve().is_relative_to(Path.cwd()) else str(folder)
