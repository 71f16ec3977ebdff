"""DDPO on a ControlNet: its update on the transitions of a round, and the whole round.

Variants:
    plain: one timestep of `train_batch` samples after the other, each through the whole ControlNet and UNet.
    exact: methods/ddpo.py: transitions of all samples and timesteps in micro-batches of `micro`; a condition is encoded
        once in each, and the UNet's encoder has no graph.
    unfrozen: plain, where the UNet's weights still require a gradient that is not used.
    -ckpt: with gradient checkpointing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.commands.benchmark.bench import Bench, Setting
from lpo_platform.commands.benchmark.lrm import PROMPT
from lpo_platform.commands.benchmark.released import released
from lpo_platform.commands.plan.stand_ins import Given, brightness
from lpo_platform.data.prepared.conditions import from_uint8
from lpo_platform.data.source import Sample
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.methods.ddpo import DDPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.methods.ratio_statistics import Ratios
from lpo_platform.models.policy import Policy
from lpo_platform.models.shared_encoder import encode, split_text
from lpo_platform.models.tuning import Control

plain = released("ddpo")


@dataclass(frozen=True)
class DDPOBench(Bench):
    """`batch` pictures, each with a prompt and a condition of its own.

    Options:
        steps: of a trajectory; all are trained.
        micro: transitions in a micro-batch of ours.
        train_batch: samples in a micro-batch of the original.
    """

    variants: ClassVar[tuple[str, ...]] = ("plain", "plain-ckpt", "plain-unfrozen", "exact", "exact-ckpt")
    unit: ClassVar[str] = "transition"
    options: ClassVar[dict[str, Any]] = {"steps": 10, "micro": 16, "train_batch": 1}
    without_transformer: ClassVar[str] = "its authors' form is DDIM's; use --model sdxl"

    method: DDPO
    plain: plain.Parts
    samples: plain.Samples
    items: list[Sample]
    micro: int
    train_batch: int

    @classmethod
    def made(cls, setting: Setting, *, steps: int, micro: int, train_batch: int) -> "DDPOBench":
        model, batch, autocast = setting.model(), setting.batch, setting.autocast
        policy = setting.place(Policy(model, Control(), model.new_control()))
        place = model.device
        model.process = DDIM()  # a method looks at its timesteps, of which the meta device has no values
        method = DDPO(
            policy=policy, optim=AdamW(), seed=setting.seed, reward=brightness, task=Given(), group=1,
            baseline="history", num_steps=steps, guidance=5.0, rounds=1, prompts=batch, batch=batch * steps,
        ).to(place)  # fmt: skip
        model.process.to(place)
        method.place(0)
        method.ratios = Ratios(method.t, method.clip)
        captions = [PROMPT.format(i) for i in range(batch)]
        pictures = torch.rand(batch, 3, model.resolution, model.resolution, device=model.device)
        items = [Sample(str(i), picture, captions[i]) for i, picture in enumerate(pictures)]
        with torch.no_grad(), autocast():
            text, empty = method.embed(captions), model.empty_text()
        parts = plain.Parts(model.unet, policy.control, model.vae, two(model.unet, empty))
        control = pictures[:, :1].mul(255).round().to(torch.uint8)
        draw = lambda *size: torch.randn(batch, *size, device=model.device)  # noqa: E731
        drawn = {"latents": draw(steps + 1, *model.latent_shape), "log_prob": draw(steps), "advantage": draw()}
        samples = plain.Samples(*two(model.unet, text), from_uint8(control), **drawn)
        method.samples = drawn | {"text": text, "control": control}
        return cls(batch * steps, autocast, method, parts, samples, items, min(micro, batch * steps), train_batch)

    def step(self, variant: str) -> Tensor:
        self.plain.checkpoint(variant.endswith("-ckpt"))
        self.plain.unet.requires_grad_(variant == "plain-unfrozen")
        for model in (self.plain.control, self.plain.unet):
            model.zero_grad(set_to_none=True)
        total = self.run(variant.startswith("plain"))
        self.plain.unet.requires_grad_(False)
        return total

    def run(self, original: bool) -> Tensor: ...

    def update(self, losses: Iterable[Tensor]) -> Tensor:
        """Accumulates the gradient of every micro-batch; returns the sum of their losses."""
        total, losses = torch.zeros((), device=self.device), iter(losses)
        while True:
            with self.autocast():
                loss = next(losses, None)
            if loss is None:
                return total
            loss.backward()
            total += loss.detach()

    def original_losses(self, samples: plain.Samples) -> Iterable[Tensor]:
        """Every sample's timesteps in an order of its own."""
        times, guidance = self.method.t, self.method.guidance
        order = torch.stack([torch.randperm(len(times)) for _ in self.items]).to(self.device)
        return plain.losses(self.plain, samples, times, order, self.train_batch, guidance, self.stride)

    def our_losses(self) -> Iterable[Tensor]:
        steps = len(self.method.t)
        for rows in torch.arange(self.units).split(self.micro):
            weight = torch.full((len(rows),), 1 / self.units)
            place = {"sample": rows // steps, "step": rows % steps, "weight": weight}
            batch = self.method.of_samples(place) | {"position": rows + self.units}  # as after an update: with a ratio
            yield self.method.loss(self.method.transfer_batch_to_device(batch, self.device, 0))[0]

    @property
    def stride(self) -> int:
        return 1000 // self.method.num_steps

    def parts(self) -> dict[str, Callable[[], object]]:
        model, control, text = self.method.policy.adapter, self.plain.control, self.method.samples["text"][:1]
        x, t, picture = self.samples.latents[:1, 0], self.method.t[:1], self.samples.control[:1]
        sequence, added = self.samples.text[:1], plain.added_conditions(model.unet, x, self.samples.pooled[:1])
        return {
            "ControlNet": lambda: control(x, t, sequence, picture, added_cond_kwargs=added),
            "condition alone": lambda: self.method.policy.features(picture),
            "UNet": lambda: model.unet(x, t, sequence, added_cond_kwargs=added),
            "UNet encoder + middle": lambda: encode(model.unet, x, t, text),
        }


def two(model: torch.nn.Module, text: Tensor) -> plain.Text:
    """Packed text as sequence and pooled text, which only SDXL has."""
    sequence, pooled = split_text(model, text)
    return sequence, sequence[:, 0] if pooled is None else pooled


class Update(DDPOBench):
    """Gradient of all transitions of a round."""

    # one CFG half each; a transition with guidance, forward and backward
    published: ClassVar[dict[str, dict[str, float]]] = {
        "sd15": {"ControlNet": 280.0, "UNet": 800.0},
        "sdxl": {"ControlNet": 3020.0, "UNet": 6760.0, "plain": 39300.0, "plain-unfrozen": 58700.0},
    }

    def run(self, original: bool) -> Tensor:
        return self.update(self.original_losses(self.samples) if original else self.our_losses())


class Round(DDPOBench):
    """Trajectories and pictures, then the gradient of all their transitions."""

    published: ClassVar[dict[str, dict[str, float]]] = {"sd15": {}, "sdxl": {}}

    def run(self, original: bool) -> Tensor:
        if original:
            return self.update(self.original_losses(self.original_samples()))
        with self.autocast(), torch.no_grad():
            rows = self.method.collect(self.items, range(len(self.items)))
        flat = {name: rows[name].flatten(0, 1) for name in ("latents", "log_prob")}
        self.method.samples = rows | flat | {"advantage": self.samples.advantage}
        return self.update(self.our_losses())

    def original_samples(self) -> plain.Samples:
        s, start = self.samples, torch.randn_like(self.samples.latents[:, 0])
        settings = (self.method.t, (s.text, s.pooled), s.control, self.method.guidance, self.stride)
        with self.autocast():
            _, latents, log_prob = plain.rollout(self.plain, start, *settings)
        return plain.Samples(s.text, s.pooled, s.control, latents, log_prob, s.advantage)
