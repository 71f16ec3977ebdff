"""Supervised denoising. It trains a ControlNet on conditions or, with control=none, the denoiser on captions."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.numbers import Share
from lpo_platform.methods.losses import denoising_error
from lpo_platform.methods.method import Batch, Method


class Control(Method):
    """Minimises |output(x_t, t, y, c) - target|^2 with a fresh draw of the VAE posterior and of t (arXiv:2302.05543).

    It trains the tiny models, it is stage 1 of CPO, and continued for the same number of steps it is the control
    experiment of CPO.

    Args:
        drop_text: probability that a sample sees the empty prompt. Classifier-free guidance of a denoiser that is
            trained from scratch needs a value above 0. The released ControlNet scripts have 0.
    """

    trains: ClassVar[tuple[str, ...]] = ("control", "denoiser")
    rewards: ClassVar[tuple[str, ...]] = ("none",)
    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "control")

    def __init__(self, *, drop_text: Share = 0.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.drop_text, self._empty = drop_text, None

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process = self.policy.adapter.process
        z, e, t = self.latents(batch), self.normal(batch, "pretrain"), self.times(batch, "pretrain")
        encoded = self.policy.encode(process.add_noise(z, e, t), t, self.prompts(batch))
        output = self.policy.decode(encoded, self.policy.features(batch.get("control")))
        errors = denoising_error(output, process.target(z, e, t))
        self.note("loss", errors, t)
        return errors.mean(), {}

    def prompts(self, batch: Batch) -> Tensor:
        """The text embeddings; a share `drop_text` of them is that of the empty prompt."""
        text = self.text(batch)
        if self.drop_text == 0:
            return text
        dropped = self.uniform(batch, "drop_text") < self.drop_text
        return torch.where(dropped.view(-1, 1, 1), self._empty_prompt(), text)

    def _empty_prompt(self) -> Tensor:
        """The embedding of the empty prompt. It is computed once unless the text encoder learns."""
        if self._empty is None or self.policy.trains_text:
            self._empty = self.policy.adapter.empty_text()
        return self._empty
