"""Stable Diffusion 3 at toy size with random weights, saved as the stock pipeline saves it."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from toys import flux
from toys import stable_diffusion as toy
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lpo_platform.models.stable_diffusion_3 import StableDiffusion3

RESOLUTION, TOKENS, JOINT, POOLED = 64, 12, 64, 22


def folder(path: Path, *, t5: bool = True) -> Path:
    """CLIP encoders of widths 24 and 32, whose text is padded to T5's 64 channels; a picture has 4 x 4 tokens."""
    torch.manual_seed(0)
    words = toy.tokenizer()
    StableDiffusion3Pipeline(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=CLIPTextModelWithProjection(toy.text_config(words, 24, projection_dim=10)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(toy.text_config(words, 32, projection_dim=12)),
        tokenizer_2=toy.tokenizer(pad_token="!"),
        text_encoder_3=encoder() if t5 else None,
        tokenizer_3=flux.letters() if t5 else None,
    ).save_pretrained(path)
    return path


def load(path: Path, **changes: object) -> StableDiffusion3:
    settings = {"name": "toy", "resolution": RESOLUTION, "guidance": 1.0, "num_inference_steps": 4}
    return StableDiffusion3(weights=str(path), max_tokens=TOKENS, **{"control_layers": 2} | settings | changes)


def transformer(**changes: object) -> SD3Transformer2DModel:
    """Three blocks of width 32 on 4-channel latents, the first with two attentions, on a table of 6 x 6 places."""
    config = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": JOINT, "caption_projection_dim": 32,
        "pooled_projection_dim": POOLED, "pos_embed_max_size": 6, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }  # fmt: skip
    return SD3Transformer2DModel(**config | changes).eval()


def encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=4 + len(flux.LETTERS), d_model=JOINT, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def vae() -> AutoencoderKL:
    """FLUX's toy, with the scale and the shift of Stable Diffusion 3."""
    made = flux.vae()
    made.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    return made
