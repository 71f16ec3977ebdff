"""A lock on a folder. It ends with the process that holds it, on every operating system."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

with warnings.catch_warnings():  # a system without fcntl has a lock file, which serves as well
    warnings.simplefilter("ignore", UserWarning)
    from filelock import FileLock, Timeout


class InUse(Exception):
    """Another process holds the folder."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made where it is missing; raises InUse where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InUse(folder) from None
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a living process holds the folder, or this one may not ask."""
    lock = _lock(folder)
    if not Path(lock.lock_file).is_file():
        return False
    try:
        lock.acquire(blocking=False)
    except OSError:  # Timeout is one
        return True
    lock.release()
    return False


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock")
