"""Builds the embedded tiny Stable Diffusion: real diffusers classes at toy size, in StableDiffusionPipeline layout.

`build` writes every part with random weights, `train_vae` teaches the autoencoder. The UNet, its text encoder and the
ControlNets are trained by the platform's own `method=control` (launchers/tiny.py says how).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from tqdm import trange
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lpo_platform.data.toy import ToySplit, all_contents

FOLDER = Path(__file__).parents[1] / "assets" / "tiny"
RESOLUTION = 64
LATENT_CHANNELS = 4
MAX_TOKENS = 24
GROUPS = 8


def build_vae() -> AutoencoderKL:
    """An f = 4 autoencoder with 4 latent channels; convolutional throughout, so that crops can teach it."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )


class Crops:
    """Batches of square crops of toy scenes in [-1, 1], most of them on an object, one in eight recoloured."""

    def __init__(self, split: ToySplit, *, seed: int) -> None:
        scenes = [split.scene(i) for i in range(len(split))]
        self.images = torch.stack([scene.image for scene in scenes])
        self.objects = [scene.parts.nonzero() for scene in scenes]
        self.generator = torch.Generator().manual_seed(seed)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))

    def _crop(self, size: int) -> Tensor:
        index = self._below(len(self.images))
        image, limit = self.images[index], self.images.shape[-1] - size + 1
        row, column = self._below(limit), self._below(limit)
        if self._below(4):
            pixel = self.objects[index][self._below(len(self.objects[index]))]
            jitter = torch.randint(-size // 4, size // 4 + 1, (2,), generator=self.generator)
            row, column = (pixel - size // 2 + jitter).clamp(0, limit - 1).tolist()
        return image[:, row : row + size, column : column + size].float() / 127.5 - 1

    def batch(self, num: int, size: int) -> Tensor:
        """(num, 3, size, size)."""
        crops = torch.stack([self._crop(size) for _ in range(num)])
        for i in range(num):
            if self._below(8) == 0:  # colours and gradients beyond the toy palette, for other people's pictures
                weight = torch.rand(3, 1, 1, generator=self.generator)
                other = crops[self._below(num)].flip(self._below(2) + 1)
                crops[i] = torch.lerp(crops[i], other, weight)[torch.randperm(3, generator=self.generator)]
        return crops


def vae_loss(vae: AutoencoderKL, pixels: Tensor, noise: Tensor, *, kl_weight: float) -> Tensor:
    """L1 + MSE + L1 of the picture's gradients + a small KL; `pixels` (B, 3, H, W) in [-1, 1]."""
    mean, logvar = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    latents = mean + noise * torch.exp(0.5 * logvar)
    error = vae.decoder(vae.post_quant_conv(latents)) - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 2 * error.square().mean() + edges + kl_weight * kl


def train_vae(
    vae: AutoencoderKL,
    *,
    steps: int = 6000,
    batch: int = 8,
    lr: float = 2e-3,
    kl_weight: float = 1e-4,
    num_scenes: int = 4096,
    seed: int = 1,
) -> None:
    """Teaches `vae` in place: 60 % of the steps on 32 px crops, the rest on half as many whole pictures.

    The crops are cheap; the whole pictures settle what depends on the picture's size, the group norms.
    """
    torch.manual_seed(seed)
    crops = Crops(ToySplit("train", num_scenes, seed, resolution=RESOLUTION), seed=seed)
    weights = list(vae.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    vae.train()
    for step in (bar := trange(steps, desc="vae", mininterval=5)):
        whole = step >= 0.6 * steps
        pixels = crops.batch(batch // 2, RESOLUTION) if whole else crops.batch(batch, RESOLUTION // 2)
        side = pixels.shape[-1] // 4
        noise = torch.randn(len(pixels), LATENT_CHANNELS, side, side, generator=crops.generator)
        loss = vae_loss(vae, pixels, noise, kl_weight=kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], min(0.005, 1.0) if step > 100 else 1.0)
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
    vae.eval()
    vae.register_to_config(scaling_factor=latent_scale(vae, crops))


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, crops: Crops, *, num: int = 256) -> float:
    """1 / standard deviation of the latents of whole pictures, as in Eq. (A) of arXiv:2112.10752, appendix G."""
    pixels = crops.images[:num].float() / 127.5 - 1
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(32)])
    return round(1 / latents.std().item(), 5)
