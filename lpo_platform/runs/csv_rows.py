"""Rows of a CSV file, each of which is read whole or named; one broken row leaves the others as they are."""

import csv
from collections.abc import Iterator

from lpo_platform.runs.given_files import NOT_TEXT, lines_of

QUOTES = "row of a CSV whose quotes do not close, or with a cell above 128 KiB"
CELLS = "row of a CSV with more or fewer cells than its header; a text with commas needs quotes"


class Bad(str):
    """The reason why a row cannot be used."""


def records(data: bytes) -> Iterator[tuple[int, list[str] | Bad]]:
    """(number of its first line, cells or what is wrong with them) of every row that is not blank."""
    given, at = lines_of(data), 0
    while at < len(given):
        if given[at] is None:
            cells, used = Bad(NOT_TEXT), 1
        else:
            cells, used = _record(given, at)
        if cells:
            yield at + 1, cells
        at += used


def table(data: bytes) -> tuple[list[str], Iterator[tuple[int, dict[str, str] | Bad]]]:
    """(header, (line, cells by column or what is wrong with them) of each row). Raises ValueError without a header."""
    found = records(data)
    _, header = next(found, (0, Bad("no header")))
    if isinstance(header, Bad):
        raise ValueError(str(header))
    header = [name.strip() for name in header]
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]}")

    def rows() -> Iterator[tuple[int, dict[str, str] | Bad]]:
        for line, cells in found:
            if isinstance(cells, Bad):
                yield line, cells
            elif len(cells) < len(header) or any(cells[len(header) :]):
                yield line, Bad(CELLS)
            else:
                yield line, dict(zip(header, cells, strict=False))

    return header, rows()


def _record(given: list[str | None], at: int) -> tuple[list[str] | Bad, int]:
    """(the row that begins in line `at`, how many lines it takes)."""
    used = 0

    def following() -> Iterator[str]:
        nonlocal used
        for number in range(at, len(given)):
            if given[number] is None:
                return
            used += 1
            yield given[number] + "\n"

    try:
        return next(csv.reader(following(), strict=True)), used
    except (csv.Error, StopIteration):
        return Bad(QUOTES), 1
