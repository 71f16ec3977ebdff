"""Stable Diffusion 3 with a ControlNet on stock diffusers classes: what ours is measured by.

No released code trains such a ControlNet by preferences. This follows diffusers' train_controlnet_sd3.py: text embedded
beforehand, picture and condition encoded in every step.
"""

import torch
from parity.flux import FluxParts
from torch import Tensor, nn

from lpo_platform.models.stable_diffusion_xl import unpack


class SD3Parts(FluxParts):
    """unet: the transformer; text_encoder is not called."""

    def condition(self, picture: Tensor) -> Tensor:
        """Its latents, without the shift, as a ControlNet that sees no pooled text has them."""
        config = self.vae.config
        latents = self.latents(picture, torch.zeros((), device=picture.device))
        return latents + config.shift_factor * config.scaling_factor

    def predict(self, control: nn.Module, x: Tensor, t: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """The transformer's output under a ControlNet, in float32."""
        inner = self.unet.dtype
        sequence, pooled = unpack(text.to(inner), self.unet.config.pooled_projection_dim)
        given = {"encoder_hidden_states": sequence, "timestep": t, "return_dict": False}
        (residuals,) = control(
            hidden_states=x.to(control.dtype), controlnet_cond=condition.to(control.dtype),
            pooled_projections=torch.zeros_like(pooled), **given,
        )  # fmt: skip
        (output,) = self.unet(
            hidden_states=x.to(inner), pooled_projections=pooled, block_controlnet_hidden_states=residuals, **given
        )
        return output.float()
