"""Evaluation pictures as the authors draw them, on stock diffusers classes: what ours is measured by.

As eval/eval.py of ZonglinL/CPO @2cc4b76 and evaluation/general_score_pap_val.py of Kwai-Kolors/LPO @9c2e8b8 draw them:
one call of the pipeline for every prompt, which encodes its text and the empty one and looks at the condition in both
halves of every step; what is scored is read from PNG files. Left out, in its favour: the disk, and a start of the
progress bar for every picture.
"""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import numpy as np
import torch
from diffusers import DDIMScheduler
from parity.ddpo import Parts, predict
from parity.lrm import encode_text
from PIL import Image
from torch import Tensor, nn


@torch.no_grad()
def pictures(
    parts: Parts,
    encoders: Sequence[nn.Module],
    ids: Tensor,
    empty: Tensor,
    control: Tensor,
    starts: Tensor,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """(B, 3, H, W) in [0, 1] from ids (B, L), SDXL's (B, 2, L), the ids of "", control (B, 3, H, W) and starts
    (B, C, h, w); SDXL's empty text is `parts.empty`."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    found = []
    for prompt, condition, x in zip(ids.split(1), control.split(1), starts.split(1), strict=True):
        text = encode_text(encoders, prompt)
        guided = parts if len(encoders) == 2 else replace(parts, empty=encode_text(encoders, empty))
        for time in scheduler.timesteps.tolist():
            t = torch.full((1,), time, device=x.device)
            x = scheduler.step(predict(guided, x, t, text, condition, guidance), time, x).prev_sample
        decoded = parts.vae.decode((x / parts.vae.config.scaling_factor).to(parts.vae.dtype)).sample
        found.append(through_png((decoded.float() / 2 + 0.5).clamp(0, 1)))
    return torch.cat(found)


def through_png(picture: Tensor) -> Tensor:
    """A picture (1, 3, H, W) written as a file and read again."""
    if picture.is_meta:
        return picture
    file = BytesIO()
    Image.fromarray((255 * picture[0]).round().byte().permute(1, 2, 0).cpu().numpy()).save(file, "PNG")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].to(picture.device) / 255
