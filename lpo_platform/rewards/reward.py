"""The two contracts of a reward: of finished pictures, and of noisy latents in the middle of a trajectory."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from lpo_platform.config import UserError


class Reward(Protocol):
    """How good pictures (B, 3, H, W) in [0, 1] are for their prompts: (B,), higher is better."""

    def __call__(self, images: Tensor, prompts: list[str], condition: Tensor | None = None) -> Tensor: ...


class StepReward(Protocol):
    """How good noisy latents (N, C, h, w) at timesteps t (N,) are for prompts: (N,), higher is better.

    encode() is called once for the B prompts of a rollout; prompt (N,) says to which of them each latent belongs.
    timestep: whether candidates for the next level are scored at the t of the current one or of their own.
    """

    timestep: Literal["current", "next"]

    def encode(self, prompts: list[str]) -> dict[str, Tensor]: ...

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor], prompt: Tensor) -> Tensor: ...


def checked(name: str, values: object, batch: int) -> Tensor:
    """What the reward `name` returned for `batch` samples, as (batch,) float32 without a gradient.

    Raises UserError with that name where it is no tensor of shape (batch,) or holds NaN or an infinity: an update on
    such a number ruins the model, and silently.
    """
    if not isinstance(values, Tensor):
        raise UserError(f"reward {name}: returned a {type(values).__name__}, expected a tensor of shape ({batch},)")
    if values.shape != (batch,):
        raise UserError(f"reward {name}: returned shape {tuple(values.shape)}, expected ({batch},)")
    values = values.detach().float()
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise UserError(f"reward {name}: returned NaN or infinity for {bad} of {batch} samples")
    return values
