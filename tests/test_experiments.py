"""Every published setting: it composes, passes the check, and has the numbers of the specifications' tables."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lpo_platform import compose
from lpo_platform.config import CONF, diagnose, shipped
from lpo_platform.methods.optim import AdamW

PAIRS = ["data.path=owner/pairs"]
TABLE = {
    # sections 2.5, 3.4, 7.1 and 7.2 of specs/lpo.md; batches over all GPUs and accumulated micro-batches
    "lrm_sd15": {
        "method.batch": 8 * 16, "method.steps": 4000, "method.num_steps": 20, "optim.lr": 1e-5,
        "optim.weight_decay": 0.3, "optim.warmup_steps": 500, "optim.warmup": "log", "optim.schedule": "linear",
        "optim.clip": 1.0, "tune.guidance": 7.5, "data.strategy": 2, "method.noise": "independent",
        "tune.text_projection": "openai/clip-vit-large-patch14",
    },
    "lrm_sdxl": {
        "method.batch": 8 * 4, "method.steps": 8000, "optim.lr": 1e-5, "optim.weight_decay": 0.3,
        "optim.warmup_steps": 1000, "optim.warmup": "log", "optim.schedule": "linear", "tune.text_projection": None,
    },
    "lpo_sd15": {
        "method.candidates": 4, "method.num_steps": 20, "method.eta": 1.0, "method.guidance": 5.0,
        "method.threshold": [0.35, 0.5], "method.threshold_rule": "sigma", "method.beta": 500.0, "method.clip": 0.1,
        "method.prompts": 4 * 5, "method.batch": 4 * 10, "method.rounds": 5 * 200, "tune.rank": 4, "tune.alpha": 4,
        "optim.lr": 6e-5, "optim.weight_decay": 1e-4, "optim.clip": None, "optim.schedule": "constant",
        "method.refresh_reward": None, "reward.timestep": "current",
    },
    "lpo_sdxl": {
        "method.candidates": 4, "method.num_steps": 20, "method.guidance": 5.0, "method.threshold": [0.45, 0.6],
        "method.beta": 500.0, "method.clip": 0.1, "method.prompts": 4 * 4, "method.batch": 4 * 4,
        "method.rounds": 5 * 250, "tune.rank": 64, "tune.alpha": 64, "optim.lr": 1e-5, "optim.weight_decay": 1e-4,
        "optim.clip": None, "hardware.gradient_checkpointing": True,
    },
    "spo_sd15": {
        "method.candidates": 4, "method.inner_steps": 0, "method.skip_steps": 4, "method.threshold": 0.3,
        "method.beta": 10.0, "method.clip": 0.1, "method.prompts": 4 * 10, "method.batch": 4 * 10,
        "method.rounds": 10 * 100, "tune.rank": 4, "optim.lr": 6e-5, "optim.clip": None, "method.guidance": 5.0,
        "method.num_steps": 20, "method.eta": 1.0,
    },
    "spo_sdxl": {
        "method.candidates": 2, "method.inner_steps": 3, "method.skip_steps": 4, "method.threshold": 0.4,
        "method.beta": 10.0, "method.clip": 0.1, "method.prompts": 4 * 2, "method.batch": 4 * 2 * 2,
        "method.rounds": 10 * 500, "tune.rank": 64, "optim.lr": 1e-5, "optim.clip": None, "method.guidance": 5.0,
    },
    "diffusion_dpo_sd15": {
        "method.beta": 5000.0, "method.drop_text": 0.2, "method.steps": 2000, "method.batch": 16 * 128,
        "optim.lr": 2.048e-5, "optim.warmup_steps": 500, "optim.weight_decay": 0.01, "optim.clip": 1.0,
        "optim.schedule": "constant", "optim._target_": "lpo_platform.methods.optim.AdamW",
        "tune._target_": "lpo_platform.models.tuning.Full",
    },
    "diffusion_dpo_sdxl": {
        "method.beta": 5000.0, "method.batch": 2048, "method.steps": 2000, "optim.warmup_steps": 200,
        "optim.lr": 2.048e-5, "optim._target_": "lpo_platform.methods.optim.Adafactor", "optim.clip": None,
        "hardware.gradient_checkpointing": True,
    },
}  # fmt: skip
TABLE["lpo_sd21"] = TABLE["lpo_sd15"] | {"model.reward": "casiatao/LRM::lrm_sd15"}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, list[str]]:
    """What each kind of experiment is told on the command line."""
    prompts = tmp_path / "prompts.json"
    prompts.touch()
    of_prompts = [f"data.path={prompts}", f"data.test_path={prompts}"]
    return {
        "lrm": PAIRS, "diffusion": PAIRS, "lpo": of_prompts,
        "spo": [*of_prompts, "reward.weights=spm.bin"],
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLE))
def test_an_experiment_has_the_published_numbers(name: str, given: dict[str, list[str]]) -> None:
    overrides = [f"experiment={name}", *given[name.split("_")[0]]]
    assert diagnose("train", overrides) == []
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    assert {key: OmegaConf.select(cfg, key) for key in TABLE[name]} == TABLE[name]
    assert cfg.model.name == name.split("_")[-1]
    micro = cfg.hardware.micro_batch
    assert cfg.method.batch % micro == 0
    if "prompts" in cfg.method:
        assert cfg.method.rounds * cfg.method.prompts % 4000 == 0


def test_every_experiment_of_these_methods_is_in_the_table() -> None:
    methods = ("lrm", "lpo", "spo", "diffusion")
    assert {name for name in shipped("experiment") if name.split("_")[0] in methods} == set(TABLE)


def test_an_experiment_of_spo_asks_for_its_reward(given: dict[str, list[str]]) -> None:
    problems = diagnose("train", ["experiment=spo_sd15", *given["lpo"]])
    assert problems == ["reward.weights: required by reward=spm; add reward.weights=<value>"]


def test_rates_of_the_schedules() -> None:
    """Diffusion-DPO: linear over 500 steps, then constant; LPO: constant from the first step on."""
    dpo = AdamW(warmup_steps=500)
    assert [dpo.factor(step, 2000) for step in (0, 249, 499, 500, 1999)] == [1 / 500, 0.5, 1.0, 1.0, 1.0]
    assert {AdamW().factor(step, 1000) for step in range(1000)} == {1.0}
