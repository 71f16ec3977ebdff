"""Settings that name files, folders, hub ids or runs: what is wrong with one."""

from __future__ import annotations

import os.path
import re
from pathlib import Path


def expanded(place: str | Path) -> Path:
    """A path with `~` as the home folder; one of a user who is not here stays as it is, and nothing lies there."""
    return Path(os.path.expanduser(place))


def path_problem(key: str, value: str, kind: str = "folder") -> list[str]:
    """kind: what it may be, of file, folder, hub id, and hub file, which is `<hub id>::<file>`."""
    path = expanded(value)
    if "hub file" in kind and "::" in value and is_hub_id(value.partition("::")[0]):
        return []
    if ("file" in kind and path.is_file()) or ("folder" in kind and path.is_dir()):
        return []
    if "hub id" in kind and is_hub_id(value) and not path.exists():
        return []
    what = "not a" if path.exists() else "no such"
    noun = " or ".join(noun for noun in ("file", "folder") if noun in kind.replace("hub file", ""))
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    return [f"{key}={value}: {what} {noun}{where}{', and no hub id' if 'hub id' in kind else ''}"]


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def runs_named(words: list[str]) -> list[str]:
    """The words of a command line with each bare folder that exists as `run=<folder>`."""
    return [f"run={word}" if "=" not in word and expanded(word).is_dir() else word for word in words]


def named(word: str) -> Path:
    """The folder that a word names, with or without the `run=` of other commands."""
    return Path(word.removeprefix("run="))


def run_folder(value: str) -> Path | None:
    """The run folder that `run=` names: the folder itself, or `latest` in it; None where neither holds a run."""
    folder = expanded(value)
    for path in (folder, folder / "latest"):
        if (path / "resolved.yaml").is_file():
            return path.resolve()
    return None


def run_problem(value: str) -> list[str]:
    missing = path_problem("run", value)
    if missing or run_folder(value) is not None:
        return missing
    return [f"run={value}: not a run folder (neither it nor its 'latest' holds resolved.yaml)"]
