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
from lpo_platform.tracking.report.page.markup import absent, escape, fold
from lpo_platform.tracking.report.page.run import Run

MOST_CHANGES = 12


def configuration(run: Run) -> str:
    command = run.command()
    parts = [command_line(command) if command else absent("No command is on record.")]
    if not run.config:
        return "".join([*parts, absent("resolved.yaml is missing.")])
    if run.choices:
        chosen = (f"<code>{escape(str(group))}={escape(str(option))}</code>" for group, option in run.choices.items())
        parts.append(f"<p>Options: {' '.join(chosen)}</p>")
    parts.append(_difference_table(run))
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100)
    parts.append(fold("Full configuration", f"<pre>{escape(text)}</pre>"))
    return "".join(parts)


def command_line(words: list[str]) -> str:
    return f"<pre class=command>{escape(shlex.join(words))}</pre>"


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


def _difference_table(run: Run) -> str:
    defaults = compose_defaults(run.choices, run.config_name)
    if defaults is None:
        return absent("The defaults could not be composed here, so the difference to them is not shown.")
    rows = record.difference(run.config, record.redact_config(defaults))
    if not rows:
        return "<p>Every value is the default of these options.</p>"
    body = "".join(
        f"<tr><td class='path mono'>{escape(path)}</td><td class='path mono old'>{escape(_value(default))}</td>"
        f"<td class='path mono'>{escape(_value(value))}</td></tr>"
        for path, default, value in rows
    )
    head = "<tr><th>setting</th><th>default</th><th>this run</th></tr>"
    table = f"<div class=scroll><table class=small><thead>{head}</thead><tbody>{body}</tbody></table></div>"
    words = f"Differs from the defaults of these options in {len(rows)} value{'s' if len(rows) > 1 else ''}"
    return fold(words, table) if len(rows) > MOST_CHANGES else f"<p>{words}:</p>{table}"


def _value(value: Any) -> str:
    if value is record.MISSING:
        return "(absent)"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
