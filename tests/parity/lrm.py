"""LRM's scores and the loss of its training step as its authors compute them, on stock diffusers and transformers
classes: what ours is measured by.

As lrm/lrm_15 of Kwai-Kolors/LPO @9c2e8b8 computes them. Per pair: two VAE encodings, two text encodings (the prompt
and, once more for every prompt, the empty one), four passes of the UNet's encoder half. Left out, in its favour: the
up path, which it keeps in memory and gives to its optimiser, and decoding and resizing pictures.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

Text = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Towers:
    """The modules of a reward model; text_projection is None where the last text encoder projects itself (SDXL)."""

    unet: UNet2DConditionModel
    text_encoders: Sequence[nn.Module]
    visual_projection: nn.Linear
    text_projection: nn.Linear | None
    logit_scale: Tensor
    guidance: float = 7.5


@dataclass(frozen=True)
class Draws:
    """Every random number of a step on B pairs: normal noises (2B, C, h, w), first pictures first, and t (B,)."""

    posterior: Tensor
    noise: Tensor
    t: Tensor

    @classmethod
    def new(cls, pairs: int, latent_shape: tuple[int, int, int], device: torch.device | str) -> "Draws":
        normal = lambda: torch.randn(2 * pairs, *latent_shape, device=device)  # noqa: E731
        return cls(normal(), normal(), 1 + 50 * torch.randint(0, 20, (pairs,), device=device))


def encode_text(encoders: Sequence[nn.Module], ids: Tensor) -> Text:
    """(B, L), SDXL's (B, 2, L) -> what cross attention reads and the pooled text."""
    if len(encoders) == 1:
        output = encoders[0](ids)
        return output.last_hidden_state, output.pooler_output
    outputs = [encoder(ids[:, i], output_hidden_states=True) for i, encoder in enumerate(encoders)]
    return torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs[1].text_embeds


def added_conditions(unet: UNet2DConditionModel, x: Tensor, pooled: Tensor) -> dict[str, Tensor] | None:
    if unet.config.addition_embed_type is None:
        return None
    size = 8 * x.shape[-1]
    time_ids = torch.tensor([size, size, 0, 0, size, size], dtype=pooled.dtype, device=x.device)
    return {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}


def encoder_half(unet: UNet2DConditionModel, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor) -> list[Tensor]:
    """What the down blocks hold before their down-samplers, and the middle."""
    half = copy.copy(unet)  # a stock UNet without its up path gives out the middle
    half._modules = {**unet._modules, "up_blocks": nn.ModuleList(), "conv_norm_out": None, "conv_out": nn.Identity()}
    seen: list[Tensor] = []
    last = unet.config.layers_per_block - 1
    hooks = [b.register_forward_hook(lambda _, __, output: seen.append(output[1][last])) for b in half.down_blocks]
    added = added_conditions(unet, x, pooled)
    middle = half(x.to(unet.dtype), t, context.to(unet.dtype), added_cond_kwargs=added, return_dict=False)[0]
    for hook in hooks:
        hook.remove()
    return [*seen, middle]


def scores(towers: Towers, ids: Tensor, empty: Tensor, latents: Tensor, t: Tensor) -> Tensor:
    """Scores (r M,) of latents (r M, C, h, w) at t (r M,): r rounds of them for M prompts. empty: the ids of ""."""
    rounds = len(latents) // len(ids)
    context, pooled = encode_text(towers.text_encoders, torch.cat([ids, empty.expand_as(ids)]))
    target = pooled[: len(ids)]
    context, pooled = (
        torch.cat([*[prompted] * rounds, *[unprompted] * rounds])
        for prompted, unprompted in (context.chunk(2), pooled.chunk(2))
    )
    levels = encoder_half(towers.unet, latents.repeat(2, 1, 1, 1), t.repeat(2), context, pooled)
    *scales, middle = (level.mean((2, 3)).chunk(2) for level in levels)
    enhanced = middle[1] + towers.guidance * (middle[0] - middle[1])
    visual = towers.visual_projection(torch.cat([*(prompted for prompted, _ in scales), enhanced], 1))
    target = target if towers.text_projection is None else towers.text_projection(target)
    visual, target = F.normalize(visual, dim=-1), F.normalize(target, dim=-1)
    return towers.logit_scale.exp() * (visual * target.repeat(rounds, 1)).sum(-1)


def plain_loss(
    towers: Towers, vae: AutoencoderKL, pictures: Tensor, ids: Tensor, empty: Tensor, labels: Tensor, draws: Draws
) -> Tensor:
    """A scalar: the mean over pairs whose prompts have equally many of them.

    pictures (B, 2, 3, H, W) in [0, 1]; ids (B, L), SDXL's (B, 2, L); labels (B, 2) sum to 1.
    """
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with torch.no_grad():
        posterior = vae.encode((2 * pictures.transpose(0, 1).flatten(0, 1) - 1).to(vae.dtype)).latent_dist
        z = (posterior.mean.float() + posterior.std.float() * draws.posterior) * vae.config.scaling_factor
    t = draws.t.repeat(2)
    s = scores(towers, ids, empty, scheduler.add_noise(z, draws.noise, t), t).float()
    log_p = F.log_softmax(s.view(2, -1), dim=0).transpose(0, 1)
    tie = torch.where(labels[:, 0] == 0.5, torch.log(torch.tensor(0.5, device=s.device)), 0)
    return (tie - (labels * log_p).sum(1)).mean()
