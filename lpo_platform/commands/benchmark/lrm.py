"""A step of training a latent reward model on pairs of pictures.

Variants:
    plain: as released: both pictures pass the VAE, and the empty prompt passes the text encoder for every pair.
    exact: with cached VAE moments; the empty prompt is encoded once, and what precedes the first cross-attention is
        shared by the passes with and without the prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.commands.benchmark.bench import Bench, Setting
from lpo_platform.commands.benchmark.released import released
from lpo_platform.methods.lrm import LRM
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Reward

plain = released("lrm")
PROMPT = "a photograph of an astronaut who rides a horse on the moon in bright sunlight, number {}"


@dataclass(frozen=True)
class LRMStep(Bench):
    variants: ClassVar[tuple[str, ...]] = ("plain", "exact")
    unit: ClassVar[str] = "pair"
    without_transformer: ClassVar[str] = "LRM was released for UNets; use --model sdxl"
    published: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {"encoder half": 261.0, "VAE encoder": 1117.0, "text encoders": 105 / 8},
        "sdxl": {"encoder half": 2933.0, "VAE encoder": 4879.0, "text encoders": 880 / 8},
    }

    method: LRM
    batch: dict[str, Tensor]

    @classmethod
    def made(cls, setting: Setting) -> "LRMStep":
        """Pictures are noise; the first is the better one in half of the pairs."""
        model, batch, autocast = setting.model(), setting.batch, setting.autocast
        policy = setting.place(Policy(model, Reward()))
        model.unet.to("meta")  # the reward model has its own copy of the half that it needs
        method = LRM(policy=policy, optim=AdamW(), seed=setting.seed, steps=1, batch=batch).to(model.device)

        pictures = torch.rand(batch, 2, 3, model.resolution, model.resolution, device=model.device)
        first = torch.arange(batch, device=model.device) % 2
        labels = torch.full((batch, 2, 2), 0.5, device=model.device)
        labels[:, 0, 1], labels[:, 1, 0] = first, 1 - first
        with autocast():
            moments = model.encode_moments(pictures.flatten(0, 1)).unflatten(0, (batch, 2))
        tokens = model.tokenize([PROMPT.format(i) for i in range(batch)]).to(model.device)
        weight = torch.full((batch,), 1 / batch, device=model.device)
        columns = {"pictures": pictures, "moments": moments, "tokens": tokens, "labels": labels, "weight": weight}
        return cls(batch, autocast, method, columns | {"position": torch.arange(batch)})

    @property
    def towers(self) -> plain.Towers:
        return towers(self.method.model)

    def step(self, variant: str) -> Tensor:
        """Leaves the gradient on the reward model; returns the loss."""
        self.method.model.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self._plain() if variant == "plain" else self.method.loss(self.batch)[0]
        loss.backward()
        return loss.detach()

    def _plain(self) -> Tensor:
        draws = plain.Draws.new(self.units, self.method.policy.adapter.latent_shape, self.device)
        return self.plain_loss(draws)

    def plain_loss(self, draws: plain.Draws) -> Tensor:
        vae, empty, batch = self.method.policy.adapter.vae, self.method.model.empty_tokens, self.batch
        labels = torch.stack([batch["labels"][:, 0, 1], batch["labels"][:, 1, 0]], 1)
        return plain.plain_loss(self.towers, vae, batch["pictures"], batch["tokens"], empty, labels, draws)

    def parts(self) -> dict[str, Callable[[], object]]:
        model = self.method.policy.adapter
        x, t = self.batch["moments"][:1, 0, : model.latent_shape[0]], torch.ones(1, device=self.device)
        context, pooled = plain.encode_text(self.towers.text_encoders, self.batch["tokens"][:1])
        return {
            "encoder half": lambda: plain.encoder_half(self.towers.unet, x, t, context, pooled),
            "VAE encoder": lambda: model.encode_moments(self.batch["pictures"][:1, 0]),
            "text encoders": lambda: plain.encode_text(self.towers.text_encoders, self.batch["tokens"][:1]),
        }


def towers(model: LatentReward) -> plain.Towers:
    """The same modules for the plain form, so that gradients and scores can be compared."""
    heads = model.visual_projection, model.text_projection, model.logit_scale
    return plain.Towers(model.unet, list(model.text_encoders), *heads, guidance=model.guidance)
