"""Pictures from a policy, the same ones whatever the batch size: noise is keyed by the item, not by the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lpo_platform import noise
from lpo_platform.diffusion.rollout import rollout
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: steps, classifier-free guidance (1 = none) and eta (0 = deterministic)."""

    num_steps: int
    guidance: float = 1.0
    eta: float = 0.0


@torch.no_grad()
def sample_latents(
    policy: Policy, condition: Condition, ids: Sequence[noise.Key], sampling: Sampling, *, seed: int, stream: str
) -> Tensor:
    """Latents (B, C, h, w) for B ids and their conditions; each id has its own noise."""
    adapter = policy.adapter
    draw = partial(noise.normal, ids, adapter.latent_shape, seed=seed)
    empty = adapter.empty_text() if sampling.guidance != 1.0 else None
    features = policy.features(condition.control)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        encoded = policy.encode_guided(x, t, condition.text, guidance=sampling.guidance, empty=empty)
        return policy.decode_guided(encoded, features, guidance=sampling.guidance)

    steps = rollout(
        predict,
        adapter.process,
        draw(stream=stream).to(adapter.device),
        num_steps=sampling.num_steps,
        eta=sampling.eta,
        noise=lambda index: draw(stream=f"{stream}/{index}").to(adapter.device),
    )
    for step in steps:
        latents = step.following
    return latents
