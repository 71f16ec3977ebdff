"""Captions of the pictures in a folder: from tables, from files beside them, or from their names."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lpo_platform.data.picture_files import FORBIDDEN
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.parquet import values_of
from lpo_platform.runs.csv_rows import Bad, table
from lpo_platform.runs.given_files import (
    BAD_CHARACTERS,
    NOT_TEXT,
    PICTURES,
    clean,
    json_of,
    lines_of,
    read_bytes,
    text_of,
    without_suffix,
)

ORIGINS = ("jsonl", "table", "sidecar", "filename")
NAMED = ("metadata", "captions")
SIDECARS = (".txt", ".caption", ".json")
FILE_KEYS = ("file_name", "image", "file")
TEXT_KEYS = ("text", "caption", "prompt")
CAMERA_WORDS = {"img", "dsc", "dscn", "dscf", "pxl", "image", "picture", "photo", "untitled", "screenshot"}

BAD_LINE = "caption line that is not JSON with a file name and a text"
BAD_TEXT = "caption file that is not readable UTF-8"
BAD_JSON = "JSON file beside a picture without a text, caption or prompt"
BAD_TABLE = "caption table that cannot be read"
ANOTHER = "further caption for a picture that has one, the first is used"
SHARED = "caption file that pictures of one name share"
NO_SUCH_FILE = "caption for a picture that is not there"
NO_CAPTION = "no caption, used with an empty prompt"


@dataclass(frozen=True)
class Captions:
    """The text of every picture, empty where none was found, and the number of texts of each origin."""

    text: dict[str, str]
    origins: dict[str, int]


def find_captions(
    folder: Path, pictures: list[str], files: list[str], origins: Iterable[str], findings: Findings
) -> Captions:
    """For each of `pictures` (names in `files`) the first caption that is not empty, `origins` in order."""
    finders = {
        "jsonl": lambda: from_jsonl(folder, files, findings),
        "table": lambda: from_tables(folder, files, findings),
        "sidecar": lambda: from_sidecars(folder, pictures, files, findings),
        "filename": lambda: {name: words(Path(name).stem) for name in pictures},
    }
    found = {origin: finders[origin]() for origin in origins}
    text, counts = {}, Counter[str]()
    for name in pictures:
        origin = next((key for key, captions in found.items() if captions.get(name)), None)
        text[name] = found[origin][name] if origin else ""
        counts[origin or "none"] += 1
        if origin is None:
            findings.note(NO_CAPTION, name)
    return Captions(text, dict(counts))


def words(stem: str) -> str:
    """The words of a file name without digits and separators.

    Empty when a camera or a program gave the name: `IMG_0042`, `0007`, `3f2a9bc1`, a UUID.
    """
    stem = unicodedata.normalize("NFC", stem)
    if re.fullmatch(r"(?=.*\d)[0-9a-fA-F]{8,}", re.sub(r"[-_ ]", "", stem)):
        return ""
    found = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem))
    meaning = [w for w in found if w.lower() not in CAMERA_WORDS and (len(w) > 1 or not w.isascii())]
    return " ".join(found) if meaning else ""


def from_sidecars(folder: Path, pictures: list[str], files: list[str], findings: Findings) -> dict[str, str]:
    """The text beside each picture: `<name>.txt` or `.caption`, or the caption in an object `<name>.json`."""
    beside = sidecars(pictures, files)
    several = Counter(without_suffix(name, PICTURES) for name in pictures)
    result = {}
    for name in pictures:
        for file in beside.get(name, ()):
            if several[without_suffix(name, PICTURES)] > 1:
                findings.note(SHARED, name)
            said = _sidecar(folder, file, findings)
            if said and not result.get(name):
                result[name] = said
    return result


def sidecars(pictures: list[str], files: list[str]) -> dict[str, list[str]]:
    """The files with the name of each picture and one of SIDECARS, in that order; also `a.png.txt` for a.png."""
    there: dict[str, list[str]] = {}
    for suffix in SIDECARS:
        for file in files:
            if file.lower().endswith(suffix):
                there.setdefault(file[: -len(suffix)], []).append(file)
    found = {name: there.get(name, []) + there.get(without_suffix(name, PICTURES), []) for name in pictures}
    return {name: beside for name, beside in found.items() if beside}


def from_jsonl(folder: Path, files: list[str], findings: Findings) -> dict[str, str]:
    """Captions by file, from every `*.jsonl`, `captions.jsonl` and `metadata.jsonl` before the others."""
    tables = sorted((name for name in files if name.lower().endswith(".jsonl")), key=_rank)
    return _from_tables(folder, files, tables, findings)


def from_tables(folder: Path, files: list[str], findings: Findings) -> dict[str, str]:
    """Captions by file, from `metadata` and `captions` with .csv or .parquet, as `datasets` reads such folders."""
    return _from_tables(folder, files, [name for name in files if is_table(name)], findings)


def is_table(name: str) -> bool:
    stem, suffix = os.path.splitext(os.path.basename(name).lower())
    return stem in NAMED and suffix in (".csv", ".parquet")


def _from_tables(folder: Path, files: list[str], tables: list[str], findings: Findings) -> dict[str, str]:
    """A row names its picture relative to the file it stands in, under `file_name`, `image` or `file`; the text stands
    under `text`, `caption` or `prompt` (of a list, the first). Of two rows the first counts.
    """
    by_normal_name = {unicodedata.normalize("NFC", name): name for name in files}
    result: dict[str, str] = {}
    for source in tables:
        for where, row in _rows(folder, source, findings):
            entry = None if isinstance(row, Bad) else _entry(row)
            if entry is None:
                findings.skip(row if isinstance(row, Bad) else BAD_LINE, where)
                continue
            file, said = entry
            target = by_normal_name.get(unicodedata.normalize("NFC", _target(folder, source, file)))
            if target is None:
                findings.skip(NO_SUCH_FILE, f"{where} {file}")
            elif said and not clean(said):
                findings.skip(BAD_CHARACTERS, where) if said.strip() else result.setdefault(target, "")
            elif result.setdefault(target, clean(said)) != clean(said):
                findings.skip(ANOTHER, where)
    return result


def _rows(folder: Path, name: str, findings: Findings) -> Iterator[tuple[str, dict[str, object] | Bad]]:
    """(where it stands, the row or what is wrong with it) of a table's rows; a file that is no table is reported."""
    try:
        data = read_bytes(folder / name)
        if name.lower().endswith(".parquet"):
            rows: Iterable[tuple[int, object]] = enumerate(_parquet(data))
        elif name.lower().endswith(".csv"):
            rows = table(data)[1]
        else:
            found = enumerate(lines_of(data), 1)
            rows = ((number, _object(line)) for number, line in found if line is None or line.strip())
        yield from ((f"{name}:{number}", row) for number, row in rows)
    except PermissionError:
        findings.skip(FORBIDDEN, name)
    except (OSError, ValueError, pa.ArrowException):
        findings.skip(BAD_TABLE, name)


