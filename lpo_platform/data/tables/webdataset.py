"""Rows in WebDataset shards (.tar): members that share a name up to its first dot are a row, their suffixes columns.

An archive is read through once; where each member lies is kept in an index file, so that any row costs one seek.
"""

import json
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa

from lpo_platform.data.picture_files import SUFFIXES as PICTURES
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.parquet import Unreadable, identity
from lpo_platform.runs.files import fingerprint, write_atomically

log = logging.getLogger(__name__)

VERSION = 1  # raise it when the index changes its meaning
CUT = "archive that ends within a member, used up to there"
UNREADABLE = "file that is not a readable, uncompressed tar archive"
INCOMPLETE = "row of an archive without a required column"
ROW = "__key__"

Row = dict[str, object]  # ROW -> the row's name; column -> a text, or {at, size} in the archive, and the key in a .json


class TarFiles:
    """As `row_files.RowFiles`. A member's column is its suffix, `image` for a picture and `text` for .txt; what comes
    before the suffix of a picture names it (`0001.control_seg.png`); the keys of a .json are columns.
    """

    def __init__(
        self, files: Sequence[Path], required: Sequence[str], findings: Findings, cache_folder: str | Path | None
    ) -> None:
        self.files: list[Path] = []
        self._rows: list[tuple[Path, Row]] = []
        for file in files:
            try:
                rows, whole = indexed(file, cache_folder)
            except (OSError, tarfile.TarError) as error:
                findings.skip(UNREADABLE, f"{file.name}: {error}")
                continue
            if not whole:
                findings.note(CUT, file.name)
            self.files.append(file)
            for row in rows:
                if missing := [name for name in required if name not in row]:
                    findings.skip(INCOMPLETE, f"{file.name}: {row[ROW]} has no {', '.join(missing)}")
                else:
                    self._rows.append((file, row))
        self.columns = set.intersection(*(set(row) for _, row in self._rows)) - {ROW} if self._rows else set()

    def __len__(self) -> int:
        return len(self._rows)

    def identities(self) -> list[str]:
        return [identity(file) for file in self.files]

    def column(self, name: str) -> pa.Array:
        """The texts, or lists of texts, of all rows. Raises Unreadable where they are something else."""
        try:
            return pa.array([None if isinstance(row.get(name), dict) else row.get(name) for _, row in self._rows])
        except pa.ArrowException as error:
            raise Unreadable(f"column {name}: {error}") from error

    def cells(self, row: int, names: Sequence[str]) -> list[object]:
        """The values of some columns in one row, None where there is none. Raises Unreadable."""
        file, cells = self._rows[row]
        return [_read(file, name, cells.get(name)) for name in names]


def indexed(file: Path, cache_folder: str | Path | None) -> tuple[list[Row], bool]:
    """(the rows of an archive, whether it is whole), from its index file where there is one."""
    if cache_folder is None:
        return index(file)
    store = Path(cache_folder) / f"tar-{fingerprint('tar', VERSION, identity(file))[:16]}.json"
    try:
        rows, whole = json.loads(store.read_text())
    except (OSError, ValueError):
        rows, whole = index(file)
        try:
            write_atomically(store, json.dumps([rows, whole]).encode())
        except OSError as error:
            log.warning("%s: cannot be written (%s), so the next run reads again", store, error.strerror)
    return rows, whole


def index(file: Path) -> tuple[list[Row], bool]:
    """One pass over an archive. Raises OSError and TarError where it cannot even be begun."""
    rows: dict[str, Row] = {}
    size, whole = file.stat().st_size, True
    with tarfile.open(file, "r:") as archive:
        try:
            for member in archive:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError
                path = PurePosixPath(member.name)
                stem, _, suffix = path.name.partition(".")
                name = str(path.parent / stem)
                rows.setdefault(name, {ROW: name}).update(_cells(archive, member, suffix))
        except tarfile.ReadError:
            whole = False
    return list(rows.values()), whole


def _cells(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> Row:
    place = {"at": member.offset_data, "size": member.size}
    if suffix == "txt":
        return {"text": archive.extractfile(member).read().decode(errors="replace")}
    if suffix == "json":
        try:
            values = json.loads(archive.extractfile(member).read())
        except ValueError:
            values = {}
        values = values if isinstance(values, dict) else {}
        return {key: value if _is_text(value) else place | {"key": key} for key, value in values.items()}
    column, _, kind = suffix.rpartition(".")
    picture = f".{kind.lower()}" in PICTURES
    return {(column or "image") if picture else suffix: place}


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(t, str) for t in value)
    )


def _read(file: Path, name: str, cell: object) -> object:
    if not isinstance(cell, dict):
        return cell
    try:
        with open(file, "rb") as opened:
            opened.seek(cell["at"])
            data = opened.read(cell["size"])
        return json.loads(data)[cell["key"]] if "key" in cell else data
    except (OSError, ValueError, KeyError) as error:
        raise Unreadable(f"{file.name}, {name}: {error}") from error
