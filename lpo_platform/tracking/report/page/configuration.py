"""What was run: the command, the options, and every value that differs from their defaults."""

import shlex
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf, open_dict

from lpo_platform.config.schema import CONF  # importing it registers the schema that conf/train.yaml names
from lpo_platform.runs import record
from lpo_platform.tracking.report.page.run import Run


def configuration(run: Run) -> dict[str, Any]:
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100) if run.config else ""
    words = shlex.join(run.command())
    return {"words": words, "text": text, "choices": run.choices, "differences": _differences(run) if text else None}


def compose_defaults(choices: Mapping[str, str], config_name: str = "train") -> dict[str, Any] | None:
    """What a root config composes to with these options and nothing else; None if it does not compose here."""
    return _composed(tuple(choices.items()), config_name)


@lru_cache(maxsize=8)
def _composed(choices: tuple[tuple[str, str], ...], config_name: str) -> dict[str, Any] | None:
    overrides = [f"{g}={o}" for g, o in choices if g not in {"experiment", "sweep", "debug", "local"}]
    for attempt in (overrides, []):
        try:
            return _compose(config_name, attempt)
        except Exception:  # a report must not fail because a configuration has moved on
            continue
    return None


def _compose(config_name: str, overrides: list[str]) -> dict[str, Any]:
    state = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(config_name, overrides=overrides)
        with open_dict(cfg):
            cfg.pop("hydra", None)
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    finally:
        Singleton.set_state(state)


def _differences(run: Run) -> list[tuple[str, str, str]] | None:
    """(setting, default, value) of what differs from the defaults of its options; None where they do not compose."""
    defaults = compose_defaults(run.choices, run.config_name)
    if defaults is None:
        return None
    found = record.difference(run.config, record.redact_config(defaults))
    return [(path, _value(default), _value(value)) for path, default, value in found]


def _value(value: Any) -> str:
    if value is record.MISSING:
        return "(absent)"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
