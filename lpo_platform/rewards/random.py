"""Random scores: the control experiment of methods that learn from preferences between latents.

What a training with them changes is what the updates of the method do by themselves.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.numbers import Positive
from lpo_platform.diffusion import noise
from lpo_platform.models.adapter import Adapter


class RandomPreference:
    """Normal scores that do not depend on the latents. They are a function of the prompts and their order.

    Args:
        scale: standard deviation. The default is about that of an LRM's scores of the candidates of one step.
    """

    name: ClassVar[str] = "random"
    input: ClassVar[str] = "latents"
    timestep: Literal["current", "next"] = "current"

    def __init__(self, scale: Positive = 0.1) -> None:
        self.scale = scale

    @classmethod
    def counted(cls, adapter: Adapter) -> "RandomPreference":
        """Itself: it costs nothing."""
        return cls()

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"key": torch.tensor([noise.key("random", *prompts)])}

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor], prompt: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(text["key"]))
        return self.scale * torch.randn(len(latents), generator=generator).to(latents.device)
