"""A stock diffusers UNet in two halves, so that one pass of the first half serves several second halves.

Its ControlNet is split, too, so that each condition is encoded once.

A ControlNet only adds residuals to the skips and to the middle of a UNet. Winner and loser, policy and reference
therefore share the UNet's encoder whenever they share (x, t, text): CPO runs it once where the original runs it four
times. encode followed by decode equals UNet2DConditionModel.forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, singledispatch

import torch
from diffusers import ControlNetModel, Transformer2DModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from torch import Tensor, nn

from lpo_platform.models.adapter import Adapter
from lpo_platform.models.stable_diffusion_xl import PIXELS_PER_LATENT, unpack

Residuals = tuple[Sequence[Tensor], Tensor]


@dataclass(frozen=True)
class Encoded:
    """The encoder half of a UNet at (x, t, text). Each part has the batch first; indexing selects rows.

    text is as the adapter gave it, packed where the UNet is SDXL's.
    """

    x: Tensor
    t: Tensor
    text: Tensor
    time: Tensor
    skips: tuple[Tensor, ...]
    middle: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Encoded":
        skips = tuple(skip[rows] for skip in self.skips)
        return Encoded(self.x[rows], self.t[rows], self.text[rows], self.time[rows], skips, self.middle[rows])


def precision(model: nn.Module) -> torch.dtype:
    """The precision of the weights. diffusers' own `dtype` asks every module for hooks first, which is slow."""
    return next(model.parameters()).dtype


def split_text(model: UNet2DConditionModel | ControlNetModel, text: Tensor) -> tuple[Tensor, Tensor | None]:
    """What cross attention reads (B, L, D) and SDXL's pooled text (B, P), None elsewhere, in the model's precision."""
    text = text.to(precision(model))
    if model.config.addition_embed_type != "text_time":
        return text, None
    return unpack(text, model.config.projection_class_embeddings_input_dim - 6 * model.config.addition_time_embed_dim)


def conditions(
    model: UNet2DConditionModel | ControlNetModel, x: Tensor, text: Tensor
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """What cross attention reads, and diffusers' added_cond_kwargs: None but for SDXL.

    time_ids are the original size, the crop and the target size in pixels: (H, W, 0, 0, H, W), the picture's own.
    """
    sequence, pooled = split_text(model, text)
    if pooled is None:
        return sequence, None
    height, width = (PIXELS_PER_LATENT * size for size in x.shape[-2:])
    return sequence, {"text_embeds": pooled, "time_ids": time_ids(height, width, x.device).expand(len(text), -1)}


@cache
def time_ids(height: int, width: int, device: torch.device) -> Tensor:
    """(6,) on the device, since a copy in every forward would wait for the GPU each time."""
    with torch.inference_mode(False):
        return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)


