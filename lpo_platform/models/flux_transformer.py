"""FLUX's transformer in two halves and its ControlNet, behind the calls of models/shared_encoder.py.

A ControlNet adds its first residual after the first block, so all that precedes is shared by winner and loser, policy
and reference. Latents come and go as pictures (B, C, h, w), packed here into one token for every 2 x 2 of them. encode
followed by decode equals FluxTransformer2DModel.forward, but for t, which stays float32 in half precision too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn

from lpo_platform.models.adapter import Adapter
from lpo_platform.models.controlnet_dino import FluxControlNetDinoModel, WithDino
from lpo_platform.models.shared_encoder import decode, encode, features_of, precision, repeat_rows, residuals_of
from lpo_platform.models.stable_diffusion_xl import unpack

Model = FluxTransformer2DModel | FluxControlNetModel
Rotary = tuple[Tensor, Tensor]
Residuals = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class EncodedFlux:
    """What precedes FLUX's first residual at (x, t, text). Each part has the batch first; indexing selects rows.

    text is packed, as the adapter gave it; guidance (B,) is the distilled model's; time (B, D), hidden (B, N, D) and
    context (B, L, D) are what the blocks work on.
    """

    x: Tensor
    t: Tensor
    text: Tensor
    guidance: Tensor
    time: Tensor
    hidden: Tensor
    context: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "EncodedFlux":
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def patches(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 w/2, 4 C), a token for every 2 x 2 latents."""
    return F.pixel_unshuffle(x, 2).flatten(2).mT


def picture(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of patches: (B, h/2 w/2, 4 C) -> (B, C, h, w)."""
    return F.pixel_shuffle(tokens.mT.unflatten(2, (height // 2, width // 2)), 2)


def embed(model: Model, t: Tensor, text: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding (B, D) of time, guidance and pooled text, and the tokens of the text (B, L, D)."""
    sequence, pooled = unpack(text.to(precision(model)), model.config.pooled_projection_dim)
    scalars = (t, 1000 * guidance) if model.config.guidance_embeds else (t,)
    return model.time_text_embed(*scalars, pooled), model.context_embedder(sequence)


def rotary(model: Model, x: Tensor, context: Tensor) -> Rotary:
    """Rotary embeddings of all tokens: the text's at the origin, a patch's at (0, row, column)."""
    rows, columns = (torch.arange(size // 2, device=x.device) for size in x.shape[-2:])
    places = F.pad(torch.cartesian_prod(rows, columns), (1, 0))
    return model.pos_embed(F.pad(places, (0, 0, context.shape[1], 0)))


def through(
    model: Model, block: nn.Module, hidden: Tensor, context: Tensor, time: Tensor, places: Rotary
) -> tuple[Tensor, Tensor]:
    """(hidden, context) after one block. With gradient checkpointing the block is computed again in the backward."""
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        context, hidden = model._gradient_checkpointing_func(block, hidden, context, time, places)
    else:
        context, hidden = block(hidden, context, time, places)
    return hidden, context


def plus(hidden: Tensor, residuals: Sequence[Tensor], index: int, count: int) -> Tensor:
    """Adds the residual of block `index` of `count`. Fewer residuals than blocks serve several blocks each."""
    return hidden + residuals[index // math.ceil(count / len(residuals))] if residuals else hidden


@encode.register
def encode_flux(transformer: FluxTransformer2DModel, x: Tensor, t: Tensor, text: Tensor) -> EncodedFlux:
    """The embedders and the first block; text of a multiple of B rows asks for x and t with each of the texts."""
    x, t = repeat_rows(x, len(text)), repeat_rows(t, len(text))
    guidance = torch.full_like(t, transformer.distilled_guidance)
    time, context = embed(transformer, t, text, guidance)
    hidden, places = transformer.x_embedder(patches(x.to(precision(transformer)))), rotary(transformer, x, context)
    hidden, context = through(transformer, transformer.transformer_blocks[0], hidden, context, time, places)
    return EncodedFlux(x, t, text, guidance, time, hidden, context)


@features_of.register
def features_of_flux(control: FluxControlNetModel, images: Tensor, adapter: Adapter) -> Tensor:
    """The latents of conditions, at the mean of the autoencoder's posterior: stock pipelines draw from that."""
    moments = adapter.encode_moments(images)
    return adapter.sample_latents(moments, torch.zeros_like(moments.chunk(2, 1)[0]))


@features_of.register
def features_of_flux_dino(control: FluxControlNetDinoModel, images: Tensor, adapter: Adapter) -> Tensor:
    """The tokens of those latents with what DINO sees in their places, as a picture (B, D, h/2, w/2)."""
    latents = features_of_flux(control, images, adapter).to(precision(control))
    tokens, sides = control.controlnet_x_embedder(patches(latents)), [side // 2 for side in latents.shape[-2:]]
    return control.with_dino(images.to(precision(control)), tokens.mT.unflatten(2, sides))


def embed_condition(control: FluxControlNetModel, features: Tensor) -> Tensor:
    """The tokens of a condition (B, N, D)."""
    dino = isinstance(control, WithDino)
    return features.flatten(2).mT if dino else control.controlnet_x_embedder(patches(features))


@residuals_of.register
def residuals_of_flux(control: FluxControlNetModel, encoded: EncodedFlux, features: Tensor) -> Residuals:
    """What the ControlNet adds after double and after single blocks; features are the condition's latents."""
    dtype = precision(control)
    hidden = control.x_embedder(patches(encoded.x.to(dtype))) + embed_condition(control, features.to(dtype))
    time, context = embed(control, encoded.t, encoded.text, encoded.guidance)
    places, found = rotary(control, encoded.x, context), ([], [])
    for blocks, kept in zip((control.transformer_blocks, control.single_transformer_blocks), found, strict=True):
        for block in blocks:
            hidden, context = through(control, block, hidden, context, time, places)
            kept.append(hidden)
    zero = control.controlnet_blocks, control.controlnet_single_blocks
    double, single = ([f(h) for f, h in zip(*pair, strict=True)] for pair in zip(zero, found, strict=True))
    return double, single


@decode.register
def decode_flux(
    transformer: FluxTransformer2DModel, encoded: EncodedFlux, residuals: Residuals | None = None
) -> Tensor:
    """The other blocks, with a ControlNet's residuals added where diffusers adds them: (B, C, h, w)."""
    hidden, context, time = encoded.hidden, encoded.context, encoded.time
    places, double = rotary(transformer, encoded.x, context), transformer.transformer_blocks
    for blocks, added in zip((double, transformer.single_transformer_blocks), residuals or ((), ()), strict=True):
        for index, block in enumerate(blocks):
            if block is not double[0]:  # that one is encode's
                hidden, context = through(transformer, block, hidden, context, time, places)
            hidden = plus(hidden, added, index, len(blocks))
    return picture(transformer.proj_out(transformer.norm_out(hidden, time)), *encoded.x.shape[-2:])
