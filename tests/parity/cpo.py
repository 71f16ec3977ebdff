"""The losses of a CPO micro-step as its authors compute them, on stock diffusers classes: what ours is measured by.

As train/reward_CPO.py of ZonglinL/CPO @2cc4b76 computes them. Per sample: one VAE encoding and one text encoding,
5 ControlNet and 5 UNet forwards (1 pretraining, 2 policy, 2 reference), two backward calls. Left out, in its
favour: anomaly detection, the half-precision noise schedule, gathers for logging.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel


@dataclass(frozen=True)
class Parts:
    """The modules of the step; all frozen but `control`. reads: the column of a batch that text() takes."""

    reads: ClassVar[str] = "tokens"

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    control: ControlNetModel
    reference: ControlNetModel
    schedule: DDPMScheduler = field(
        default_factory=partial(DDPMScheduler, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    )

    def checkpoint(self, on: bool) -> None:
        """Gradient checkpointing of ControlNet and UNet: on in six of the seven published plain ControlNet scripts."""
        for module in (self.control, self.unet):
            module.enable_gradient_checkpointing() if on else module.disable_gradient_checkpointing()

    def text(self, tokens: Tensor) -> Tensor:
        return self.text_encoder(tokens).last_hidden_state

    def latents(self, pixels: Tensor, draw: Tensor) -> Tensor:
        """A draw of the posterior of pixels (B, 3, H, W) in [0, 1]."""
        posterior = self.vae.encode((2 * pixels - 1).to(self.vae.dtype)).latent_dist
        return (posterior.mean.float() + posterior.std.float() * draw) * self.vae.config.scaling_factor

    def condition(self, picture: Tensor) -> Tensor:
        """What a ControlNet is given of a condition."""
        return picture

    def noised(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(z, noise, t)

    def target(self, z: Tensor, noise: Tensor) -> Tensor:
        return noise

    def predict(self, control: nn.Module, x: Tensor, t: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """The UNet's output under a ControlNet, in float32."""
        x, text = x.to(self.unet.dtype), text.to(self.unet.dtype)
        inner = control.dtype
        down, middle = control(x.to(inner), t, text.to(inner), condition.to(inner), return_dict=False)
        return self.unet(
            x,
            t,
            encoder_hidden_states=text,
            down_block_additional_residuals=[residual.to(x.dtype) for residual in down],
            mid_block_additional_residual=middle.to(x.dtype),
            return_dict=False,
        )[0].float()


@dataclass(frozen=True)
class Draws:
    """Every random number of a step: normal noises (B, C, h, w) and timesteps (B,)."""

    posterior: Tensor
    noise: Tensor
    t: Tensor
    pretrain_noise: Tensor
    pretrain_t: Tensor

    @classmethod
    def new(cls, batch: int, latent_shape: tuple[int, int, int], device: torch.device | str) -> "Draws":
        normal = lambda: torch.randn(batch, *latent_shape, device=device)  # noqa: E731
        times = lambda: torch.randint(0, 1000, (batch,), device=device)  # noqa: E731
        return cls(normal(), normal(), times(), normal(), times())


def plain_losses(
    parts: Parts,
    pixels: Tensor,
    tokens: Tensor,
    winner: Tensor,
    loser: Tensor,
    draws: Draws,
    *,
    beta: float,
    margin: float,
    form: str,
    pretrain_weight: float,
) -> tuple[Tensor, Tensor]:
    """lambda * L_pre and L_CPO: scalars, whose backward calls follow in this order, the first keeping the graph.

    pixels, winner, loser (B, 3, H, W) in [0, 1]; tokens as parts.reads names them.
    """
    with torch.no_grad():
        text, z = parts.text(tokens), parts.latents(pixels, draws.posterior)
        winner, loser = parts.condition(winner), parts.condition(loser)

    x = parts.noised(z, draws.pretrain_noise, draws.pretrain_t)
    output = parts.predict(parts.control, x, draws.pretrain_t, text, winner)
    pretraining = (output - parts.target(z, draws.pretrain_noise)).square().mean()

    x = parts.noised(z, draws.noise, draws.t).repeat(2, 1, 1, 1)
    target = parts.target(z, draws.noise).repeat(2, 1, 1, 1)
    t, text = draws.t.repeat(2), text.repeat(2, 1, 1)
    conditions = torch.cat([winner, loser])
    output = parts.predict(parts.control, x, t, text, conditions)
    l_winner, l_loser = (output - target).square().mean((1, 2, 3)).chunk(2)
    with torch.no_grad():
        output = parts.predict(parts.reference, x, t, text, conditions)
        r_winner, r_loser = (output - target).square().mean((1, 2, 3)).chunk(2)

    d, r = l_winner - l_loser, r_winner - r_loser
    s = torch.sigmoid(0.5 * beta * (d - r)).detach()
    loss = s * torch.relu(d + margin)
    if form == "soft":
        loss = 0.9 * loss + 0.1 * (1 - s) * torch.relu(-d + margin)
    mask = (draws.t > 0).float()
    return pretrain_weight * pretraining, (loss * mask).sum() / mask.sum().clamp_min(1)
