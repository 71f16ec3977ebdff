"""Errors that the user can put right, and how they are worded."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException


class UserError(Exception):
    """Something that the user can put right; the commands print it without a traceback."""


class RunFailed(Exception):
    """A run that cannot continue although its command line is right. One message says what happened, where, and what
    helps."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEMORY = (
    "what helps: a smaller hardware.micro_batch, or auto; hardware.gradient_checkpointing=true; for an evaluation a "
    "smaller metrics.batch; lpo-plan with the same words counts what a run needs"
)


def users(error: BaseException) -> BaseException:
    """What is behind an error: memory, a disk that has no room or is not the user's, in words that say what helps."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    if type(error).__name__ == "SafetensorError" and (number := re.search(r"os error (\d+)", str(error))):
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    if _of_memory(error):
        found = next((line for line in str(error).splitlines() if line.strip()), "of the machine")
        return RunFailed(f"out of memory ({found}); {MEMORY}")
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" {error.filename}" if error.filename else ""
        return UserError(f"cannot write{where}: {error.strerror}; make room, then the same command goes on")
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return UserError(f"{error.filename}: {error.strerror}; what works: a folder that you may read and write")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UserError(f"{error.filename}: {error.strerror}; what works: names of at most 255 bytes")
    if isinstance(error, NotADirectoryError | FileExistsError) and (file := _in_the_way(error.filename)) is not None:
        return UserError(f"{file} is a file where a folder is needed; move it away, or take another folder")
    return error


def _of_memory(error: BaseException) -> bool:
    """Whether Python, torch on a GPU, or torch on a CPU could not have the memory that it asked for."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def _in_the_way(path: object) -> Path | None:
    """The file that stands where a path has a folder; None where there is none."""
    whole = Path(str(path))
    return next((part for part in (whole, *whole.parents) if part.exists() and not part.is_dir()), None)


class ConfigError(UserError):
    """The configuration cannot work; `problems` holds one line for each reason."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


MOST_MEANT = 3  # names that an answer suggests


def hint(name: str, names: Iterable[str], *, options: bool = True) -> str:
    """`; did you mean 'beta'? Options: batch, beta`."""
    names = sorted(set(names))
    close = [other for other in names if name in other.split("_")]  # dpo is meant by diffusion_dpo, not by ddpo
    if not 0 < len(close) <= MOST_MEANT:
        close = difflib.get_close_matches(name, names, 1, 0.6)
        close = close or [other for other in names if name.startswith(f"{other}_")]  # what was smoke_online is smoke
    text = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    if not options or not names:
        return text
    return f"{text or ';'} {'Options' if close else 'options'}: {', '.join(names)}"


def one_line(error: BaseException) -> str:
    """OmegaConf adds lines about its own types below the reason; Hydra spreads one reason over several."""
    text = str(error)
    return text.partition("\n")[0] if isinstance(error, OmegaConfBaseException) else " ".join(text.split())


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 letters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
