"""What a run folder holds, as far as a page shows it; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.config import stored
from lpo_platform.evaluation import item_table
from lpo_platform.runs import files, record


@dataclass
class Run:
    """Whatever is missing or unreadable is empty; `alarms` is None where no sentinel watched."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    config_name: str = "train"
    rows: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] | None = None

    @classmethod
    def read(cls, folder: Path) -> Run:
        hydra = _yaml(folder / ".hydra" / "hydra.yaml", resolve=False).get("hydra", {})
        choices = (hydra.get("runtime") or {}).get("choices") or {}
        return cls(
            folder,
            config=record.redact_config(_yaml(folder / "resolved.yaml", resolve=True)),
            environment=mapping(files.read_json(folder / "env.json")),
            result=mapping(files.read_json(folder / "result.json")),
            config_name=str((hydra.get("job") or {}).get("config_name") or "train"),
            choices={k: v for k, v in choices.items() if not k.startswith("hydra/") and v is not None},
            rows=files.read_lines(folder / "metrics.jsonl"),
            # items.jsonl: runs of before
            items=item_table.read(folder / "evaluation" / "items.parquet")
            or files.read_lines(folder / "evaluation" / "items.jsonl"),
            alarms=alarms(folder),
        )

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        found = mapping(self.result.get("metrics"))
        return {name: m for name, m in found.items() if isinstance(m, dict) and set(m) >= record.METRIC_KEYS}

    @cached_property
    def main(self) -> str | None:
        """The metric that was optimised: the task's first, else the first of all."""
        task = self.option("task")
        return next((name for name in self.metrics if name.split("/")[0] == task), next(iter(self.metrics), None))

    def option(self, group: str) -> str | None:
        """The option of a group: as hydra recorded it, else the module of its target, else none."""
        if group in self.choices:
            return str(self.choices[group])
        target = mapping(self.config.get(group)).get("_target_")
        return str(target).split(".")[-2] if target and "." in str(target) else None

    def command(self) -> list[str]:
        """The command line that started it, without the folders of the program."""
        words = self.result.get("command") or self.environment.get("command") or []
        if not words:
            return []
        program = Path(str(words[0]))
        called = ["python", f"launchers/{program.name}"] if program.suffix == ".py" else [program.name]
        return [*called, *map(str, words[1:])]

    def series(self) -> dict[str, list[tuple[int, float]]]:
        """Per name the (step, value) that were logged, in the order in which the names appeared."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows:
            for name, value in row.items():
                if name not in {"step", "time", "epoch"} and isinstance(value, int | float):
                    found.setdefault(name, []).append((row.get("step", 0), float(value)))
        return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def alarms(folder: Path) -> list[dict[str, Any]] | None:
    """What the sentinel of a run found; None where none watched."""
    found = files.read_json(folder / "sentinel.json")
    blank = {"step": None, "metric": "", "kind": "", "message": ""}
    return [blank | alarm for alarm in found if isinstance(alarm, dict)] if isinstance(found, list) else None


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _yaml(path: Path, *, resolve: bool) -> dict[str, Any]:
    try:
        return mapping(OmegaConf.to_container(stored.load(path), resolve=resolve))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return {}
