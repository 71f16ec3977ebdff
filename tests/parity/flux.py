"""FLUX with a ControlNet on stock diffusers classes: what ours is measured by.

CPO's training of FLUX was never released. Its initialiser keeps the settings of diffusers' train_controlnet_flux.py,
which this follows: text embedded beforehand, picture and condition encoded in every step.
"""

from typing import ClassVar

import torch
from diffusers import FluxPipeline
from parity.cpo import Parts
from torch import Tensor, nn

from lpo_platform.models.stable_diffusion_xl import unpack

GUIDANCE = 3.5


class FluxParts(Parts):
    """unet: the transformer; text_encoder is not called."""

    reads: ClassVar[str] = "text"

    def text(self, tokens: Tensor) -> Tensor:
        return tokens

    def latents(self, pixels: Tensor, draw: Tensor) -> Tensor:
        config = self.vae.config
        return super().latents(pixels, draw) - config.shift_factor * config.scaling_factor

    def condition(self, picture: Tensor) -> Tensor:
        """Its packed latents, (B, N, 4 C)."""
        return pack(self.latents(picture, torch.zeros((), device=picture.device)))

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        s = (t / 1000).view(-1, 1, 1, 1)
        return (1 - s) * z + s * noise

    def target(self, z: Tensor, noise: Tensor) -> Tensor:
        return noise - z

    def predict(self, control: nn.Module, x: Tensor, t: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """The transformer's output under a ControlNet, in float32."""
        inner, (batch, _, height, width) = self.unet.dtype, x.shape
        sequence, pooled = unpack(text.to(inner), self.unet.config.pooled_projection_dim)
        given = {
            "encoder_hidden_states": sequence,
            "pooled_projections": pooled,
            "timestep": t / 1000,
            "guidance": torch.full((batch,), GUIDANCE, device=x.device),
            "img_ids": FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, x.device, inner),
            "txt_ids": torch.zeros(sequence.shape[1], 3, device=x.device, dtype=inner),
            "return_dict": False,
        }
        tokens = pack(x)
        double, single = control(tokens.to(control.dtype), condition.to(control.dtype), **given)
        output = self.unet(
            tokens.to(inner), controlnet_block_samples=double, controlnet_single_block_samples=single, **given
        )[0]
        return FluxPipeline._unpack_latents(output.float(), 8 * height, 8 * width, 8)


def pack(x: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(x, *x.shape)
