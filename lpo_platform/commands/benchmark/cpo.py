"""CPO's micro-step: losses and gradient of a batch.

Variants:
    plain-ckpt: as released for every task but ADE20K: 5 ControlNet and 5 UNet forwards, pictures and text encoded, two
        backward calls, with gradient checkpointing.
    plain: the same without checkpointing.
    exact: with cached VAE moments and text, a shared frozen encoder and one backward. The mathematics is the same.
    exact-ckpt: the same with gradient checkpointing, to compare memory.
    shared: with share_timestep=true, which is another estimator of the same loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel
from torch import Tensor

from lpo_platform.commands.benchmark.bench import Bench, Plain, Setting
from lpo_platform.commands.benchmark.released import released
from lpo_platform.methods.cpo import CPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_weights import RandomStableDiffusion
from lpo_platform.models.shared_encoder import decode, encode
from lpo_platform.models.tuning import Control

plain = released("cpo")
SETTINGS = {"beta": 5000.0, "margin": 0.005, "pretrain_weight": 0.05}  # canny's


@dataclass(frozen=True)
class CPOStep(Bench):
    """CPO on an ordinary ControlNet.

    Options:
        form: soft or hard.
    """

    variants: ClassVar[tuple[str, ...]] = ("plain-ckpt", "plain", "exact", "exact-ckpt", "shared")
    unit: ClassVar[str] = "image"
    options: ClassVar[dict[str, Any]] = {"form": "soft"}
    # The parts are counted, the steps are reckoned from them, with two roundings that the count corrects: a backward
    # through the frozen decoder is more than one forward (attention multiplies activations with each other: two
    # products each), and checkpointing recomputes less than all (diffusers checkpoints blocks, and torch stops at the
    # last tensor that the backward needs).
    without_sdxl: ClassVar[str] = "CPO"
    published: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {
            "UNet": 803.3,
            "UNet encoder + middle": 261.4,
            "UNet decoder": 541.8,
            "ControlNet": 283.3,
            "VAE encoder": 1116.7,
            "text encoder": 13.3,
            "plain-ckpt": 12400.0,
            "plain": 9900.0,
            "exact": 8000.0,
            "shared": 5800.0,
        }
    }

    method: CPO
    plain: Plain
    batch: dict[str, Tensor]

    @classmethod
    def made(cls, setting: Setting, *, form: str) -> "CPOStep":
        model, batch, autocast = setting.model(), setting.batch, setting.autocast
        policy = setting.place(Policy(model, Control(), cls.new_control(model)))
        shared = {"policy": policy, "optim": AdamW(), "seed": setting.seed, "steps": 1, "batch": batch}
        method = CPO(**shared, form=form, **SETTINGS).to(model.device)
        with policy.reference():
            reference = policy.control
        columns = setting.columns(model, batch, "pixels", "control", "loser")
        return cls(batch, autocast, method, setting.parts(policy, reference), columns)

    @classmethod
    def new_control(cls, model: RandomStableDiffusion) -> ControlNetModel:
        return model.new_control()

    def step(self, variant: str) -> Tensor:
        """Leaves the gradient on the ControlNet; returns the loss."""
        self.plain.checkpoint(variant.endswith("-ckpt"))
        for parameter in self.plain.control.parameters():
            parameter.grad = None
        with self.autocast():
            losses = self._plain() if variant.startswith("plain") else self._ours(variant)
        for later, loss in reversed(list(enumerate(reversed(losses)))):
            loss.backward(retain_graph=later > 0)  # the original keeps the graph for its second call
        return sum(loss.detach() for loss in losses)

    def _plain(self) -> tuple[Tensor, ...]:
        pictures = (self.batch[name] for name in ("pixels", self.plain.reads, "control", "loser"))
        draws = plain.Draws.new(self.units, self.method.policy.adapter.latent_shape, self.device)
        return plain.plain_losses(self.plain, *pictures, draws, form=self.method.form, **SETTINGS)

    def _ours(self, variant: str) -> tuple[Tensor, ...]:
        self.method.share_timestep = variant == "shared"
        return self.method.loss(self.batch)[:1]

    def parts(self) -> dict[str, Callable[[], object]]:
        model, batch = self.method.policy.adapter, {name: column[:1] for name, column in self.batch.items()}
        x, t, text = self.method.latents(batch), self.method.times(batch, "pair"), batch["text"]
        with torch.no_grad():
            encoded = encode(model.unet, x, t, text)
        return {
            "UNet": lambda: model.unet(x, t, text),
            "UNet encoder + middle": lambda: encode(model.unet, x, t, text),
            "UNet decoder": lambda: decode(model.unet, encoded),
            "ControlNet": lambda: self.plain.control(x, t, text, batch["control"], return_dict=False),
            "VAE encoder": lambda: model.encode_moments(batch["pixels"]),
            "text encoder": lambda: model.embed(batch["tokens"]),
        }
