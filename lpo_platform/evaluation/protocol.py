"""Whose protocol an evaluation follows, and where it does not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from lpo_platform.config.schema import CONF

# settings that change no figure of a paper
FREE = ("_target_", "batch", "defaults", "measures", "protocol", "rows", "save", "shown")


@dataclass(frozen=True)
class Protocol:
    """name: the file under conf/metrics that states the settings. model, task: options that it was made for.

    precision: that of its pictures. differs: what is never as it was there.
    """

    name: str
    model: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    precision: str | None = None
    differs: tuple[str, ...] = ()

    def deviations(
        self, settings: Mapping[str, Any], *, items: int, model: str, task: str | None, precision: str
    ) -> list[str]:
        """One line for each; settings: those of the metrics group; items: how many held-out ones there were."""
        published = OmegaConf.to_container(OmegaConf.load(CONF / "metrics" / f"{self.name}.yaml"))
        lines = [
            f"{key}={settings[key]} instead of {value}"
            for key, value in published.items()
            if key not in FREE and settings.get(key) != value
        ]
        if items < min(settings["num_samples"], published["num_samples"]):
            lines.append(f"{items} items instead of {published['num_samples']}: the data has no more")
        for group, option, those in (("model", model, self.model), ("task", task, self.task)):
            if those and option not in those:
                lines.append(f"{group}={option} instead of {' or '.join(those)}")
        if self.precision not in (None, precision):
            lines.append(f"precision {precision} instead of {self.precision}")
        return [*lines, *self.differs]
