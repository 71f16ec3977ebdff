"""How a failed command ends: its message, its exit code, and the record in the run folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path

from lpo_platform.commands.command_line import quote
from lpo_platform.commands.terminal import Command, say, shown
from lpo_platform.config.errors import ConfigError, RunFailed, UserError, users
from lpo_platform.hardware import launch
from lpo_platform.runs import record

log = logging.getLogger(__name__)


class FolderInUse(UserError):
    """Another process works in the folder; nothing in it may be touched."""


def interrupted(command: Command, folder: Path, code: int) -> int:
    """For a job that a signal has ended: prints how to continue it, and records it as interrupted."""
    again = f"{command.name} resume={quote(shown(folder))}"
    if command.primary != "train":
        again = shlex.join([command.name, *sys.argv[1:]])
    print(f"\n{command.name}: interrupted; to go on:  {again}", file=sys.stderr, flush=True)
    if not launch.rank() and (command.primary in ("train", "eval") or (folder / "result.json").exists()):
        with contextlib.suppress(OSError):
            record.interrupt(folder, f"it was ended by {signal.Signals(code - 128).name}")
    return code


def failed(command: Command, folder: Path, name: str, error: Exception) -> int:
    """Reports an error and returns the exit code: 2 for what the user can put right, else 1, with a traceback in the
    log."""
    cause = users(error)
    debug = os.environ.get("LPO_DEBUG", "") not in ("", "0")
    whole = "".join(traceback.format_exception(error))
    if debug:
        print(whole, file=sys.stderr)
    if isinstance(cause, UserError):
        _note(folder, name, str(cause), str(cause))
        return refused(command, cause)
    if isinstance(cause, RunFailed):
        _note(folder, name, str(cause) if cause is error else whole, str(cause))
        return _say_failed(command, cause)
    last = traceback.format_exception_only(cause)[-1].strip()
    if isinstance(cause, launch.ProcessFailed):
        whole, last = cause.traceback or str(cause), str(cause)
    _note(folder, name, whole, last)
    more = "" if debug else " (LPO_DEBUG=1 shows it)"
    say(command, f"{last}\n  the full log: {shown(folder / f'{name}.log')}{more}")
    return 1


def _note(folder: Path, name: str, text: str, reason: str) -> None:
    """Puts the end of a run on record, in its log and in result.json."""
    if launch.rank():
        return
    try:
        with (folder / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")
        if name in ("train", "eval") or (folder / "result.json").exists():
            record.fail(folder, reason)
    except OSError:
        log.warning("the end of the run could not be written to %s", folder)


def failed_early(command: Command, error: Exception) -> int:
    """Before there is a folder that could hold a log."""
    cause = users(error)
    if isinstance(cause, FileNotFoundError):
        cause = UserError(f"{cause.filename}: {cause.strerror}; what works: a folder that can be made, or is there")
    if isinstance(cause, UserError):
        return refused(command, cause)
    return _say_failed(command, cause) if isinstance(cause, RunFailed) else unexpected(command, error)


def _say_failed(command: Command, error: RunFailed) -> int:
    say(command, str(error))
    return 1


def unexpected(command: Command, error: Exception, more: str = "") -> int:
    if isinstance(error, BrokenPipeError):  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    words = [line for line in str(error).splitlines() if line.strip()] or [""]
    say(command, f"{type(error).__name__}: {words[0]}{more}")
    if os.environ.get("LPO_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    return 1


def refused(command: Command, error: UserError) -> int:
    if isinstance(error, ConfigError):
        count = len(error.problems)
        lines = [f"{count} problem{'s' if count > 1 else ''}", *(f"  {line}" for line in error.problems)]
        say(command, "\n".join(lines))
    else:
        say(command, str(error))
    return 2
