"""The transformer of Stable Diffusion 3 in two halves and its ControlNets, behind the calls of shared_encoder.py.

A ControlNet adds its first residual after the first block, so all that precedes is shared by winner and loser, policy
and reference. That is a small part of the work: 3 to 5 % of a forward. encode followed by decode equals
SD3Transformer2DModel.forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor, nn

from lpo_platform.models.adapter import Adapter
from lpo_platform.models.controlnet_dino import SD3ControlNetDinoModel, WithDino
from lpo_platform.models.shared_encoder import decode, encode, features_of, precision, repeat_rows, residuals_of
from lpo_platform.models.stable_diffusion_xl import unpack

Model = SD3Transformer2DModel | SD3ControlNetModel


@dataclass(frozen=True)
class EncodedSD3:
    """What precedes the first residual at (x, t, text). Each part has the batch first; indexing selects rows.

    text is packed, as the adapter gave it. tokens (B, N, D) are the latents with their places before the first block,
    where a ControlNet without an embedder of its own starts. time (B, D), hidden (B, N, D) and context (B, L, D) are
    what the blocks work on.
    """

    x: Tensor
    t: Tensor
    text: Tensor
    tokens: Tensor
    time: Tensor
    hidden: Tensor
    context: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "EncodedSD3":
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def unread(block: nn.Module) -> list[nn.Module]:
    """The parts of a block that only its outgoing text depends on: behind the last block nothing reads that text."""
    names = ("attn.to_add_out", "attn.add_q_proj", "attn.norm_added_q", "ff_context")
    return [part for name, part in block.named_modules() if name in names]


def picture(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """(B, h/p w/p, p p C) -> (B, C, h, w): a token holds the channels of each of its p x p places in turn."""
    places = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (height // patch, width // patch))
    return torch.einsum("nhwpqc->nchpwq", places).flatten(4, 5).flatten(2, 3)


def through(model: Model, block: nn.Module, hidden: Tensor, context: Tensor | None, time: Tensor) -> tuple:
    """(hidden, context) after one block; the last block of a transformer ends the stream of the text, and the blocks of
    a ControlNet without text have none. With gradient checkpointing the block is computed again in the backward.
    """
    streams = (hidden,) if context is None else (hidden, context)
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        found = model._gradient_checkpointing_func(block, *streams, time)
    else:
        found = block(*streams, time)
    return (found, None) if context is None else (found[1], found[0])


@encode.register
def encode_sd3(transformer: SD3Transformer2DModel, x: Tensor, t: Tensor, text: Tensor) -> EncodedSD3:
    """The embedders and the first block; text of a multiple of B rows asks for x and t with each of the texts."""
    tokens = transformer.pos_embed(x.to(precision(transformer))).contiguous()
    x, t, tokens = (repeat_rows(part, len(text)) for part in (x, t, tokens))
    sequence, pooled = unpack(text.to(precision(transformer)), transformer.config.pooled_projection_dim)
    time, context = transformer.time_text_embed(t, pooled), transformer.context_embedder(sequence)
    hidden, context = through(transformer, transformer.transformer_blocks[0], tokens, context, time)
    return EncodedSD3(x, t, text, tokens, time, hidden, context)


@features_of.register
def features_of_sd3(control: SD3ControlNetModel, images: Tensor, adapter: Adapter) -> Tensor:
    """The latents of conditions, at the mean of the autoencoder's posterior: stock pipelines draw from that.

    A ControlNet that sees no pooled text (InstantX) sees latents that are not shifted, either.
    """
    moments = adapter.encode_moments(images)
    latents = adapter.sample_latents(moments, torch.zeros_like(moments.chunk(2, 1)[0]))
    config = adapter.vae.config
    shift = (config.shift_factor or 0.0) * config.scaling_factor
    return latents + shift if control.config.force_zeros_for_pooled_projection else latents


@features_of.register
def features_of_sd3_dino(control: SD3ControlNetDinoModel, images: Tensor, adapter: Adapter) -> Tensor:
    """The tokens of those latents with what DINO sees in their places, as a picture (B, D, h/p, w/p)."""
    latents = features_of_sd3(control, images, adapter).to(precision(control))
    sides = [side // control.config.patch_size for side in latents.shape[-2:]]
    return control.with_dino(images.to(precision(control)), control.pos_embed_input(latents).mT.unflatten(2, sides))


def embed_condition(control: SD3ControlNetModel, features: Tensor) -> Tensor:
    """The tokens of a condition (B, N, D)."""
    return features.flatten(2).mT if isinstance(control, WithDino) else control.pos_embed_input(features)


@residuals_of.register
def residuals_of_sd3(control: SD3ControlNetModel, encoded: EncodedSD3, features: Tensor) -> list[Tensor]:
    """What the ControlNet adds after the transformer's blocks; features are the condition's latents."""
    dtype, context = precision(control), None
    sequence, pooled = unpack(encoded.text.to(dtype), control.config.pooled_projection_dim)
    if control.config.force_zeros_for_pooled_projection:
        pooled = torch.zeros_like(pooled)
    time = control.time_text_embed(encoded.t, pooled)
    if control.context_embedder is not None:
        context = control.context_embedder(sequence)
    tokens = encoded.tokens if control.pos_embed is None else control.pos_embed(encoded.x.to(dtype))
    hidden, found = tokens.to(dtype) + embed_condition(control, features.to(dtype)), []
    for block, zero in zip(control.transformer_blocks, control.controlnet_blocks, strict=True):
        hidden, context = through(control, block, hidden, context, time)
        found.append(zero(hidden))
    return found


def served(index: int, count: int, residuals: int) -> int:
    """The number of the residual that block `index` of `count` gets. Fewer residuals than blocks serve several each.

    As in diffusers the quotient is one of floats: integers differ from it, for one where 14 residuals serve 18 blocks.
    """
    return int(index / (count / residuals))


def plus(hidden: Tensor, residuals: Sequence[Tensor] | None, index: int, count: int) -> Tensor:
    """Adds the residual of block `index` of `count`."""
    return hidden + residuals[served(index, count, len(residuals))] if residuals else hidden


@decode.register
def decode_sd3(
    transformer: SD3Transformer2DModel, encoded: EncodedSD3, residuals: Sequence[Tensor] | None = None
) -> Tensor:
    """The other blocks, with a ControlNet's residuals added after all but the last: (B, C, h, w)."""
    hidden, context, time = encoded.hidden, encoded.context, encoded.time
    blocks = transformer.transformer_blocks
    for index, block in enumerate(blocks):
        if index:  # the first block is encode's
            hidden, context = through(transformer, block, hidden, context, time)
        if not block.context_pre_only:
            hidden = plus(hidden, residuals, index, len(blocks))
    tokens = transformer.proj_out(transformer.norm_out(hidden, time))
    return picture(tokens, *encoded.x.shape[-2:], transformer.config.patch_size)
