"""Training of a latent reward model (arXiv:2502.01051): which of several noisy latents of a prompt do people prefer?"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.numbers import SamplingSteps
from lpo_platform.diffusion import noise
from lpo_platform.hardware.transfer import upload
from lpo_platform.methods import losses
from lpo_platform.methods.method import Batch, Method
from lpo_platform.models.latent_reward import LatentReward


class LRM(Method):
    """The loss compares the scores of a row's pictures, noised to the same timestep, with the row's labels.

    Rows count with their weights, normalised over the whole batch of a step.

    Args:
        num_steps: steps of the sampler; a row's timestep is one of them, drawn at random. Published: DDIM's 20, from 1
        to 951.
        noise: `independent` for each picture, as LRM was trained, or `shared` within a row, as SPO's step-aware model
            and DiNa-LRM.
        form: `pair`, losses.pair_preference, as published; `fidelity` or `nll`, losses.thurstone, as DiNa-LRM.
    """

    trains: ClassVar[tuple[str, ...]] = ("reward",)
    reads: ClassVar[str] = "pairs"
    rewards: ClassVar[tuple[str, ...]] = ("none",)
    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "labels")
    logs: ClassVar[dict[str, dict[str, str]]] = {
        "lrm/accuracy": {"what": "share of pairs ordered as labelled"},
        "lrm/scale": {"what": "the temperature's inverse"},
        "val/pair_accuracy": {"what": "accuracy on validation rows", "axis": "round", "summary": "max"},
    }

    def __init__(
        self,
        *,
        num_steps: SamplingSteps = 20,
        noise: Literal["independent", "shared"] = "independent",
        form: Literal["pair", "fidelity", "nll"] = "pair",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.num_steps, self.noise, self.form = num_steps, noise, form

    @property
    def model(self) -> LatentReward:
        return self.policy.learning["reward"]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process, moments = self.policy.adapter.process, batch["moments"]
        num, count = moments.shape[:2]
        chosen = noise.integers(self._keys(batch), self.num_steps, seed=self.seed, stream="reward/t")
        t = process.times(self.num_steps)[upload(chosen, self.device)].repeat_interleave(count)
        z = self.policy.adapter.sample_latents(moments.flatten(0, 1), self._draw(batch, "vae", count))
        e = self._draw(batch, "reward", 1 if self.noise == "shared" else count)
        e = e.repeat_interleave(num * count // len(e), 0)
        told = self.model.read(batch["tokens" if self.model.trains_text else "text"])
        text = {name: part.repeat_interleave(count, 0) for name, part in told.items()}
        scores = self.model(process.add_noise(z, e, t), t, text, self.model.empty()).view(num, count)
        rows = self.of_rows(scores, batch["labels"], process.noise_share(t[::count]))
        self.note("loss", rows, t[::count])
        return (batch["weight"] * rows).sum(), self._report(scores.detach(), batch["labels"])

    def of_rows(self, scores: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        """The loss of every row, (B,); share (B,): of noise in its latents."""
        if self.form == "pair":
            return losses.pair_preference(scores, labels)
        return losses.thurstone(scores, labels, share, form=self.form)

    def _draw(self, batch: Batch, stream: str, count: int) -> Tensor:
        """Standard normal noise for `count` pictures of every row: (B count, C, h, w)."""
        shape = (count, *self.policy.adapter.latent_shape)
        drawn = noise.normal(self._keys(batch), shape, seed=self.seed, stream=stream)
        return upload(drawn.flatten(0, 1), self.device)

    def _report(self, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {
            "lrm/accuracy": pair_accuracy(scores, labels).mean(),
            "lrm/scale": self.model.logit_scale.detach().exp(),
        }


def pair_accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of a row's pairs that are ordered as labelled: (B, n), (B, n, n) -> (B,).

    A tied label counts a half whatever the scores are, and so does a tied score, as in PickScore's accuracy.
    """
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    says = torch.sign(scores[:, first] - scores[:, second])
    wanted = torch.sign(labels[:, first, second] - 0.5)
    return (says * wanted / 2 + 0.5).mean(1)
