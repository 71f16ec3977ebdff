"""FLUX at toy size with random weights, saved as the stock pipeline saves it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from toys import stable_diffusion as toy
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

from lpo_platform.models.flux import Flux

RESOLUTION, TOKENS = 64, 12
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def folder(path: Path) -> Path:
    """A pipeline whose autoencoder divides by 8, shifts, scales, and has a posterior without width."""
    torch.manual_seed(0)
    words = toy.tokenizer()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=CLIPTextModel(toy.text_config(words, 20)),
        tokenizer=words,
        text_encoder_2=t5(),
        tokenizer_2=letters(),
        transformer=transformer(),
    ).save_pretrained(path)
    return path


def load(path: Path, **changes: object) -> Flux:
    settings = {"name": "toy", "resolution": RESOLUTION, "guidance": 1.0, "num_inference_steps": 4}
    return Flux(weights=str(path), max_tokens=TOKENS, control_layers=(1, 2), **settings | changes)


def transformer(**changes: object) -> FluxTransformer2DModel:
    """Two double and three single blocks of width 32 on 4-channel latents, told its guidance, no layer at 0."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }
    return FluxTransformer2DModel(**config | changes).eval()


def t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=4 + len(LETTERS), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def letters() -> T5TokenizerFast:
    special = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "▁")]
    return T5TokenizerFast(vocab=[*special, *((letter, -1.0) for letter in LETTERS)], extra_ids=0)


def vae() -> AutoencoderKL:
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        model.encoder.conv_out.weight[4:] = 0
        model.encoder.conv_out.bias[4:] = -30.0
    return model
