"""Step-wise GRPO with a latent reward model, as later versions of arXiv:2502.01051 report it beside LPO.

The candidates of a step are drawn as in LPO. Instead of the best and the worst one, all of them enter the loss, each
with its advantage over the others of the same step. They all start from one x_t, so one forward of the policy serves
them all. The mean that they were drawn from is stored, so the policy that sampled them needs no second forward.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.config.numbers import NotNegative, Positive
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.diffusion.weighting import Weighting, step_weights, steps
from lpo_platform.hardware.distributed import Rows, world
from lpo_platform.methods import advantages, losses
from lpo_platform.methods.lpo import LPO
from lpo_platform.methods.method import Batch, Logs
from lpo_platform.rewards.reward import StepReward


class StepGRPO(LPO):
    """The loss is w_t (mean over K of losses.ppo + kl losses.gaussian_kl). Settings that are not listed are LPO's.

    Args:
        reward: of noisy latents.
        clip: PPO's ratio r is clipped to 1 +- clip. log r is a mean over the elements of a latent, as in DDPO; it is so
            small that the published 0.1 never clips.
        kl: weight of the divergence from the starting policy. Published: 0.1.
        weighting: how the steps are weighted in the loss (diffusion/weighting.py). Published: none.
    """

    unsharded: ClassVar[dict[str, str]] = {}
    weights: Tensor
    logs: ClassVar[Logs] = {
        "lpo/margin": None,
        "lpo/accuracy": None,
        "lpo/clipped": None,
        "refresh/*": None,
        "step_grpo/change": {"what": "mean of |ratio - 1| over candidates"},
        "step_grpo/clipped": {"what": "share of candidates beyond the clip"},
        "step_grpo/kl": {"what": "divergence from the starting policy, if method.kl is set"},
    }

    def __init__(
        self,
        *,
        reward: StepReward,
        clip: Positive = 1e-3,
        kl: NotNegative = 0.1,
        weighting: Weighting = "none",
        **shared: Any,
    ) -> None:
        super().__init__(
            reward=reward, clip=clip, threshold=(0.0, 0.0), threshold_rule="constant", beta=0.0, refresh_reward=None,
            refresh=None, **shared,
        )  # fmt: skip
        self.kl = kl
        _, slope, std = (of[self.window] for of in steps(self.policy.adapter.process, self.num_steps, self.eta))
        self.register_buffer("weights", step_weights(weighting, slope, std), persistent=False)

    @classmethod
    def small(cls, settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
        first, last = settings.get("window") or (0, settings["num_steps"])
        return super().small(settings, processes) | {"batch": 2 * processes * (last - first)}

    def updates(self) -> float:
        return self.steps * -(-self.prompts * self.points // self.batch)

    def assumed(self) -> list[str]:
        return []

    def example(self, text: Tensor, count: int) -> Batch:
        """A micro-batch of `count` points for lpo-plan, at the trajectory's timesteps in turn; x_t and all candidates
        are noise."""
        batch = super().example(text, count)
        numbers = torch.arange(count, device=self.device) % self.points + self.window.start
        candidates = torch.stack([batch.pop("winner"), batch.pop("loser")], 1)[:, torch.arange(self.candidates) % 2]
        times, first = self.policy.adapter.process.times(self.num_steps), torch.ones(count, dtype=torch.bool)
        more = {"step": numbers, "t": times[numbers], "candidates": candidates, "mean": candidates[:, 0]}
        return batch | more | {"advantage": candidates.flatten(2).mean(2), "first": first.to(self.device)}

    def collect(self, captions: list[str], positions: range) -> Rows:
        """One row for each prompt and step whose candidates differ in score: candidates (K, C, h, w), advantage (K,),
        and the mean (C, h, w) of the Gaussian that they were drawn from."""
        text = self.embed(captions)
        trajectory = self.trajectory(text, positions)[self.window]
        t = torch.stack([step.t[0] for step in trajectory])
        candidates = torch.stack([step.candidates for step in trajectory])
        scores = self.score(captions, t, candidates).transpose(1, 2)  # (T, B, K)
        self.note("reward", scores, t[:, None, None].expand_as(scores).flatten())
        groups = torch.arange(scores.shape[:2].numel(), device=scores.device).repeat_interleave(self.candidates)
        advantage = advantages.standardise_groups(scores.flatten(), groups).view_as(scores)
        valid = advantage.any(2)
        self.round = {
            "rollout/valid": valid.float().mean(),
            "reward/mean": scores.mean(),
            "reward/spread": scores.std(2).mean(),
        }
        index, prompt = valid.nonzero(as_tuple=True)
        return {
            "prompt": torch.arange(positions.start, positions.stop, device=index.device)[prompt],
            "step": index + self.window.start,
            "t": t[index],
            "x": torch.stack([step.x for step in trajectory])[index, prompt],
            "mean": torch.stack([step.gaussian.mean for step in trajectory])[index, prompt],
            "candidates": candidates[index, :, prompt],
            "advantage": advantage[index, prompt],
            "text": text[prompt],
        }

    def shuffle(self, number: int, rows: Rows, micro_batch: int) -> list[Batch]:
        """Marks the micro-batches of the first update, before which the policy is still the one that sampled."""
        batches = super().shuffle(number, rows, micro_batch)
        share = -(-min(self.batch, len(rows["prompt"])) // world()[1])
        count = -(-share // micro_batch)
        marks = [torch.full((len(batch["position"]),), place < count) for place, batch in enumerate(batches)]
        return [batch | {"first": mark} for batch, mark in zip(batches, marks, strict=True)]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        gaussian = self.gaussian(batch)
        log_prob = self.log_probs(gaussian, batch["candidates"])
        sampled = self.log_probs(Gaussian(batch["mean"], gaussian.std), batch["candidates"])
        # before the first update policy and sampler are the same, so that a ratio other than 1 would be rounding
        first = batch["first"][:, None].to(log_prob.device, non_blocking=True)
        log_ratio = log_prob - torch.where(first, log_prob.detach(), sampled)
        terms = losses.ppo(log_ratio, batch["advantage"], clip=self.clip).mean(1)
        divergence = torch.zeros_like(terms)
        if self.kl:
            with self.policy.reference():
                reference = self.gaussian(batch)
            divergence = losses.gaussian_kl(gaussian.mean, reference.mean, gaussian.std)
        terms = self.weights[batch["step"] - self.window.start] * (terms + self.kl * divergence)
        counts, t = batch["weight"] > 0, batch["t"]
        self.note("loss", torch.where(counts, terms, torch.nan), t)
        counted = torch.where(counts[:, None], log_ratio, torch.nan)
        self.note("log_ratio", counted, t[:, None].expand_as(counted).flatten())
        change = log_ratio.detach().expm1().abs()
        report = {
            "step_grpo/change": change.mean(),
            "step_grpo/clipped": (change > self.clip).float().mean(),
            "step_grpo/kl": divergence.detach().mean(),
        }
        return (batch["weight"] * terms).sum(), report

    def log_probs(self, gaussian: Gaussian, candidates: Tensor) -> Tensor:
        """Mean log-densities of candidates (B, K, C, h, w): (B, K)."""
        return torch.stack([gaussian.log_prob(drawn) for drawn in candidates.unbind(1)], 1)

    def first_loss(self, loss: float, batch: Batch) -> None:
        """None: advantages sum to 0, so the first loss is near 0 even where something is wrong."""
