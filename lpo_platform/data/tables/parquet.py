"""Rows in parquet and arrow files, read by number: narrow columns at once, wide ones as they are asked for.

Nothing is converted and nothing is kept beyond what the last rows needed, so a dataset may be larger than memory. An
arrow file (a stream, as `datasets` writes, or the file format) is mapped: any row costs the same. A parquet file is
decoded from the start of a row group: rows in rising order cost each page once, an order at random costs half a row
group for every row.
"""

import hashlib
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lpo_platform.config.errors import UserError, first_line
from lpo_platform.data.reading_report import Findings
from lpo_platform.runs.given_files import is_unicode

SUFFIXES = (".parquet", ".arrow")
BATCH = 16  # rows decoded at a time
RECENT = 4  # batches kept, so that several threads may ask for rows in nearly rising order
OPEN = 64  # files kept open
WHOLE = 2**24  # bytes up to which a file is identified by all of its bytes
PIECE, PIECES = 2**16, 16

UNREADABLE = "file that is not readable parquet or arrow"
ABSENT = "file of a numbered series that is not there"
COLUMN = "file without a required column"

Place = tuple[Path, int, tuple[str, ...]]  # file, row group, columns


class Unreadable(ValueError):
    """A row that its file should have and cannot give; the message says why."""


class RowFiles:
    """The rows of some files, one file after the other; `files` and `columns` are what is used of them.

    A file that cannot be read, or lacks a `required` column, is reported and left out. `columns`: the names that every
    file has.
    """

    def __init__(self, files: Sequence[Path], required: Sequence[str], findings: Findings) -> None:
        self.files: list[Path] = []
        self.columns: set[str] = set()
        self._groups: list[np.ndarray] = []  # for each file the first rows of its row groups, and its number of rows
        for file in files:
            try:
                groups, columns = shape(file)
            except (OSError, pa.ArrowException) as error:
                findings.skip(UNREADABLE, f"{file.name}: {first_line(error)}")
                continue
            missing = [name for name in required if name not in columns]
            if missing:
                findings.skip(COLUMN, f"{file.name}: {', '.join(missing)}")
                continue
            self.columns = self.columns & columns if self.files else columns
            self.files.append(file)
            self._groups.append(groups)
        self._starts = np.cumsum([0, *(groups[-1] for groups in self._groups)])
        self._cursor = Cursor()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def identities(self) -> list[str]:
        return [identity(file) for file in self.files]

    def place(self, row: int) -> str:
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        return f"{self.files[number].name}, row {row - int(self._starts[number])}"

    def column(self, name: str, kind: pa.DataType | None = None) -> pa.ChunkedArray:
        """A whole column, for narrow ones. Raises Unreadable, also where it cannot be cast to `kind`.

        Without a kind, that of the first file.
        """
        chunks: list[pa.Array] = []
        for file in self.files:
            try:
                if file.suffix == ".parquet":
                    part = pq.ParquetFile(file, memory_map=True).read(columns=[name], use_threads=False)[name]
                else:
                    part = _mapped(file)[name]
                kind = kind or part.type
                chunks += part.cast(kind).chunks
            except (OSError, pa.ArrowException) as error:
                raise Unreadable(f"{file.name}: column {name}: {first_line(error)}") from error
        return pa.chunked_array(chunks, kind)

    def cells(self, row: int, names: Sequence[str]) -> list[object]:
        """The values of some columns in one row, None where there is none. Raises Unreadable, IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"there are {len(self)} rows, number {row} was asked for")
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        file, row = self.files[number], row - int(self._starts[number])
        try:
            if file.suffix == ".parquet":
                group = int(np.searchsorted(self._groups[number], row, "right")) - 1
                return self._cursor.cells(file, group, row - int(self._groups[number][group]), tuple(names))
            table = _mapped(file)
            return [table[name][row].as_py() for name in names]
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise Unreadable(f"{file.name}, row {row}: {first_line(error)}") from error


class Cursor:
    """Where the reading of parquet files stands: the current row group, and the latest batches.

    Threads may share it; a copy in another process starts anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: Place | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next = 0
        self._recent: deque[tuple[Place, int, pa.RecordBatch]] = deque(maxlen=RECENT)
        self._broken: dict[Place, tuple[int, str]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def cells(self, file: Path, group: int, row: int, names: tuple[str, ...]) -> list[object]:
        """`row` counts from the start of the row group. Raises OSError and pyarrow's exceptions."""
        with self._lock:
            first, batch = self._batch((file, group, names), row)
        return [batch.column(name)[row - first].as_py() for name in names]

    def _batch(self, at: Place, row: int) -> tuple[int, pa.RecordBatch]:
        for where, first, batch in self._recent:
            if where == at and first <= row < first + batch.num_rows:
                return first, batch
        if at in self._broken and row >= self._broken[at][0]:
            raise OSError(self._broken[at][1])
        if self._at != at or row < self._next:
            self._start(at)
        try:
            while True:
                batch = next(self._batches)
                first, self._next = self._next, self._next + batch.num_rows
                self._recent.append((at, first, batch))
                if row < self._next:
                    return first, batch
        except (OSError, pa.ArrowException, StopIteration) as error:
            self._at = None
            self._broken[at] = (self._next, f"row group {at[1]} ends at {self._next}: {first_line(error)}")
            raise OSError(self._broken[at][1]) from error

    def _start(self, at: Place) -> None:
        file, group, names = at
        self._next = 0
        opened = pq.ParquetFile(file, memory_map=True, pre_buffer=False)
        self._batches = opened.iter_batches(BATCH, row_groups=[group], columns=list(names), use_threads=False)
        self._at = at


def identity(file: Path) -> str:
    """sha256 of what the file holds, not of where it lies or when it was written.

    All bytes of a file up to 16 MiB; of a larger one its size and 16 pieces of 64 KiB at even distances, the last at
    its end, where parquet keeps the sizes and positions of everything. A bit that flips between two pieces is not seen.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        if size <= WHOLE:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        result = hashlib.sha256(f"{size}|".encode())
        for position in np.linspace(0, size - PIECE, PIECES).astype(int).tolist():
            opened.seek(position)
            result.update(opened.read(PIECE))
        return result.hexdigest()


def find_split(folder: Path, split: str, findings: Findings, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files of a split, in order: `<split>/*`, or `<split>.parquet`, `<split>-00000-of-00002.parquet`,
    `<dataset>-<split>-00000-of-00002.arrow`, `<split>-000000.tar` anywhere below the folder. [] where there are none.

    A file that its series `-of-N` lacks is reported. Raises UserError where the split is there twice.
    """
    name = re.compile(rf"(.*-)?{re.escape(split)}(-\d+(-of-\d+.*)?)?({'|'.join(map(re.escape, suffixes))})")
    files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    found = [path for path in files if path.parent != folder and path.parent.name == split]
    found = [path for path in found if not path.name.startswith(("cache-", "tmp"))]  # what `datasets` leaves there
    found = found or [path for path in files if name.fullmatch(path.name)]
    places = sorted({f"{path.parent}/*{path.suffix}" for path in found})
    if len(places) > 1:
        raise UserError(f"data.path={folder}: split {split} is there twice: {' and '.join(places)}; what works: one")
    series: dict[tuple[Path, str, str], set[int]] = {}
    for path in found:
        if match := re.search(r"^(.*)-(\d+)-of-(\d+)", path.name):
            series.setdefault((path.parent, match[1], match[3]), set()).add(int(match[2]))
    for (_, stem, number), there in series.items():
        for missing in sorted(set(range(int(number))) - there):
            findings.skip(ABSENT, f"{stem}-{missing:0{len(number)}d}-of-{number}")
    return found


def texts_of(values: Sequence[object]) -> pa.Array:
    """A column of what is a text, or all lists of texts where some are; None for anything else."""
    lists = any(isinstance(value, list) for value in values)
    usable = [value if _is_text(value) else None for value in values]
    if lists:
        usable = [[value] if isinstance(value, str) else value for value in usable]
    return pa.array(usable, pa.large_list(pa.large_string()) if lists else pa.large_string())


def _is_text(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) and is_unicode(text) for text in texts)


def values_of(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """The values of a column; None for a text that is not UTF-8, which no file format checks."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value_or_none(cell) for cell in column]


def _value_or_none(cell: pa.Scalar) -> object:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def shape(file: Path) -> tuple[np.ndarray, set[str]]:
    """(first rows of the row groups and the number of rows, names of the columns); an arrow file is one group."""
    if file.suffix == ".parquet":
        metadata = pq.read_metadata(file)
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.cumsum([0, *rows]), set(metadata.schema.to_arrow_schema().names)
    table = _mapped(file)
    return np.array([0, table.num_rows]), set(table.column_names)


def _mapped(file: Path) -> pa.Table:
    status = file.stat()
    return _mapped_as_of(file, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=OPEN)
def _mapped_as_of(file: Path, state: tuple[int, int]) -> pa.Table:
    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()
