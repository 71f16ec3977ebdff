"""Pictures for an evaluation, each of its own prompt and condition, with guidance.

Variants:
    plain: one call of the pipeline for each prompt.
    exact: models/sampling.py, as evaluations use it: all prompts in one batch, a condition encoded once for all steps,
        and what precedes the first cross-attention computed once for both halves of guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.commands.benchmark.bench import Bench, Setting
from lpo_platform.commands.benchmark.ddpo import two
from lpo_platform.commands.benchmark.lrm import PROMPT
from lpo_platform.commands.benchmark.released import released
from lpo_platform.methods.control import Control as ControlMethod
from lpo_platform.methods.method import Method
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.tuning import Control

plain = released("ddpo")
GUIDANCE = 7.5


@dataclass(frozen=True)
class Generation(Bench):
    """steps: of a picture."""

    variants: ClassVar[tuple[str, ...]] = ("plain", "exact")
    unit: ClassVar[str] = "picture"
    options: ClassVar[dict[str, Any]] = {"steps": 20}
    without_transformer: ClassVar[str] = "without guidance plain and ours do the same work; use --model sdxl"
    # the loser of a ControlNet with DINO, 65.4 TFLOP, without what DINO takes of it
    published: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {"UNet": 803.3, "ControlNet": 283.3, "VAE decoder": 2514.5, "text encoder": 13.3, "plain": 46000.0}
    }

    method: Method
    plain: plain.Parts
    sampling: Sampling
    captions: list[str]
    control: Tensor

    @classmethod
    def made(cls, setting: Setting, *, steps: int) -> "Generation":
        model, batch = setting.model(), setting.batch
        policy = setting.place(Policy(model, Control(), model.new_control()))
        shared = {"policy": policy, "optim": AdamW(), "seed": setting.seed, "steps": 1, "batch": batch}
        method = ControlMethod(**shared).to(model.device)
        with torch.no_grad(), setting.autocast():
            parts = plain.Parts(model.unet, policy.control, model.vae, two(model.unet, model.empty_text()))
        control = torch.rand(batch, 3, model.resolution, model.resolution, device=model.device)
        captions = [PROMPT.format(i) for i in range(batch)]
        return cls(batch, setting.autocast, method, parts, Sampling(steps, GUIDANCE), captions, control)

    @torch.no_grad()
    def step(self, variant: str) -> Tensor:
        with self.autocast():
            return (self.theirs() if variant == "plain" else self.ours()).mean()

    def theirs(self, starts: Tensor | None = None) -> Tensor:
        model, sampling = self.method.policy.adapter, self.sampling
        if starts is None:
            starts = torch.randn(self.units, *model.latent_shape, device=self.device)
        ids, empty = (model.tokenize(words).to(self.device) for words in (self.captions, [""]))
        settings = {"steps": sampling.num_steps, "guidance": sampling.guidance}
        return released("generate").pictures(
            self.plain, model.text_encoders, ids, empty, self.control, starts, **settings
        )

    def ours(self) -> Tensor:
        policy = self.method.policy
        condition = Condition(policy.adapter.embed(policy.adapter.tokenize(self.captions)), self.control)
        latents = sample_latents(policy, condition, self.captions, self.sampling, seed=0, stream="benchmark")
        return policy.adapter.decode(latents).mul(255).round().div(255)

    def parts(self) -> dict[str, Callable[[], object]]:
        model = self.method.policy.adapter
        x, t = torch.randn(1, *model.latent_shape, device=self.device), torch.ones(1, device=self.device)
        tokens = model.tokenize(self.captions[:1]).to(self.device)
        sequence, pooled = two(model.unet, model.embed(tokens))
        added = plain.added_conditions(model.unet, x, pooled)
        given = {"added_cond_kwargs": added, "return_dict": False}
        return {
            "UNet": lambda: model.unet(x, t, sequence, **given),
            "ControlNet": lambda: self.plain.control(x, t, sequence, self.control[:1], **given),
            "VAE decoder": lambda: model.decode(x),
            "text encoder": lambda: model.embed(tokens),
        }
