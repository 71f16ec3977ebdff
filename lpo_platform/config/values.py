"""What no setting may be, whatever the class that takes it: a number that is not finite, a class of Python itself."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cache

from lpo_platform.config.compose import Composed


def value_problems(composed: Composed) -> list[str]:
    """One line for each value that no class could use."""
    problems = []
    for path, value in leaves(composed.values):
        reason = ""
        if path.rpartition(".")[2] == "_target_" and isinstance(value, str):
            reason = _foreign_target(value)
        elif type(value) is float and not math.isfinite(value):
            reason = "must be a finite number"
        if reason:
            shown = repr(value) if isinstance(value, str) else value
            problems.append(f"{path}={shown}{composed.where(path)}: {reason}")
    return problems


def leaves(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of everything in a configuration that is neither a mapping nor a list."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from leaves(value, f"{path}[{number}]")
    else:
        yield path, node


def _foreign_target(target: str) -> str:
    """Why a configuration may not call this: Python's own functions run programs and delete files."""
    if target.partition(".")[0] in sys.stdlib_module_names or target in _blocked():
        return "a configuration may not call it; what works: a class of lpo_platform or of your own"
    return ""


@cache
def _blocked() -> frozenset[str]:
    """What Hydra refuses to call, which it says only when it is about to."""
    try:
        from hydra._internal import target_policy  # no part of its interface, and not in every version
    except ImportError:
        return frozenset()
    names = ("DEFAULT_BLOCKLISTED_MODULES", "UNCONTROLLED_EXECUTION_TARGETS", "DISCOVERY_TARGETS")
    return frozenset().union(*(getattr(target_policy, name, ()) for name in names))
