"""Stand-ins for rewards and batches on the meta device, for counting."""

import torch
from torch import Tensor

from lpo_platform.methods.lpo import LPO
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.rewards.lrm import LRM
from lpo_platform.rewards.reward import Asked
from lpo_platform.tasks.canny import Canny


class Given(Canny):
    """A detector that costs nothing: the picture is its own condition."""

    def detect(self, images: Tensor) -> Tensor:
        return images[:, :1]


def brightness(images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
    """A reward that costs nothing."""
    return images.mean((1, 2, 3))


class RandomLRM(LRM):
    """A reward model as it is before any training."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.timestep, self.batch, self.empty = adapter, "current", 256, None
        self.model = LatentReward.start(adapter).requires_grad_(False).eval()


def pair_batch(method: LPO, text: Tensor, count: int) -> dict[str, Tensor]:
    """`count` pairs at the trajectory's timesteps in turn, x_t and both sides noise."""
    times, device = method.policy.adapter.process.times(method.num_steps), method.device
    rows = torch.arange(count, device=device)
    latents = {name: torch.randn(count, *method.policy.adapter.latent_shape, device=device) for name in ("x", "winner")}
    latents["loser"] = torch.randn_like(latents["x"])
    weight = torch.full((count,), 1 / count, device=device)
    return latents | {"t": times[rows % len(times)], "text": text[rows % len(text)], "weight": weight}
