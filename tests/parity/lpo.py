"""LPO's rollout and update as its authors compute them, on stock diffusers and transformers classes: what ours is
measured by.

As lpo/train_scripts/train_lpo.py of Kwai-Kolors/LPO @9c2e8b8 computes them. The rollout scores inside the loop and
encodes 2K sequences per prompt in every step; rows are picked with boolean masks. The update runs policy and reference
once for the winner and once for the loser. Models that predict the noise. Left out, in its favour: a second copy of the
reference's weights, and gathers, barriers and logging between the steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from parity.lrm import Text, Towers, added_conditions, encode_text, scores
from torch import Tensor, nn

Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """unet has LoRA layers, reference is the same without; empty_ids (1, L) or (1, 2, L) are those of ""."""

    unet: UNet2DConditionModel
    reference: UNet2DConditionModel
    text_encoders: Sequence[nn.Module]
    reward: Towers
    empty_ids: Tensor

    def checkpoint(self, on: bool) -> None:
        """Gradient checkpointing of the policy: on in SDXL's configuration alone."""
        self.unet.enable_gradient_checkpointing() if on else self.unet.disable_gradient_checkpointing()

    def empty(self) -> Text:
        """The unconditional text: the encoding of "", zeros for SDXL."""
        sequence, pooled = encode_text(self.text_encoders, self.empty_ids)
        if len(self.text_encoders) == 2:
            return torch.zeros_like(sequence), torch.zeros_like(pooled)
        return sequence, pooled


@dataclass(frozen=True)
class Settings:
    candidates: int = 4
    steps: int = 20
    guidance: float = 5.0
    low: float = 0.35
    high: float = 0.5
    beta: float = 500.0
    clip: float = 0.1

    @property
    def stride(self) -> int:
        return 1000 // self.steps

    def times(self) -> range:
        """951, 901, ..., 1 for 20 steps."""
        return range(1 + self.stride * (self.steps - 1), 0, -self.stride)


@dataclass(frozen=True)
class Draws:
    """Every random number of a rollout of b prompts: (b, C, h, w), for each step (K, b, C, h, w) and (b,) in [0, K)."""

    initial: Callable[[], Tensor]
    candidates: Callable[[int], Tensor]
    choice: Callable[[int], Tensor]

    @classmethod
    def new(cls, count: int, prompts: int, latent_shape: tuple[int, int, int], device: torch.device | str) -> "Draws":
        return cls(
            lambda: torch.randn(prompts, *latent_shape, device=device),
            lambda _: torch.randn(count, prompts, *latent_shape, device=device),
            lambda _: torch.randint(0, count, (prompts,), device=device),
        )


def predict(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Text, empty: Text, guidance: float) -> Tensor:
    """The noise, in float32, with classifier-free guidance."""
    both = [torch.cat([without.expand_as(given), given]) for without, given in zip(empty, text, strict=True)]
    sequence, pooled = (part.to(unet.dtype) for part in both)
    doubled = x.repeat(2, 1, 1, 1).to(unet.dtype)
    added = added_conditions(unet, x, pooled)
    output = unet(doubled, t.repeat(2), sequence, added_cond_kwargs=added, return_dict=False)[0].float()
    free, conditional = output.chunk(2)
    return free + guidance * (conditional - free)


@cache
def alphas(device: torch.device) -> Tensor:
    """Cumulative products of Stable Diffusion's alphas, (1000,)."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod.to(device)


def transition(noise: Tensor, x: Tensor, t: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_{t - stride} given x_t, eta = 1."""
    table = alphas(x.device)
    now, following = (table[time].view(-1, 1, 1, 1) for time in (t, (t - stride).clamp_min(0)))
    sigma = ((1 - following) / (1 - now) * (1 - now / following)).sqrt()
    clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
    return following.sqrt() * clean + (1 - following - sigma**2).sqrt() * noise, sigma


@cache
def thresholds(settings: Settings, device: torch.device) -> Tensor:
    """The gap p_w - p_l of a valid pair of each step, (steps,), from sigmas that the original has typed in."""
    nothing, times = torch.zeros(1, 1, 1, 1, device=device), torch.tensor(settings.times(), device=device)
    sigma = transition(nothing, nothing, times, settings.stride)[1].flatten()
    return settings.low + (settings.high - settings.low) * (sigma - sigma.min()) / (sigma.max() - sigma.min())


@torch.no_grad()
def rollout(parts: Parts, ids: Tensor, draws: Draws, settings: Settings) -> tuple[Rows, Tensor]:
    """Valid pairs of b prompts, step after step, and all scores (steps, K, b). ids (b, L), SDXL's (b, 2, L)."""
    text, empty = encode_text(parts.text_encoders, ids), parts.empty()
    x, prompts, count = draws.initial(), len(ids), settings.candidates
    found: list[Rows] = []
    seen = []
    for index, time in enumerate(settings.times()):
        t = torch.full((prompts,), time, device=x.device)
        noise = predict(parts.unet, x, t, text, empty, settings.guidance)
        mean, sigma = transition(noise, x, t, settings.stride)
        candidates = mean + sigma * draws.candidates(index)
        tiled = ids.repeat(count, *[1] * (ids.ndim - 1))
        s = scores(parts.reward, tiled, parts.empty_ids, candidates.flatten(0, 1), t.repeat(count)).view(count, prompts)
        ordered, order = s.float().sort(0)
        p = torch.stack([ordered[0], ordered[-1]]).softmax(0)
        valid = p[1] - p[0] > thresholds(settings, x.device)[index]
        everyone = torch.arange(prompts, device=x.device)
        winner, loser = (candidates[order[place], everyone] for place in (-1, 0))
        row = {"t": t, "x": x, "winner": winner, "loser": loser, "text": text[0], "pooled": text[1]}
        found.append({name: column[valid] for name, column in row.items()})
        seen.append(s)
        x = candidates[draws.choice(index), everyone]
    return {name: torch.cat([rows[name] for rows in found]) for name in found[0]}, torch.stack(seen)


def log_density(unet: UNet2DConditionModel, rows: Rows, following: Tensor, empty: Text, settings: Settings) -> Tensor:
    """The mean over C, H, W of log p(following | x_t), (B,)."""
    x, t = rows["x"], rows["t"]
    noise = predict(unet, x, t, (rows["text"], rows["pooled"]), empty, settings.guidance)
    mean, sigma = transition(noise, x, t, settings.stride)
    squared = (following - mean) ** 2 / (2 * sigma**2)
    return (-squared - sigma.log() - torch.log(torch.sqrt(2 * torch.tensor(torch.pi)))).mean((1, 2, 3))


def plain_loss(parts: Parts, rows: Rows, empty: Text, settings: Settings) -> Tensor:
    """A scalar: the mean over pairs. rows as rollout() gives them; four passes of each model and pair."""
    ratios = []
    for side in ("winner", "loser"):
        policy = log_density(parts.unet, rows, rows[side], empty, settings)
        with torch.no_grad():
            reference = log_density(parts.reference, rows, rows[side], empty, settings)
        ratios.append(torch.clamp(torch.exp(policy - reference), 1 - settings.clip, 1 + settings.clip))
    winner, loser = ratios
    return -torch.log(torch.sigmoid(settings.beta * (torch.log(winner) - torch.log(loser)))).mean()
