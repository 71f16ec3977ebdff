"""Rows in WebDataset shards (.tar): members that share a name up to its first dot are a row, their suffixes columns.

An archive is read through once; where each member lies is kept in an index file, so that any row costs one seek.
"""

import json
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa

from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.parquet import Unreadable, identity, texts_of
from lpo_platform.runs.files import fingerprint, write_atomically
from lpo_platform.runs.given_files import NOT_TEXT, PICTURES, json_of, regular, shown, text_of

log = logging.getLogger(__name__)

VERSION = 2  # raise it when the index changes its meaning
CUT = "archive that ends within a member, used up to there"
UNREADABLE = "file that is not a readable, uncompressed tar archive"
INCOMPLETE = "row of an archive without a required column"
BAD_JSON = "member of an archive that is not a JSON object"
TWICE = "row of an archive with two members for one column"
ROW = "__key__"
BROKEN = "__broken__"
CAPTIONS = ("txt", "caption")

# ROW -> the row's name; BROKEN -> what is wrong with it; column -> a text, or {at, size} in the archive, and the key in
# a .json
Row = dict[str, object]


class TarFiles:
    """As parquet.RowFiles. A member's column is its suffix, `image` for a picture, `text` for .txt and .caption;
    what comes before the suffix of a picture names it (`0001.control_seg.png`); the keys of a .json are columns.
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
                if BROKEN in row:
                    findings.skip(row[BROKEN], f"{file.name}: {shown(row[ROW])}")
                elif missing := [name for name in required if name not in row]:
                    findings.skip(INCOMPLETE, f"{file.name}: {shown(row[ROW])} has no {', '.join(missing)}")
                else:
                    self._rows.append((file, row))
        self.columns = set.intersection(*(set(row) for _, row in self._rows)) - {ROW} if self._rows else set()

    def __len__(self) -> int:
        return len(self._rows)

    def identities(self) -> list[str]:
        return [identity(file) for file in self.files]

    def place(self, row: int) -> str:
        file, cells = self._rows[row]
        return f"{file.name}: {shown(cells[ROW])}"

    def column(self, name: str) -> pa.Array:
        """The texts, or lists of texts; None for a row that has something else there."""
        return texts_of([row.get(name) for _, row in self._rows])

    def cells(self, row: int, names: Sequence[str]) -> list[object]:
        """The values of some columns in one row, None where there is none. Raises Unreadable."""
        file, cells = self._rows[row]
        return [_read(file, name, cells.get(name)) for name in names]


def indexed(file: Path, cache_folder: str | Path | None) -> tuple[list[Row], bool]:
    """(the rows of an archive, whether it is whole), from its index file where there is one."""
    regular(file)
    if cache_folder is None:
        return index(file)
    store = Path(cache_folder) / f"tar-{fingerprint('tar', VERSION, identity(file))[:16]}.json"
    try:
        rows, whole = json.loads(store.read_text(encoding="utf-8"))
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
                row = rows.setdefault(name, {ROW: name})
                try:
                    cells = _cells(archive, member, suffix)
                except BadMember as error:
                    cells = {BROKEN: str(error)}
                if any(row.get(column, cell) != cell for column, cell in cells.items() if column != BROKEN):
                    cells = {BROKEN: TWICE}
                row.update(cells)
        except tarfile.ReadError:
            whole = False
    return list(rows.values()), whole


class BadMember(ValueError):
    """A member without which its row cannot be used; the message is the reason."""


def _cells(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> Row:
    place = {"at": member.offset_data, "size": member.size}
    if suffix.lower() in CAPTIONS:
        return {"text": _text(archive, member)}
    if suffix.lower() == "json":
        try:
            values = json_of(_text(archive, member))
        except BadMember:
            raise
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise BadMember(BAD_JSON)
        return {key: value if _is_text(value) else place | {"key": key} for key, value in values.items()}
    column, _, kind = suffix.rpartition(".")
    picture = f".{kind.lower()}" in PICTURES
    return {(column or "image") if picture else suffix: place}


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    try:
        return text_of(archive.extractfile(member).read())
    except ValueError as error:
        raise BadMember(NOT_TEXT) from error


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
        return json_of(text_of(data))[cell["key"]] if "key" in cell else data
    except (OSError, ValueError, KeyError) as error:
        raise Unreadable(f"{file.name}, {name}: {error}") from error
