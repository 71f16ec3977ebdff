"""Denoising diffusion policy optimisation (arXiv:2305.13301): policy gradients through the sampler's Gaussian steps.

Several pictures of each prompt are drawn with noise at every step, and a reward says how good the finished pictures
are. Every transition x_t -> x_{t-1} of a picture that was better than expected becomes likelier, of a worse one less
likely. A row is one transition: the update reads rows of all samples and steps in micro-batches of any size.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform import advantages, losses, noise
from lpo_platform.config import UserError
from lpo_platform.data.condition_pairs import from_uint8, to_uint8
from lpo_platform.data.source import Sample
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.diffusion.rollout import Step, rollout
from lpo_platform.diffusion.weighting import Weighting, step_weights, steps
from lpo_platform.distributed import Rows
from lpo_platform.evaluation.evaluate import reward_of
from lpo_platform.methods.method import Batch
from lpo_platform.methods.online import Online
from lpo_platform.methods.ratios import Ratios
from lpo_platform.models.shared_encoder import Encoded
from lpo_platform.rewards.reward import Reward, StepReward, parts
from lpo_platform.tasks.task import Task


class DDPO(Online):
    """group: pictures of each prompt; num_steps, eta, guidance: of sampling, guidance also inside the loss.

    baseline: what a reward is compared with: its `group` (same prompt and condition), the `round`, or its prompt's
    `history`, the last `history` rewards once there are `history_minimum`; spread: whose standard deviation divides a
    group; advantage_clip: limit of an advantage. form, clip: PPO's ratio within 1 +- clip, or the score function.
    window: the sampler's steps that are trained, first and last + 1, null for all; fraction: of them for each sample,
    drawn anew in each of `inner_epochs`. order: what an update of `batch` transitions holds, whole `samples`, one step
    of each sample (`steps`) or `mixed`; weighting: of the steps; kl: weight of the divergence from the starting policy.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        reward: Reward | StepReward,
        task: Task | None,
        group: int = 8,
        num_steps: int = 50,
        eta: float = 1.0,
        guidance: float = 5.0,
        baseline: Literal["group", "round", "history"] = "group",
        spread: Literal["group", "batch"] = "group",
        history: int = 16,
        history_minimum: int = 16,
        advantage_clip: float = 5.0,
        form: Literal["ppo", "score"] = "ppo",
        clip: float = 1e-4,
        window: tuple[int, int] | None = None,
        fraction: float = 1.0,
        order: Literal["samples", "steps", "mixed"] = "samples",
        weighting: Weighting = "none",
        kl: float = 0.0,
        inner_epochs: int = 1,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.reward, self.task, self.pictures = reward, task, task is not None
        self.group, self.num_steps, self.eta, self.guidance = group, num_steps, eta, guidance
        self.baseline, self.spread, self.advantage_clip = baseline, spread, advantage_clip
        self.form, self.clip, self.kl, self.inner_epochs, self.order = form, clip, kl, inner_epochs, order
        self.window = slice(*window) if window else slice(0, num_steps)
        self.t, slope, std = (column[self.window] for column in steps(self.policy.adapter.process, num_steps, eta))
        self.trained = int(len(self.t) * fraction)
        self._check(fraction, std)
        self.step_weight = step_weights(weighting, slope, std)
        self.tracker = advantages.Tracker(history, history_minimum) if baseline == "history" else None
        self.samples, self.ratios = {}, Ratios(self.t, clip)
        if kl:
            self.policy.freeze_reference()

    def collect(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Rows:
        captions = [item.caption for item in items] if self.pictures else list(items)
        ids = [(item.caption, item.id) if self.pictures else (item,) for item in items]
        tokens = self.policy.adapter.tokenize(captions)
        rows = {
            "prompt": torch.tensor(positions, device=self.device),
            "key": torch.tensor([noise.key(*name) for name in ids], device=self.device),
            "text": tokens.to(self.device) if self.policy.trains_text else self.policy.adapter.embed(tokens),
        }
        if self.pictures:
            images = torch.stack([item.image for item in items]).to(self.device)
            rows["control"] = to_uint8(self.task.render(self.task.detect(images)), gray=self.task.gray)
        members = torch.arange(len(positions), device=self.device).repeat_interleave(self.group)
        text, control = self.condition(rows, members)
        trajectory = self.sample([f"{p}/{member}" for p in positions for member in range(self.group)], text, control)
        trained = trajectory[self.window]
        drawn = {
            "latents": torch.stack([*(step.x for step in trained), trained[-1].following], 1),
            "log_prob": torch.stack([step.gaussian.log_prob(step.following) for step in trained], 1),
        }
        scores = self.judge(trajectory[-1].following, [captions[i] for i in members.tolist()], control)
        drawn |= {f"reward/{part}": score for part, score in scores.items()}
        return rows | {name: column.unflatten(0, (-1, self.group)) for name, column in drawn.items()}

    def condition(self, rows: Rows, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Text and control images of the rows with these prompts."""
        text = self.policy.adapter.embed(rows["text"][prompt]) if self.policy.trains_text else rows["text"][prompt]
        return text, from_uint8(rows["control"][prompt]) if self.pictures else None

    def sample(self, keys: list[str], text: Tensor, control: Tensor | None) -> list[Step]:
        return list(
            rollout(
                lambda x, t: self.predict(x, t, text, control),
                self.policy.adapter.process,
                self.keyed(keys, "rollout"),
                num_steps=self.num_steps,
                eta=self.eta,
                noise=lambda index: self.keyed(keys, f"rollout/{index}"),
            )
        )

    def judge(self, latents: Tensor, captions: list[str], control: Tensor | None) -> dict[str, Tensor]:
        """The reward of finished latents: `score` and its named parts, (B,) each; of pictures as a file holds them."""
        if isinstance(self.reward, StepReward):
            return {"score": reward_of(self.reward, latents, captions)}
        images = torch.cat([self.policy.adapter.decode(part) for part in latents.split(self.group)])
        return parts(self.reward, images.mul(255).round().div(255), captions, control)

    def deal(self, number: int, rows: Rows, micro_batch: int) -> list[Batch]:
        scores = {name: column for name, column in rows.items() if name.startswith("reward/")}
        advantage = self.advantages(rows["reward/score"].flatten(), rows["key"].repeat_interleave(self.group))
        flat = {name: rows[name].flatten(0, 1) for name in ("latents", "log_prob")}
        self.samples = rows | flat | {"advantage": advantages.clip(advantage, self.advantage_clip)}
        self.round |= {name: score.mean() for name, score in scores.items()} | {
            "reward/std": rows["reward/score"].std(correction=0),
            "reward/spread": rows["reward/score"].std(1, correction=0).mean(),
            "rollout/samples": torch.tensor(float(len(advantage))),
            "rollout/no_advantage": (advantage == 0).float().mean(),
        }
        order = torch.cat([self.arrange(len(advantage), f"{number}/{epoch}") for epoch in range(self.inner_epochs)])
        transitions = {"sample": order // len(self.t), "step": order % len(self.t)}
        return self.cut(transitions, torch.arange(len(order)), micro_batch)

    def advantages(self, rewards: Tensor, keys: Tensor) -> Tensor:
        if self.baseline == "group":
            return advantages.standardise_groups(rewards, keys, spread=self.spread)
        return advantages.standardise(rewards) if self.tracker is None else self.tracker(rewards, keys)

    def arrange(self, count: int, stream: str) -> Tensor:
        """One pass over `count` samples: transitions, numbered sample x steps + step, in the order of training."""
        drawn = noise.normal(range(count), self.t.shape, seed=self.seed, stream=f"steps/{stream}").argsort(1)
        chosen = noise.permutation(count, seed=self.seed, stream=f"samples/{stream}")
        rows = chosen[:, None] * len(self.t) + drawn[chosen, : self.trained]
        if self.order == "mixed":
            return rows.flatten()[noise.permutation(rows.numel(), seed=self.seed, stream=f"mixed/{stream}")]
        return (rows if self.order == "samples" else rows.T).flatten()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        sample, step = batch["sample"], batch["step"]
        x, following = (self.samples["latents"][sample, step + later] for later in (0, 1))
        t, advantage = self.t[step], self.samples["advantage"][sample]
        text, control = self.condition(self.samples, sample // self.group)

        encoded = self.encode(x, t, text)
        gaussian = self.gaussian(encoded, control)
        log_prob, sampled = gaussian.log_prob(following), self.samples["log_prob"][sample, step]
        # before the first update the policy is the one that sampled, so any difference is rounding: kept out of the
        # ratio, where bf16's would exceed the clip, and reported
        first = (batch["position"] < self.batch).to(log_prob.device, non_blocking=True)
        log_ratio = log_prob - torch.where(first, log_prob.detach(), sampled)
        terms = (
            losses.score_function(log_prob, advantage)
            if self.form == "score"
            else losses.ppo(log_ratio, advantage, clip=self.clip)
        )
        terms = self.step_weight[step] * terms
        if self.kl:
            with self.policy.reference():
                shared = self.encode(x, t, text) if self.policy.trains_unet else encoded
                reference = self.gaussian(shared, control)
            terms = terms + self.kl * losses.gaussian_kl(gaussian.mean, reference.mean, gaussian.std)
        drift = torch.where(first, log_prob - sampled, 0).detach()
        self.ratios.add(step, log_ratio.detach(), drift, advantage, batch["weight"] > 0)
        return (batch["weight"] * terms).sum(), {}

    def encode(self, x: Tensor, t: Tensor, text: Tensor) -> Encoded:
        return self.policy.encode_guided(x, t, text, guidance=self.guidance, empty=self.empty())

    def gaussian(self, encoded: Encoded, control: Tensor | None) -> Gaussian:
        """Where a step leads."""
        output = self.policy.decode_guided(encoded, control, guidance=self.guidance)
        process, x, t = self.policy.adapter.process, encoded.x[: len(output)], encoded.t[: len(output)]
        return process.step(output, t, process.previous(t, self.num_steps, eta=self.eta), x, eta=self.eta)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.ratios = Ratios(self.t, self.clip)

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.ratios.report())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.tracker is not None:
            checkpoint["tracker"] = self.tracker.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.tracker is not None:
            self.tracker.load_state_dict(checkpoint["tracker"])

    def _check(self, fraction: float, std: Tensor) -> None:
        """UserError for settings that leave nothing to learn from, or that the score function is wrong for."""
        first, last = self.window.start, self.window.stop
        if not (0 <= first < last <= self.num_steps and 1 <= self.trained <= len(self.t)):
            raise UserError(
                f"method.window=[{first}, {last}], method.fraction={fraction}: no steps to train; what works: "
                f"0 <= first < last <= {self.num_steps}, and a fraction in (0, 1] that leaves a step"
            )
        if (std <= 0).any():
            raise UserError(
                f"method.eta={self.eta}: the step from t={int(self.t[std <= 0][0])} draws no noise, so its outcome has "
                "no probability; what works: method.eta above 0, and a method.window that leaves out a step from t=0"
            )
        rows = self.prompts * self.group * self.trained
        if self.form == "score" and (self.batch < rows or self.inner_epochs > 1):
            raise UserError(
                f"method.form=score: right for one update a round only; what works: method.inner_epochs=1 and "
                f"method.batch={rows} ({self.prompts} prompts x {self.group} pictures x {self.trained} steps)"
            )
