"""`${unused_folder:<path>}` in a configuration: a folder that nobody has, made at once so that nobody else takes it.

Run folders are named by the second; two commands that start in the same one get `<path>` and `<path>-2`.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path


def unused_folder(path: str) -> str:
    """`path`, or with the first number from 2 at its end under which nothing lies yet."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return path  # whoever makes it says why that cannot be
    for number in count(1):
        folder = path if number == 1 else f"{path}-{number}"
        try:
            Path(folder).mkdir()
        except FileExistsError:
            continue
        except OSError:
            return path
        return folder
    raise AssertionError("numbers do not end")
