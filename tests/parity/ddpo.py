"""Pose RL's rollout and update as its authors compute them, on stock diffusers classes: what ours is measured by.

As train_controlnet_sdxl.py of IITP-CARTE-LGE/cnrl2 @4a2959d computes them. Every timestep of the rollout is one forward
of the whole ControlNet and UNet on a batch doubled for guidance, and every micro-batch of the update is one timestep of
a few samples. Left out, in its favour: waiting for the device in every step of the scheduler, and logging.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from parity.lpo import transition
from parity.lrm import Text, added_conditions
from torch import Tensor

CLIP, ADVANTAGE_CLIP = 1e-4, 5.0


@dataclass(frozen=True)
class Parts:
    """The ControlNet learns; empty (1, L, D) and (1, P) is the text that guidance leads away from."""

    unet: UNet2DConditionModel
    control: ControlNetModel
    vae: AutoencoderKL
    empty: Text

    def checkpoint(self, on: bool) -> None:
        for model in (self.unet, self.control):
            model.enable_gradient_checkpointing() if on else model.disable_gradient_checkpointing()


@dataclass(frozen=True)
class Samples:
    """N pictures: text (N, L, D), pooled (N, P), control (N, 3, H, W); from the rollout latents (N, T + 1, C, h, w) and
    log_prob (N, T); advantage (N,)."""

    text: Tensor
    pooled: Tensor
    control: Tensor
    latents: Tensor
    log_prob: Tensor
    advantage: Tensor


def predict(parts: Parts, x: Tensor, t: Tensor, text: Text, control: Tensor, guidance: float) -> Tensor:
    """The noise, in float32, with classifier-free guidance; the ControlNet sees both halves."""
    both = [torch.cat([without.expand_as(given), given]) for without, given in zip(parts.empty, text, strict=True)]
    sequence, pooled = (part.to(parts.unet.dtype) for part in both)
    added = added_conditions(parts.unet, x, pooled)
    inputs, times = x.repeat(2, 1, 1, 1), t.repeat(2)
    own = parts.control.dtype
    down, middle = parts.control(
        inputs.to(own), times, sequence.to(own), control.repeat(2, 1, 1, 1).to(own), added_cond_kwargs=added,
        return_dict=False,
    )  # fmt: skip
    output = parts.unet(
        inputs.to(parts.unet.dtype), times, sequence, down_block_additional_residuals=down,
        mid_block_additional_residual=middle, added_cond_kwargs=added, return_dict=False,
    )[0].float()  # fmt: skip
    free, conditional = output.chunk(2)
    return free + guidance * (conditional - free)


def log_density(mean: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """The mean over C, H, W, (B,)."""
    squared = (following - mean) ** 2 / (2 * sigma**2)
    return (-squared - sigma.log() - torch.log(torch.sqrt(2 * torch.tensor(torch.pi)))).mean((1, 2, 3))


@torch.no_grad()
def rollout(
    parts: Parts, x: Tensor, times: Tensor, text: Text, control: Tensor, guidance: float, stride: int
) -> tuple[Tensor, ...]:
    """Pictures, latents and log-probabilities from x_T (N, C, h, w) through the timesteps (T,)."""
    latents, found = [x], []
    for time in times:
        t = time.expand(len(x))
        mean, sigma = transition(predict(parts, x, t, text, control, guidance), x, t, stride)
        x = mean + sigma * torch.randn_like(x)
        found.append(log_density(mean, sigma, x))
        latents.append(x)
    decoded = parts.vae.decode((x / parts.vae.config.scaling_factor).to(parts.vae.dtype)).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1), torch.stack(latents, 1), torch.stack(found, 1)


def losses(
    parts: Parts, samples: Samples, times: Tensor, order: Tensor, size: int, guidance: float, stride: int
) -> Iterator[Tensor]:
    """The loss of every micro-batch, whose sum is the mean over samples and timesteps: T' for `size` samples, then for
    the next. order (N, T'): the timesteps of each sample, by number."""
    count = order.numel()
    for rows in torch.arange(len(order), device=order.device).split(size):
        for column in order[rows].T:
            x, following = samples.latents[rows, column], samples.latents[rows, column + 1]
            text, t = (samples.text[rows], samples.pooled[rows]), times[column]
            noise = predict(parts, x, t, text, samples.control[rows], guidance)
            mean, sigma = transition(noise, x, t, stride)
            ratio = torch.exp(log_density(mean, sigma, following) - samples.log_prob[rows, column])
            advantage = samples.advantage[rows].clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
            unclipped, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)
            yield torch.maximum(unclipped, clipped).sum() / count
