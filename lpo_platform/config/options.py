"""The options of a group, and the class that each of them names, read from their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from lpo_platform.config.schema import CONF


def shipped(group: str) -> tuple[str, ...]:
    """The options of a group that come with the platform."""
    return _names(group, (CONF,))


def offered(group: str, folders: Sequence[Path] = ()) -> tuple[tuple[str, str | None], ...]:
    """The options of a group, those in the user's folders included, with the class of each.

    The class is None for an option that stands for nothing.
    """
    return _shipped(group) if not folders else _offered(group, (CONF, *folders))


@cache
def _shipped(group: str) -> tuple[tuple[str, str | None], ...]:
    return _offered(group, (CONF,))


def _offered(group: str, folders: tuple[Path, ...]) -> tuple[tuple[str, str | None], ...]:
    return tuple((name, _target(group, name, folders)) for name in _names(group, folders))


def _names(group: str, folders: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")}))


def _target(group: str, option: str, folders: tuple[Path, ...]) -> str | None:
    """The `_target_` of an option's file, or of the option of its group that it begins with."""
    files = [file for folder in folders if (file := folder / group / f"{option}.yaml").is_file()]
    try:
        values = yaml.safe_load(files[-1].read_text(encoding="utf-8")) if files else None
    except (OSError, ValueError, yaml.YAMLError):  # a broken file of the user is complained about where it is chosen
        return None
    if not isinstance(values, dict):
        return None
    node = values[group] if isinstance(values.get(group), dict) else values
    if "_target_" in node:
        return str(node["_target_"])
    above = [name for name in values.get("defaults") or () if isinstance(name, str) and name not in ("_self_", option)]
    return next((target for name in above if (target := _target(group, name, folders))), None)
