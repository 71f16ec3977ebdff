"""Stable Diffusion 2.1 and XL at toy size with random weights, saved as the stock pipelines save them."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lpo_platform.models.weights import ASSETS

RESOLUTION = 64
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
SETTINGS = {"name": "toy", "resolution": RESOLUTION, "guidance": 5.0, "num_inference_steps": 4}


def stable_diffusion_21(folder: Path) -> Path:
    """Linear projections and a list of attention heads, as in SD-2.1."""
    torch.manual_seed(0)
    words = tokenizer()
    StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(words, 32)),
        tokenizer=words,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=32,
            norm_num_groups=8,
            use_linear_projection=True,
        ),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """Text encoders of widths 24 and 32, the second projecting to 20; its tokenizer pads with "!"."""
    torch.manual_seed(1)
    words, padded = tokenizer(), tokenizer(pad_token="!")
    schedule = EulerDiscreteScheduler(timestep_spacing="leading", **SCHEDULE)
    schedule.register_to_config(set_alpha_to_one=False, clip_sample=False, skip_prk_steps=True)  # as in SDXL's folder
    StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(words, 24)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(words, 32, projection_dim=20)),
        tokenizer=words,
        tokenizer_2=padded,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            cross_attention_dim=56,
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
        scheduler=schedule,
    ).save_pretrained(folder)
    return folder


def vae() -> AutoencoderKL:
    """Divides the picture's side by 8."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
    )


def tokenizer(**changes: str) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(ASSETS / "tiny" / "tokenizer", **changes)


def text_config(words: CLIPTokenizer, width: int, **changes: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
        **changes,
    )
