"""Supervised training of a ControlNet: loss and gradient of a batch of pictures.

Variants:
    plain: as diffusers' training script.
    exact: with cached VAE moments and text, and no graph in the frozen encoder. The mathematics is the same.
    plain-ckpt, exact-ckpt: the same with gradient checkpointing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lpo_platform.commands.benchmark.bench import Bench, Plain, Setting
from lpo_platform.commands.benchmark.released import released
from lpo_platform.methods.control import Control as ControlMethod
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Control


@dataclass(frozen=True)
class ControlStep(Bench):
    variants: ClassVar[tuple[str, ...]] = ("plain-ckpt", "plain", "exact", "exact-ckpt")
    unit: ClassVar[str] = "image"
    without_sdxl: ClassVar[str] = "CPO's stage 1"
    published: ClassVar[dict[str, dict[str, float]]] = {}

    method: ControlMethod
    plain: Plain
    batch: dict[str, Tensor]

    @classmethod
    def made(cls, setting: Setting) -> "ControlStep":
        model = setting.model()
        policy = setting.place(Policy(model, Control(), model.new_control()))
        method = ControlMethod(policy=policy, optim=AdamW(), seed=setting.seed, steps=1, batch=setting.batch)
        columns = setting.columns(model, setting.batch, "pixels", "control")
        plain = setting.parts(policy, policy.control)
        return cls(setting.batch, setting.autocast, method.to(model.device), plain, columns)

    def step(self, variant: str) -> Tensor:
        """Leaves the gradient on the ControlNet; returns the loss."""
        self.plain.checkpoint(variant.endswith("-ckpt"))
        self.plain.control.zero_grad()
        with self.autocast():
            loss = self._plain() if variant.startswith("plain") else self.method.loss(self.batch)[0]
        loss.backward()
        return loss.detach()

    def _plain(self) -> Tensor:
        method, batch = self.method, self.batch
        draws = method.normal(batch, "vae"), method.normal(batch, "pretrain"), method.times(batch, "pretrain")
        return released("control").plain_loss(
            self.plain, batch["pixels"], batch[self.plain.reads], batch["control"], *draws
        )

    def parts(self) -> dict[str, Callable[[], object]]:
        model, batch = self.method.policy.adapter, {name: column[:1] for name, column in self.batch.items()}
        return {
            "VAE encoder": lambda: model.encode_moments(batch["pixels"]),
            "text encoder": lambda: model.embed(batch["tokens"]),
        }
