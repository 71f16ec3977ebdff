"""A method, a reward and a task as a user writes them: a module outside the repository and a folder of options."""

from pathlib import Path

MODULE = '''
from typing import ClassVar

import torch

from lpo_platform.methods.losses import denoising_error
from lpo_platform.methods.method import Method
from lpo_platform.rewards.reward import checked
from lpo_platform.tasks.task import Gray


class Redness:
    """The mean of red."""

    name: ClassVar[str] = "redness"
    input: ClassVar[str] = "pictures"

    def __call__(self, images, prompts, condition=None):
        return images[:, 0].mean((1, 2))


class Dark(Gray):
    """Where a picture is darker than `below`."""

    name: ClassVar[str] = "dark"
    scores: ClassVar[dict[str, bool]] = {"dark/agreement": True}

    def __init__(self, below: float = 0.5) -> None:
        self.below = below

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.below}"

    def detect(self, images):
        return (images.mean(1, keepdim=True) < self.below).float()

    def score(self, maps, target):
        return {"dark/agreement": 1 - (maps - target).abs().flatten(1).mean(1)}


class RedWeighted(Method):
    """Denoising that weighs every picture by a reward of it, to the power of `power`."""

    trains: ClassVar[tuple[str, ...]] = ("control",)
    rewards: ClassVar[tuple[str, ...]] = ("pictures",)
    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "control")

    def __init__(self, *, reward, power: float = 1.0, **shared) -> None:
        super().__init__(**shared)
        self.reward, self.power = reward, power

    def loss(self, batch):
        process = self.policy.adapter.process
        z, e, t = self.latents(batch), self.normal(batch, "pretrain"), self.times(batch, "pretrain")
        encoded = self.policy.encode(process.add_noise(z, e, t), t, self.text(batch))
        output = self.policy.decode(encoded, self.policy.features(batch["control"]))
        errors = denoising_error(output, process.target(z, e, t))
        with torch.no_grad():
            pictures = self.policy.adapter.decode(z)
            weight = checked("redness", self.reward(pictures, [""] * len(z)), len(z)) ** self.power
        return (weight * errors).mean(), {"red_weighted/weight": weight.mean()}
'''
OPTIONS = {
    "reward/redness": "_target_: {module}.Redness\n",
    "task/dark": "_target_: {module}.Dark\nbelow: 0.4\n",
    "method/red_weighted": (
        "# @package _global_\n"
        "defaults:\n"
        "  - override /control: controlnet\n"
        "  - override /tune: control\n"
        "  - override /task: dark\n"
        "  - override /reward: redness\n\n"
        "control: {{weights: unet}}\n"
        "method:\n  _target_: {module}.RedWeighted\n  power: 1.0\n  steps: 2\n  batch: 4\n"
    ),
}


def write(folder: Path, module: str) -> Path:
    """Writes <folder>/<module>.py and the options beside it; returns what --config-dir has to be."""
    (folder / f"{module}.py").write_text(MODULE)
    for option, text in OPTIONS.items():
        file = folder / "conf" / f"{option}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(module=module))
    return folder / "conf"
