"""Which options can be combined, by the class attributes of the chosen options.

No method, reward, task, model or data set is named here. A class declares in class attributes what it is and what it
needs, and an option from a user's own folder is treated by the same rules. A class that declares nothing can be
combined with everything.

Method: `trains`: what of "control", "denoiser" and "reward" it can train. `reads`: what it learns from, "pictures",
    "prompts" or "pairs". `rewards`: the kinds of rewards that it takes, with "none" where it can do without.
    `differentiable`: True where the task's loss must have a gradient.
Tune: `trains`: what it trains.
Data: `gives`: what a method can read there. `toy`: True where it draws toy scenes.
Reward: `input`: "pictures", "latents" or "condition". `maps`: what the task must have `annotated`.
Task: `annotated`: what its maps are, "classes" or "people". `differentiable`: True where its loss has a gradient.
Model: `denoiser`: "unet" or "transformer".
Method, reward and control: `denoisers`: the kinds of denoisers that they work with.
All: `paths`: arguments that name files and folders, and which. `unsharded`: what cannot be sharded, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpo_platform.config.compose import Composed
from lpo_platform.config.options import offered
from lpo_platform.config.signature import attribute

# Arguments that the platform passes to an option of a group; a configuration may not set them. Keyword-only arguments
# without a default whose annotation is not a plain scalar count as such without standing here.
RUNTIME: dict[str, frozenset[str]] = {
    "callbacks": frozenset({"folder"}),
    "data": frozenset({"resolution", "task"}),
    "method": frozenset({"policy", "optim", "seed", "task"}),
    "task": frozenset({"resolution", "toy"}),
}

OF_A_MODEL = ("model", "control", "task", "reward", "data")  # groups that lpo-eval reads where there is no run

# What to add where toy data are not meant, by what a method reads.
OWN_DATA = {
    "pictures": "data=folder data.path=<folder of pictures>",
    "prompts": "data=prompts data.path=<file of prompts>",
    "pairs": "data=image_pairs data.path=<Pick-a-Pic: hub id or folder>",
}

UNSAID = object()


@dataclass(frozen=True)
class Part:
    """The chosen option of a group. target: its class, None where none is chosen."""

    group: str
    option: str | None
    target: str | None

    def says(self, name: str, default: Any = None) -> Any:
        return default if self.target is None else attribute(self.target, name, default)


@dataclass(frozen=True)
class Need:
    """What the option of a group has to be.

    absent: whether there may be none. present: whether there may be one. name, values: the attribute that its class
    must have, with one of these values (or, of a tuple, holding one); without a name any class will do.
    """

    absent: bool = False
    present: bool = True
    name: str | None = None
    values: tuple[object, ...] = ()

    def fits(self, part: Part) -> bool:
        if part.target is None:  # an option without a class is complained about as such
            return self.absent or part.option not in (None, "none")
        said = UNSAID if self.name is None else part.says(self.name, UNSAID)
        if said is UNSAID:
            return self.present
        return self.present and any(value in self.values for value in (said if isinstance(said, tuple) else (said,)))

    def complaint(self, part: Part, folders: Sequence[Path] = ()) -> str:
        """What is needed instead of an option, with the options that there are. folders: of the user's own options."""
        chosen = part.option or "null"
        options = [name for name, target in offered(part.group, folders) if self.fits(Part(part.group, name, target))]
        named = [f"{part.group}={name}" for name in options]
        if self.name is None and self.present:
            return f"needs a {part.group}, but {part.group}={chosen}; add {' or '.join(named)}"
        if named:
            return f"needs {' or '.join(named)}, not {part.group}={chosen}"
        wanted = " or ".join(map(str, self.values))
        return f"needs a {part.group} whose class says {self.name} = {wanted}, not {part.group}={chosen}; there is none"


ANY, NONE = Need(), Need(absent=True, present=False)
Row = dict[str, Need]


def part_of(composed: Composed, group: str) -> Part:
    node = composed.values.get(group)
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return Part(group, composed.choices.get(group), target if isinstance(target, str) else None)


def rows_of(method: Part) -> list[Row]:
    """The combinations that a method accepts, one for each kind of thing that it can train."""
    return [_row(method, kind) for kind in method.says("trains", ())]


def _row(method: Part, kind: str) -> Row:
    """A control branch needs a condition, which only pictures have. What is trained otherwise has neither."""
    branch, reads, rewards = kind == "control", method.says("reads"), method.says("rewards")
    task = Need(name="differentiable", values=(True,)) if method.says("differentiable") else ANY
    row = {"control": ANY if branch else NONE, "tune": Need(name="trains", values=(kind,)), "task": task}
    if not branch:
        row["task"] = NONE
    if rewards is not None:
        kinds = tuple(kind for kind in rewards if kind != "none")
        row["reward"] = Need("none" in rewards, bool(kinds), "input", kinds)
    if reads is not None:
        row["data"] = Need(name="gives", values=("pictures" if branch and reads == "prompts" else reads,))
    return row


