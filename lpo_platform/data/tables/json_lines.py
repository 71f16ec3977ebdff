"""Rows in JSON lines that name pictures by their paths, as the data of pose-controlled generation come."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.parquet import Unreadable, identity
from lpo_platform.runs.files import fingerprint

UNREADABLE = "file that is not readable UTF-8"
BAD_LINE = "line that is not a JSON object"
INCOMPLETE = "line without a required key"


class LineFiles:
    """As `row_files.RowFiles`. pictures: columns whose texts are paths, relative to the file that they stand in."""

    def __init__(
        self, files: Sequence[Path], required: Sequence[str], findings: Findings, *, pictures: Sequence[str]
    ) -> None:
        self.files: list[Path] = []
        self._pictures = pictures
        self._rows: list[tuple[Path, dict[str, object]]] = []
        for file in files:
            try:
                lines = file.read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                findings.skip(UNREADABLE, f"{file.name}: {error}")
                continue
            self.files.append(file)
            for number, line in enumerate(lines, 1):
                row, where = _object(line), f"{file.name}:{number}"
                if not line.strip():
                    continue
                if row is None:
                    findings.skip(BAD_LINE, where)
                elif missing := [name for name in required if row.get(name) is None]:
                    findings.skip(INCOMPLETE, f"{where} has no {', '.join(missing)}")
                else:
                    self._rows.append((file.parent, row))
        self.columns = set.intersection(*(set(row) for _, row in self._rows)) if self._rows else set()

    def __len__(self) -> int:
        return len(self._rows)

    def identities(self) -> list[str]:
        """Of the files, and of the pictures they name: size and time of change, not 31,000 contents."""
        states = [
            _state(folder / str(row[name])) for folder, row in self._rows for name in self._pictures if name in row
        ]
        return [*(identity(file) for file in self.files), fingerprint(states)]

    def column(self, name: str) -> pa.Array:
        """Raises Unreadable where the values are not of one kind."""
        try:
            return pa.array([row.get(name) for _, row in self._rows])
        except pa.ArrowException as error:
            raise Unreadable(f"column {name}: {error}") from error

    def cells(self, row: int, names: Sequence[str]) -> list[object]:
        """The values of some columns in one row, pictures as bytes, None where there is none. Raises Unreadable."""
        folder, values = self._rows[row]
        return [_picture(folder, values.get(n)) if n in self._pictures else values.get(n) for n in names]


def _object(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _picture(folder: Path, path: object) -> bytes | None:
    if not isinstance(path, str):
        return None
    try:
        return (folder / path).read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def _state(path: Path) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