def _object(line: str | None) -> dict[str, object] | Bad:
    if line is None:
        return Bad(NOT_TEXT)
    try:
        row = json_of(line)
    except ValueError:
        return Bad(BAD_LINE)
    return row if isinstance(row, dict) else Bad(BAD_LINE)


def _parquet(data: bytes) -> list[dict[str, object]]:
    opened = pq.ParquetFile(pa.BufferReader(data))
    columns = [name for name in opened.schema_arrow.names if name in (*FILE_KEYS, *TEXT_KEYS)]
    read = opened.read(columns)
    return [dict(zip(columns, row, strict=True)) for row in zip(*(values_of(read[c]) for c in columns), strict=True)]


def _sidecar(folder: Path, name: str, findings: Findings) -> str:
    """What a file beside a picture says of it; a file that says nothing usable is reported."""
    try:
        said: object = text_of(read_bytes(folder / name))
        if name.lower().endswith(".json"):
            content = json_of(said)
            said = _first(content, TEXT_KEYS) if isinstance(content, dict) else None
            if said is None:
                findings.skip(BAD_JSON, name)
                return ""
    except PermissionError:
        findings.skip(FORBIDDEN, name)
        return ""
    except (OSError, ValueError):
        findings.skip(BAD_TEXT, name)
        return ""
    if said.strip() and not clean(said):
        findings.skip(BAD_CHARACTERS, name)
    return clean(said)


def _rank(name: str) -> tuple[bool, str]:
    return os.path.basename(name) not in ("captions.jsonl", "metadata.jsonl"), name


def _entry(row: dict[str, object]) -> tuple[str, str] | None:
    """(file, text) of one row, or None when the row is something else."""
    file, text = _first(row, FILE_KEYS), _first(row, TEXT_KEYS)
    return (file, text) if file and text is not None else None


def _first(row: dict[str, object], keys: Iterable[str]) -> str | None:
    for key in keys:
        value = row.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str):
            return value
    return None


def _target(folder: Path, jsonl: str, file: str) -> str:
    """The named file as a path below the folder, with `/`."""
    file = file.replace("\\", "/")
    if os.path.isabs(file):
        return os.path.relpath(file, folder)
    return os.path.normpath(os.path.join(os.path.dirname(jsonl), file))
