"""From a command line to a configuration that remembers where each key comes from.

Hydra composes the configuration of a job. It stops at the first mistake, though, and does not say which file set a key.
This reads the same defaults list with Hydra's own code and merges the files itself, so that all mistakes are found and
can be named; tests hold the result equal to Hydra's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from pathlib import Path
from string import Template
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lpo_platform.config import smoke
from lpo_platform.config.schema import CONF
from lpo_platform.config.yaml_files import Files


@dataclass
class Source:
    """Where configurations come from: our conf, the user's folders, the root schemas."""

    repo: Files
    path: ConfigSearchPathImpl
    primary: str
    groups: tuple[str, ...]
    folders: tuple[Path, ...] = ()

    def options(self, group: str) -> list[str]:
        return sorted(self.repo.get_group_options(group, ObjectType.CONFIG))


def source(primary: str, config_dirs: Sequence[str], conf: Path) -> Source:
    Plugins.instance()
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", f"file://{conf}")
    if conf != CONF:
        path.append("platform", f"file://{CONF}")
    path.append("schema", "structured://")
    for folder in config_dirs:
        path.prepend("command-line", f"file://{Path(folder).resolve()}", SearchPathQuery(provider="schema"))
    repo = Files(ConfigRepository(path))
    own = tuple(Path(folder).resolve() for folder in config_dirs)
    return Source(repo, path, primary, _groups(repo, primary), own)


def _groups(repo: Files, primary: str) -> tuple[str, ...]:
    """The groups that a command chooses from: those of its defaults list."""
    loaded = repo.load_config(primary) if repo.config_exists(primary) else None
    found = {
        str(item.group).strip("/")
        for item in (loaded.defaults_list if loaded and loaded.defaults_list else ())
        if isinstance(item, GroupDefault) and not item.is_override()
    }
    return tuple(sorted(found - {"local"}))


def help_text(primary: str, config_dirs: Sequence[str], words: str | None = None) -> str:
    """What `--help` prints: conf/hydra/help/<words, else primary>.yaml with the groups of the command filled in.

    Hydra's own way to the same text lists every group of Hydra as well and takes seconds.
    """
    files = source(primary, config_dirs, CONF)
    file = CONF / "hydra" / "help" / f"{words or primary}.yaml"
    filled = OmegaConf.create({"hydra": {"help": OmegaConf.load(file)}})
    groups = "\n".join(f"  {group}: {', '.join(files.options(group))}" for group in files.groups)
    return Template(str(filled.hydra.help.template)).safe_substitute(APP_CONFIG_GROUPS=f"{groups}\n").rstrip()


def compose(primary: str, overrides: Sequence[str], config_dirs: Sequence[str], conf: Path) -> Composed:
    """The configuration of one job as plain values. Raises HydraException where Hydra would."""
    return compose_from(source(primary, config_dirs, conf), overrides)


def compose_from(files: Source, overrides: Sequence[str]) -> Composed:
    """`compose` for many command lines: the files are read once."""
    return merge(files, override_parser().parse_overrides(list(overrides)))


@lru_cache(maxsize=1)
def override_parser() -> OverridesParser:
    return OverridesParser.create()


def hydra_settings(primary: str, overrides: Sequence[str], config_dirs: Sequence[str], conf: Path) -> DictConfig:
    """The configuration of a sweep as Hydra composes it, its own settings included and readable."""
    path = source(primary, config_dirs, conf).path
    setup_globals()
    cfg = ConfigLoaderImpl(path).load_configuration(primary, list(overrides), RunMode.MULTIRUN)
    smoke.shrink(cfg, cfg.hydra.runtime.choices, overrides)
    HydraConfig.instance().set_config(cfg)
    return cfg


def merge(files: Source, parsed: list[Override]) -> Composed:
    """Reads the files of the defaults list in order; group overrides choose, the others are applied on top."""
    found = create_defaults_list(
        repo=files.repo,
        config_name=files.primary,
        overrides_list=parsed,
        prepend_hydra=True,
        skip_missing=True,
    )
    composed = Composed({}, {}, folders=files.folders)
    for default in found.defaults:
        _merge_file(files, composed, default)
    composed.values.pop("hydra", None)
    composed.choices = {
        group: option for group, option in found.overrides.known_choices.items() if not group.startswith("hydra/")
    }
    for item in found.config_overrides:
        if not item.is_hydra_override():
            set_value(composed, item)
    if composed.choices.get("debug") == "smoke":
        given = [item.key_or_group for item in found.config_overrides]
        for path, size in smoke.sizes(composed.values, given):
            *above, last = path.split(".")
            reduce(dict.__getitem__, above, composed.values)[last] = size
    return composed


def _merge_file(files: Source, composed: Composed, default: ResultDefault) -> None:
    path = default.config_path
    if path is None or path.startswith("hydra/"):
        return
    loaded = files.repo.load_config(path)
    if loaded is None:
        return
    package = default.package if default.package is not None else loaded.header.get("package") or ""
    content = OmegaConf.to_container(loaded.config, resolve=False)
    for key in reversed(package.split(".") if package else []):
        content = {key: content}
    if isinstance(content, dict):
        _update(composed, composed.values, content, path, "")


def _update(composed: Composed, into: Values, new: Values, origin: str, prefix: str) -> None:
    for key, value in new.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _update(composed, into[key], value, origin, f"{path}.")
        elif not (value == "???" and key in into):
            if isinstance(into.get(key), dict):
                composed.origins = {k: v for k, v in composed.origins.items() if not k.startswith(f"{path}.")}
            composed.origins[path] = origin
            into[key] = value
            if isinstance(value, dict):
                into[key] = {}
                _update(composed, into[key], value, origin, f"{path}.")


def set_value(composed: Composed, item: Override) -> None:
    parts = item.key_or_group.split(".")
    node = composed.values
    for part in parts[:-1]:
        below = node.setdefault(part, {})
        if not isinstance(below, dict):
            below = node[part] = {}
        node = below
    if item.is_delete():
        node.pop(parts[-1], None)
        return
    value = OmegaConf.to_container(OmegaConf.create({"value": item.value()}), resolve=False)["value"]
    prefix = ".".join(parts[:-1])
    _update(composed, node, {parts[-1]: value}, COMMAND, f"{prefix}." if prefix else "")


Values = dict[str, Any]


def several(key: str, value: object) -> bool:
    """Whether an override makes a command a sweep, as -m does."""
    return key in ("sweep", "hydra.mode") or (key, value) == ("hardware", "slurm")


@dataclass
class Composed:
    """A configuration as plain values, with the file that set each key (`method/cpo`, or COMMAND).

    unsure: groups of which an option was chosen that does not exist. folders: where the user's own options lie.
    """

    values: Values
    choices: dict[str, str | None]
    origins: dict[str, str] = field(default_factory=dict)
    unsure: frozenset[str] = frozenset()
    folders: tuple[Path, ...] = ()

    def origin(self, path: str) -> str | None:
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return None

    def where(self, path: str) -> str:
        """` in method/mine.yaml` for a key that a file set, empty for the command line."""
        origin = self.origin(path)
        return "" if origin in (None, COMMAND) else f" in {origin}.yaml"


COMMAND = "command line"
