"""Latent Preference Optimisation (arXiv:2502.01051): step-level preferences between noisy latents.

At every step of a trajectory the policy draws K candidates from its own Gaussian. A reward of noisy latents chooses the
best and the worst, and where they differ enough the policy learns to make the better one more likely. The trajectory
continues from a random candidate, so sampling does not wait for the reward, which is computed afterwards in large
batches. Winner and loser start from the same x_t, so one forward of the policy and one of the reference serve both.
"""

import copy
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Guidance, NotNegative, Positive, SamplingSteps, Several, Whole
from lpo_platform.diffusion import noise
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.diffusion.rollout import Step, rollout
from lpo_platform.diffusion.weighting import steps
from lpo_platform.hardware.distributed import Rows
from lpo_platform.hardware.transfer import upload
from lpo_platform.methods import losses
from lpo_platform.methods.expectations import FirstLoss, Samples, SamplingWork, preference_loss
from lpo_platform.methods.method import Batch
from lpo_platform.methods.online import Online
from lpo_platform.methods.preferences import Rule, select, thresholds
from lpo_platform.methods.reward_refresh import Refresh
from lpo_platform.models.sampling import Sampling
from lpo_platform.rewards.reward import StepReward

VALID = 0.35  # share of a trajectory's steps that give a pair, as lpo-plan assumes; no publication states it


