"""Captions of the pictures in a folder: from JSON lines, from text files beside them, or from their names."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lpo_platform.data.picture_files import FORBIDDEN
from lpo_platform.data.reading_report import Findings

ORIGINS = ("jsonl", "sidecar", "filename")
FILE_KEYS = ("file_name", "image", "file")
TEXT_KEYS = ("text", "caption", "prompt")
CAMERA_WORDS = {"img", "dsc", "dscn", "dscf", "pxl", "image", "picture", "photo", "untitled", "screenshot"}

BAD_LINE = "caption line that is not JSON with a file name and a text"
BAD_TEXT = "caption file that is not readable UTF-8"
NO_SUCH_FILE = "caption for a picture that is not there"
NO_CAPTION = "no caption, used with an empty prompt"


@dataclass(frozen=True)
class Captions:
    """`text` of every picture, empty where none was found, and how many came from where."""

    text: dict[str, str]
    origins: dict[str, int]


def find_captions(
    folder: Path, pictures: list[str], files: list[str], origins: Iterable[str], findings: Findings
) -> Captions:
    """For each of `pictures` (names in `files`) the first caption that is not empty, `origins` in order."""
    finders = {
        "jsonl": lambda: from_jsonl(folder, files, findings),
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
    """The text of `<name>.txt` beside each picture."""
    there = set(files)
    sidecars = {name: name.rsplit(".", 1)[0] + ".txt" for name in pictures}
    return {n: _clean(_read(folder, text, findings)) for n, text in sidecars.items() if text in there}


def from_jsonl(folder: Path, files: list[str], findings: Findings) -> dict[str, str]:
    """Captions by file, from every `*.jsonl`, `captions.jsonl` and `metadata.jsonl` before the others.

    A line names its picture relative to the file it stands in, under `file_name`, `image` or `file`; the text
    stands under `text`, `caption` or `prompt` (of a list, the first). Of two lines the first counts.
    """
    by_normal_name = {unicodedata.normalize("NFC", name): name for name in files}
    result: dict[str, str] = {}
    for file in sorted((name for name in files if name.lower().endswith(".jsonl")), key=_rank):
        for number, line in enumerate(_read(folder, file, findings).split("\n"), 1):
            if not line.strip():
                continue
            entry = _entry(line)
            if entry is None:
                findings.skip(BAD_LINE, f"{file}:{number}")
                continue
            target = unicodedata.normalize("NFC", _target(folder, file, entry[0]))
            if target in by_normal_name:
                result.setdefault(by_normal_name[target], _clean(entry[1]))
            else:
                findings.skip(NO_SUCH_FILE, f"{file}:{number} {entry[0]}")
    return result


def _rank(name: str) -> tuple[bool, str]:
    return os.path.basename(name) not in ("captions.jsonl", "metadata.jsonl"), name


def _clean(text: str) -> str:
    return " ".join(text.split())


def _read(folder: Path, name: str, findings: Findings) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8-sig")
    except PermissionError:
        findings.skip(FORBIDDEN, name)
    except (OSError, UnicodeDecodeError):
        findings.skip(BAD_TEXT, name)
    return ""


def _entry(line: str) -> tuple[str, str] | None:
    """(file, text) of one line, or None when the line is something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
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
