"""Every departure from a protocol is named: each setting of each protocol is changed in turn, for each of its tasks."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lpo_platform.config.compose import compose
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF
from lpo_platform.evaluation.protocol import FREE, FREE_OF_MEASURES, OF_MODELS, Protocol, of_data

FILES = {file.stem: OmegaConf.load(file) for file in sorted((CONF / "metrics").glob("*.yaml"))}
CASES = [
    (name, task)
    for name, settings in FILES.items()
    if "protocol" in settings
    for task in (settings.protocol.get("task") or ["none"])
]
DATA = {
    "canny": "cpo_pairs_multigen", "hed": "cpo_pairs_multigen", "lineart": "cpo_pairs_multigen",
    "depth": "cpo_pairs_multigen", "pose": "cpo_pairs_pose", "seg_ade20k": "cpo_pairs_ade20k",
    "seg_coco": "cpo_pairs_coco", "none": "prompts",
}  # fmt: skip


def composed(words: list[str]) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.create(compose("eval", words, [], CONF).values), resolve=True)


def as_published(name: str, task: str) -> tuple[dict[str, Any], Protocol, list[str]]:
    """A configuration without a departure, the protocol, and what is never as it was there."""
    model = FILES[name].protocol.model[0]
    overrides = [f"metrics={name}", f"model={model}", f"data={DATA[task]}", "data.path=somewhere"]
    control = "none" if task == "none" else "controlnet"
    config = composed([*overrides, f"task={task}", f"control={control}"])
    protocol: Protocol = instantiate(FILES[name].protocol)
    own = OmegaConf.to_container(protocol.of_task).get(task, {}) if protocol.of_task else {}
    if task != "none":
        config["task"] |= own.get("settings", {}) | ({"weights": own["weights"][0]} if "weights" in own else {})
    published = [*own.get("data", ()), *protocol.data]
    if published:
        config["data"] |= {"test": {"path": published[0]}} if task != "none" else {"test_path": f"{published[0]}.json"}
    never = [*protocol.differs, *own.get("differs", ())]
    if "detector" in own and "weights" not in own:
        never = [f"detector {config['task']['weights']} instead of {own['detector']}", *never]
    return config, protocol, never


def said(config: dict, protocol: Protocol, task: str, **changed: Any) -> list[str]:
    known = {"items": config["metrics"]["num_samples"], "toy": False, "precision": protocol.precision or "32-true"}
    return protocol.deviations(config, task=None if task == "none" else task, **known | changed)


def changes(config: dict, protocol: Protocol, task: str) -> Iterator[tuple[list[str], Any]]:
    """(path, another value) of every setting that a protocol states."""
    stated = FILES[protocol.name]
    for key in set(stated) - set(FREE):
        yield ["metrics", key], 3 if isinstance(config["metrics"][key], int) else "other"
    for key in set(OF_MODELS) & set(config["model"]):
        yield ["model", key], "another/place"
    if task != "none":
        judged = "detector" in (stated.protocol.get("of_task") or {}).get(task, {})
        free = {"_target_", "detector"} | ({"weights"} if judged else set())
        for key in set(OmegaConf.load(CONF / "task" / f"{task}.yaml")) - free:
            yield ["task", key], "other"
    for name, measure in (config["metrics"].get("measures") or {}).items():
        for key in set(OmegaConf.load(CONF / "measure" / f"{name}.yaml")) - set(FREE_OF_MEASURES):
            if not isinstance(measure[key], dict):
                yield ["metrics", "measures", name, key], "other"


@pytest.mark.parametrize(("name", "task"), CASES)
def test_what_is_as_published_is_not_named_and_every_change_is(name: str, task: str) -> None:
    config, protocol, never = as_published(name, task)
    assert said(config, protocol, task) == never
    for path, value in changes(config, protocol, task):
        other = copy.deepcopy(config)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        new = [line for line in said(other, protocol, task) if line not in never]
        assert len(new) == 1 and path[-1] in new[0] and str(value) in new[0], (path, new)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_detector_data_model_items_and_precision_are_named(name: str, task: str) -> None:
    config, protocol, never = as_published(name, task)
    for changed in ({"items": 7}, {"precision": "64-true"} if protocol.precision else {"items": 6}):
        (line,) = [line for line in said(config, protocol, task, **changed) if line not in never]
        assert str(next(iter(changed.values()))) in line
    other = {**config, "model": {**config["model"], "name": "tiny"}}
    assert f"model=tiny instead of {protocol.model[0]}" in said(other, protocol, task)
    if protocol.data or (protocol.of_task or {}).get(task, {}).get("data"):
        toy = {**config, "data": {"_target_": "lpo_platform.data.toy.Toy"}}
        assert any(line.startswith("data Toy instead of ") for line in said(toy, protocol, task))
    if task != "none":
        lines = said(config, protocol, task, toy=True)
        assert any(line.startswith("the embedded detector instead of ") for line in lines)
        assert f"task=other instead of {' or '.join(protocol.task)}" in said(config, protocol, "other")


def test_lineart_without_the_wrap_of_its_published_table_says_so() -> None:
    """As do the other settings in which ours are better than the published ones by default."""
    for task, line in (
        ("lineart", "task.uint8_wrap=False instead of True"), ("hed", "task.uint8_floor=False instead of True"),
        ("depth", "task.jpeg_quality=None instead of 75"), ("depth", "data limingcv/MultiGen-20M_canny_eval instead of "
                                                            "limingcv/MultiGen-20M_depth_eval"),
    ):  # fmt: skip
        words = ["metrics=cpo", "model=sd15", "data=cpo_pairs_multigen", "data.path=x", f"task={task}"]
        config = composed([*words, "control=controlnet"])
        assert line in said(config, instantiate(FILES["cpo"].protocol), task)


def test_a_copy_of_weights_or_data_is_no_departure() -> None:
    config, protocol, never = as_published("cpo", "depth")
    config["model"]["weights"] = "/models/stable-diffusion-v1-5/"
    config["data"]["test"]["path"] = "~/data/MultiGen-20M_depth_eval/validation"
    assert said(config, protocol, "depth") == never


@pytest.mark.parametrize("option", shipped("data"))
def test_the_held_out_data_of_every_option_are_compared(option: str) -> None:
    """Each has a place: a path, that of another split, a file of prompts, or the class."""
    data = composed(["model=sd15", f"data={option}", *(["data.path=somewhere"] if "toy" not in option else [])])["data"]
    (line,) = of_data(data, ["another"])
    place = line.removeprefix("data ").removesuffix(" instead of another")
    assert place and list(of_data(data, [place])) == []
