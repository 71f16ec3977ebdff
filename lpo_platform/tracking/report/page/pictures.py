"""Held-out pictures: what the base and the trained model draw from the same noise."""

from collections.abc import Mapping
from pathlib import Path

from lpo_platform.tracking.report.page.markup import absent, escape, fold, note, picture
from lpo_platform.tracking.report.page.run import Run

COLUMNS = {
    "condition": "condition",
    "before": "base",
    "after": "trained",
    "detected_before": "re-detected in base",
    "detected_after": "re-detected in trained",
}
SHOWN_AT_ONCE = 6
PROGRESS_SIDE = 1024


def pictures(run: Run) -> str:
    """A strip for every item that has pictures, and the newest picture of the training itself."""
    folder = run.folder / "samples"
    columns, names = kinds(folder)
    if not columns:
        return _progress(folder, opened=True) or absent("samples/ holds no pictures.")
    strips = [_strip(run, name, columns) for name in names]
    heads = "".join(f"<span>{words}</span>" for words in columns.values())
    shape = f'class="strips{" few" if len(columns) < 3 else ""}" style="--columns:{len(columns)}"'
    head = f"<div class='strip head'><div class=blank></div><div class=heads>{heads}</div></div>"
    words = "The first held-out items, not a selection. Base and trained start from the same noise."
    if list(columns) == ["before", "after"]:
        words += " On the left the base, on the right the trained model."
    if "detected_after" in columns:
        words += " What the detector finds in an output should equal the condition."
    shown = f"{note(words)}<div {shape}>{head}{''.join(strips[:SHOWN_AT_ONCE])}</div>"
    if rest := strips[SHOWN_AT_ONCE:]:
        shown += fold(f"{len(rest)} more", f"<div {shape}>{head}{''.join(rest)}</div>")
    return shown + _progress(folder)


def kinds(samples: Path) -> tuple[dict[str, str], list[str]]:
    """The kinds of picture that a samples/ folder holds, with their words, and the names of the items."""
    columns = {name: words for name, words in COLUMNS.items() if any((samples / name).glob("*.png"))}
    names = {path.stem for name in columns for path in (samples / name).glob("*.png")}
    return columns, sorted(names, key=_natural)


def _strip(run: Run, name: str, columns: Mapping[str, str]) -> str:
    item = run.items[int(name)] if name.isdigit() and int(name) < len(run.items) else {}
    caption = str(item.get("caption", "") or "")
    text = escape(caption) if caption else f"<span class=note>item {escape(name)}, no caption</span>"
    scores = [item.get(f"{run.main}/{side}") for side in ("before", "after")]
    if all(isinstance(value, int | float) for value in scores):
        text += f"<span class=meta>{escape(str(run.main))} {scores[0]:.3f} \u2192 {scores[1]:.3f}</span>"
    row = "".join(
        picture(run.folder / "samples" / column / f"{name}.png", f"{words}: {caption}")
        for column, words in columns.items()
    )
    anchor = f' id="item-{escape(name)}"'
    return f"<div class=strip{anchor}><div class=caption>{text}</div><div class=pictures>{row}</div></div>"


def _progress(samples: Path, *, opened: bool = False) -> str:
    steps = sorted(samples.glob("step-*.png"))
    if not steps:
        return ""
    step = int(steps[-1].stem.rpartition("-")[2])
    shown = picture(steps[-1], f"samples at step {step}", PROGRESS_SIDE)
    return fold(f"During training, at step {step}", f"<div class=progress>{shown}</div>", opened=opened)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)
