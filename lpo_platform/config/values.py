"""What no setting may be, whatever the class that takes it: a number without a bound, a seed or a count out of range, a
class of Python itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import cache

from lpo_platform.config.compose import Composed

SEEDS = 2**32  # numpy's generators take 32 bits
TIMESTEPS = 1000  # of the training of every model here; the first one of sampling lies one step above the grid

# What is counted is at least 1.
COUNTED = {
    "method": ("steps", "rounds", "batch", "prompts", "group", "candidates", "num_steps", "inner_epochs"),
    "model": ("resolution", "num_inference_steps"),
    "data": ("num_train", "num_test"),
    "metrics": ("num_samples", "num_steps", "batch", "rows", "images_per_item"),
    "callbacks": ("every", "log_every", "samples_every"),
}
SAMPLED = ("method.num_steps", "model.num_inference_steps", "metrics.num_steps")
GUIDANCE = ("model.guidance", "method.guidance", "metrics.guidance", "metrics.guidance_base", "what.guidance")
POSITIVE = ("optim.lr", "optim.eps", "optim.clip", "hardware.memory_gb", "data.cache_gb")
NOT_NEGATIVE = ("optim.weight_decay", "optim.warmup_steps", "hardware.num_workers", "callbacks.samples")


def value_problems(composed: Composed) -> list[str]:
    """One line for each value that no class could use."""
    counted = {f"{group}.{name}" for group, names in COUNTED.items() for name in names}
    problems = []
    for path, value in leaves(composed.values):
        if path.rpartition(".")[2] == "_target_" and isinstance(value, str):
            reason = _foreign_target(value)
        elif type(value) is float and not math.isfinite(value):
            reason = "must be a finite number"
        elif type(value) not in (int, float):
            continue
        elif path.rpartition(".")[2] == "seed":
            reason = "" if type(value) is not int or 0 <= value < SEEDS else f"must lie in [0, {SEEDS - 1}]"
        elif path in counted and type(value) is int and value < 1:
            reason = "must be at least 1"
        elif path in SAMPLED and value >= TIMESTEPS:
            reason = f"must be below {TIMESTEPS}, the number of timesteps that the models are trained at"
        elif path in GUIDANCE and not value >= 0:
            reason = "must be at least 0; 0 to 1 are no guidance"
        elif path in POSITIVE and not value > 0:
            reason = "must be above 0" + (", or nothing is learned" if path == "optim.lr" else "")
        else:
            reason = "must not be negative" if path in NOT_NEGATIVE and value < 0 else ""
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
