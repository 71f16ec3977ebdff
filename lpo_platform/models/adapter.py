"""What every architecture offers to the rest of the platform."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from lpo_platform.diffusion.process import Process


@dataclass(frozen=True)
class Condition:
    """What a picture is drawn from.

    Attributes:
        text: (B, L, D). In SDXL and FLUX the last row is the pooled vector (models/stable_diffusion_xl.py).
        control: (B, 3, H, W) in [0, 1], the control image; None without a control branch.
    """

    text: Tensor
    control: Tensor | None = None


class Adapter(Protocol):
    """A model of one architecture. It owns the frozen parts, so that state_dict, DDP and EMA never see them."""

    denoiser: ClassVar[str]  # unet or transformer, for what works with one of them only
    lora_targets: ClassVar[tuple[str, ...]]  # ends of the names of the layers that a LoRA adapts
    name: str
    toy: bool  # whether it draws toy scenes
    resolution: int  # side of the pictures in pixels
    guidance: float  # of evaluations; 0 to 1 are none
    num_inference_steps: int  # of evaluations
    latent_shape: tuple[int, int, int]  # (C, h, w)
    latent_space: tuple[float, ...]  # equal where latents mean the same pictures
    fingerprint: str  # of everything that cached samples depend on
    process: Process  # how noise is added and removed
    unet: nn.Module  # the denoiser: in SD3 and FLUX the transformer
    text_encoder: nn.Module  # the one that can be trained
    text_encoders: tuple[nn.Module, ...]  # text_encoder and, in SDXL and FLUX, a second one
    unread_text: tuple[nn.Module, ...]  # parts of text_encoder that embed() does not read, so that they cannot learn
    # where a control branch has such parts, too: unread_control(control), a list of them
    controls: dict[str, str]  # by task, the ControlNet that control.weights=auto takes
    folders: dict[str, str]  # what unet and text_encoder are called in the pipeline's folder
    reward: str | None  # the latent reward model that reward.weights=auto takes

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Adapter": ...
    def kept_in(self, part: nn.Module, dtype: torch.dtype | None) -> torch.dtype | None: ...  # of a frozen part in to()
    def tokenize(self, prompts: list[str]) -> Tensor: ...  # int64, one row per prompt: (B, L); SDXL (B, 2, L)
    def embed(self, tokens: Tensor) -> Tensor: ...  # (B, L, D)
    def empty_text(self) -> Tensor: ...  # (1, L, D), classifier-free guidance's unconditional text
    def encode_moments(self, pixels: Tensor) -> Tensor: ...  # (B, 3, H, W) -> (B, 2C, h, w), mean and log-variance
    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...  # (B, C, h, w) -> (B, 3, H, W) in [0, 1], differentiable
    def load_control(self, task: str, weights: str, subfolder: str | None) -> nn.Module: ...
