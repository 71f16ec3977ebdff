"""`debug=smoke`: any command line made small, so that its whole path runs in seconds or, at full size, in minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

PROCESSES = 16  # assumed where the number is that of the GPUs: what divides among 16 divides among 2, 4 and 8

# The most that stays of each size, wherever in a group it stands; null, which means all, becomes as many. A size that
# a class does not have is not added.
SIZES = {
    "method": {"steps": 2, "rounds": 2, "prompts": 4, "group": 2, "candidates": 2, "inner_epochs": 1, "batch": 4},
    "data": {"num_train": 16, "num_test": 8, "num_validation": 8, "num_images": 2},
    "metrics": {"num_samples": 8, "num_steps": 4, "rows": 8, "images_per_item": 2},
    "model": {"num_inference_steps": 4},
    "callbacks": {"samples": 2, "items": 8},
}
KEEPS_NULL = ("metrics.num_steps", "method.group")  # where null is not "all", but another setting's value
OF_TRANSITIONS = 16  # method.batch of a method that samples rounds, whose transitions are many


def sizes(values: dict[str, Any], given: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """(dotted key, size) of what a configuration has that is larger; what is `given` on a command line stays."""
    kept, hardware = set(given), values.get("hardware") or {}
    processes, batch = _processes(hardware), (values.get("method") or {}).get("batch")
    for group, most in SIZES.items():
        for path, key, value in _numbers(values.get(group), group):
            size = most.get(key)
            if size is None or path in kept or (value is None and path in KEEPS_NULL):
                continue
            if path == "method.batch":
                size = OF_TRANSITIONS if "rounds" in values["method"] else size
            divides = path in ("method.batch", "method.prompts")
            if divides:
                size = max(processes, min(size, value or size) // processes * processes)
            if value is None or value > size or (divides and value != size):
                yield path, size
                batch = size if path == "method.batch" else batch
    micro = hardware.get("micro_batch")
    if type(micro) is int and type(batch) is int and "hardware.micro_batch" not in kept:
        own = max(1, batch // processes)
        yield "hardware.micro_batch", max(n for n in range(1, own + 1) if own % n == 0 and n <= max(1, micro))


def shrink(cfg: DictConfig, choices: dict[str, str | None], overrides: Iterable[str]) -> bool:
    """Makes a configuration small in place where its options say so; whether they do."""
    if choices.get("debug") != "smoke":
        return False
    given = {item.partition("=")[0].lstrip("+~") for item in overrides}
    with open_dict(cfg):
        for path, size in sizes(OmegaConf.to_container(cfg, resolve=False), given):
            OmegaConf.update(cfg, path, size)
    return True


def _numbers(node: object, path: str) -> Iterator[tuple[str, str, int | None]]:
    """Every whole number and null of a group, with its dotted key and the last part of that."""
    for key, value in node.items() if isinstance(node, dict) else ():
        below = f"{path}.{key}"
        if isinstance(value, dict):
            yield from _numbers(value, below)
        elif value is None or type(value) is int:
            yield below, str(key), value


def _processes(hardware: dict[str, Any]) -> int:
    devices, nodes = hardware.get("devices", 1), hardware.get("num_nodes", 1)
    if hardware.get("strategy", "single") == "single":
        return 1
    return (devices if type(devices) is int else PROCESSES) * (nodes if type(nodes) is int else 1)
