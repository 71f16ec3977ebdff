"""A latent reward model (arXiv:2502.01051) as a reward of noisy latents."""

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.numbers import Count
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.latent_reward import Text
from lpo_platform.models.reward_folder import folder_of, load_reward, start_reward


class LRM:
    """exp(logit_scale) times the cosine of latent and prompt; differences are log-odds of being preferred.

    Args:
        adapter: the run's model, whose latents are scored.
        weights: `auto` takes the model's own; else a folder or a hub id, with ::<subfolder> if needed.
        timestep: the t with which candidates for x_{t-1} are scored: the `current` one, as in the released runs, or
            that of their own level, `next`, as the paper writes.
        batch: latents scored at once. It limits memory and changes no number.
    """

    name: ClassVar[str] = "lrm"
    input: ClassVar[str] = "latents"

    def __init__(
        self,
        *,
        adapter: Adapter,
        weights: str = "auto",
        timestep: Literal["current", "next"] = "current",
        batch: Count = 256,
    ) -> None:
        self.adapter, self.weights, self.timestep, self.batch = adapter, weights, timestep, batch
        self.model = load_reward(adapter, weights)
        self.empty = None

    @classmethod
    def counted(cls, adapter: Adapter) -> "LRM":
        """One with a model that has not been trained: lpo-plan counts its work, and reads no weights."""
        made = cls.__new__(cls)
        made.adapter, made.weights, made.timestep, made.batch, made.empty = adapter, "auto", "current", 256, None
        made.model = start_reward(adapter).requires_grad_(False).eval()
        return made

    @property
    def folder(self) -> Path:
        """Where its weights lie."""
        return folder_of(self.adapter, self.weights)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Text:
        if self.empty is None:
            self.empty = self.model.empty()
        return self.model.encode(self.adapter.tokenize(prompts))

    @torch.no_grad()
    def __call__(self, latents: Tensor, t: Tensor, text: Text, prompt: Tensor) -> Tensor:
        scores = []
        for x, time, rows in zip(latents.split(self.batch), t.split(self.batch), prompt.split(self.batch), strict=True):
            scores.append(self.model(x, time, {name: part[rows] for name, part in text.items()}, self.empty))
        return torch.cat(scores)
