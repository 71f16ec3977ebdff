"""A stock diffusers UNet in two halves, so that one pass of the first half can serve several second halves.

A ControlNet only adds residuals to the skips and to the middle of a UNet. Winner and loser, policy and reference
therefore share the UNet's encoder whenever they share (x, t, text): CPO runs it once where the original runs it four
times (specs/cpo.md section 10, item 1). encode followed by decode equals UNet2DConditionModel.forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import Tensor

Residuals = tuple[Sequence[Tensor], Tensor]


@dataclass(frozen=True)
class Encoded:
    """The encoder half of a UNet at (x, t, text), each with the batch first; indexing selects rows."""

    x: Tensor
    t: Tensor
    text: Tensor
    time: Tensor
    skips: tuple[Tensor, ...]
    middle: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Encoded":
        skips = tuple(skip[rows] for skip in self.skips)
        return Encoded(self.x[rows], self.t[rows], self.text[rows], self.time[rows], skips, self.middle[rows])


def encode(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> Encoded:
    """Down blocks and middle of the UNet: x (B, C, h, w), t (B,), text (B, L, D)."""
    sample = x.to(unet.dtype)
    text = text.to(unet.dtype)
    time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=t))
    hidden = unet.conv_in(sample)
    skips: tuple[Tensor, ...] = (hidden,)
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            hidden, outputs = block(hidden_states=hidden, temb=time, encoder_hidden_states=text)
        else:
            hidden, outputs = block(hidden_states=hidden, temb=time)
        skips += outputs
    return Encoded(x, t, text, time, skips, unet.mid_block(hidden, time, encoder_hidden_states=text))


def decode(unet: UNet2DConditionModel, encoded: Encoded, residuals: Residuals | None = None) -> Tensor:
    """Up blocks of the UNet on an encoding, with a ControlNet's residuals added where diffusers adds them."""
    skips, hidden = encoded.skips, encoded.middle
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
            arguments["encoder_hidden_states"] = encoded.text
        hidden = block(**arguments, upsample_size=size)
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)
