"""The two contracts of a reward: of finished pictures, and of noisy latents in the middle of a trajectory."""

from typing import Protocol

from torch import Tensor


class Reward(Protocol):
    """How good pictures (B, 3, H, W) in [0, 1] are for their prompts: (B,), higher is better."""

    def __call__(self, images: Tensor, prompts: list[str], condition: Tensor | None = None) -> Tensor: ...


class StepReward(Protocol):
    """How good noisy latents (B, C, h, w) at timesteps t (B,) are for their prompts: (B,), higher is better.

    `text` is what encode() made of the prompts, so that a rollout encodes each prompt once: any first-axis-B tensors.
    """

    def encode(self, prompts: list[str]) -> dict[str, Tensor]: ...

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor: ...
