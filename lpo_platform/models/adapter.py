"""What every architecture offers to the rest of the platform."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lpo_platform.diffusion.ddim import DDIM


@dataclass(frozen=True)
class Condition:
    """What the model is conditioned on: text (B, L, D) and, with a control branch, an image (B, 3, H, W) in [0, 1]."""

    text: Tensor
    control: Tensor | None = None


class Adapter(Protocol):
    """One per architecture. It owns the frozen parts, so that they never reach a state_dict, DDP or EMA."""

    name: str
    resolution: int
    guidance: float
    num_inference_steps: int
    latent_shape: tuple[int, int, int]
    fingerprint: str
    process: DDIM
    unet: nn.Module
    text_encoder: nn.Module

    def to(self, device: torch.device | str) -> "Adapter": ...
    def tokenize(self, prompts: list[str]) -> Tensor: ...  # (B, L) int64
    def embed(self, tokens: Tensor) -> Tensor: ...  # (B, L, D)
    def encode_moments(self, pixels: Tensor) -> Tensor: ...  # [0, 1] -> (B, 2C, h, w) mean and log-variance
    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...  # -> [0, 1]
    def load_control(self, task: str, weights: str, subfolder: str | None) -> nn.Module: ...
