"""The contracts of a reward: of finished pictures, of predicted pictures, and of noisy latents."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lpo_platform.config.errors import RunFailed, UserError


@dataclass(frozen=True)
class Asked:
    """The P conditions that B pictures were drawn from, each of them once.

    Attributes:
        maps: (P, ...), of the task.
        control: (P, 3, H, W) in [0, 1], as the control branch saw them.
        row: (B,), the number of each picture's condition.
    """

    maps: Tensor
    control: Tensor
    row: Tensor


class Reward(Protocol):
    """Grades pictures (B, 3, H, W) in [0, 1] for their prompts: (B,), higher is better.

    condition is what the pictures were drawn from beside the prompt, None without a control branch. A reward of several
    parts returns {name: (B,)} instead. Its total is the sum of the parts, each times its `part_weights[name]`, 1 unless
    given.
    """

    input: ClassVar[str] = "pictures"
    """What it looks at, by which the options of a run are checked: "pictures", "latents" (a StepReward) or "condition"
    (pictures against the condition that they were drawn from)."""

    def __call__(
        self, images: Tensor, prompts: list[str], condition: Asked | None = None
    ) -> Tensor | dict[str, Tensor]: ...


@runtime_checkable
class PredictionReward(Protocol):
    """A `Reward` that knows from which timestep t (B,) a picture was predicted, 0 for a finished one."""

    def at(self, images: Tensor, prompts: list[str], t: Tensor) -> Tensor: ...


@runtime_checkable
class StepReward(Protocol):
    """Grades noisy latents (N, C, h, w) at timesteps t (N,) for prompts: (N,), higher is better.

    encode() is called once for the B prompts of a rollout; prompt (N,) is the number of each latent's prompt. timestep
    says whether candidates for the next level are scored with the t of the current level or of their own.
    """

    timestep: Literal["current", "next"]

    def encode(self, prompts: list[str]) -> dict[str, Tensor]: ...

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor], prompt: Tensor) -> Tensor: ...


def name_of(reward: Reward | StepReward) -> str:
    """What a reward is called in messages and results: its `name`, else that of its function or class."""
    called = getattr(reward, "func", reward)  # of a partial function
    return getattr(reward, "name", None) or getattr(called, "__name__", type(reward).__name__.lower())


def row_of(reward: Reward | StepReward, part: str = "score") -> str:
    """The row of a result that holds what a reward says, `reward/<name>`, or one of its named parts."""
    return f"reward/{name_of(reward) if part == 'score' else part}"


def checked(name: str, values: object, batch: int) -> Tensor:
    """Checks what the reward `name` returned for `batch` samples and returns it as (batch,) float32, detached.

    Raises:
        UserError: it is no tensor of shape (batch,), or holds a number that is not finite, on which an update would
            ruin the model without a sign.
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
    """Calls a reward of pictures: `score`, the number to raise, and its named parts if it has any, (B,) each.

    RunFailed where it finds no number because the pictures hold none.
    """
    try:
        return _parts(reward, images, prompts, condition)
    except UserError as error:
        if torch.isfinite(images).all():
            raise
        raise RunFailed("pictures that the model draws are not finite; what helps: a lower optim.lr") from error


def _parts(reward: Reward, images: Tensor, prompts: list[str], condition: Asked | None) -> dict[str, Tensor]:
    name, said = name_of(reward), reward(images, prompts, condition)
    if not isinstance(said, dict):
        return {"score": checked(name, said, len(images))}
    if name in said:
        raise UserError(f"reward {name}: a part has the reward's own name, so that one row would hold both; rename one")
    named = {part: checked(f"{name}, {part}", values, len(images)) for part, values in said.items()}
    weights = weights_of(reward, named)
    return named | {"score": torch.stack([weights[part] * values for part, values in named.items()]).sum(0)}


def weights_of(reward: Reward, named: Iterable[str]) -> dict[str, float]:
    """The weight of each named part; 1 where the reward gives none."""
    return {part: getattr(reward, "part_weights", {}).get(part, 1.0) for part in named}


def predicted(reward: Reward | PredictionReward, images: Tensor, prompts: list[str], t: Tensor) -> Tensor:
    """Grades pictures that were predicted at timesteps t (B,): (B,). A reward of finished pictures ignores t."""
    if isinstance(reward, PredictionReward):
        return checked(name_of(reward), reward.at(images, prompts, t), len(images))
    return parts(reward, images, prompts)["score"]


def score_latents(reward: StepReward, latents: Tensor, captions: list[str]) -> Tensor:
    """Grades finished latents by a reward of noisy latents, at t = 1: (B,)."""
    rows = torch.arange(len(latents), device=latents.device)
    return reward(latents, torch.ones_like(rows), reward.encode(captions), rows)