def embed_time(
    model: UNet2DConditionModel | ControlNetModel, x: Tensor, t: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """The time embedding (B, E) and what cross attention reads (R, L, D) for x (B, C, h, w), t (B,) and text of R rows.

    SDXL's pooled text and the picture's size go into the time embedding, which therefore has R rows.
    """
    sequence, added = conditions(model, x, text)
    time = model.time_embedding(model.time_proj(t).to(precision(model)))
    if added is None:
        return time, sequence
    sizes = model.add_time_proj(added["time_ids"].flatten()).view(len(text), -1)
    time = time.repeat(len(text) // len(x), 1)
    return time + model.add_embedding(torch.cat([added["text_embeds"], sizes], 1).to(time.dtype)), sequence


@singledispatch
def encode(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> Encoded:
    """Down blocks and middle of the UNet: x (B, C, h, w), t (B,), text (B, L, D), SDXL's packed (B, L + 1, D).

    Text of a multiple of B rows asks for x and t with each of the texts, all rows with the first text first.
    """
    time, sequence = embed_time(unet, x, t, text)
    first, blocks, middle = descend(unet, unet.conv_in(x.to(precision(unet))), time, sequence)
    skips = (first, *(output for outputs in blocks for output in outputs))
    x, t, time, *skips = (repeat_rows(part, len(text)) for part in (x, t, time, *skips))
    return Encoded(x, t, text, time, tuple(skips), middle)


def descend(
    unet: UNet2DConditionModel | ControlNetModel, hidden: Tensor, time: Tensor, sequence: Tensor
) -> tuple[Tensor, list[tuple[Tensor, ...]], Tensor]:
    """The outputs of conv_in, of every down block and of the middle.

    They may have fewer rows than the sequence, because nothing before the first cross-attention depends on the text:
    with classifier-free guidance it is computed once instead of twice.
    """
    rows, blocks = len(sequence), []
    first = hidden = repeat_rows(hidden, len(time))
    for block in unet.down_blocks:
        if not getattr(block, "has_cross_attention", False):
            hidden, outputs = block(hidden_states=hidden, temb=time)
        elif len(hidden) < rows and opens(block):
            hidden, outputs = widen(block, hidden, time, sequence)
            time = repeat_rows(time, rows)
        else:
            hidden, time = repeat_rows(hidden, rows), repeat_rows(time, rows)
            hidden, outputs = block(hidden_states=hidden, temb=time, encoder_hidden_states=sequence)
        blocks.append(outputs)
    hidden, time = repeat_rows(hidden, rows), repeat_rows(time, rows)
    return first, blocks, unet.mid_block(hidden, time, encoder_hidden_states=sequence)


def opens(block: nn.Module) -> bool:
    """Whether the parts of a block may be called one by one.

    They may not where the block's forward recomputes them for the gradient, or where FSDP, which gives the block
    another class, gathers their weights.
    """
    return type(block) is CrossAttnDownBlock2D and not (block.gradient_checkpointing and torch.is_grad_enabled())


def widen(
    block: CrossAttnDownBlock2D, hidden: Tensor, time: Tensor, sequence: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """block.forward, its first resnet and first self-attention on fewer rows than the sequence has."""
    hidden = attend(block.attentions[0], block.resnets[0](hidden, time), sequence)
    outputs, time = (hidden,), repeat_rows(time, len(sequence))
    for resnet, attention in zip(block.resnets[1:], block.attentions[1:], strict=True):
        hidden = attention(resnet(hidden, time), encoder_hidden_states=sequence, return_dict=False)[0]
        outputs += (hidden,)
    for downsampler in block.downsamplers or ():
        hidden = downsampler(hidden)
        outputs += (hidden,)
    return hidden, outputs


def attend(attention: Transformer2DModel, hidden: Tensor, sequence: Tensor) -> Tensor:
    """attention.forward, on fewer rows than the sequence has up to the first cross attention."""
    linear, (height, width) = attention.use_linear_projection, hidden.shape[-2:]
    inner = attention.norm(hidden)
    inner = attention.proj_in(inner.flatten(2).mT) if linear else attention.proj_in(inner).flatten(2).mT
    first, *others = attention.transformer_blocks
    inner = repeat_rows(first.attn1(first.norm1(inner)) + inner, len(sequence))
    inner = first.attn2(first.norm2(inner), encoder_hidden_states=sequence) + inner
    inner = first.ff(first.norm3(inner)) + inner
    for block in others:
        inner = block(inner, encoder_hidden_states=sequence)
    if linear:
        inner = attention.proj_out(inner).mT.unflatten(2, (height, width))
    else:
        inner = attention.proj_out(inner.mT.unflatten(2, (height, width)))
    return inner + repeat_rows(hidden, len(sequence))


def repeat_rows(tensor: Tensor, rows: int) -> Tensor:
    """Repeats the whole tensor until it has that many rows."""
    return tensor if len(tensor) == rows else tensor.repeat(rows // len(tensor), *[1] * (tensor.ndim - 1))


@singledispatch
def features_of(control: ControlNetModel, images: Tensor, adapter: Adapter) -> Tensor:
    """The features of condition images (B, 3, H, W) in [0, 1], which do not depend on x and t: (B, C, h, w)."""
    return control.controlnet_cond_embedding(images.to(precision(control)))


@singledispatch
def residuals_of(control: ControlNetModel, encoded: Encoded, features: Tensor) -> Residuals:
    """What a ControlNet adds to the skips and the middle of an encoding, given features_of() of the conditions.

    Both parts together are ControlNetModel.forward. The weights keep their own precision.
    """
    x = encoded.x.to(precision(control))
    time, sequence = embed_time(control, x, encoded.t, encoded.text)
    first, blocks, middle = descend(control, control.conv_in(x) + features, time, sequence)
    skips = (first, *(output for outputs in blocks for output in outputs))
    zero = zip(control.controlnet_down_blocks, skips, strict=True)
    return [layer(skip) for layer, skip in zero], control.controlnet_mid_block(middle)


@singledispatch
def decode(unet: UNet2DConditionModel, encoded: Encoded, residuals: Residuals | None = None) -> Tensor:
    """Up blocks of the UNet on an encoding, with a ControlNet's residuals added where diffusers adds them."""
    skips, hidden = encoded.skips, encoded.middle
    sequence, _ = split_text(unet, encoded.text)
    if residuals is not None:
        skips = tuple(skip + residual for skip, residual in zip(skips, residuals[0], strict=True))
        hidden = hidden + residuals[1]
    factor = 2**unet.num_upsamplers
    odd = any(size % factor for size in encoded.x.shape[-2:])
    for index, block in enumerate(unet.up_blocks):
        count = len(block.resnets)
        used, skips = skips[-count:], skips[:-count]
        size = skips[-1].shape[2:] if odd and index < len(unet.up_blocks) - 1 else None
        arguments = {"hidden_states": hidden, "temb": encoded.time, "res_hidden_states_tuple": used}
        if getattr(block, "has_cross_attention", False):
            arguments["encoder_hidden_states"] = sequence
        hidden = block(**arguments, upsample_size=size)
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)
