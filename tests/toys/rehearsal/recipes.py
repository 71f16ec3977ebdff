"""The commands of conf/experiment, as the headers of the files state them, and what has to run before."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lpo_platform.config.compose import compose
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF

EXPORT = re.compile(r"<export of (\w+)>")
WORD = re.compile(r"\S*<[^>]*>\S*|\S+")


@dataclass(frozen=True)
class Recipe:
    """One command of a header.

    Args:
        name: of the file.
        words: of the command line, with places of files in angle brackets.
        number: 0 for the first command of the header; others follow behind ", or".
    """

    name: str
    words: tuple[str, ...]
    number: int = 0

    @property
    def title(self) -> str:
        return self.name if not self.number else f"{self.name} ({self.number + 1})"

    @property
    def needs(self) -> list[str]:
        """Recipes whose exports it starts from."""
        return [name for word in self.words for name in EXPORT.findall(word)]

    @property
    def asks(self) -> list[str]:
        """Files that no hub has, in angle brackets."""
        return [value for word in self.words if "<" in (value := word.partition("=")[2]) and not EXPORT.search(value)]

    def line(self, local: dict[str, Path], exports: dict[str, Path]) -> list[str]:
        """The words with real places."""
        places = {text: str(place) for text, place in local.items()}
        places |= {f"<export of {name}>": str(place) for name, place in exports.items()}
        line = []
        for word in self.words:
            key, sign, value = word.partition("=")
            if "<" in value and value not in places:
                raise KeyError(f"{self.name}: `local` in toys/published/hub.py has nothing for {value}")
            line.append(f"{key}{sign}{places.get(value, value)}")
        return line


def recipes() -> list[Recipe]:
    """Every command of every file, those that others start from first."""
    found = [recipe for name in sorted(shipped("experiment")) for recipe in _commands(name)]
    return sorted(found, key=lambda recipe: (len(recipe.needs), recipe.name, recipe.number))


def header(name: str) -> list[str]:
    """The comment at the top of a recipe, its lines."""
    lines = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").rstrip() for line in lines if line.startswith("#")]


def _commands(name: str) -> list[Recipe]:
    """`lpo-train experiment=<name> ...` on the second line; lines that begin with two more spaces continue it."""
    lines = header(name)
    first = next(i for i, line in enumerate(lines) if line.startswith(f" lpo-train experiment={name}"))
    text = lines[first]
    for line in lines[first + 1 :]:
        if not line.startswith("   "):
            break
        text += f" {line.strip()}"
    start, *others = text.split(", or ")
    words = WORD.findall(start)[1:]
    variants = [words, *([words[0], *WORD.findall(other)] for other in others)]
    return [Recipe(name, tuple(variant), number) for number, variant in enumerate(variants)]


def protocol(values: dict[str, Any], task: str | None) -> str | None:
    """The option of metrics that states the protocol of a paper for this model and task, None where no paper has."""
    if values["metrics"]["_target_"].rpartition(".")[2] != "Evaluator":  # no pictures are drawn
        return None
    task = None if task == "none" else task
    for name in sorted(shipped("metrics")):
        text = (CONF / "metrics" / f"{name}.yaml").read_text(encoding="utf-8")
        stated = yaml.safe_load(text).get("protocol")
        if stated and values["model"]["name"] in stated["model"] and (task in stated.get("task", [None])):
            return name
    return None


def composed(line: list[str]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """The configuration of a command line, and the options that were chosen."""
    made = compose("train", line, [], CONF)
    return made.values, made.choices
