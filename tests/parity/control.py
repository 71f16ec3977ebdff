"""The supervised loss of a ControlNet as diffusers' training scripts compute it: what ours is measured by.

train_controlnet.py, and train_controlnet_flux.py (flux.py): the picture encoded in every step, for Stable Diffusion its
text, too, and one forward of ControlNet and denoiser.
"""

import torch
from parity.cpo import Parts
from torch import Tensor


def plain_loss(
    parts: Parts, pixels: Tensor, tokens: Tensor, control: Tensor, posterior: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """pixels, control (B, 3, H, W) in [0, 1]; tokens as parts.reads names them; posterior, noise normal; t (B,)."""
    with torch.no_grad():
        text, z, condition = parts.text(tokens), parts.latents(pixels, posterior), parts.condition(control)
    output = parts.predict(parts.control, parts.noised(z, noise, t), t, text, condition)
    return (output - parts.target(z, noise)).square().mean()
