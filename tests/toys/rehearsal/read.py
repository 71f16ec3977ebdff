"""Which files of a hub were read, by the times that the file system keeps of each."""

import os
from pathlib import Path

LONG_AGO = 1_000_000_000


def forget(cache: Path) -> None:
    """Every file counts as not read since; a file system updates a time of access that is older than that of change."""
    for blob in cache.glob("*/blobs/*"):
        os.utime(blob, (LONG_AGO, LONG_AGO + 1))


def read(cache: Path) -> dict[str, list[str]]:
    """The files by their ids, as `models/<owner>/<name>`."""
    found: dict[str, list[str]] = {}
    for link in sorted(cache.glob("*/snapshots/*/**/*")):
        if link.is_file() and link.stat().st_atime > LONG_AGO + 1:
            parts = link.relative_to(cache).parts
            found.setdefault(parts[0].replace("--", "/"), []).append("/".join(parts[3:]))
    return found
