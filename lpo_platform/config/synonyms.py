"""What was meant by a key of another library, or by a name where a group takes an option."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from omegaconf import OmegaConf

from lpo_platform.config.compose import Source, Values
from lpo_platform.config.errors import hint
from lpo_platform.config.paths import expanded, is_hub_id
from lpo_platform.config.signature import attribute

# An option that we do not have, and what does the same here. Names that contain the word are found without a row.
OPTIONS = {
    "method=grpo": "method=step_grpo, or method=ddpo method.baseline=group",
    "data=pickapic": "data=image_pairs",
    "hardware=cuda": "hardware=gpu",
    "task=segmentation": "task=seg_ade20k or task=seg_coco",
}

# A key that we do not have, and ours; of several those are named that the chosen options have.
KEYS = {
    "steps": ("method.steps", "method.rounds"),
    "max_steps": ("method.steps", "method.rounds"),
    "max_train_steps": ("method.steps", "method.rounds"),
    "learning_rate": ("optim.lr",),
    "batch": ("method.batch", "hardware.micro_batch"),
    "batch_size": ("method.batch", "hardware.micro_batch"),
    "train_batch_size": ("method.batch", "hardware.micro_batch"),
    "devices": ("hardware.devices",),
    "gpus": ("hardware.devices",),
    "pretrained_model_name_or_path": ("model.weights",),
}
ROOMS = ("method", "optim", "model", "data", "hardware")  # where a key without its group most likely belongs
PLACES = ("weights", "path")  # settings that take a folder or a hub id
USUAL = {"model": "sd15", "data": "folder"}  # the option for a folder of which nothing else is known
USUAL_ID = {"data": "hf"}  # and for a hub id that is like none that we name
ALIKE = 0.7


def meant_key(key: str, values: Values) -> str:
    """`; did you mean optim.lr?` for a key that is known under another group or name; '' for any other."""
    name = key.rpartition(".")[2].replace("-", "_")
    group = key.partition(".")[0]
    ours = KEYS.get(name, ())
    found = [path for path in ours if _has(values, path)] or list(ours)
    found = [path for path in found if path.startswith(f"{group}.")] or found
    found = found or [f"{room}.{name}" for room in ROOMS if _has(values, f"{room}.{name}")]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def nearly(key: str, values: Values) -> str:
    """`; did you mean method.steps?` for `stepz`: the closest key one level down; '' where there is none."""
    below = [f"{room}.{name}" for room in ROOMS if isinstance(values.get(room), dict) for name in values[room]]
    names = {path.partition(".")[2] for path in below} - {"_target_"}
    close = difflib.get_close_matches(key.rpartition(".")[2], sorted(names), 1, 0.8)
    found = [path for path in below if close and path.partition(".")[2] == close[0]]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def meant_option(files: Source, group: str, name: str, options: Sequence[str]) -> str:
    """What follows `no such option`: the option that is meant, and all that there are."""
    meant = OPTIONS.get(f"{group}={name}")
    if meant is not None:
        return f"; did you mean {meant}? Options: {', '.join(options)}"
    if is_hub_id(name) or expanded(name).is_dir():
        taking = _taking(files, group, name, options)
        if taking:
            option = _likely(group, name, taking)
            key = _place(taking[option])
            return f"; a hub id or folder: {group}={option} {group}.{key}={name}"
    return hint(name, options)


def _taking(files: Source, group: str, name: str, options: Iterable[str]) -> dict[str, Values]:
    """The options of a group that take this folder or hub id at one of PLACES, with what their files say."""
    loaded = {option: files.repo.load_config(f"{group}/{option}") for option in options}
    found = {o: OmegaConf.to_container(file.config, resolve=False) for o, file in loaded.items() if file is not None}
    kind = "folder" if expanded(name).is_dir() else "hub id"
    return {option: values for option, values in found.items() if _place(values) and kind in _kinds(values)}


def _place(values: Values) -> str | None:
    return next((key for key in PLACES if key in values), None)


def _kinds(values: Values) -> str:
    """What the option's class takes at its place: of file, folder and hub id."""
    paths = attribute(str(values.get("_target_", "")), "paths", {})
    return paths.get(_place(values), "folder or hub id") if isinstance(paths, dict) else "folder or hub id"


def _likely(group: str, name: str, taking: Mapping[str, Values]) -> str:
    """The option whose own weights or data have the most similar name; for others the usual one."""
    usual = USUAL.get(group, next(iter(taking)))
    if expanded(name).is_dir() and usual in taking:
        return usual
    last = name.rpartition("/")[2].lower()
    words = {key.partition("=")[2]: meant.partition("=")[2] for key, meant in OPTIONS.items() if key.startswith(group)}
    if meant := next((option for word, option in words.items() if word in last and option in taking), None):
        return meant

    def similar(option: str) -> float:
        own = taking[option].get(_place(taking[option]))
        known = own.rpartition("/")[2].lower() if isinstance(own, str) and "/" in own else option
        return difflib.SequenceMatcher(None, last, known).ratio()

    best = max(taking, key=similar)
    return USUAL_ID.get(group, best) if similar(best) < ALIKE else best


def _has(values: Values, path: str) -> bool:
    group, _, name = path.partition(".")
    return isinstance(values.get(group), dict) and name in values[group]
