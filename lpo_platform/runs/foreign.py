"""Whether a folder holds a run of another configuration, whose results and checkpoints are not to be mixed with these.

What may differ: where a run is shown, watched and computed (FREE; of the hardware everything but two precisions that
are both named), and, where a single run goes on, `method.steps` or `method.rounds`, which may be raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.config import stored
from lpo_platform.config.errors import UserError
from lpo_platform.runs import record

FREE = (
    "hydra", "resume", "name", "logger", "hardware", "trainer", "callbacks.log_every", "metrics.batch", "data.cache",
    "data.cache_gb",
)  # fmt: skip
PRECISION = "hardware.precision"
LENGTHS = ("method.steps", "method.rounds")
SHOWN = 12  # differences in one message

Difference = tuple[str, Any, Any]  # dotted key, value in the folder, value now


class Foreign(UserError):
    """A folder holds a run of another configuration: neither its result nor its checkpoint is of this one."""


def refuse(folder: Path, config: Mapping[str, Any], *, advice: str, longer: bool = False) -> None:
    """Raises Foreign, naming what differs, where a folder holds a run of another configuration than `config`."""
    found = differences(folder, config, longer=longer)
    if found:
        first = found[:SHOWN]
        lines = [
            f"  {name}: {_shown(old)} there, {_shown(new)} now"
            for name, (_, old, new) in zip(names(first), first, strict=True)
        ]
        more = [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        text = "\n".join([f"{folder} holds a run with another configuration:", *lines, *more])
        raise Foreign(f"{text}\n  what works: {advice}")


def keys(found: Iterable[Difference]) -> str:
    """The keys of differences, for a line of a table."""
    found = names(found)
    return ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")


def names(found: Iterable[Difference]) -> list[str]:
    """Their keys; a class by the key of what it is the class of."""
    return [key.removesuffix("._target_") for key, _, _ in found]


def differences(folder: Path, config: Mapping[str, Any], *, longer: bool = False) -> list[Difference]:
    """Where the run that a folder holds, if any, has other settings than a configuration with literal values.

    longer: whether the run may be continued to more steps or rounds than it had.
    """
    file = folder / "resolved.yaml"
    if not file.is_file():
        return []
    try:
        before = OmegaConf.to_container(stored.load(file), resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{file}: not readable ({error}); delete the folder, or take another") from error
    now = OmegaConf.to_container(OmegaConf.create(record.resolved_yaml(config)), resolve=True)  # secrets hidden alike
    return between(before, now, longer=longer)


def between(before: Mapping[str, Any], now: Mapping[str, Any], *, longer: bool = False) -> list[Difference]:
    """The settings in which two configurations differ. Where the class differs, its arguments are not listed."""
    found = [(key, old, new) for key, old, new in record.difference(now, before) if not (_empty(old) and _empty(new))]
    found = [(key, old, new) for key, old, new in found if not _free(key, old, new)]
    classes = [key.removesuffix("._target_") for key, _, _ in found if key.endswith("._target_")]
    kept = [item for item in found if item[0].endswith("._target_") or not _below(item[0], classes)]
    return [item for item in kept if not (longer and _raised(item, before))]


def _empty(value: Any) -> bool:
    return value is record.MISSING or value is None or value == {}


def _free(key: str, before: Any, now: Any) -> bool:
    if key == PRECISION:
        return "auto" in (before, now)
    return any(key == name or key.startswith(f"{name}.") for name in FREE)


def _below(key: str, parents: list[str]) -> bool:
    return any(key.startswith(f"{parent}.") for parent in parents)


def _raised(difference: Difference, before: Mapping[str, Any]) -> bool:
    """Whether a run is only continued: an offline one in whole rounds of callbacks.every steps."""
    key, old, new = difference
    if key not in LENGTHS or type(old) is not int or type(new) is not int or new < old:
        return False
    every = (before.get("callbacks") or {}).get("every") or 1
    return key == "method.rounds" or old % every == 0


def _shown(value: Any) -> str:
    if value is None or value is record.MISSING:
        return "null"
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
