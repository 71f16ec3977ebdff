"""The losing conditions of a CPO-DINO micro-step as its authors make them, on stock diffusers classes.

As train/reward_CPO_DINO.py of ZonglinL/CPO @2cc4b76 does: in every micro-step a frozen
clone of the starting ControlNet draws a picture for each sample, 20 guided steps long, and looks at its condition, by
DINOv2 too, in each row of each step. DDIM stands for UniPC, which calls the networks as often.
"""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from parity.cpo import Parts
from torch import Tensor


@torch.no_grad()
def plain_losers(
    parts: Parts,
    tokens: Tensor,
    empty: Tensor,
    winner: Tensor,
    start: Tensor,
    detect: Callable[[Tensor], Tensor],
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """detect of pictures (B, 3, H, W) in [0, 1] under winner (B, 3, H, W), from noise (B, C, h, w).

    tokens (B, L) and those of the empty prompt, (1, L), int64.
    """
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    text = parts.text_encoder(torch.cat([empty.expand_as(tokens), tokens])).last_hidden_state
    x, conditions = start, winner.repeat(2, 1, 1, 1)
    for t in scheduler.timesteps.tolist():
        times = torch.full((len(text),), t, device=x.device)
        output = parts.predict(parts.reference, x.repeat(2, 1, 1, 1), times, text, conditions)
        free, conditional = output.chunk(2)
        x = scheduler.step(free + guidance * (conditional - free), t, x).prev_sample
    pictures = parts.vae.decode((x / parts.vae.config.scaling_factor).to(parts.vae.dtype)).sample
    return detect((pictures.float() / 2 + 0.5).clamp(0, 1))
