"""Where the modules of a user's own classes are looked for: one rule, for every command."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path


def look_in(config_dirs: Iterable[str | Path] = ()) -> None:
    """Makes importable what lies in the current folder and beside each --config-dir; installed packages come first."""
    for place in _places(config_dirs):
        if place not in sys.path:
            sys.path.append(place)


def places(config_dirs: Iterable[str | Path] = ()) -> str:
    """The rule in words, for the error of a module that is not found."""
    here, *beside = _places(config_dirs)
    more = f" ({', '.join(beside)})" if beside else ""
    return f"a module of your own may be installed, or lie in the current folder ({here}) or beside --config-dir{more}"


def _places(config_dirs: Iterable[str | Path]) -> list[str]:
    return [str(Path.cwd()), *(str(Path(folder).resolve().parent) for folder in config_dirs)]