class LPO(Online):
    """The loss is losses.lpo of the pairs that preferences.select finds valid.

    Args:
        reward: of noisy latents.
        candidates: K, drawn at every step. Published: 4.
        num_steps: steps of the sampler. Published: 20.
        eta: noise of the sampler; it must be above 0. Published: 1.
        guidance: classifier-free guidance of sampling and of the loss; 1 is none. Published: 5.0.
        threshold: [low, high] of the smallest accepted p_w - p_l. Published: [0.35, 0.5]; SDXL: [0.45, 0.6].
        threshold_rule: how the threshold grows with the noise of a step (preferences.thresholds). Published: sigma.
        window: [first, last + 1] of the steps that give pairs; null for all that draw noise. The threshold rises over
            these steps.
        beta: strength of the preference, on the mean log-ratio. Published: 500.
        clip: a ratio outside 1 +- clip has no gradient. Published: 0.1.
        refresh_reward: rounds between two trainings of the reward model on the policy's own pictures; null for a fixed
            reward model, as published.
        refresh: how the reward model is trained then (reward_refresh.py).
    """

    trains: ClassVar[tuple[str, ...]] = ("denoiser",)
    rewards: ClassVar[tuple[str, ...]] = ("latents",)
    unsharded: ClassVar[dict[str, str]] = {
        "refresh_reward": "the processes would draw unequal numbers of pictures; use hardware=ddp",
    }
    needs: ClassVar[tuple[str, ...]] = ()
    logs: ClassVar[dict[str, dict[str, str]]] = {
        "reward/mean": {
            "what": "of all candidates of a round", "panel": "Reward", "axis": "round", "summary": "max",
        },
        "rollout/valid": {
            "what": "share of steps whose best and worst differ enough", "panel": "Rollouts", "axis": "round",
        },
        "refresh/*": {
            "what": "the reward model's training on the policy's pictures", "panel": "Rollouts", "axis": "round",
        },
        "lpo/margin": {"what": "winner's log-ratio minus the loser's"},
        "lpo/accuracy": {"what": "share of pairs whose winner became likelier"},
        "lpo/clipped": {"what": "share of pairs beyond the clip"},
    }  # fmt: skip

    def __init__(
        self,
        *,
        reward: StepReward,
        candidates: Several = 4,
        num_steps: SamplingSteps = 20,
        eta: NotNegative = 1.0,
        guidance: Guidance = 5.0,
        threshold: tuple[NotNegative, NotNegative] = (0.35, 0.5),
        threshold_rule: Rule = "sigma",
        window: tuple[Whole, Whole] | None = None,
        beta: Positive = 500.0,
        clip: Positive = 0.1,
        refresh_reward: Count | None = None,
        refresh: Refresh | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.refresh_reward, self.refresh = refresh_reward, refresh
        if refresh_reward is not None:
            reward = copy.copy(reward)  # evaluations read the original, which stays as it was
            reward.model = copy.deepcopy(reward.model)
        self.reward, self.candidates, self.num_steps = reward, candidates, num_steps
        self.eta, self.guidance, self.beta, self.clip = eta, guidance, beta, clip
        self.threshold, self.threshold_rule = tuple(threshold), threshold_rule
        self.window = self.noisy_steps(window)
        self.policy.freeze_reference()

    def noisy_steps(self, window: tuple[int, int] | None) -> slice:
        """The steps of a window that draw noise: the last step of a flow may draw none. UserError where none does."""
        first, last = window or (0, self.num_steps)
        if not 0 <= first < last <= self.num_steps:
            raise UserError(f"method.window=[{first}, {last}]: what works: 0 <= first < last <= {self.num_steps}")
        *_, std = steps(self.policy.adapter.process, self.num_steps, self.eta)
        if std.is_meta:  # a plan counts without values
            return slice(first, last)
        silent = (std[first:last] <= 0).tolist()
        count = silent.index(True) if True in silent else last - first
        if count == 0:
            raise UserError(f"method.eta={self.eta}: no step draws noise; what works: method.eta above 0")
        return slice(first, first + count)

    def updates(self) -> float:
        return self.steps * -(-self.prompts * self.points * VALID // self.batch)

    @property
    def points(self) -> int:
        """How many steps of a trajectory can give pairs."""
        return self.window.stop - self.window.start

    def assumed(self) -> list[str]:
        return [f"{VALID:.0%} of a trajectory's steps give a pair"]

    def examples(self, samples: Samples, count: int) -> list[tuple[float, Batch]]:
        return [(1.0, self.example(samples.column("text", count), count))]

    def example(self, text: Tensor, count: int) -> Batch:
        """A micro-batch of `count` pairs for lpo-plan, at the trajectory's timesteps in turn; x_t, winner and loser are
        noise."""
        times, rows = self.policy.adapter.process.times(self.num_steps), torch.arange(count, device=self.device)
        x, winner, loser = (torch.randn(count, *self.policy.adapter.latent_shape, device=self.device) for _ in range(3))
        weight = torch.full((count,), 1 / count, device=self.device)
        pairs = {"x": x, "winner": winner, "loser": loser, "weight": weight}
        return pairs | {"t": times[rows % len(times)], "text": text[rows % len(text)]}

    def sampling_work(self, samples: Samples) -> SamplingWork:
        times = self.policy.adapter.process.times(self.num_steps)
        shape = (self.num_steps, self.candidates, 1, *self.policy.adapter.latent_shape)
        candidates = torch.empty(shape, device=self.device)
        return SamplingWork(self.num_steps, ((1, lambda: self.score([""], times, candidates)),))

    def first_loss(self, loss: float, batch: Batch) -> FirstLoss | None:
        # the weights sum to 0 where a process has padding rows only
        return preference_loss(loss / (float(batch["weight"].sum()) or math.nan))

    def without_samples(self) -> str:
        return f"lower method.threshold={list(self.threshold)}, or check that the reward tells candidates apart"

    def sample_round(self, number: int, captions: list[str], micro_batch: int) -> list[Batch]:
        report = {}
        if self.refresh_reward is not None and number and number % self.refresh_reward == 0:
            sampling = Sampling(self.num_steps, self.guidance, self.eta)
            report = self.refresh(self.reward, self.policy, captions, sampling, key=f"refresh/{self.seed}/{number}")
        batches = super().sample_round(number, captions, micro_batch)
        self.round |= report
        return batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.refresh_reward is not None:
            checkpoint["reward"] = self.reward.model.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.refresh_reward is not None:
            self.reward.model.load_state_dict(checkpoint["reward"])

    def collect(self, captions: list[str], positions: range) -> Rows:
        text = self.embed(captions)
        t, x, candidates = self.explore(text, positions)
        scores = self.score(captions, t, candidates)
        self.note("reward", scores, t[:, None, None].expand_as(scores).flatten())
        winner, loser, valid = select(scores.transpose(0, 1), self.thresholds(t)[:, None])
        self.round = {
            "rollout/valid": valid.float().mean(),
            "reward/mean": scores.mean(),
            "reward/spread": scores.std(1).mean(),
        }
        step, prompt = valid.nonzero(as_tuple=True)
        return {
            "prompt": torch.arange(positions.start, positions.stop, device=step.device)[prompt],
            "step": step,
            "t": t[step],
            "x": x[step, prompt],
            "winner": candidates[step, winner[step, prompt], prompt],
            "loser": candidates[step, loser[step, prompt], prompt],
            "text": text[prompt],
        }

    def explore(self, text: Tensor, positions: range) -> tuple[Tensor, Tensor, Tensor]:
        """Samples one trajectory per prompt: t (T,), x_t (T, B, C, h, w) and candidates (T, K, B, C, h, w)."""
        trajectory, times = self.trajectory(text, positions), self.policy.adapter.process.times(self.num_steps)
        return times, torch.stack([s.x for s in trajectory]), torch.stack([s.candidates for s in trajectory])

    def trajectory(self, text: Tensor, positions: range) -> list[Step]:
        """The steps of one trajectory per prompt, with K candidates each."""
        keys, shape = list(positions), (self.candidates, *self.policy.adapter.latent_shape)

        def draw(index: int) -> Tensor:
            drawn = noise.normal(keys, shape, seed=self.seed, stream=f"candidates/{index}")
            return upload(drawn, self.device).transpose(0, 1)

        def choose(index: int) -> Tensor:
            drawn = noise.integers(keys, self.candidates, seed=self.seed, stream=f"choice/{index}")
            return upload(drawn, self.device)

        return list(
            rollout(
                lambda x, t: self.predict(x, t, text),
                self.policy.adapter.process,
                self.keyed(positions, "rollout"),
                num_steps=self.num_steps,
                eta=self.eta,
                noise=draw,
                choice=choose,
            )
        )

    def score(self, captions: list[str], t: Tensor, candidates: Tensor) -> Tensor:
        """The rewards of all candidates, (T, K, B). Each prompt is encoded once."""
        if self.reward.timestep == "next":
            t = self.policy.adapter.process.previous(t, self.num_steps, eta=self.eta)
        shape = candidates.shape[:3]
        prompt = torch.arange(shape[2], device=t.device).expand(shape)
        t = t[:, None, None].expand(shape)
        text = self.reward.encode(captions)
        return self.reward(candidates.flatten(0, 2), t.flatten(), text, prompt.flatten()).view(shape)

    def thresholds(self, t: Tensor) -> Tensor:
        """The threshold of every step, (T,). It is infinite outside the window, where no pair counts."""
        process, kept = self.policy.adapter.process, self.window
        sigma = process.sigma(t, process.previous(t, self.num_steps, eta=self.eta), self.eta).flatten()
        found = torch.full_like(sigma, torch.inf)
        found[kept] = thresholds(self.threshold_rule, *self.threshold, t[kept], sigma[kept])
        return found

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        policy = self.gaussian(batch)
        with self.policy.reference():
            reference = self.gaussian(batch)
        winner, loser = (policy.log_prob(batch[k]) - reference.log_prob(batch[k]) for k in ("winner", "loser"))
        return self.pair_loss(batch, winner, loser)

    def gaussian(self, batch: Batch) -> Gaussian:
        """The Gaussian of a step from x_t, from which winner and loser were drawn."""
        process, t = self.policy.adapter.process, batch["t"]
        output = self.predict(batch["x"], t, batch["text"])
        previous = process.previous(t, self.num_steps, eta=self.eta)
        return process.step(output, t, previous, batch["x"], eta=self.eta)

    def pair_loss(self, batch: Batch, winner: Tensor, loser: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of pairs with these log-ratios, (B,) each."""
        pairs = losses.lpo(winner, loser, beta=self.beta, clip=self.clip)
        counts, t = batch["weight"] > 0, batch["t"]
        self.note("loss", torch.where(counts, pairs, torch.nan), t)
        self.note("log_ratio", torch.where(counts, torch.stack([winner, loser]), torch.nan), t.repeat(2))
        return (batch["weight"] * pairs).sum(), self._report(winner.detach(), loser.detach())

    def _report(self, winner: Tensor, loser: Tensor) -> dict[str, Tensor]:
        low, high = math.log1p(-self.clip), math.log1p(self.clip)
        outside = (torch.minimum(winner, loser) < low) | (torch.maximum(winner, loser) > high)
        return {
            "lpo/margin": (winner - loser).mean(),
            "lpo/accuracy": (winner > loser).float().mean(),
            "lpo/clipped": outside.float().mean(),
        }
