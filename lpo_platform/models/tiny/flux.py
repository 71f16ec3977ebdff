"""Builds the embedded tiny FLUX: real diffusers and transformers classes at toy size, in FluxPipeline's layout.

It works on the latents of the tiny Stable Diffusion and pools its text encoder, so the folder holds neither of them
(conf/model/tiny_flux.yaml names them). `build` writes the rest with random weights; transformer, T5 and ControlNets
are trained by the platform's own `method=control` (launchers/tiny.py).
"""

import math
from collections import Counter
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from lpo_platform.models.tiny.scenes import all_contents
from lpo_platform.models.tiny.stable_diffusion import LATENT_CHANNELS, TEXT_CHANNELS, save_half
from lpo_platform.models.weights import ASSETS

FOLDER = ASSETS / "tiny_flux"
MAX_TOKENS = 16  # the longest toy caption has 14 words


def build_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer of the words of the toy captions; other words fall apart into letters."""
    counts = Counter(word for content in all_contents() for word in content.caption().split())
    total = sum(counts.values())
    words = [(f"▁{word}", math.log(count / total)) for word, count in sorted(counts.items())]
    letters = [(letter, -20.0) for letter in "▁abcdefghijklmnopqrstuvwxyz0123456789.,'-"]
    special = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    return T5TokenizerFast(vocab=[*special, *letters, *words], extra_ids=0, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Two layers of 64 channels, gated as T5 v1.1 is, with random weights."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_CHANNELS,
        d_kv=16,
        d_ff=TEXT_CHANNELS,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def build_transformer() -> FluxTransformer2DModel:
    """Two double and four single blocks of 64 channels on 8 x 8 tokens, told its guidance as FLUX.1-dev is."""
    return FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=TEXT_CHANNELS,
        pooled_projection_dim=TEXT_CHANNELS,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """That of FLUX.1-dev."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def build(folder: Path = FOLDER, *, seed: int = 0) -> None:
    """Writes tokenizer_2, text_encoder_2, transformer and scheduler."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer_2")
    build_scheduler().save_pretrained(folder / "scheduler")
    save_half(build_text_encoder(tokenizer), folder / "text_encoder_2")
    save_half(build_transformer(), folder / "transformer")
