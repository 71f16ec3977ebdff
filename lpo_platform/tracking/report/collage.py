"""The pictures of several runs side by side: a block for each run, as its samples/ folder holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

KINDS = ("condition", "before", "after", "detected_before", "detected_after")
GAP, TITLE, SIDE = 4, 14, 96


def collage(runs: Sequence[tuple[str, Path]], *, columns: int = 3) -> Image.Image | None:
    """A block for each (title, run folder) that has pictures, left to right: `columns` items, from above KINDS.

    None where no run has a picture. Pictures larger than SIDE are made that small.
    """
    blocks = [(title, rows) for title, run in runs if (rows := _rows(run / "samples", columns))]
    if not blocks:
        return None
    cell = min(SIDE, max(picture.width for _, rows in blocks for row in rows for picture in row)) + GAP
    height = TITLE + cell * max(len(rows) for _, rows in blocks)
    sheet = Image.new("RGB", (len(blocks) * (columns * cell + 2 * GAP), height), "white")
    for number, (title, rows) in enumerate(blocks):
        left = number * (columns * cell + 2 * GAP) + GAP
        ImageDraw.Draw(sheet).text((left, 0), title, fill="black")
        for y, row in enumerate(rows):
            for x, picture in enumerate(row):
                picture.thumbnail((cell - GAP, cell - GAP))
                sheet.paste(picture, (left + x * cell, TITLE + y * cell))
    return sheet


def _rows(samples: Path, columns: int) -> list[list[Image.Image]]:
    files = [[samples / kind / f"{number}.png" for number in range(columns)] for kind in KINDS]
    found = [[Image.open(file).convert("RGB") for file in row if file.is_file()] for row in files]
    return [row for row in found if row]
