"""All recipes one after the other, and the table of them."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from toys.published import hub, networks
from toys.rehearsal.recipes import Recipe, composed, protocol, recipes
from toys.rehearsal.run import Row, rehearse


def rehearse_all(folder: Path, cache: Path, names: Sequence[str] = ()) -> list[Row]:
    """The first commands of these recipes, and of those whose exports they start from; no names mean every command."""
    chosen = _chosen(names)
    networks.small_open_clip(folder)
    local = hub.local(folder / "local", cache, [text for recipe in chosen for text in recipe.asks])
    exports: dict[str, Path] = {}
    hub.make(cache, _named(chosen) if names else None)
    rows = []
    for recipe in chosen:
        place = folder / "runs" / f"{recipe.name}-{recipe.number + 1}"
        shutil.rmtree(place, ignore_errors=True)
        if lacking := [name for name in recipe.needs if name not in exports]:
            row = Row(recipe.title, fault=f"it starts from {lacking[0]}, which failed")
        else:
            row = rehearse(recipe, partial(recipe.line, local, exports), place, cache)
        if not row.fault:
            exports[recipe.name] = exported(place)
        rows.append(row)
        print(f"{row.title}: {row.fault or 'ok'} ({row.seconds:.0f} s)", file=sys.stderr, flush=True)
    return rows


def _named(chosen: Sequence[Recipe]) -> list[str]:
    """The ids that these recipes and their protocols state; DINOv2 is one that a class chooses."""
    found = {"facebook/dinov2-small"}
    for recipe in chosen:
        words = [word for word in recipe.words if "<" not in word]
        values, choices = composed(words)
        name = protocol(values, choices["task"] if values.get("control") else None)
        found |= set(hub.named([values, composed([*words, f"metrics={name}"])[0] if name else None]))
    return sorted(found)


def exported(run: Path) -> Path:
    """The ControlNet that a later recipe starts from: the averaged one where there is one."""
    found = [path for path in (run / "export" / name for name in ("controlnet_ema", "controlnet")) if path.is_dir()]
    return found[0] if found else run / "export"


def show(rows: Sequence[Row], file: Path | None) -> None:
    for row in rows:
        print(f"\n{row.title}: {'FAILED' if row.fault else 'passed'} in {row.seconds:.1f} s")
        for name, files in row.read.items():
            print(f"  read        {name}: {', '.join(files)}")
        print(f"  trained     {row.trained:,} parameters")
        print(f"  evaluated   {row.protocol}, picture {row.picture}")
        for line in row.departures:
            print(f"  departs     {line}")
        if row.fault:
            print(f"  fault       {row.fault}")
    failed = [row.title for row in rows if row.fault]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} recipes passed" + "".join(f"; {name} failed" for name in failed))
    if file is not None:
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _chosen(names: Sequence[str]) -> list[Recipe]:
    every = recipes()
    wanted, more = set(names) or {recipe.name for recipe in every}, set(names)
    while more:
        more = {name for recipe in every if recipe.name in wanted for name in recipe.needs} - wanted
        wanted |= more
    return [recipe for recipe in every if recipe.name in wanted and not (names and recipe.number)]
