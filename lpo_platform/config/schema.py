"""The root of each command's configuration, and where the configuration files lie."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lpo_platform.config.numbers import Count, Positive, Seed
from lpo_platform.config.unused_folder import unused_folder

HERE = Path(__file__).resolve().parents[1]  # the package
CONF = next(path for path in (HERE / "conf", HERE.parent / "conf") if path.is_dir())


@dataclass
class Kept:
    """What `data` says beside the arguments of its class: which prepared rows stay on disk, and how many GB of them.

    `auto` keeps what the run will read again, `all` everything, `none` nothing.
    """

    cache: Literal["auto", "all", "none"] = "auto"
    cache_gb: Positive = 200.0


KEPT = {item.name: item.default for item in fields(Kept)}


@dataclass
class Train:
    """Root of `lpo-train`. A field of type Any is a group.

    Attributes:
        needed: groups of which an option is always chosen; the others have an option for nothing.
    """

    needed: ClassVar[tuple[str, ...]] = (
        "model", "tune", "data", "method", "optim", "hardware", "callbacks", "metrics",
    )  # fmt: skip

    model: Any = None
    control: Any = None
    tune: Any = None
    task: Any = None
    reward: Any = None
    data: Any = field(default_factory=lambda: dict(KEPT))
    method: Any = None
    optim: Any = None
    hardware: Any = None
    logger: Any = None
    callbacks: Any = None
    metrics: Any = None
    trainer: Any = None
    name: str | None = None
    seed: Seed = 0
    departures: list[str] = field(default_factory=list)  # what a recipe does other than its publication
    resume: str | None = None


@dataclass
class Prepare(Train):
    """Root of `lpo-prepare`."""

    force: bool = False
    export: str | None = None
    pose: str | None = None


@dataclass
class Eval:
    """Root of `lpo-eval`."""

    needed: ClassVar[tuple[str, ...]] = ("hardware", "metrics")

    what: Any = None
    model: Any = None
    control: Any = None
    task: Any = None
    reward: Any = None
    data: Any = None
    hardware: Any = None
    metrics: Any = None
    run: str | None = None
    weights: str | None = None
    against: str | None = None
    seed: Seed = 0


@dataclass
class Score:
    """Root of `lpo-score`."""

    needed: ClassVar[tuple[str, ...]] = ("hardware",)

    data: Any = None
    hardware: Any = None
    scores: Any = None
    resolution: Count = 512


ROOTS: dict[str, type] = {"train": Train, "prepare": Prepare, "eval": Eval, "score": Score}

# The primaries name these: an unknown top-level key then fails in Hydra's own composition, too.
for _name, _root in ROOTS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_root)

# a configuration asks more than once and means the same folder
OmegaConf.register_new_resolver("unused_folder", unused_folder, use_cache=True, replace=True)
