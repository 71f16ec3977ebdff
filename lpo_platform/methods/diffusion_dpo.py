"""Diffusion-DPO (arXiv:2311.12908): from pairs of pictures of a prompt, and which of the two people preferred.

Both pictures are noised to the same timestep with the same noise. The policy learns to denoise the preferred one
better, and the other one worse, than its frozen reference does.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.numbers import Positive, Share
from lpo_platform.methods import losses
from lpo_platform.methods.expectations import FirstLoss, preference_loss
from lpo_platform.methods.method import Batch, Method
from lpo_platform.models.shared_encoder import Encoded
from lpo_platform.rewards.reward import Reward, StepReward


class DiffusionDPO(Method):
    """The loss is losses.diffusion_dpo of the best and the worst picture of each row.

    Rows whose labels name no winner are left out; every other row counts once, as in the released code.

    Args:
        beta: strength of the preference. Published: 5000 for models that predict the noise. For flow models, whose
            errors are larger, values near 100 are in use.
        drop_text: probability that a pair sees the empty prompt. Published: 0.2.
        reward: measures the result. The loss does not use it.
    """

    trains: ClassVar[tuple[str, ...]] = ("denoiser",)
    reads: ClassVar[str] = "pairs"
    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "labels")
    needs_winner: ClassVar[bool] = True
    logs: ClassVar[dict[str, dict[str, str]]] = {
        "dpo/accuracy": {"what": "share of pairs told apart"},
        "dpo/margin": {"what": "how far they are told apart"},
        "dpo/winner": {"what": "gain on the winner's error"},
        "dpo/loser": {"what": "gain on the loser's error"},
    }

    def __init__(
        self,
        *,
        beta: Positive = 5000.0,
        drop_text: Share = 0.2,
        reward: Reward | StepReward | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.beta, self.drop_text, self._empty = beta, drop_text, None
        self.policy.freeze_reference()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process, moments = self.policy.adapter.process, batch["moments"]
        rows = torch.arange(len(moments), device=moments.device).repeat(2)
        chosen = torch.cat(winner_and_loser(batch["labels"]))
        draws = torch.cat([self.normal(batch, "vae/winner"), self.normal(batch, "vae/loser")])
        z = self.policy.adapter.sample_latents(moments[rows, chosen], draws)
        e, t = self.normal(batch, "pair")[rows], self.times(batch, "pair")[rows]
        x, target, text = process.add_noise(z, e, t), process.target(z, e, t), self.prompts(batch)[rows]

        policy, reference = (
            losses.denoising_error(output, target).chunk(2)
            for output in self.outputs(x, t, text, batch.get("control"), rows)
        )
        pairs = losses.diffusion_dpo(*policy, *reference, beta=self.beta)
        self.note("loss", pairs, t[: len(pairs)])
        return pairs.mean(), self._report(*policy, *reference)

    def first_loss(self, loss: float, batch: Batch) -> FirstLoss | None:
        return preference_loss(loss)

    def outputs(
        self, x: Tensor, t: Tensor, text: Tensor, control: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The outputs of policy and reference, which share the encoder half where it does not learn.

        rows (2B,) names the control image, among B, of each row of x, t and text. Each image is encoded once.
        """

        def decode(encoded: Encoded, features: Tensor | None) -> Tensor:
            return self.policy.decode(encoded, None if features is None else features[rows])

        encoded, features = self.policy.encode(x, t, text), self.policy.features(control)
        output = decode(encoded, features)
        with self.policy.reference():
            encoded = self.policy.encode(x, t, text) if self.policy.trains_unet else encoded
            features = self.policy.features(control) if self.policy.learns_features else features
            return output, decode(encoded, features)

    def prompts(self, batch: Batch) -> Tensor:
        """The text embeddings, some replaced by the encoding of "". SDXL, too, uses the encoding here and not zeros."""
        text = self.text(batch)
        if self.drop_text == 0:
            return text
        if self._empty is None or self.policy.trains_text:
            adapter = self.policy.adapter
            self._empty = adapter.embed(adapter.tokenize([""]))
        dropped = self.uniform(batch, "drop_text") < self.drop_text
        return torch.where(dropped.view(-1, 1, 1), self._empty, text)

    @torch.no_grad()
    def _report(
        self, winner: Tensor, loser: Tensor, reference_winner: Tensor, reference_loser: Tensor
    ) -> dict[str, Tensor]:
        margin = (reference_winner - winner) - (reference_loser - loser)
        return {
            "dpo/accuracy": (margin > 0).float().mean(),
            "dpo/margin": 0.5 * self.beta * margin.mean(),
            "dpo/winner": (reference_winner - winner).mean(),
            "dpo/loser": (reference_loser - loser).mean(),
        }


def winner_and_loser(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the most and of the least preferred picture of each row: (B, n, n) -> (B,), (B,)."""
    preferred = labels.mean(2)
    return preferred.argmax(1), preferred.argmin(1)
