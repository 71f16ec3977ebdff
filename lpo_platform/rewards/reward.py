"""The contracts of a reward: of finished pictures, of predicted ones, and of noisy latents in mid-trajectory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError


@dataclass(frozen=True)
class Asked:
    """The conditions that B pictures were drawn from, each once, so that what is computed of one is computed once.

    maps: (P, ...) of the task; control: (P, 3, H, W) in [0, 1], as the control branch saw them; row: (B,), which of the
    P a picture belongs to.
    """

    maps: Tensor
    control: Tensor
    row: Tensor


class Reward(Protocol):
    """How good pictures (B, 3, H, W) in [0, 1] are for their prompts: (B,), higher is better.

    condition: what they were drawn from beside the prompt, None without a control branch. A reward of several named
    parts returns {name: (B,)} instead; it is worth their sum, each times its `part_weights[name]`, 1 unless given.
    """

    def __call__(
        self, images: Tensor, prompts: list[str], condition: Asked | None = None
    ) -> Tensor | dict[str, Tensor]: ...


@runtime_checkable
class PredictionReward(Protocol):
    """A `Reward` that knows from which timestep t (B,) a picture was predicted, 0 for a finished one."""

    def at(self, images: Tensor, prompts: list[str], t: Tensor) -> Tensor: ...


@runtime_checkable
class StepReward(Protocol):
    """How good noisy latents (N, C, h, w) at timesteps t (N,) are for prompts: (N,), higher is better.

    encode() is called once for the B prompts of a rollout; prompt (N,) says to which of them each latent belongs.
    timestep: whether candidates for the next level are scored at the t of the current one or of their own.
    """

    timestep: Literal["current", "next"]

    def encode(self, prompts: list[str]) -> dict[str, Tensor]: ...

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor], prompt: Tensor) -> Tensor: ...


def name_of(reward: Reward | StepReward) -> str:
    return getattr(reward, "name", type(reward).__name__.lower())


def checked(name: str, values: object, batch: int) -> Tensor:
    """What the reward `name` returned for `batch` samples, as (batch,) float32 without a gradient.

    Raises UserError with that name where it is no tensor of shape (batch,) or holds NaN or an infinity: an update on
    such a number ruins the model, and silently.
    """
    if not isinstance(values, Tensor):
        raise UserError(f"reward {name}: returned a {type(values).__name__}, expected a tensor of shape ({batch},)")
    if values.shape != (batch,):
        raise UserError(f"reward {name}: returned shape {tuple(values.shape)}, expected ({batch},)")
    values = values.detach().float()
    bad = 0 if values.is_meta else int((~torch.isfinite(values)).sum())  # a benchmark counts FLOPs without values
    if bad:
        raise UserError(
            f"reward {name}: returned NaN or infinity for {bad} of {batch} samples; each needs a finite number"
        )
    return values


def parts(reward: Reward, images: Tensor, prompts: list[str], condition: Asked | None = None) -> dict[str, Tensor]:
    """What a reward says of pictures: `score`, the number to raise, and its named parts if it has any; each (B,)."""
    name, said = name_of(reward), reward(images, prompts, condition)
    if not isinstance(said, dict):
        return {"score": checked(name, said, len(images))}
    named = {part: checked(f"{name}, {part}", values, len(images)) for part, values in said.items()}
    weights = weights_of(reward, named)
    return named | {"score": torch.stack([weights[part] * values for part, values in named.items()]).sum(0)}


def weights_of(reward: Reward, named: Iterable[str]) -> dict[str, float]:
    """What each named part counts; 1 where the reward does not say."""
    return {part: getattr(reward, "part_weights", {}).get(part, 1.0) for part in named}


def predicted(reward: Reward | PredictionReward, images: Tensor, prompts: list[str], t: Tensor) -> Tensor:
    """What a reward says of pictures predicted at timesteps t (B,): (B,); one of finished pictures ignores t."""
    if isinstance(reward, PredictionReward):
        return checked(name_of(reward), reward.at(images, prompts, t), len(images))
    return parts(reward, images, prompts)["score"]


def reward_of(reward: StepReward, latents: Tensor, captions: list[str]) -> Tensor:
    """What a reward of noisy latents says of finished ones, at t = 1: (B,)."""
    rows = torch.arange(len(latents), device=latents.device)
    return reward(latents, torch.ones_like(rows), reward.encode(captions), rows)
