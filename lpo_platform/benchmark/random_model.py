"""Stable Diffusion at a given shape with random weights: what a benchmark needs, without a download.

SD15 is Stable Diffusion 1.5 written down as data; `tiny` is read from the embedded model's own configuration files.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.weights import ASSETS

Config = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """The configurations of a Stable Diffusion's parts, in the words of diffusers and transformers."""

    name: str
    resolution: int
    unet: Config = field(repr=False)
    vae: Config = field(repr=False)
    text_encoder: Config = field(repr=False)


SD15 = Shape(
    name="sd15",
    resolution=512,
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    vae={
        "sample_size": 512,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
    text_encoder={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
)


def tiny() -> Shape:
    """The embedded model's shape."""
    read = lambda part: json.loads((ASSETS / "tiny" / part / "config.json").read_text())  # noqa: E731
    return Shape("tiny", 64, read("unet"), read("vae"), read("text_encoder"))


class RandomStableDiffusion(StableDiffusion):
    """StableDiffusion that draws its weights instead of loading them. On the meta device it costs neither time nor
    memory, and a step on it can be counted but not computed."""

    def __init__(self, shape: Shape, *, resolution: int | None = None, device: torch.device | str = "cpu") -> None:
        self.name, self.weights, self.controls = shape.name, "random", {}
        self.resolution = resolution or shape.resolution
        self.guidance, self.num_inference_steps = 1.0, 1
        with torch.device(device):
            self.unet = UNet2DConditionModel.from_config(shape.unet)
            self.vae = AutoencoderKL.from_config(shape.vae)
            self.text_encoder = CLIPTextModel(CLIPTextConfig(**shape.text_encoder))
        self.process = DDIM().to(device)
        for part in self.parts:
            part.requires_grad_(False).eval()
        size = self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.latent_shape = (self.vae.config.latent_channels, size, size)

    def new_control(self) -> ControlNetModel:
        """A ControlNet of this UNet; its zero convolutions are drawn too, so that its condition matters."""
        with torch.device(self.device):
            control = self.load_control("", "unet")
        for name, weight in control.named_parameters():
            if "controlnet_down_blocks" in name or "controlnet_mid_block" in name:
                torch.nn.init.normal_(weight, std=0.05)
        return control
