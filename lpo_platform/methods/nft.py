"""DiffusionNFT (arXiv:2509.16117): policy optimisation on the forward process of a flow model.

A trailing copy of the policy draws pictures with a deterministic sampler, and a reward grades them. The update adds new
noise to the finished pictures, as supervised training does, and moves the predicted velocity towards that of the good
pictures and away from that of the bad ones. Neither trajectories nor their probabilities are needed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Guidance, NotNegative, Part, Positive, SamplingSteps, Share, Whole
from lpo_platform.data.prepared.conditions import to_uint8
from lpo_platform.data.source import Sample
from lpo_platform.diffusion import noise
from lpo_platform.hardware.distributed import Rows
from lpo_platform.hardware.sharding import kept, like
from lpo_platform.hardware.transfer import upload
from lpo_platform.methods import advantages, losses
from lpo_platform.methods.expectations import Samples
from lpo_platform.methods.method import Batch, Logs
from lpo_platform.methods.trajectories import Graded
from lpo_platform.methods.transition_order import arrange

OLD = "old"


class NFT(Graded):
    """The loss is scale losses.nft + kl |v - v_start|^2. Settings that are not listed are those of Graded.

    Args:
        strength: beta, how far the implicit policies lie from the trailing one. Published: 1 or 0.1.
        adaptive: whether an error is divided by its own mean absolute value, as in the released code.
        scale: factor of the loss. Published: 5.
        advantage_clip: the advantage at which a picture counts as wholly good. Published: 5.
        fraction: share of the sampler's times at which each picture is trained, drawn at random. Published: 0.99, which
            is 9 of 10 after rounding down.
        kl: weight of the squared difference from the starting velocity. Published: 1e-4.
        trail_rise, trail_most, trail_after: the trailing policy keeps min(trail_rise (u - trail_after), trail_most) of
            itself, at least 0, after u updates. Published: 0.001, 0.5, 0; for OCR 0.0075, 0.999, 75.
    """

    denoisers: ClassVar[tuple[str, ...]] = ("transformer",)  # its loss is that of velocities on straight paths
    logs: ClassVar[Logs] = {
        "distribution/log_ratio": None,
        "nft/from_old": {"what": "mean squared difference from the trailing policy's velocity"},
        "nft/from_start": {"what": "the same from the starting policy's, if method.kl is set"},
    }

    def __init__(
        self,
        *,
        num_steps: SamplingSteps = 10,
        guidance: Guidance = 1.0,
        strength: Positive = 1.0,
        adaptive: bool = True,
        scale: Positive = 5.0,
        advantage_clip: Positive = 5.0,
        fraction: Part = 0.99,
        kl: NotNegative = 1e-4,
        trail_rise: NotNegative = 0.001,
        trail_most: Share = 0.5,
        trail_after: Whole = 0,
        **shared: Any,
    ) -> None:
        super().__init__(num_steps=num_steps, guidance=guidance, eta=0.0, **shared)
        self.strength, self.adaptive, self.scale, self.kl = strength, adaptive, scale, kl
        self.advantage_clip, self.trained, self.number = advantage_clip, int(fraction * num_steps), 0
        self.trail_rise, self.trail_most, self.trail_after = trail_rise, trail_most, trail_after
        if not 1 <= self.trained <= num_steps:
            said = f"method.fraction={fraction}: trains {self.trained} of {num_steps} times"
            raise UserError(f"{said}; what works: 1 to all")
        if self.group == 1:
            raise UserError("method.group=1: a reward that is compared with itself teaches nothing; use at least 2")
        if self.policy.trains_text:
            raise UserError("method=nft with tune.text_encoder=true: the trailing policy reads its text; use false")
        if getattr(self.policy.adapter.unet.config, "guidance_embeds", True) is False:
            raise UserError(
                f"method=nft with model={self.policy.adapter.name}: a FLUX without embedded guidance is distilled to "
                "few steps, which a loss of flow matching undoes; what works: method=ddpo, or FLUX.1-dev"
            )
        self.policy.freeze_reference(OLD)
        if kl:
            self.policy.freeze_reference()

    @classmethod
    def small(cls, settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
        own, group = super().small(settings, processes), min(4, settings["group"])
        trained = int(settings["fraction"] * settings["num_steps"])
        return own | {"group": group, "batch": own["prompts"] * group * trained}

    def updates(self) -> float:
        return self.steps * -(-self.prompts * self.group * self.trained // self.batch)

    def examples(self, samples: Samples, count: int) -> list[tuple[float, Batch]]:
        """Times of as few pictures as a micro-batch may have."""
        rows, device = torch.arange(count), self.device
        pictures = -(-count // self.trained)
        prompts = -(-pictures // self.group)
        self.samples = {"latents": torch.empty(pictures, *self.policy.adapter.latent_shape, device=device)}
        self.samples |= {"optimality": torch.empty(pictures, device=device), "text": samples.column("text", prompts)}
        if self.pictures:
            self.samples["control"] = to_uint8(samples.column("control", prompts), gray=True)
        chosen = {"sample": rows // self.trained, "step": rows % self.num_steps, "weight": torch.ones(count)}
        columns = {name: column.to(device) for name, column in self.of_samples(chosen).items()}
        return [(1.0, columns | {"position": rows})]

    def sample_round(self, number: int, items: Sequence[str] | Sequence[Sample], micro_batch: int) -> list[Batch]:
        """Moves the trailing policy after the updates of the round before, then samples from it."""
        self.number = number
        if number:
            self.policy.blend(OLD, self.keep(self.global_step))
        return super().sample_round(number, items, micro_batch)

    def keep(self, updates: int) -> float:
        """The share of itself that the trailing policy keeps after so many updates."""
        return min(self.trail_rise * max(0, updates - self.trail_after), self.trail_most)

    def begin(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Callable[[], Rows]:
        with self.policy.reference(OLD):
            return super().begin(items, positions)

    def shuffle(self, number: int, rows: Rows, micro_batch: int) -> list[Batch]:
        keys = rows["key"].repeat_interleave(self.group)
        advantage = advantages.standardise_groups(rows["reward/score"].flatten(), keys, spread="batch")
        self.samples = rows | {"latents": rows["latents"].flatten(0, 1), "optimality": self.optimality(advantage)}
        self.report_rewards(number, rows)
        size = (len(advantage), self.num_steps, self.trained)
        order = arrange(*size, "samples", seed=self.seed, stream=f"deal/{number}")
        order = order if self.kl or advantage.any() else order[:0]
        transitions = {"sample": order // self.num_steps, "step": order % self.num_steps}
        batches = self.split_batches(transitions, torch.arange(len(order)), micro_batch)
        return [self.of_samples(batch) for batch in batches]

    def optimality(self, advantage: Tensor) -> Tensor:
        """How likely a picture is a good one, in [0, 1]: 1/2 where it is as good as expected."""
        return 0.5 + 0.5 * advantages.clip(advantage, self.advantage_clip) / self.advantage_clip

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process, sample, step = self.policy.adapter.process, batch["sample"], batch["step"]
        t, clean = process.times(self.num_steps)[step], self.samples["latents"][sample]
        text = self.samples["text"][sample // self.group]
        shape, stream = self.policy.adapter.latent_shape, f"nft/{self.number}"
        e = upload(noise.normal(self._keys(batch), shape, seed=self.seed, stream=stream), self.device)
        x, target = process.add_noise(clean, e, t), process.target(clean, e, t)

        features = self.conditions(batch)
        with self.policy.reference(OLD):
            old = self.predict(x, t, text, self.reference_conditions(batch, features))
        output = self.predict(x, t, text, features)
        form = {"beta": self.strength, "adaptive": self.adaptive}
        good = self.samples["optimality"][sample]
        terms = self.scale * losses.nft(output, old, target, process.noise_share(t), good, **form)
        divergence = torch.zeros_like(terms)
        if self.kl:
            with self.policy.reference():
                start = self.predict(x, t, text, self.reference_conditions(batch, features))
            divergence = losses.denoising_error(output, start)
        terms = terms + self.kl * divergence
        self.note("loss", torch.where(batch["weight"] > 0, terms, torch.nan), t)
        report = {
            "nft/from_old": losses.denoising_error(output, old).detach().mean(),
            "nft/from_start": divergence.detach().mean(),
        }
        return (batch["weight"] * terms).sum(), report

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[OLD] = {name: kept(weight) for name, weight in self.policy.reference_weights(OLD).items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = self.policy.reference_weights(OLD)
        for name, weight in checkpoint[OLD].items():
            mine[name].data.copy_(like(weight.to(mine[name].device), mine[name]))
