"""Builds the embedded tiny Stable Diffusion 3: real diffusers and transformers classes at toy size, in the layout of
StableDiffusion3Pipeline.

It works on the latents of the tiny Stable Diffusion and with its tokenizer. Its one CLIP text encoder, which stands for
both (conf/model/tiny_sd3.yaml), is that of the tiny Stable Diffusion with an identity as projection, and T5's tokenizer
is the tiny FLUX's. `build` writes transformer and T5 with random weights; the platform's own `method=control` trains
them (launchers/tiny.py).
"""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from lpo_platform.models.tiny import flux, stable_diffusion
from lpo_platform.models.tiny.stable_diffusion import LATENT_CHANNELS, RESOLUTION, TEXT_CHANNELS, save_half
from lpo_platform.models.weights import ASSETS

FOLDER = ASSETS / "tiny_sd3"


def build_transformer() -> SD3Transformer2DModel:
    """Six blocks of 64 channels on 8 x 8 tokens, the middle of 12 x 12 places; two of them attend to the picture twice,
    and queries and keys have norms, as in Stable Diffusion 3.5-medium."""
    return SD3Transformer2DModel(
        sample_size=RESOLUTION // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_CHANNELS,
        caption_projection_dim=64,
        pooled_projection_dim=2 * TEXT_CHANNELS,
        pos_embed_max_size=12,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def build_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Two layers as wide as both CLIP encoders together, which the text of Stable Diffusion 3 has to be."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=2 * TEXT_CHANNELS,
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


def build_clip(trained: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The trained encoder; its pooled text is projected by the identity."""
    clip = CLIPTextModelWithProjection(trained.config)
    clip.text_model.load_state_dict({n.removeprefix("text_model."): w for n, w in trained.state_dict().items()})
    torch.nn.init.eye_(clip.text_projection.weight)
    return clip


def build(folder: Path = FOLDER, *, seed: int = 0) -> None:
    """Writes text_encoder, text_encoder_3, transformer and scheduler."""
    torch.manual_seed(seed)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    clip = CLIPTextModel.from_pretrained(stable_diffusion.FOLDER / "text_encoder")
    save_half(build_clip(clip), folder / "text_encoder")
    save_half(build_t5(flux.build_tokenizer()), folder / "text_encoder_3")
    save_half(build_transformer(), folder / "transformer")
