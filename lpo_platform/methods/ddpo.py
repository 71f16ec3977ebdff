"""Denoising diffusion policy optimisation (arXiv:2305.13301): policy gradients through the sampler's Gaussian steps.

Several pictures of each prompt are drawn with noise at every step, and a reward grades the finished pictures. The
transitions x_t -> x_{t-1} of a picture that is better than expected become likelier, those of a worse one less likely.
A row is one transition, and the update reads rows of all samples and steps in micro-batches of any size.
"""

import logging
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, NotNegative, Part, Positive, Whole
from lpo_platform.data.prepared.conditions import to_uint8
from lpo_platform.diffusion import noise
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.hardware.distributed import Rows, share
from lpo_platform.methods import advantages, losses
from lpo_platform.methods.expectations import FirstLoss, Samples
from lpo_platform.methods.method import Batch
from lpo_platform.methods.ratio_statistics import Ratios
from lpo_platform.methods.trajectories import Trajectories
from lpo_platform.methods.transition_order import Order, arrange
from lpo_platform.models.shared_encoder import Encoded
from lpo_platform.rewards.reward import weights_of

log = logging.getLogger(__name__)


class DDPO(Trajectories):
    """The loss is mean[w_t (losses.ppo or losses.score_function + kl * losses.gaussian_kl)] over transitions.

    The README of this folder has the published values and where they differ.

    Args:
        baseline: what a reward is compared with: `group`, the pictures of the same prompt and condition (GRPO);
            `round`, all pictures of the round (kvablack/ddpo-pytorch without tracking); `history`, the last rewards of
            the same prompt (with tracking).
        spread: with baseline=group, whether the std of the `group` or of the whole `batch` divides.
        history: rewards of a prompt that baseline=history keeps. Published: 16.
        history_minimum: with fewer rewards of a prompt, the statistics of the round are used. Published: 16.
        normalise: whether the total `score` gets an advantage, or each of the `parts` of a reward, which are then
            summed with their weights.
        advantage_clip: limit of an advantage's absolute value. Published: 5.
        form: `ppo`, the clipped ratio, or `score`, REINFORCE, which allows one update per round only.
        clip: PPO's ratio is clipped to 1 +- clip. It is a ratio of mean densities; published: 1e-4.
        fraction: share of a sample's steps that each pass trains, drawn at random. Published: 1.0; pose RL: 0.5.
        order: what an update holds: whole `samples`, one step of each sample (`steps`, as pose RL), or `mixed`.
        kl: weight of the divergence from the starting policy (arXiv:2305.16381). Published: 0; Flow-GRPO: 0.01, 0.04.
        inner_epochs: passes over a round's transitions. Published: 1.
    """

    logs: ClassVar[dict[str, dict[str, str]]] = {
        "rollout/no_advantage": {
            "what": "share of pictures that teach nothing", "panel": "Rollouts", "axis": "round",
        },
        "ddpo/*": {"what": "ratios, divergences and clipping, of the round and by timestep", "axis": "round"},
        "distribution/advantage": {
            "what": "of a round's pictures", "panel": "Distributions", "axis": "round", "kind": "histogram",
        },
    }  # fmt: skip

    def __init__(
        self,
        *,
        baseline: Literal["group", "round", "history"] = "group",
        spread: Literal["group", "batch"] = "group",
        history: Whole = 16,
        history_minimum: Count = 16,
        normalise: Literal["score", "parts"] = "score",
        advantage_clip: Positive = 5.0,
        form: Literal["ppo", "score"] = "ppo",
        clip: Positive = 1e-4,
        fraction: Part = 1.0,
        order: Order = "samples",
        kl: NotNegative = 0.0,
        inner_epochs: Count = 1,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.baseline, self.spread, self.normalise, self.advantage_clip = baseline, spread, normalise, advantage_clip
        self.form, self.clip, self.kl, self.inner_epochs, self.order = form, clip, kl, inner_epochs, order
        self.trained = int(len(self.t) * fraction)
        if not 1 <= self.trained <= len(self.t):
            raise UserError(
                f"method.fraction={fraction}: trains {self.trained} of {len(self.t)} steps; what works: 1 to all"
            )
        if {"group": self.group, "round": self.prompts * self.group}.get(baseline) == 1:
            raise UserError(
                f"method.group={self.group} with method.baseline={baseline}: a reward that is compared with itself "
                "teaches nothing; what works: method.group of at least 2, or method.baseline=history"
            )
        if baseline == "history" and history < history_minimum:
            raise UserError(
                f"method.history={history}: never holds the rewards that method.history_minimum={history_minimum} asks "
                f"for; what works: at least {history_minimum}"
            )
        rows = self.prompts * self.group * self.trained
        if form == "score" and (self.batch < rows or inner_epochs > 1):
            raise UserError(
                f"method.form=score allows one update per round only; what works: method.inner_epochs=1 and "
                f"method.batch={rows} ({self.prompts} prompts x {self.group} pictures x {self.trained} steps)"
            )
        self.tracker = advantages.Tracker(history, history_minimum) if baseline == "history" else None
        self.ratios = Ratios(self.t, clip)
        if kl:
            self.policy.freeze_reference()

    def updates(self) -> float:
        transitions = self.prompts * self.group * self.trained
        return self.steps * self.inner_epochs * -(-transitions // self.batch)

    def examples(self, samples: Samples, count: int) -> list[tuple[float, Batch]]:
        """Transitions of as few pictures as a micro-batch may have."""
        self.place(0)
        self.ratios = Ratios(self.t, self.clip)
        rows, kept, device = torch.arange(count), len(self.t), self.device
        pictures = -(-count // kept)
        prompts = -(-pictures // self.group)
        shapes = {"latents": (kept + 1, *self.policy.adapter.latent_shape), "log_prob": (kept,), "advantage": ()}
        self.samples = {name: torch.empty(pictures, *shape, device=device) for name, shape in shapes.items()}
        self.samples["text"] = samples.column("tokens" if self.policy.trains_text else "text", prompts)
        if self.pictures:
            self.samples["control"] = to_uint8(samples.column("control", prompts), gray=True)
        chosen = {"sample": rows // kept, "step": rows % kept, "weight": torch.ones(count)}
        columns = {name: column.to(device) for name, column in self.of_samples(chosen).items()}
        return [(1.0, columns | {"position": rows + self.batch})]

    def first_loss(self, loss: float, batch: Batch) -> FirstLoss | None:
        drift = float(self.ratios.largest[1])
        what = f"before the first update the ratio is 1 to {drift:.1e}"
        return FirstLoss(what, drift, 1e-2, "sampling and training compute log-probabilities differently")

    def shuffle(self, number: int, rows: Rows, micro_batch: int) -> list[Batch]:
        rewards = {name: of for name, of in rows.items() if name.startswith("reward/")}
        advantage = self.advantage(rewards, rows["key"].repeat_interleave(self.group))
        flat = {name: rows[name].flatten(0, 1) for name in ("latents", "log_prob")}
        self.samples = rows | flat | {"advantage": advantages.clip(advantage, self.advantage_clip)}
        own = share(range(len(advantage)))
        self.report_rewards(number, rows)
        self.note("advantage", self.samples["advantage"][own.start : own.stop])
        self.round["rollout/no_advantage"] = (advantage == 0).float().mean()
        size = len(advantage), len(self.t), self.trained
        passes = range(self.inner_epochs if self.kl or advantage.any() else 0)
        orders = [arrange(*size, self.order, seed=self.seed, stream=f"deal/{number}/{epoch}") for epoch in passes]
        order = torch.cat([torch.zeros(0, dtype=torch.long), *orders])
        transitions = {"sample": order // len(self.t), "step": order % len(self.t)}
        batches = self.split_batches(transitions, torch.arange(len(order)), micro_batch)
        return [self.of_samples(batch) for batch in batches]

    def advantage(self, rewards: Rows, keys: Tensor) -> Tensor:
        """(N,) from "reward/score" and "reward/<part>", (P, G) each; every part has a history of its own."""
        named = [name for name in rewards if name != "reward/score"]
        if self.normalise == "score" or not named:
            return self.advantages(rewards["reward/score"].flatten(), keys)
        weights = weights_of(self.reward, (name.removeprefix("reward/") for name in named))
        own = (self.advantages(rewards[name].flatten(), keys ^ noise.key(name)) for name in named)
        return torch.stack([weight * values for weight, values in zip(weights.values(), own, strict=True)]).sum(0)

    def advantages(self, rewards: Tensor, keys: Tensor) -> Tensor:
        if self.baseline == "group":
            return advantages.standardise_groups(rewards, keys, spread=self.spread)
        return advantages.standardise(rewards) if self.tracker is None else self.tracker(rewards, keys)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        sample, step = batch["sample"], batch["step"]
        x, following = (self.samples["latents"][sample, step + later] for later in (0, 1))
        t, advantage = self.t[step], self.samples["advantage"][sample]
        text, features = self.embedded(self.samples["text"][sample // self.group]), self.conditions(batch)
        encoded = self.encode(x, t, text)
        gaussian = self.gaussian(encoded, features)
        log_prob, sampled = gaussian.log_prob(following), self.samples["log_prob"][sample, step]
        # before the first update the policy is the one that sampled, so every difference is rounding; it is reported
        # and kept out of the ratio, because the rounding of bf16 would exceed the clip
        first = (batch["position"] < self.batch).to(log_prob.device, non_blocking=True)
        log_ratio = log_prob - torch.where(first, log_prob.detach(), sampled)
        if self.form == "score":
            terms = losses.score_function(log_prob, advantage)
        else:
            terms = losses.ppo(log_ratio, advantage, clip=self.clip)
        terms = self.weights[step] * terms
        if self.kl:
            with self.policy.reference():
                shared = self.encode(x, t, text) if self.policy.trains_unet else encoded
                reference = self.gaussian(shared, self.reference_conditions(batch, features))
            terms = terms + self.kl * losses.gaussian_kl(gaussian.mean, reference.mean, gaussian.std)
        drift = torch.where(first, log_prob - sampled, 0).detach()
        counts = batch["weight"] > 0
        self.ratios.add(step, log_ratio.detach(), drift, advantage, counts)
        self.note("loss", torch.where(counts, terms, torch.nan), t)
        self.note("log_ratio", torch.where(counts, log_ratio, torch.nan), t)
        return (batch["weight"] * terms).sum(), {}

    def gaussian(self, encoded: Encoded, features: Tensor | None) -> Gaussian:
        """The Gaussian of a step from the encoded x_t."""
        output = self.policy.decode_guided(encoded, features, guidance=self.guidance)
        process, x, t = self.policy.adapter.process, encoded.x[: len(output)], encoded.t[: len(output)]
        return process.step(output, t, process.previous(t, self.num_steps, eta=self.eta), x, eta=self.eta)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.ratios = Ratios(self.t, self.clip)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.log_dict(self.ratios.report())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.tracker is not None:
            checkpoint["tracker"] = self.tracker.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.tracker is not None:
            self.tracker.load_state_dict(checkpoint["tracker"])
