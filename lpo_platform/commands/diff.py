"""The command lpo-diff: the resolved keys, versions and results in which two runs, or two configurations, differ."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.commands.terminal import VERSION
from lpo_platform.config import stored
from lpo_platform.config.compose import compose
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import ConfigError, UserError
from lpo_platform.config.paths import expanded, run_folder
from lpo_platform.config.schema import CONF
from lpo_platform.evaluation.result_table import change, decimals, number
from lpo_platform.evaluation.statistics import compare, verdict
from lpo_platform.runs import record
from lpo_platform.tracking.report.page.run import Run, mapping

EXAMPLES = """examples:

  lpo-diff outputs/cpo-tiny-canny outputs/control-tiny-canny              the newest run of each
  lpo-diff outputs/sweeps/<time>/0-cpo-tiny-canny outputs/sweeps/<time>/1-cpo-tiny-canny
  lpo-diff experiment=cpo_canny_sd15 experiment=cpo_hed_sd15              two recipes
  lpo-diff "method=cpo task=canny" outputs/cpo-tiny-canny                 what a run changed
"""
RECORDED = ("versions", "git", "machine")  # of env.json
OUTCOME = ("status", "reason", "samples", "deviations")  # of result.json, beside its metrics
WIDEST = 60  # of a column
Difference = tuple[str, Any, Any]


@dataclass
class Side:
    """One of the two; a configuration that has not run has nothing but its values."""

    config: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)


def main() -> None:
    """Console command lpo-diff."""
    parser = argparse.ArgumentParser(
        "lpo-diff", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=VERSION)
    words = "a run folder (or the one above it: its newest), a resolved.yaml, or quoted overrides of lpo-train"
    parser.add_argument("a", metavar="A", help=words)
    parser.add_argument("b", metavar="B", help="the same")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args()
    try:
        found = differences(side(asked.a), side(asked.b))
    except UserError as error:
        print(f"lpo-diff: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(found, indent=2, default=str) if asked.json else text(found))


def side(place: str) -> Side:
    """What a word of the command line names. UserError where it is nothing of the kind."""
    place = place.removeprefix("run=")
    path = expanded(place)
    folder = path.parent if path.is_file() and path.name == "resolved.yaml" else run_folder(place)
    if folder is not None:
        run = Run.read(folder)
        if not run.config:
            raise UserError(f"{folder}/resolved.yaml: no readable configuration")
        items = {item["id"]: item for item in run.items if "id" in item}
        return Side(_groups(run.config), run.environment, run.result, run.metrics, items)
    if path.is_file():
        return Side(_groups(_read(path)))
    if path.exists() or "=" not in place:
        what = "not a run (no resolved.yaml, here or in 'latest')" if path.exists() else "no such file or folder"
        raise UserError(f"{place}: {what}; what works: a run folder, a resolved.yaml, or overrides as experiment=...")
    try:
        words = shlex.split(place)
    except ValueError as error:
        raise UserError(f"{place}: {str(error).lower()}") from None
    if problems := diagnose("train", words, values=False):
        raise ConfigError(problems)
    values = OmegaConf.create(compose("train", words, [], CONF).values)
    return Side(_groups(record.redact_config(OmegaConf.to_container(values, resolve=True))))


def differences(a: Side, b: Side) -> dict[str, Any]:
    """What differs: (key, A, B) of the `configuration`, of what is `recorded` and of the `outcome`; and `results`.

    A result holds a metric of both sides and, where both have values of the same items, `paired`: B against A.
    """
    sides = [{name: mapping(s.environment.get(name)) for name in RECORDED} for s in (a, b)]
    ran = bool(a.environment and b.environment)
    names = [*a.metrics, *(name for name in b.metrics if name not in a.metrics)]
    results = {name: (a.metrics.get(name), b.metrics.get(name)) for name in names} if a.result and b.result else {}
    changed = {name: pair for name, pair in results.items() if pair[0] != pair[1]}
    return {
        "configuration": _rows(a.config, b.config),
        "recorded": _rows(*sides) if ran else [],
        "outcome": _rows(*({name: s.result.get(name) for name in OUTCOME} for s in (a, b))) if ran else [],
        "results": {
            name: {"a": first, "b": second, "paired": paired(name, first or second, a, b)}
            for name, (first, second) in changed.items()
        },
    }


def paired(name: str, metric: Mapping[str, Any], a: Side, b: Side) -> dict[str, Any] | None:
    """B against A after training, in result.json's form with `count`, from the items that both have drawn."""
    key = f"{name}/after"
    same = [i for i, item in a.items.items() if item.get("caption") == b.items.get(i, {}).get("caption")]
    values = [(a.items[i][key], b.items[i][key]) for i in same if key in a.items[i] and key in b.items[i]]
    values = [pair for pair in values if None not in pair]
    if not values:
        return None
    first, second = ({name: list(column)} for column in zip(*values, strict=True))
    found = compare(first, second, {name: metric["higher_is_better"]})
    return {**found[name], "count": len(values)}


def text(found: Mapping[str, Any]) -> str:
    """Aligned text of differences(), or one line that says that there are none."""
    sections = [
        ("configuration", _table(found["configuration"])),
        ("versions and machine", _table(found["recorded"])),
        ("results", "\n".join([_table(found["outcome"]), *(_metric(n, m) for n, m in found["results"].items())])),
    ]
    parts = [f"{title}\n{body.strip(chr(10))}" for title, body in sections if body.strip()]
    return "\n\n".join(parts) or "no difference: configuration, versions and results are the same"


def _metric(name: str, result: Mapping[str, Any]) -> str:
    lines = [
        f"    {side.upper()}  {number(m['before'], d := decimals(m))} -> {number(m['after'], d)}  {change(m)}"
        if (m := result[side])
        else f"    {side.upper()}  (absent)"
        for side in ("a", "b")
    ]
    if m := result["paired"]:
        wins = m.get("wins", [math.nan])[0]
        better = f", B better in {100 * wins:.0f} %" if math.isfinite(wins) else ""
        lines.append(f"    B - A  {change(m)}  {verdict(m)}, paired over {m['count']} items{better}")
    return "\n".join([f"  {name}", *lines])


def _rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """By leaf, also of a part that one side lacks."""
    return record.difference(dict(_leaves(b)), dict(_leaves(a)))


def _leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _groups(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without groups that have no option, which are {} in a run's file and null in a composition; a tuple is a list."""
    plain = json.loads(json.dumps(config, default=str))
    return {key: value for key, value in plain.items() if value not in (None, {})}


def _read(path: Path) -> dict[str, Any]:
    try:
        return mapping(record.redact_config(OmegaConf.to_container(stored.load(path), resolve=True)))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: no readable configuration. Reason: {str(error).splitlines()[0]}") from error


def _table(rows: Sequence[Difference]) -> str:
    """Columns key, A, B; a long value moves its own row only."""
    if not rows:
        return ""
    cells = [("", "A", "B"), *((key, _value(first), _value(second)) for key, first, second in rows)]
    widths = [max(len(row[column]) for row in cells if len(row[column]) <= WIDEST) for column in range(2)]
    return "\n".join(f"  {key:{widths[0]}}  {a:{widths[1]}}  {b}".rstrip() for key, a, b in cells)


def _value(value: Any) -> str:
    return str(value) if value is record.MISSING or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
