"""Real classes at toy size with random weights, for tests that need no trained model."""

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from lpo_platform.models.controlnet_dino import ControlNetDinoModel


def unet(*, seed: int = 0, **changes: object) -> UNet2DConditionModel:
    """A Stable Diffusion UNet of 0.3 M parameters on 4-channel latents, cross attention 32."""
    torch.manual_seed(seed)
    config = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**config | changes).eval()


def controlnet(source: UNet2DConditionModel, *, seed: int = 1) -> ControlNetModel:
    """A ControlNet of that UNet for pictures four times the latents' size, its zero convolutions made non-zero."""
    torch.manual_seed(seed)
    control = ControlNetModel.from_unet(source, conditioning_embedding_out_channels=(8, 16, 32))
    for name, weight in control.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return control


def controlnet_dino(source: UNet2DConditionModel, *, resize: str = "bicubic") -> ControlNetDinoModel:
    """That ControlNet with DINOv2 at toy size, which has more of a say than one behind a new zero layer."""
    control = ControlNetDinoModel.from_controlnet(controlnet(source), adapter_size="tiny")
    control.register_to_config(resize=resize)
    torch.manual_seed(3)
    torch.nn.init.normal_(control.dino.conv_out.weight, std=0.3)
    return control


def inputs(batch: int = 2, *, size: int = 8, seed: int = 2) -> tuple[torch.Tensor, ...]:
    """x (B, 4, s, s), t (B,), text (B, 6, 32), control (B, 3, 4s, 4s) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, size, size, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    text = torch.randn(batch, 6, 32, generator=generator)
    return x, t, text, torch.rand(batch, 3, 4 * size, 4 * size, generator=generator)
