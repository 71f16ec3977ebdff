"""Whole training jobs in small, in this process: evaluation, training, checkpoint, resume, evaluation, export."""

import shutil
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from lpo_platform.commands import train as command
from lpo_platform.config.check import problems_of
from lpo_platform.config.compose import compose
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.tracking.callbacks.checkpoint import checkpoints

STEPS = 2
SMALL = {
    "method.steps": STEPS, "method.rounds": STEPS, "method.prompts": 2, "method.batch": 4, "method.candidates": 2,
    "method.group": 2, "method.num_steps": 3, "method.skip_steps": 0, "method.inner_epochs": 1,
    "hardware.micro_batch": 2,
    "data.num_train": 4, "data.num_test": 2, "data.num_validation": 2, "data.num_images": 2,
    "data.prompts.num_train": 4, "data.prompts.num_test": 2, "model.num_inference_steps": 2,
    "metrics.num_samples": 2, "metrics.images_per_item": 1, "metrics.timesteps": [1, 501],
    "callbacks.every": 1, "callbacks.samples": 0, "callbacks.sentinel": None, "callbacks.log_every": 1,
    "optim.warmup_steps": 0, "optim.lr": 1e-3,
}  # fmt: skip


def configured(*words: str) -> DictConfig:
    """The job of a command line, small where the line says nothing else. Raises UserError as the command would."""
    line = ["logger=none", *words]
    composed = compose("train", line, [], CONF)
    if composed.choices["control"] != "none" and composed.choices["model"] != "tiny":
        line.append("control.weights=unet")
        composed = compose("train", line, [], CONF)
    if problems := problems_of(composed, [*line, f"data={composed.choices['data']}"]):  # toy data are asked for
        raise UserError("\n".join(problems))
    cfg = OmegaConf.create(composed.values)
    asked = [word.split("=")[0] for word in words]
    for key, value in SMALL.items():
        if not any(word.startswith(key) for word in asked) and key.split(".")[-1] in (node(cfg, key) or {}):
            OmegaConf.update(cfg, key, value)
    return cfg


def node(cfg: DictConfig, key: str) -> DictConfig:
    return OmegaConf.select(cfg, key.rpartition(".")[0])


def train(cfg: DictConfig, folder: Path) -> dict:
    return command.train(OmegaConf.create(OmegaConf.to_container(cfg)), folder)


def forget_the_end(run: Path) -> None:
    """Leaves of a finished run what one has that was killed in its last step; the best weights so far stay."""
    found = checkpoints(run / "checkpoints")
    assert len(found) == STEPS
    found[-1].unlink()
    for path in (run / "result.json", run / "report.html", run / "evaluation" / "after.safetensors"):
        path.unlink()
    for part in (run / "export").iterdir():
        if "best" not in part.name:
            shutil.rmtree(part)


def exported(run: Path) -> dict[str, Tensor]:
    """Every exported weight by its file and name."""
    files = sorted((run / "export").rglob("*.safetensors"))
    return {f"{file.relative_to(run)}:{name}": w for file in files for name, w in load_file(file).items()}


def whole(cfg: DictConfig, folder: Path) -> dict:
    """Trains, kills and resumes; the weights are finite and as if nothing had happened. The result's metrics."""
    metrics = train(cfg, folder)
    straight = exported(folder)
    assert straight and all(weight.isfinite().all() for weight in straight.values())
    forget_the_end(folder)
    train(cfg, folder)
    resumed = exported(folder)
    assert straight.keys() == resumed.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    return metrics
