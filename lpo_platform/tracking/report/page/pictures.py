"""Held-out pictures: what the base and the trained model draw from the same noise."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lpo_platform.tracking.report.page.run import Run

COLUMNS = {
    "condition": "condition",
    "before": "base",
    "after": "trained",
    "detected_before": "re-detected in base",
    "detected_after": "re-detected in trained",
}
TINY_SIDE, LARGEST_SIDE, PROGRESS_SIDE = 160, 384, 1024


def pictures(run: Run) -> dict[str, Any]:
    """A strip for every item that has pictures, and the newest picture of the training itself."""
    folder = run.folder / "samples"
    columns, names = kinds(folder)
    progress, steps = None, sorted(folder.glob("step-*.png"))
    if steps:
        step = int(steps[-1].stem.rpartition("-")[2])
        progress = {"step": step, "picture": embedded(steps[-1], PROGRESS_SIDE)}
    return {"columns": columns, "items": [_strip(run, name, columns) for name in names], "progress": progress}


def kinds(samples: Path) -> tuple[dict[str, str], list[str]]:
    """The kinds of picture that a samples/ folder holds, with their words, and the names of the items."""
    columns = {name: words for name, words in COLUMNS.items() if any((samples / name).glob("*.png"))}
    names = {path.stem for name in columns for path in (samples / name).glob("*.png")}
    return columns, sorted(names, key=_natural)


def embedded(path: Path, largest: int = LARGEST_SIDE) -> dict[str, Any]:
    """A picture as the source of an <img>, a large one scaled down; `tiny` ones are drawn with hard pixels. A picture
    that is not there has a `hole` instead, which says why."""
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
        return {"hole": "missing"}
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return {"hole": "unreadable"}
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"hole": None, "source": source, "tiny": side <= TINY_SIDE}


def _strip(run: Run, name: str, columns: dict[str, str]) -> dict[str, Any]:
    item = run.items[int(name)] if name.isdigit() and int(name) < len(run.items) else {}
    scores = [item.get(f"{run.main}/{side}") for side in ("before", "after")]
    known = all(isinstance(value, int | float) for value in scores)
    samples = run.folder / "samples"
    return {
        "name": name,
        "caption": str(item.get("caption", "") or ""),
        "score": f"{run.main} {scores[0]:.3f} \u2192 {scores[1]:.3f}" if known else "",
        "pictures": [(words, embedded(samples / kind / f"{name}.png")) for kind, words in columns.items()],
    }


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)
