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

from lpo_platform.commands.export import keys
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


PARTS = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0", "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}  # fmt: skip
BLOCK = {
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k", "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj", "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k", "attn2.to_out.0": "x_block.attn2.proj", "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2", "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}  # fmt: skip
QKV = {
    "attn.to_q": ("x_block.attn", "attn.to_{}"), "attn2.to_q": ("x_block.attn2", "attn2.to_{}"),
    "attn.add_q_proj": ("context_block.attn", "attn.add_{}_proj"),
}  # fmt: skip


def original(transformer: SD3Transformer2DModel) -> dict[str, torch.Tensor]:
    """Its weights by the names of Stability AI's files, in which queries, keys and values are one matrix, and shift
    comes before scale."""
    found, last = {}, f"transformer_blocks.{transformer.config.num_layers - 1}.norm1_context"
    state = transformer.state_dict()
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer == last + ".linear" or layer == "norm_out.linear":
            value = torch.cat(value.chunk(2)[::-1])
        if name in PARTS or layer in PARTS:
            new = PARTS.get(name) or f"{PARTS[layer]}.{kind}"
        else:
            _, number, inside = layer.split(".", 2)
            if inside in QKV:
                place, pattern = QKV[inside]
                rows = [state[f"transformer_blocks.{number}.{pattern.format(part)}.{kind}"] for part in "qkv"]
                new, value = f"{place}.qkv.{kind}", torch.cat(rows)
            elif inside in BLOCK:
                new = f"{BLOCK[inside]}.{kind}"
            else:
                continue  # a key or a value, which is with its query
            new = f"joint_blocks.{number}.{new}"
        found[f"model.diffusion_model.{new}"] = value.contiguous()
    return found


def single_file(folder: Path, *, texts: bool = True) -> dict[str, torch.Tensor]:
    """A pipeline's weights as one file has them, without text encoders if asked."""
    stock = StableDiffusion3Pipeline.from_pretrained(folder)
    state = original(stock.transformer)
    state |= keys.prefixed("first_stage_model", keys.vae(stock.vae.state_dict()))
    if texts:
        for place, part in (("clip_l", stock.text_encoder), ("clip_g", stock.text_encoder_2)):
            state |= keys.prefixed(f"text_encoders.{place}.transformer", part.state_dict())
        t5 = {n: v for n, v in stock.text_encoder_3.state_dict().items() if n != "encoder.embed_tokens.weight"}
        state |= keys.prefixed("text_encoders.t5xxl.transformer", t5)
    return {name: value.clone() for name, value in state.items()}
