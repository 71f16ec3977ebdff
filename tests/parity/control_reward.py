"""The loss of a ControlNet++ micro-step as its authors compute it, on stock diffusers classes.

As train/reward_control.py of liming-ai/ControlNet_Plus_Plus @9ffe264 computes it. Per sample:
one VAE encoding and one text encoding, one ControlNet and one UNet forward, and whatever its timestep, the predicted
picture decoded and its edges compared. Left out, in its favour: the hysteresis of edges, whose magnitudes alone count,
and gathers for logging.
"""

import torch
from diffusers import DDPMScheduler
from kornia.filters import canny
from parity.cpo import Parts
from torch import Tensor


def plain_loss(
    parts: Parts,
    pixels: Tensor,
    tokens: Tensor,
    control: Tensor,
    posterior: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    reward_weight: float,
    max_timestep: int,
) -> Tensor:
    """pixels, control (B, 3, H, W) in [0, 1]; tokens (B, L) int64; posterior, noise (B, C, h, w) normal; t (B,)."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scaling = parts.vae.config.scaling_factor
    with torch.no_grad():
        text, z = parts.text(tokens), parts.latents(pixels, posterior)
        wanted, _ = canny(pixels, 0.1, 0.2, hysteresis=False)

    x = scheduler.add_noise(z, noise, t)
    output = parts.predict(parts.control, x, t, text, control)
    pretraining = (output - noise).square().mean()

    abar = scheduler.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)
    clean = (x - (1 - abar).sqrt() * output) / abar.sqrt()
    pictures = (parts.vae.decode((clean / scaling).to(parts.vae.dtype)).sample / 2 + 0.5).clamp(0, 1)
    magnitude, _ = canny(pictures.float(), 0.1, 0.2, hysteresis=False)
    reward = (magnitude - wanted).square().mean((1, 2, 3))
    mask = t <= max_timestep
    return pretraining + reward_weight * (mask * reward).sum() / (mask.sum() + 1e-10)
