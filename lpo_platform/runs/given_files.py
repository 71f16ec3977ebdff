"""Files that somebody else has written: which are opened, how their text is decoded, and where a path in them points.

Every reader of such files (tables, captions, prompts, keypoints, pictures) uses these functions, so that all of them
accept and refuse the same things.
"""

import codecs
import errno
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
K = TypeVar("K")
LARGEST = 2**30  # bytes of a picture, or of the texts that are read at once
BAD_CHARACTERS = "text with half of a surrogate pair or a zero byte"
BAD_NAME = "file whose name is not Unicode"
NOT_TEXT = "text that is not UTF-8, nor UTF-16 or UTF-32 with a byte order mark"


def read_bytes(path: str | Path, *, most: int | None = LARGEST) -> bytes:
    """The bytes of a regular file.

    Raises OSError, also for a device, a pipe, a folder, what cannot be a name, or more than `most` bytes.
    """
    if most is not None and os.stat(regular(path)).st_size > most:
        raise OSError(errno.EFBIG, f"has more than {most / 2**30:g} GiB", str(path))
    with open(regular(path), "rb") as file:
        return file.read()


def regular(path: str | Path) -> Path:
    """The path, if a regular file lies there. Raises OSError: reading a device or a pipe might never end."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, "cannot be the name of a file", repr(str(path))) from error
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return Path(path)


def text_of(data: bytes) -> str:
    """The text of a whole file. Raises ValueError where it is none: another encoding is not guessed."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    decoded = data.decode("utf-8")
    if "\0" in decoded:
        raise ValueError(NOT_TEXT)
    return decoded


def lines_of(data: bytes) -> list[str | None]:
    """The lines of a file without their ends; None for a line that is not text."""
    mark = next((mark for mark, _ in MARKS if data.startswith(mark)), b"")
    if mark in (b"", codecs.BOM_UTF8):
        plain, lines = _plain(data[len(mark) :]), data[len(mark) :].splitlines()
        return [line.decode() for line in lines] if plain else [*map(_text_or_none, lines)]
    try:
        return re.split(r"\r\n|\r|\n", text_of(data))
    except ValueError:
        return [None]


def json_of(source: str) -> object:
    """The value of a JSON text. Raises ValueError, also for a key that stands twice in an object."""
    try:
        return DECODER.decode(source)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def clean(value: object) -> str:
    """The text of a value with single spaces, as a prompt is used.

    It is empty where the value is no text, or holds what no text holds: half of a surrogate pair, a zero byte.
    """
    usable = isinstance(value, str) and "\0" not in value and is_unicode(value)
    return " ".join(value.split()) if usable else ""


def shown(name: str) -> str:
    """A name that can be printed: bytes that are not UTF-8, and control characters, as escapes."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return printable.encode("utf-8", "backslashreplace").decode("utf-8")


def place(folder: str | Path, name: str) -> Path:
    """Where a file that is named in a table lies, of which the folder is known.

    `\\` separates folders as `/` does, and letters with accents may be one character or two, unless a file has exactly
    the given name. The place may hold no file.
    """
    exact = Path(folder) / name
    if _exists(exact):
        return exact
    spellings = [name.replace("\\", "/")]
    spellings += [unicodedata.normalize(form, spellings[0]) for form in ("NFC", "NFD")]
    places = [Path(folder) / spelling for spelling in spellings]
    return next((path for path in places if _exists(path)), places[0])


def is_unicode(name: str) -> bool:
    """Whether the name of a file can be written down; other bytes are half surrogate pairs in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_suffix(name: str, suffixes: tuple[str, ...]) -> str:
    """A name without one of these suffixes in small or capital letters; other dots belong to the name."""
    suffix = os.path.splitext(name)[1]
    return name[: len(name) - len(suffix)] if suffix.lower() in suffixes else name


def by_name(paths: Mapping[K, str]) -> tuple[dict[str, K], list[K]]:
    """(what has each name, what shares its name with another), of things by the paths without suffix that name them.

    A name is the last part of the path where that tells all paths apart, else the whole path: `train/1` and `val/1` are
    two pictures.
    """
    last = {key: path.rpartition("/")[2] for key, path in paths.items()}
    names = last if len(set(last.values())) == len(set(paths.values())) else paths
    count = Counter(names.values())
    return (
        {name: key for key, name in names.items() if count[name] == 1},
        [key for key, name in names.items() if count[name] > 1],
    )


def files_below(folder: Path) -> list[str]:
    """Everything but folders in a folder and in the folders in it, as paths with `/`, in order."""
    found = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [path.relative_to(folder).as_posix() for path in found]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _text_or_none(line: bytes) -> str | None:
    try:
        return text_of(line)
    except ValueError:
        return None


def _plain(data: bytes) -> bool:
    """Whether every line is UTF-8 without a mark, so that a million of them need no look at each."""
    try:
        return b"\0" not in data and codecs.BOM_UTF8 not in data and (data.isascii() or bool(data.decode()))
    except ValueError:
        return False


def _object(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {shown(twice)!r} twice")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_object)
