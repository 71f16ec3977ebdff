"""The published protocol that an evaluation follows, and its departures from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpo_platform.config.schema import CONF

Settings = Mapping[str, Any]

# settings that change no figure of a paper
FREE = ("_target_", "batch", "defaults", "measures", "protocol", "rows", "save", "shown")
FREE_OF_MEASURES = ("_target_", "batch", "defaults", "name", "resamples")
OF_MODELS = ("weights", "resolution", "vae", "text_encoder")  # what is evaluated may be a LoRA or another UNet


@dataclass(frozen=True)
class Protocol:
    """How a publication evaluated, and in what an evaluation departs from it.

    Args:
        name: the file under conf/metrics that states the settings of the metrics group.
        model: the options of the model group that it was made for; [] for any.
        task: the options of the task group that it was made for; [] for any.
        precision: that of its pictures; None where it is not known.
        data: the data sets that it was measured on, one of which is enough; [] for any.
        measures: settings of measures that differ from those of conf/measure, by measure.
        of_task: for a task what it has apart: `data`; `differs`; `settings` of the task that differ from those of
            conf/task; `detector`, the name of the network that judges the pictures, and `weights`, the places of the
            same network that we can load.
        differs: what is never as it was there.
    """

    name: str
    model: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    precision: str | None = None
    data: tuple[str, ...] = ()
    measures: Settings = field(default_factory=dict)
    of_task: Settings = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def deviations(self, config: Settings, *, items: int, task: str | None, toy: bool, precision: str) -> list[str]:
        """One line for each departure.

        config: the whole configuration of the run. items: how many held-out ones there were. task: its option. toy:
        whether pictures are judged by the embedded detector. precision: that of the pictures.
        """
        own = _plain(self.of_task).get(task, {})
        lines = [*self._of_metrics(config["metrics"], items)]
        for group, option, those in (("model", config["model"]["name"], self.model), ("task", task, self.task)):
            if those and option not in those:
                lines.append(f"{group}={option} instead of {' or '.join(those)}")
        if config["model"]["name"] in self.model:
            lines += _of_model(config["model"])
        if task is not None and task in self.task:
            lines += _of_task(config["task"], task, own, toy)
        lines += self._of_measures(config["metrics"].get("measures") or {})
        lines += of_data(config.get("data") or {}, [*own.get("data", ()), *self.data])
        if self.precision not in (None, precision):
            lines.append(f"precision {precision} instead of {self.precision}")
        return [*lines, *self.differs, *own.get("differs", ())]

    def _of_metrics(self, settings: Settings, items: int) -> Iterator[str]:
        published = _file("metrics", self.name)
        for key, value in published.items():
            if key not in FREE and settings.get(key) != value:
                yield f"{key}={settings.get(key)} instead of {value}"
        if items < min(settings["num_samples"], published["num_samples"]):
            yield f"{items} items instead of {published['num_samples']}: the data has no more"

    def _of_measures(self, measures: Settings) -> Iterator[str]:
        """Departures of the measures that the protocol has. Others are in none of its tables."""
        for name, settings in measures.items():
            published = {**_file("measure", name), **_plain(self.measures).get(name, {})}
            for key, value in published.items():
                stated = value != "???" and not str(value).startswith("${") and not isinstance(value, Mapping)
                if key not in FREE_OF_MEASURES and stated and settings.get(key) != value:
                    yield f"measures.{name}.{key}={settings.get(key)} instead of {value}"


def _of_model(settings: Settings) -> Iterator[str]:
    published = _file("model", settings["name"])
    for key in OF_MODELS:
        if key in published and not _same(settings.get(key), published[key]):
            yield f"model.{key}={settings.get(key)} instead of {published[key]}"


def _of_task(settings: Settings, task: str, own: Settings, toy: bool) -> Iterator[str]:
    """own: settings that the protocol has for this task only. Settings that only the training of a task uses count,
    too."""
    if toy:
        yield f"the embedded detector instead of {own.get('detector') or 'the published one'}"
    elif own.get("detector") and not any(_same(settings.get("weights"), place) for place in own.get("weights", ())):
        yield f"detector {settings.get('weights')} instead of {own['detector']}"
    free = {"_target_"} | ({"weights"} if own.get("detector") else set())
    free |= {"detector", "weights", "people", "pretrained"} if toy else set()
    for key, value in {**_file("task", task), **own.get("settings", {})}.items():
        known = settings.get(key)
        same = known in ("auto", "published") if key == "detector" else _same(known, value)
        if key not in free and not same:
            yield f"task.{key}={known} instead of {'published' if key == 'detector' else value}"


def of_data(settings: Settings, published: Sequence[str]) -> Iterator[str]:
    """Of the held-out pictures or prompts, by the name of their data set, which a copy of it has in its path."""
    held_out = settings.get("test") or {}
    place = settings.get("test_path") or settings.get("path")
    split = isinstance(held_out, str)
    place = f"{place}::{held_out}" if split else held_out.get("path") or place
    place = place or str(settings.get("_target_")).rpartition(".")[2]
    if published and not any(name.rpartition("/")[2].lower() in str(place).lower() for name in published):
        yield f"data {place} instead of {' or '.join(published)}"


def _same(value: Any, published: Any) -> bool:
    """Whether two settings are equal; a place of weights may be a copy, whose last folder has the same name."""
    if isinstance(value, str) and isinstance(published, str) and "/" in published:
        return value == published or value.rstrip("/").rpartition("/")[2] == published.rpartition("/")[2]
    return value == published


def _file(group: str, option: str) -> dict[str, Any]:
    """The settings of a shipped option as its own file states them, {} for a foreign one."""
    file = CONF / group / f"{option}.yaml"
    return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}


def _plain(settings: Settings) -> dict[str, Any]:
    return OmegaConf.to_container(settings) if isinstance(settings, DictConfig) else dict(settings)
