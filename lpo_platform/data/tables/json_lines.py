"""Rows in JSON lines that name pictures by their paths, as the data of pose-controlled generation come."""

import hashlib
import os
import stat
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.parquet import Unreadable, identity, texts_of
from lpo_platform.runs.given_files import NOT_TEXT, json_of, lines_of, place, read_bytes

UNREADABLE = "file that cannot be read"
BAD_LINE = "line that is not a JSON object"
INCOMPLETE = "line without a required key"


class LineFiles:
    """As parquet.RowFiles. pictures: columns whose texts are paths, relative to the file that they stand in."""

    def __init__(
        self, files: Sequence[Path], required: Sequence[str], findings: Findings, *, pictures: Sequence[str]
    ) -> None:
        self.files: list[Path] = []
        self._pictures, self._names = pictures, list(required)
        self._rows: list[tuple[object, ...]] = []  # the required values: a million lines have to fit
        self._places = array("l")  # number of the file and of the line, one after the other
        for file in files:
            try:
                found = lines_of(read_bytes(file, most=None))
            except OSError as error:
                findings.skip(UNREADABLE, f"{file.name}: {error.strerror}")
                continue
            self.files.append(file)
            for number, line in enumerate(found, 1):
                if line is None:
                    findings.skip(NOT_TEXT, f"{file.name}:{number}")
                    continue
                if not line or line.isspace():
                    continue
                row = _object(line)
                if row is None:
                    findings.skip(BAD_LINE, f"{file.name}:{number}")
                    continue
                values = tuple(map(row.get, self._names))
                if None in values:
                    missing = [name for name, value in zip(required, values, strict=True) if value is None]
                    findings.skip(INCOMPLETE, f"{file.name}:{number} has no {', '.join(missing)}")
                    continue
                self._rows.append(values)
                self._places.extend((len(self.files) - 1, number))

    def __len__(self) -> int:
        return len(self._rows)

    def identities(self) -> list[str]:
        """Of the files, and of the pictures they name: size and time of change, not 31,000 contents."""
        return [*(identity(file) for file in self.files), self._states]

    @cached_property
    def _states(self) -> str:
        """Both splits of a table have the same."""
        places = [self._names.index(name) for name in self._pictures]
        folders, states = [str(file.parent) for file in self.files], hashlib.sha256()
        for number, row in zip(self._places[::2], self._rows, strict=True):
            folder = folders[number]
            for i in places:
                states.update(str(_state(f"{folder}/{row[i]}") or _state(place(folder, str(row[i])))).encode())
        return states.hexdigest()

    def place(self, row: int) -> str:
        return f"{self._file(row).name}:{self._places[2 * row + 1]}"

    def _file(self, row: int) -> Path:
        return self.files[self._places[2 * row]]

    def column(self, name: str) -> pa.Array:
        """The texts, or lists of texts; None for a row that has something else there."""
        place = self._names.index(name)
        return texts_of([row[place] for row in self._rows])

    def cells(self, row: int, names: Sequence[str]) -> list[object]:
        """The values of some columns in one row, pictures as bytes, None where there is none. Raises Unreadable."""
        folder, values = self._file(row).parent, dict(zip(self._names, self._rows[row], strict=True))
        return [_picture(folder, values.get(n)) if n in self._pictures else values.get(n) for n in names]


def _object(line: str) -> dict[str, object] | None:
    try:
        row = json_of(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _picture(folder: Path, path: object) -> bytes | None:
    if not isinstance(path, str):
        return None
    try:
        return read_bytes(place(folder, path))
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def _state(path: Path | str) -> list[int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a zero byte, or half of a surrogate pair
        return []
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else []
