"""Lets the classes of a package be imported from it, each file when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def lazily(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package: `from lpo_platform.tasks import Canny` imports tasks/canny.py alone.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """

    @cache
    def places() -> dict[str, str]:
        """The module of each public class, read from the files without importing them."""
        found: dict[str, list[str]] = {}
        folder = Path(file).parent
        for path in sorted(folder.rglob("*.py")):
            module = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
                found.setdefault(name, []).append(module)
        return {name: modules[0] for name, modules in found.items() if len(modules) == 1}

    def get(name: str) -> Any:
        if name[:1].isupper() and name in places():
            return getattr(import_module(places()[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(places())