def combination_problems(composed: Composed, overrides: Iterable[str] = ()) -> list[str]:
    """One line for each chosen option that does not go with the method; [] where all do.

    A group of which no option is chosen counts as none; one that is unsure counts as fitting.
    """
    method = part_of(composed, "method")
    rows = rows_of(method)
    parts = {group: part_of(composed, group) for row in rows for group in row}
    explicit = {key for key, _ in key_values(overrides)}
    wrong = [[g for g, need in row.items() if g not in composed.unsure and not need.fits(parts[g])] for row in rows]
    if not rows or not all(wrong):
        return []

    def cost(index: int) -> int:
        return sum(4 if group in explicit else 1 for group in wrong[index])

    best = min(range(len(rows)), key=cost)
    others = {group for index, groups in enumerate(wrong) if index != best for group in groups}
    fixed = [f"{group}={parts[group].option}" for group in rows[best] if group in others - set(wrong[best])]
    context = f" with {' and '.join(fixed)}" if fixed else ""
    who = f"method={method.option}{context}"
    return [f"{who} {rows[best][group].complaint(parts[group], composed.folders)}" for group in wrong[best]]


def reward_problems(composed: Composed) -> list[str]:
    """A reward, or one of a blend, that looks for a condition which is not there."""
    reward, task = composed.values.get("reward"), part_of(composed, "task")
    if not isinstance(reward, Mapping) or "task" in composed.unsure:
        return []
    blended = reward.get("rewards")
    nodes = {"reward": reward} | {
        f"reward.rewards.{name}": node for name, node in (blended if isinstance(blended, Mapping) else {}).items()
    }
    problems = []
    for path, node in nodes.items():
        part = Part("reward", None, node.get("_target_") if isinstance(node, Mapping) else None)
        maps = part.says("maps")
        need = ANY if maps is None else Need(name="annotated", values=(maps,))
        if part.says("input") == "condition" and not need.fits(task):
            option = composed.choices.get(path)
            chosen = path if option is None else f"{path}={option}"
            problems.append(f"{chosen} {need.complaint(task, composed.folders)}")
    return problems


def toy_problems(composed: Composed, overrides: Iterable[str] | None) -> list[str]:
    """A model that is no toy learns nothing from toy scenes, so they must be asked for."""
    model, data = composed.values.get("model"), part_of(composed, "data")
    asked = overrides is None or any(key == "data" for key, _ in key_values(overrides))
    if asked or not isinstance(model, Mapping) or model.get("toy") or not draws_toys(composed.values.get("data")):
        return []
    reads = part_of(composed, "method").says("reads") or data.says("gives")[0]
    return [
        f"model={composed.choices.get('model')} with data={data.option}: toy data under a full-size model must be "
        f"asked for; add {OWN_DATA[reads]}, or data={data.option}"
    ]


def draws_toys(data: object) -> bool:
    """Whether a data set, or one that it is made of, draws toy scenes."""
    if not isinstance(data, Mapping):
        return False
    own = attribute(str(data.get("_target_")), "toy", False)
    return bool(own) or any(draws_toys(node) for node in data.values())


def denoiser_problems(composed: Composed) -> list[str]:
    """Options that work with one kind of denoiser only, where the model has another."""
    model = part_of(composed, "model")
    denoiser, problems = model.says("denoiser"), []
    for group in ("method", "reward", "control"):
        part, need = part_of(composed, group), Need(True, True, "denoisers", (denoiser,))
        if denoiser is None or {group, "model"} & composed.unsure or need.fits(part):
            continue
        kinds = part.says("denoisers")
        options = (Part(group, name, target) for name, target in offered(group, composed.folders) if target)
        here = " or ".join(f"{group}={other.option}" for other in options if need.fits(other))
        models = (Part("model", name, target) for name, target in offered("model", composed.folders))
        there = " or ".join(f"model={other.option}" for other in models if other.says("denoiser") in kinds)
        problems.append(
            f"{group}={part.option} with model={model.option}: it works with a {' or '.join(kinds)}, and this model's "
            f"denoiser is a {denoiser}; what works: {here}, or {there}"
        )
    return problems


def sharding_problems(composed: Composed) -> list[str]:
    """What cannot be divided among processes, by the reasons that the classes give.

    `unsharded` names a setting, or a setting and its value ("precision=16-mixed"), or "" for the class as such.
    """
    problems, hardware = [], composed.choices.get("hardware")
    for group in ("tune", "optim", "hardware", "method"):
        part, node = part_of(composed, group), composed.values.get(group)
        for setting, reason in part.says("unsharded", {}).items() if group not in composed.unsure else ():
            key, _, refused = setting.partition("=")
            value = node.get(key)
            if not key:
                problems.append(f"{group}={part.option} with hardware={hardware}: {reason}")
            elif value == refused if refused else value not in (None, False):
                shown = "true" if value is True else value
                problems.append(f"{group}.{key}={shown} with hardware={hardware}: {reason}")
    return problems


def key_values(overrides: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in overrides:
        key, _, value = line.partition("=")
        yield key.lstrip("+~"), value
