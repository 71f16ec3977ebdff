"""debug=smoke makes every command line small and leaves what was asked for."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys.grid import line_of

from lpo_platform.config import compose, smoke
from lpo_platform.config.batch_size import batch_problem
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF

LARGEST = {"steps": 2, "rounds": 2, "num_train": 16, "num_test": 8, "num_samples": 8, "num_inference_steps": 4}


def composed(*line: str) -> dict:
    return compose.compose("train", [*line, "debug=smoke"], [], CONF).values


def small(values: dict) -> None:
    found = {key: value for _, key, value in smoke._numbers(values, "all") if key in LARGEST}
    assert {"num_inference_steps"} <= set(found) and {"steps", "rounds"} & set(found)
    for key, value in found.items():
        assert value <= LARGEST[key], key
    hardware, batch = values["hardware"], values["method"]["batch"]
    for processes in (2, 4, 8) if hardware["devices"] is None else (hardware["devices"],):
        assert batch_problem(batch, hardware["micro_batch"], processes) is None


@pytest.mark.parametrize("method", shipped("method"))
def test_every_method_is_small_and_right(method: str) -> None:
    small(composed(*line_of(method)))
    assert diagnose("train", [*line_of(method), "debug=smoke"]) == []


@pytest.mark.slow
def test_every_recipe_is_small() -> None:
    """Every other one on three processes."""
    for number, name in enumerate(shipped("experiment")):
        small(composed(f"experiment={name}", *(["hardware=ddp", "hardware.devices=3"] if number % 2 else [])))


def test_data_of_every_kind_are_small(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").touch()
    for line in (
        ["method=cpo", "task=canny", "data=folder", f"data.path={tmp_path}"],
        ["method=lpo", "data=prompts", f"data.path={tmp_path}/prompts.txt"],
        ["method=lrm", "data=image_pairs", f"data.path={tmp_path}"],
        ["method=ddpo", "hardware=ddp", "hardware.devices=2"],
    ):
        small(composed(*line))
        assert diagnose("train", [*line, "debug=smoke"]) == []
    assert composed(*["method=cpo", "data=folder"])["data"]["num_train"] == 16
    assert diagnose("train", ["-m", "method=cpo,lpo,lrm,ddpo", "debug=smoke"][1:], multirun=True) == []


def test_what_is_asked_for_stays_and_nothing_grows() -> None:
    values = composed("method=cpo", "method.steps=8", "data.num_train=4", "data.num_test=40", "hardware.micro_batch=2")
    assert (values["method"]["steps"], values["method"]["batch"]) == (8, 4)
    assert (values["data"]["num_train"], values["data"]["num_test"]) == (4, 40)
    assert values["hardware"]["micro_batch"] == 2 and values["metrics"]["num_steps"] is None


def test_the_configuration_of_a_job_is_cut_alike() -> None:
    cfg = OmegaConf.create({"method": {"rounds": 12, "batch": 960, "group": None}, "hardware": {"micro_batch": 96}})
    assert not smoke.shrink(cfg, {"debug": None}, [])
    assert smoke.shrink(cfg, {"debug": "smoke"}, ["++method.rounds=5"])
    assert cfg == {"method": {"rounds": 5 + 7, "batch": 16, "group": None}, "hardware": {"micro_batch": 16}}


@pytest.mark.parametrize("name", ["smoke_online", "smoke_pairs"])
def test_the_options_of_before_name_the_one(name: str) -> None:
    (problem,) = diagnose("train", ["method=lpo", f"debug={name}"])
    assert problem.startswith(f"debug={name}: no such option; did you mean 'smoke'?")
