"""Computed rows on disk. Any number of processes add them, in any order, and may be killed at any moment.

Layout: `<folder>/<first 16 digits of the key>/<first row>-<digest>.safetensors`, some rows in a file. A file is whole
or not there. Its size is checked when the store is opened, which reads no more than its header; the digest of a row
when the row is read first. What does not pass counts as missing. Any file may be deleted.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.hardware.transfer import download
from lpo_platform.runs.files import fingerprint, write_atomically

FORMAT = "2"  # raise it when the meaning of a file changes: older files then count as missing
OPEN = 256  # mapped files
QUEUE = 4  # files that wait to be written
PATIENCE = 10.0  # seconds between looks at what others have added
LARGEST_HEADER = 2**26

Columns = dict[str, Tensor]
Problem = tuple[str, str]  # reason and place
State = tuple[int, int]  # size and time of change
File = tuple[Path, State, list[str]]  # with the digests of its rows, empty where one has passed


class Store:
    """Rows of `total`, each a dictionary of tensors. `problems`: of rows that cannot be used. `size`: bytes of all."""

    def __init__(self, folder: str | Path, key: str, total: int) -> None:
        self.key, self.total = key, total
        self.folder = Path(folder) / key[:16]
        self.problems: dict[int, Problem] = {}
        self.size = 0
        self._files: list[File] = []
        self._known: set[str] = set()
        self._file = np.full(total, -1, np.int32)
        self._place = np.zeros(total, np.int32)
        self._unwritten: dict[int, Columns] = {}
        self._writing: list[Future] = []
        self._writer: ThreadPoolExecutor | None = None
        self._adding = threading.Lock()
        self._looked = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Finds what other processes have added."""
        self._looked = time.monotonic()
        try:
            found = [entry for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")]
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in sorted(found, key=lambda entry: entry.name):
            self._add(Path(entry.path))

    def look_again(self) -> None:
        """Calls refresh(), at most every PATIENCE seconds."""
        if time.monotonic() > self._looked + PATIENCE:
            self.refresh()

    def __contains__(self, row: int) -> bool:
        return row in self._unwritten or self._file[row] >= 0

    def read(self, row: int) -> Columns | None:
        """The columns of a row; None for one that is not there, or damaged and thereby lost."""
        if (waiting := self._unwritten.get(row)) is not None:
            return waiting
        if self._file[row] < 0:
            return None
        path, state, digests = self._files[self._file[row]]
        place = int(self._place[row])
        try:
            file = _open(path, state)
            columns = {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (not a dict)
            whole = not digests[place] or digests[place] == _digest(columns)
        except (OSError, ValueError, RuntimeError):
            whole = False
        if not whole:
            self._file[row] = -1
            return None
        digests[place] = ""
        return columns

    def write(self, rows: Sequence[int], columns: Columns, problems: dict[int, Problem]) -> None:
        """Adds rows, whose columns have one entry for each, and rows with problems; a thread writes the file."""
        self.problems |= problems
        self._check_writer()
        bytes_of = sum(column.nbytes for column in columns.values())
        with self._adding:
            self.size += bytes_of
        here, arrived = download({name: column.detach() for name, column in columns.items()})
        self._unwritten |= {row: {n: column[i] for n, column in columns.items()} for i, row in enumerate(rows)}
        self._writer = self._writer or ThreadPoolExecutor(1)
        self._writing.append(self._writer.submit(self._write, list(rows), here, arrived, problems, bytes_of))
        if len(self._writing) > QUEUE:
            self._writing.pop(0).result()

    def flush(self) -> None:
        """Waits until everything is written."""
        while self._writing:
            self._writing.pop(0).result()

    def close(self) -> None:
        """Writes what waits to be written and ends the thread."""
        try:
            self.flush()
        finally:
            if self._writer is not None:
                self._writer.shutdown(cancel_futures=True)
                self._writer = None

    def forget(self) -> None:
        """Deletes every file."""
        for path, _, _ in self._files:
            path.unlink(missing_ok=True)
        self.__init__(self.folder.parent, self.key, self.total)

    def _check_writer(self) -> None:
        while self._writing and self._writing[0].done():
            self._writing.pop(0).result()

    def _write(
        self,
        rows: list[int],
        columns: Columns,
        arrived: Callable[[], None],
        problems: dict[int, Problem],
        foreseen: int,
    ) -> None:
        arrived()
        values = {name: column.contiguous().clone() for name, column in columns.items()}  # no shared storage
        described = {
            "format": FORMAT,
            "key": self.key,
            "rows": json.dumps(rows),
            "problems": json.dumps(problems),
            "digests": json.dumps([_digest({n: v[i] for n, v in values.items()}) for i in range(len(rows))]),
        }
        first = min([*rows, *problems])
        path = self.folder / f"{first:08d}-{fingerprint(rows, sorted(problems))[:12]}.safetensors"
        content = save(values, described)
        try:
            write_atomically(path, content)
        except OSError as error:
            what = f"cannot write {len(content) / 1e6:.1f} MB ({error.strerror})"
            advice = "free space and give the command again: it goes on from here (data.cache=none keeps none)"
            raise UserError(f"{path}: {what}; {advice}") from error
        self._add(path, written=foreseen)
        for row in rows:
            self._unwritten.pop(row, None)

    def _add(self, path: Path, *, written: int = 0) -> None:
        """Notes what a new file holds, from its header. written: bytes that were counted before it was there."""
        with self._adding:
            if path.name not in self._known or written:
                self._known.add(path.name)
                self._note(path)
            self.size -= written

    def _note(self, path: Path) -> None:
        try:
            described, state = _header(path)
            if described.get("format") != FORMAT or described.get("key") != self.key:
                return
            rows, digests = json.loads(described["rows"]), json.loads(described["digests"])
            problems = {int(row): tuple(why) for row, why in json.loads(described["problems"]).items()}
            if not all(0 <= row < self.total for row in (*rows, *problems)) or len(rows) != len(digests):
                return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        self._files.append((path, state, digests))
        self._place[rows] = np.arange(len(rows))
        self._file[rows] = len(self._files) - 1
        self.problems |= problems
        self.size += state[0]


def _header(path: Path) -> tuple[dict[str, str], State]:
    """(what is written beside the tensors, state of the file). ValueError where the file is not as long as it says."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError("not a header")
        header = json.loads(file.read(length))
        status = os.fstat(file.fileno())
    described = header.pop("__metadata__", {})
    if 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0) != status.st_size:
        raise ValueError("cut off")
    return described, (status.st_size, status.st_mtime_ns)


def _digest(columns: Columns) -> str:
    """Over names, types, shapes and bytes."""
    result = hashlib.blake2b(digest_size=16)
    for name in sorted(columns):
        value = columns[name].contiguous()
        result.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        result.update(value.reshape(-1).view(torch.uint8).numpy())
    return result.hexdigest()


@lru_cache(maxsize=OPEN)
def _open(path: Path, state: State) -> safe_open:
    """A mapped file; state: of the file that is meant, where another one had its name."""
    return safe_open(path, framework="pt")
