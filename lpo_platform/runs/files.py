"""Files that are whole or not there, and what identifies their content."""

import contextlib
import glob
import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

ABANDONED_AFTER = 3600.0  # seconds without a byte written


def fingerprint(*parts: object) -> str:
    """Stable sha256 (64 hex digits) of json-able `parts`; files enter through `file_digest`.

    Raises TypeError for a part whose text form could differ between two runs (a Path, a set, a tensor).
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 (64 hex digits) of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Puts `content` at `path`: readers, and a crash at any moment, find the old file or the whole new one."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _replace(Path(path), content)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text, into a folder that exists: one that was mistyped is not made."""
    _replace(Path(path), text.encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    _remove_abandoned(path)
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(half, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException as error:
        half.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # a write that fails names no file, and nobody knows the half one
        raise
    _sync_folder(path.parent)


def follow_umask(folder: Path) -> None:
    """Gives the files of a folder the mode that any new file has: safetensors writes them for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def _remove_abandoned(path: Path) -> None:
    """Removes what killed writers of this very file left; no living writer pauses for so long."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_AFTER:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power failure; Windows cannot open a folder and needs no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None if it is missing or unreadable."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file in order; none if there is no file. A line that was cut off is left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]
