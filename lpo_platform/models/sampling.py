"""Samples pictures from a policy. Noise is keyed by the item, so that the batch size changes no picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.diffusion.process import Process
from lpo_platform.diffusion.rollout import Predict, rollout
from lpo_platform.hardware.transfer import upload
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy, guides

Sampler = Literal["ddim", "unipc"]


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Attributes:
        num_steps: of the sampler.
        guidance: classifier-free guidance; 0 to 1 are none.
        eta: noise of the sampler; 0 is deterministic.
        sampler: `ddim` (for flow models Euler's method), or `unipc`, with which CPO's tables were made.
    """

    num_steps: int
    guidance: float = 1.0
    eta: float = 0.0
    sampler: Sampler = "ddim"


def parts_of(total: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cuts `total` items into parts of `size`, all as large: (items of a part, which of them are in no part before)."""
    for start in range(0, total, size):
        first = max(0, min(start, total - size))
        yield slice(first, first + size), slice(start - first, None)


@torch.no_grad()
def sample_latents(
    policy: Policy, condition: Condition, ids: Sequence[noise.Key], sampling: Sampling, *, seed: int, stream: str
) -> Tensor:
    """Samples latents (B, C, h, w) for B ids and their conditions. The id keys the noise."""
    adapter = policy.adapter
    draw = partial(noise.normal, ids, adapter.latent_shape, seed=seed)
    empty = adapter.empty_text() if guides(sampling.guidance) else None
    features = policy.features(condition.control)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        encoded = policy.encode_guided(x, t, condition.text, guidance=sampling.guidance, empty=empty)
        return policy.decode_guided(encoded, features, guidance=sampling.guidance)

    start = upload(draw(stream=stream), adapter.device)
    if sampling.sampler == "unipc":
        return unipc(predict, adapter.process, start, sampling)
    steps = rollout(
        predict,
        adapter.process,
        start,
        num_steps=sampling.num_steps,
        eta=sampling.eta,
        noise=lambda index: upload(draw(stream=f"{stream}/{index}"), adapter.device),
    )
    for step in steps:
        latents = step.following
    return latents


def unipc(predict: Predict, process: Process, x: Tensor, sampling: Sampling) -> Tensor:
    """The end of diffusers' UniPC (arXiv 2302.04867) from x (B, C, h, w), at its own settings and timesteps, as CPO's
    evaluation draws. UserError for what has no such chain: eta and flow models."""
    if sampling.eta or not isinstance(process, DDIM):
        raise UserError("metrics.sampler=unipc: with metrics.eta=0 and models of Stable Diffusion's; else ddim")
    abar = process.alphas_cumprod.cpu().clamp_min(2**-24)  # UniPC's own bound where the last one is 0
    before = torch.cat([torch.ones(1), abar[:-1]])
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=process.num_train_steps, trained_betas=(1 - abar / before).numpy(),
        prediction_type=process.prediction, steps_offset=process.steps_offset,
    )  # fmt: skip
    scheduler.set_timesteps(sampling.num_steps, device=x.device)
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t.expand(len(x))), t, x, return_dict=False)[0]
    return x
