"""What --list prints: the options of a group, each with one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lpo_platform.config.errors import UserError, hint
from lpo_platform.config.options import offered
from lpo_platform.config.schema import CONF
from lpo_platform.config.signature import docstring


def listing(group: str, folders: Sequence[Path] = ()) -> str:
    """One line for each option: its name, and the first sentence of the comment that opens its file.

    A comment that starts in lower case explains a setting. The first sentence of the class, if any, is taken then.
    """
    places = (CONF, *folders)
    options = offered(group, folders)
    if not options:
        groups = {path.name for place in places for path in place.glob("*") if path.is_dir()} - {"hydra", "local"}
        raise UserError(f"--list {group}: no such group{hint(group, groups)}")
    width = max(len(name) for name, _ in options) + 2
    return "\n".join(f"{name:{width}}{_sentence(group, name, target, places)}".rstrip() for name, target in options)


def _sentence(group: str, name: str, target: str | None, places: Sequence[Path]) -> str:
    file = next(file for place in reversed(places) if (file := place / group / f"{name}.yaml").is_file())
    comments = re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))
    lines = [line.lstrip("# ") for line in comments[0].splitlines()] if comments else []
    text = " ".join(line for line in lines if not line.startswith(("@package", "lpo-")))
    if target and not text[:1].isupper():
        text = docstring(target) or text
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]
