"""The pieces of HTML that several parts of a page are made of. What they are given as text is escaped."""

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

TINY_SIDE, LARGEST_SIDE = 160, 384

escape = html.escape


def absent(words: str) -> str:
    return f"<p class=absent>{escape(words)}</p>"


def note(words: str) -> str:
    return f"<p class=note>{escape(words)}</p>"


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values."""
    body = "".join(
        f"<tr><td class=old>{escape(name)}</td><td class=path>{escape(value)}</td></tr>" for name, value in rows
    )
    return f"<div class=scroll><table class=small><tbody>{body}</tbody></table></div>"


def fold(summary: str, inside: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{inside}</details>"


def menu(label: str, options: Sequence[str], attribute: str) -> str:
    """A labelled choice; `attribute` tells page.js what it chooses."""
    listed = "".join(f"<option>{escape(option)}</option>" for option in options)
    return f"<label>{escape(label)} <select {attribute}>{listed}</select></label>"


def heads(*columns: tuple[str, str]) -> str:
    """The head of a table from (class, words) of its columns."""
    cells = "".join(f'<th class="{kind}">{escape(words)}</th>' for kind, words in columns)
    return f"<thead><tr>{cells}</tr></thead>"


def cell(shown: str, value: object = None, *, kind: str = "number", label: str = "") -> str:
    """A cell that sorts by `value`; on a narrow screen `label` stands before it."""
    sorts = "" if value is None else f' data-value="{escape(str(value))}"'
    said = f' data-label="{escape(label)}"' if label else ""
    return f'<td class="{kind}"{sorts}{said}>{shown}</td>'


def duration(seconds: float) -> str:
    """Seconds as words: 9.3 s, 2 min 05 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "n/a"


def picture(path: Path, alternative: str, largest: int = LARGEST_SIDE) -> str:
    """An <img> with the picture inside; large ones are scaled down, tiny ones are drawn with hard pixels."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            side, kind = max(image.size), "png"
            if side > largest:
                image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "WEBP", quality=90)
                data, kind = buffer.getvalue(), "webp"
    except FileNotFoundError:
        return "<span class=hole>missing</span>"
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return "<span class=hole>unreadable</span>"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    crisp = " class=tiny" if side <= TINY_SIDE else ""
    return f'<img{crisp} src="{source}" alt="{escape(alternative)}" title="{escape(alternative)}">'
