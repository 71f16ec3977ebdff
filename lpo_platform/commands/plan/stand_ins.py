"""Stand-ins for detectors and rewards on the meta device, for counting."""

import torch
from torch import Tensor

from lpo_platform.models.adapter import Adapter
from lpo_platform.rewards.reward import Asked, Reward, StepReward
from lpo_platform.tasks.canny import Canny


class Given(Canny):
    """A detector that costs nothing: the picture is its own condition."""

    def detect(self, images: Tensor) -> Tensor:
        return images[:, :1]


def brightness(images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
    """A reward that costs nothing."""
    return images.mean((1, 2, 3))


class Free:
    """A reward of latents that costs nothing."""

    timestep = "current"

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return {}

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor], prompt: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float32)


def reward_like(kind: type, adapter: Adapter) -> Reward | StepReward:
    """The stand-in for a class of rewards: what its `counted` returns, else a reward that costs nothing.

    adapter: a model of its own, on the meta device.
    """
    if hasattr(kind, "counted"):
        return kind.counted(adapter)
    return Free() if getattr(kind, "input", "pictures") == "latents" else brightness
