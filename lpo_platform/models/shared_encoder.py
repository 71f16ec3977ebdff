"""A stock diffusers UNet in two halves, so that one pass of the first half can serve several second halves.

A ControlNet only adds residuals to the skips and to the middle of a UNet. Winner and loser, policy and reference
therefore share the UNet's encoder whenever they share (x, t, text): CPO runs it once where the original runs it four
times (specs/cpo.md section 10, item 1). encode followed by decode equals UNet2DConditionModel.forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from lpo_platform.models.stable_diffusion_xl import PIXELS_PER_LATENT, unpack

Residuals = tuple[Sequence[Tensor], Tensor]


@dataclass(frozen=True)
class Encoded:
    """The encoder half of a UNet at (x, t, text), each with the batch first; indexing selects rows.

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


def split_text(model: UNet2DConditionModel | ControlNetModel, text: Tensor) -> tuple[Tensor, Tensor | None]:
    """What cross attention reads (B, L, D) and SDXL's pooled text (B, P), None elsewhere, in the model's precision."""
    text = text.to(model.dtype)
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
    time_ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=x.device)
    return sequence, {"text_embeds": pooled, "time_ids": time_ids.expand(len(text), -1)}


def embed_time(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The time embedding (B, E), SDXL's pooled text and size included, and what cross attention reads (B, L, D)."""
    sequence, added = conditions(unet, x, text)
    time = unet.time_embedding(unet.get_time_embed(sample=x.to(unet.dtype), timestep=t))
    if added is None:
        return time, sequence
    return time + unet.get_aug_embed(emb=time, encoder_hidden_states=sequence, added_cond_kwargs=added), sequence


def encode(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> Encoded:
    """Down blocks and middle of the UNet: x (B, C, h, w), t (B,), text (B, L, D), SDXL's packed (B, L + 1, D)."""
    sample = x.to(unet.dtype)
    time, sequence = embed_time(unet, x, t, text)
    hidden = unet.conv_in(sample)
    skips: tuple[Tensor, ...] = (hidden,)
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            hidden, outputs = block(hidden_states=hidden, temb=time, encoder_hidden_states=sequence)
        else:
            hidden, outputs = block(hidden_states=hidden, temb=time)
        skips += outputs
    return Encoded(x, t, text, time, skips, unet.mid_block(hidden, time, encoder_hidden_states=sequence))


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
