"""Explains a setting that has no value, with the comments of the files that ask for it.

A recipe shows it in the command at its top, `data.path=<pairs>`; the file of an option explains it in a comment that
begins with the setting's name, `# path: the folder of ...`.
"""

from __future__ import annotations

import re

import yaml

from lpo_platform.config.compose import Composed
from lpo_platform.config.schema import CONF

NAMED = re.compile(r"# *([\w, ]+): ")


def wanted(composed: Composed, group: str, key: str) -> str:
    """`<value>`, or what a recipe calls it, and behind it the explanation in parentheses."""
    recipe, option = (composed.choices.get(name) for name in ("experiment", group))
    command = " ".join(_lines(composed, "experiment", recipe))
    shown = re.search(rf"\b{re.escape(key)}=(<[^>]*>)", command)
    explained = _explained(composed, group, option, key.rpartition(".")[2])
    return f"{shown[1] if shown else '<value>'}{f' ({explained})' if explained else ''}"


def _explained(composed: Composed, group: str, option: str | None, name: str) -> str:
    """The comment on a setting in the file of an option, or of the option that this one begins with."""
    lines = _lines(composed, group, option)
    for number, line in enumerate(lines):
        match = NAMED.match(line)
        if match and name in match[1].split(", "):
            text = [line[match.end() :]]
            for more in lines[number + 1 :]:
                if NAMED.match(more) or not more.startswith("#"):
                    break
                text.append(more.lstrip("# "))
            return re.split(r"; \w+: ", " ".join(text))[0].strip().rstrip(".")
    above = _above(lines, option)
    return _explained(composed, group, above, name) if above else ""


def _lines(composed: Composed, group: str, option: str | None) -> list[str]:
    places = [folder / group / f"{option}.yaml" for folder in (*composed.folders, CONF)]
    file = next((file for file in places if file.is_file()), None)
    return [] if file is None else file.read_text(encoding="utf-8", errors="replace").splitlines()


def _above(lines: list[str], option: str | None) -> str | None:
    values = yaml.safe_load("\n".join(lines))
    names = (values.get("defaults") or ()) if isinstance(values, dict) else ()
    return next((name for name in names if isinstance(name, str) and name not in ("_self_", option)), None)
