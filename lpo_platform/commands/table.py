"""Which function does the work of each command. It is imported when it is called, since that imports torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "train": "lpo_platform.commands.train:train",
    "eval": "lpo_platform.commands.evaluate:evaluate",
    "prepare": "lpo_platform.commands.prepare:prepare",
    "score": "lpo_platform.commands.score:score",
    "doctor": "lpo_platform.commands.doctor.doctor:doctor",
}


def work_of(name: str) -> Callable[[DictConfig, Path], object]:
    """The function that does the work of a command with a configuration in a folder."""
    module, _, function = COMMANDS[name].partition(":")
    with uncollected():
        return getattr(import_module(module), function)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is looked for while modules are imported: they make half a million objects and no garbage, and looking
    through them again and again is a sixth of the time that imports take."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
