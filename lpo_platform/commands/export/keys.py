"""The original names of Stable Diffusion's weights (github.com/CompVis/latent-diffusion), as ComfyUI reads them.

Each function gives a state dict in diffusers' names its original ones. The original numbers all layers of a UNet where
diffusers counts blocks, so a name depends on the configuration. `diffusers.loaders.single_file_utils` goes the other
way.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError

State = dict[str, Tensor]
Config = Mapping[str, Any]

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}  # fmt: skip
VAE = {
    "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out", "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample", "upsamplers.0": "upsample",
}  # fmt: skip
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj", "self_attn": "attn",
}  # fmt: skip


def unet(state: State, config: Config) -> State:
    """Of a UNet2DConditionModel or a ControlNetModel, without a prefix. UserError for a layer that has no such name."""
    if not isinstance(config["layers_per_block"], int):
        raise UserError("the original key names know one number of layers for all blocks of a UNet")
    return {_unet_name(name, config): value for name, value in state.items()}


def _unet_name(name: str, config: Config) -> str:
    layer, _, kind = name.rpartition(".")
    if layer in UNET:
        return f"{UNET[layer]}.{kind}"
    rules: dict[str, Callable[..., str]] = {
        r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)": lambda *parts: _in_block(*parts, config),
        r"mid_block\.resnets\.(\d)\.(.+)": lambda i, rest: f"middle_block.{2 * int(i)}.{_renamed(rest, RESNET)}",
        r"mid_block\.attentions\.0\.(.+)": lambda rest: f"middle_block.1.{rest}",
        r"controlnet_down_blocks\.(\d+)": lambda i: f"zero_convs.{i}.0",
        r"controlnet_cond_embedding\.blocks\.(\d+)": lambda i: f"input_hint_block.{2 * int(i) + 2}",
    }
    for pattern, rule in rules.items():
        if found := re.fullmatch(pattern, layer):
            return f"{rule(*found.groups())}.{kind}"
    raise UserError(f"the original key names have none for {name}")


def _in_block(side: str, block: str, part: str, index: str, rest: str, config: Config) -> str:
    """A block has its layers, then one that scales; in the up path one more layer, whose place that one shares."""
    each, down = config["layers_per_block"] + 1, side == "down"
    scales, first = part.endswith("samplers"), int(block) * each
    place = first + (each - 1 if scales else int(index)) + down  # conv_in comes before the down path
    if not scales:
        return f"{'in' if down else 'out'}put_blocks.{place}." + (
            f"1.{rest}" if part == "attentions" else f"0.{_renamed(rest, RESNET)}"
        )
    if down:
        return f"input_blocks.{place}.0.op"
    attends = "CrossAttn" in config["up_block_types"][int(block)]
    return f"output_blocks.{place}.{2 if attends else 1}.conv"


def vae(state: State) -> State:
    """Of an AutoencoderKL; its attention is one of convolutions."""
    last = max(int(found[1]) for name in state if (found := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"(down|up)_blocks\.(\d+)", lambda m: f"{m[1]}.{last - int(m[2]) if m[1] == 'up' else m[2]}", name)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = _renamed(new.replace(".resnets.", ".block."), VAE)
        linear = ".mid.attn_1." in new and value.ndim == 2
        renamed[new] = value[:, :, None, None] if linear else value
    return renamed


def clip(state: State) -> State:
    """Of the CLIP text encoder of SD-1.x, the first of SDXL."""
    return {f"transformer.text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}


def open_clip(state: State) -> State:
    """Of the OpenCLIP text encoder of SD-2.x, the second of SDXL: queries, keys and values are one matrix."""
    renamed: State = {}
    for name, value in state.items():
        new = _renamed(name.removeprefix("text_model."), OPEN_CLIP)
        if name == "text_projection.weight":
            new, value = "text_projection", value.T
        elif found := re.fullmatch(r"(.+)\.q_proj\.(weight|bias)", new):
            rows = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            new, value = f"{found[1]}.in_proj_{found[2]}", torch.cat(rows)
        elif re.search(r"\.[kv]_proj\.", new):
            continue
        renamed[f"model.{new}"] = value
    return renamed


def text(states: list[tuple[State, Config]]) -> State:
    """Of a pipeline's text encoders: that of SD-1.x or of SD-2.x, told apart by its activation, or SDXL's two."""
    if len(states) == 1:
        ((state, config),) = states
        return prefixed("cond_stage_model", open_clip(state) if config["hidden_act"] == "gelu" else clip(state))
    (first, _), (second, _) = states
    return prefixed("conditioner.embedders.0", clip(first)) | prefixed("conditioner.embedders.1", open_clip(second))


def kohya(factors: Mapping[str, tuple[Tensor, Tensor]]) -> State:
    """Of LoRA factors (models/lora.py) of a UNet, whose alpha is the rank: alpha / r is in `up` already."""
    state: State = {}
    for name, (down, up) in factors.items():
        prefix = f"lora_unet_{name.replace('.', '_')}"
        state |= {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}
        state[f"{prefix}.alpha"] = torch.tensor(float(len(down)))
    return state


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """With every whole part of the name that the table knows replaced."""
    for old, new in table.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(old)}(?=\.|$)", new, name)
    return name
