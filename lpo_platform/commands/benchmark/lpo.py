"""LPO's update on preference pairs, its rollout with scoring, and both together.

Variants:
    plain: policy and reference run twice per pair; candidates are scored inside the loop, and every prompt is encoded
        for each of its candidates.
    exact: methods/lpo.py: one pass of each model per pair, scores after the rollout in large batches, and each prompt
        encoded once.
    -ckpt: with gradient checkpointing of the policy, as SDXL is trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lpo_platform.commands.benchmark.bench import Bench, Setting
from lpo_platform.commands.benchmark.lrm import PROMPT, towers
from lpo_platform.commands.benchmark.released import released
from lpo_platform.methods.lpo import LPO, VALID
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.shared_encoder import split_text
from lpo_platform.models.tuning import Lora
from lpo_platform.rewards.lrm import LRM

plain, plain_lrm = released("lpo"), released("lrm")
UPDATE_BATCH = 10  # pairs of an optimiser's step per process, SD-1.5's


@dataclass(frozen=True)
class LPOBench(Bench):
    """LPO at random weights.

    Options:
        candidates: K.
        steps: of a trajectory.
        valid: share of a rollout's (prompt, step) that give a pair. It is an assumption: no publication states it.
    """

    without_transformer: ClassVar[str] = "LPO was released for UNets; use --model sdxl"
    # K = 4 candidates; with and without prompt
    published_parts: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {"UNet": 803.0, "LRM tower, 8 halves": 2091.0, "LRM text encoders, 8 sequences": 105.0},
        "sdxl": {"UNet": 6761.0, "LRM tower, 8 halves": 23464.0, "LRM text encoders, 8 sequences": 880.0},
    }

    method: LPO
    plain: plain.Parts
    settings: plain.Settings
    captions: list[str]
    pairs: list[dict[str, Tensor]]

    @classmethod
    def made(cls, setting: Setting, *, candidates: int = 4, steps: int = 20, valid: float = 0.35) -> "LPOBench":
        model, batch, autocast = setting.model(), setting.batch, setting.autocast
        reward = LRM.counted(model)
        policy = setting.place(Policy(model, Lora()))
        reward.model.to(model.device, model.vae.dtype)
        settings = plain.Settings(candidates, steps)
        shared = {"policy": policy, "optim": AdamW(), "seed": setting.seed, "reward": reward}
        counts = {"candidates": candidates, "num_steps": steps, "rounds": 1, "prompts": batch, "batch": batch}
        loss = {"guidance": settings.guidance, "beta": settings.beta, "clip": settings.clip}
        method = LPO(**shared, **counts, **loss).to(model.device)
        parts = plain.Parts(
            model.unet, without_lora(model.unet), model.text_encoders, towers(reward.model),
            model.tokenize([""]).to(model.device),
        )  # fmt: skip
        captions = [PROMPT.format(i) for i in range(batch)]
        with torch.no_grad(), autocast():
            text = method.embed(captions)
        sizes = cls.pair_batches(batch, steps, valid)
        pairs = [method.example(text, count) for count in sizes]
        return cls(cls.units_of(batch, sizes), autocast, method, parts, settings, captions, pairs)

    @classmethod
    def pair_batches(cls, batch: int, steps: int, valid: float) -> list[int]:
        """The number of pairs of each update."""
        return []

    @classmethod
    def units_of(cls, batch: int, pairs: list[int]) -> int:
        return batch

    def step(self, variant: str) -> Tensor:
        self.plain.checkpoint(variant.endswith("-ckpt"))
        self.plain.unet.zero_grad(set_to_none=True)
        return self.run(variant.startswith("plain"))

    def run(self, original: bool) -> Tensor: ...

    def rollout(self, original: bool) -> Tensor:
        with self.autocast():
            if original:
                shape = len(self.captions), self.method.policy.adapter.latent_shape
                draws = plain.Draws.new(self.settings.candidates, *shape, self.device)
                ids = self.method.policy.adapter.tokenize(self.captions).to(self.device)
                return plain.rollout(self.plain, ids, draws, self.settings)[1].mean()
            if self.device.type == "meta":  # dealing out what was collected looks at values and costs no FLOPs
                with torch.no_grad():
                    self.method.collect(self.captions, range(len(self.captions)))
            else:
                self.method.sample_round(0, self.captions, len(self.captions))
            return self.method.round["reward/mean"]

    def updates(self, original: bool) -> Tensor:
        """One gradient for each batch of pairs; returns the sum of the losses."""
        total = torch.zeros((), device=self.device)
        for rows in self.pairs:
            with self.autocast():
                loss = self.plain_loss(rows) if original else self.method.loss(rows)[0]
            loss.backward()
            total += loss.detach()
        return total

    def plain_loss(self, rows: dict[str, Tensor]) -> Tensor:
        sequence, pooled = split_text(self.plain.unet, rows["text"])
        pooled = sequence[:, 0] if pooled is None else pooled
        with torch.no_grad():
            empty = self.plain.empty()
        return plain.plain_loss(self.plain, rows | {"text": sequence, "pooled": pooled}, empty, self.settings)

    def parts(self) -> dict[str, Callable[[], object]]:
        model, reward = self.method.policy.adapter, self.plain.reward
        x, t = torch.randn(1, *model.latent_shape, device=self.device), torch.ones(1, device=self.device)
        twice = 2 * self.settings.candidates
        ids = model.tokenize(self.captions[:1] * twice).to(self.device)
        context, pooled = plain_lrm.encode_text(reward.text_encoders, ids)
        text = self.method.embed(self.captions[:1])
        many = x.repeat(twice, 1, 1, 1), t.repeat(twice)
        return {
            "UNet": lambda: self.method.policy.decode(self.method.policy.encode(x, t, text)),
            f"LRM tower, {twice} halves": lambda: plain_lrm.encoder_half(reward.unet, *many, context, pooled),
            f"LRM text encoders, {twice} sequences": lambda: plain_lrm.encode_text(reward.text_encoders, ids),
        }


class Update(LPOBench):
    """Loss and gradient of a batch of pairs."""

    variants: ClassVar[tuple[str, ...]] = ("plain", "plain-ckpt", "exact", "exact-ckpt")
    unit: ClassVar[str] = "pair"
    published: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {"UNet": 803.0, "plain": 9600.0},
        "sdxl": {"UNet": 6761.0},
    }

    @classmethod
    def pair_batches(cls, batch: int, steps: int, valid: float) -> list[int]:
        return [batch]

    def run(self, original: bool) -> Tensor:
        return self.updates(original)


class Rollout(LPOBench):
    """Trajectories of a batch of prompts with the scores of all candidates and the pairs they give."""

    variants: ClassVar[tuple[str, ...]] = ("plain", "exact")
    unit: ClassVar[str] = "prompt"
    options: ClassVar[dict[str, Any]] = {"candidates": 4, "steps": 20}
    # 20 steps of a prompt: policy, LRM tower and LRM text encoders
    published: ClassVar[dict[str, dict[str, float]]] = {
        model: parts | {"plain": 20 * (2 * parts["UNet"] + sum(v for k, v in parts.items() if k.startswith("LRM")))}
        for model, parts in LPOBench.published_parts.items()
    }

    def run(self, original: bool) -> Tensor:
        return self.rollout(original)


class Iteration(LPOBench):
    """A rollout, then updates on the assumed share of its pairs, 10 at a time."""

    variants: ClassVar[tuple[str, ...]] = ("plain", "exact")
    unit: ClassVar[str] = "prompt"
    options: ClassVar[dict[str, Any]] = Rollout.options | {"valid": VALID}
    published: ClassVar[dict[str, dict[str, float]]] = LPOBench.published_parts

    @classmethod
    def pair_batches(cls, batch: int, steps: int, valid: float) -> list[int]:
        total = round(batch * steps * valid)
        return [min(UPDATE_BATCH, total - start) for start in range(0, total, UPDATE_BATCH)]

    def run(self, original: bool) -> Tensor:
        return self.rollout(original) + self.updates(original)


def without_lora(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A stock UNet that shares the weights under the LoRA layers."""
    state = {k.replace(".base_layer", ""): v for k, v in unet.state_dict().items() if ".lora_" not in k}
    with torch.device("meta"):
        plain_unet = UNet2DConditionModel.from_config(unet.config)
    plain_unet.load_state_dict(state, assign=True)
    return plain_unet.requires_grad_(False).eval()
