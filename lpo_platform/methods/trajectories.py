"""Samples for policy gradients: pictures, the trajectories that led to them, and their rewards."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Guidance, NotNegative, SamplingSteps, Whole
from lpo_platform.data.prepared.conditions import packed, unpacked
from lpo_platform.data.source import Sample
from lpo_platform.data.truth import asked_in_training
from lpo_platform.diffusion import noise
from lpo_platform.diffusion.rollout import Step, rollout
from lpo_platform.diffusion.weighting import Weighting, step_weights, steps
from lpo_platform.hardware.distributed import Rows, share
from lpo_platform.methods.expectations import ConstantRewards, Samples, SamplingWork
from lpo_platform.methods.method import Batch
from lpo_platform.methods.online import Online
from lpo_platform.methods.overlap import Overlap
from lpo_platform.rewards.reward import Asked, Reward, StepReward, checked, name_of, parts, score_latents
from lpo_platform.tasks.task import Task

log = logging.getLogger(__name__)


class Graded(Online):
    """Base of methods that learn from finished pictures. With a task, every prompt comes with its picture's condition.

    Args:
        reward: grades the finished pictures, or the finished latents.
        task: None for prompts alone. With a task, the condition that a picture of the data shows steers the sampling.
        group: pictures drawn for each prompt and condition.
        num_steps: steps of the sampler. Published: 50 (DDPO), 10 (Flow-GRPO).
        eta: noise of the sampler; 0 is deterministic.
        guidance: classifier-free guidance of sampling and of the update; 1 is none. Published: 5.0.
        overlap: on a GPU, computes the rewards of `sample_batch` prompts while the next prompts are sampled. false
            needs less memory.

    Attributes:
        samples: of the round: the gathered columns of collect(), those of a picture with a first axis of all pictures.
    """

    trains: ClassVar[tuple[str, ...]] = ("denoiser", "control")
    rewards: ClassVar[tuple[str, ...]] = ("pictures", "latents", "condition")
    logs: ClassVar[dict[str, dict[str, str]]] = {
        "reward/score": {
            "what": "of all pictures of a round", "panel": "Reward", "axis": "round", "summary": "max",
        },
        "reward/std": {"what": "over the pictures of a round", "panel": "Reward", "axis": "round"},
        "reward/*": {"what": "a named part of the reward", "panel": "Reward", "axis": "round"},
    }  # fmt: skip
    noisy: Literal["all", "window"] = "all"
    window: slice = slice(None)

    def __init__(
        self,
        *,
        reward: Reward | StepReward,
        task: Task | None,
        group: Count = 8,
        num_steps: SamplingSteps = 50,
        eta: NotNegative = 1.0,
        guidance: Guidance = 5.0,
        overlap: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.reward, self.task, self.pictures = reward, task, task is not None
        self.group, self.num_steps, self.eta, self.guidance = group, num_steps, eta, guidance
        # a reward of latents shares the model's tokenizer, which serves one thread at a time
        self.overlapped = Overlap(("cuda",) if overlap and not isinstance(reward, StepReward) else ())
        self.samples: Rows = {}

    def constant_rewards(self) -> ConstantRewards | None:
        rewards = {name: of for name, of in self.samples.items() if name.startswith("reward/")}
        same = [name for name, of in rewards.items() if of.numel() > 1 and (of == of[0, 0]).all()]
        if not same:
            return None
        count = next(iter(rewards.values())).numel()
        what = f"{', '.join(same)} is the same for all {count} pictures of the first round"
        return ConstantRewards(what, hopeless=False)

    def report_rewards(self, number: int, rows: Rows) -> None:
        """Adds the rewards of round `number` to its report, and warns where one tells no pictures apart."""
        score, rewards = rows["reward/score"], {name: of for name, of in rows.items() if name.startswith("reward/")}
        own = share(range(score.numel()))
        self.note("reward", score.flatten()[own.start : own.stop])
        for name, column in rewards.items():
            if (column == column[0, 0]).all():
                said = (number, name_of(self.reward), name.removeprefix("reward/"), column[0, 0], column.numel())
                log.warning("round %d: reward %s: %s is %g for all %d pictures", *said)
        self.round |= {name: column.mean() for name, column in rewards.items()} | {
            "reward/std": score.std(correction=0),
            "reward/spread": score.std(1, correction=0).mean(),
            "rollout/samples": torch.tensor(float(score.numel())),
        }

    def of_samples(self, batch: Batch) -> Batch:
        """Adds `condition` (U,), the prompts of a micro-batch, and `row` (B,), the place of each row among them.

        Both are computed on the CPU, so that nothing waits for the GPU.
        """
        if not self.pictures or "sample" not in batch:
            return batch
        condition, row = (batch["sample"] // self.group).unique(return_inverse=True)
        return batch | {"condition": condition, "row": row}

    def conditions(self, batch: Batch) -> Tensor | None:
        """The features (B, ...) of a micro-batch's conditions; None without a task."""
        return self.features(self.samples["control"][batch["condition"]], batch["row"]) if self.pictures else None

    def reference_conditions(self, batch: Batch, features: Tensor | None) -> Tensor | None:
        """Inside policy.reference(): features of the policy, or the reference's own where features depend on what
        learns."""
        return features if features is None or not self.policy.learns_features else self.conditions(batch)

    def sampling_work(self, samples: Samples) -> SamplingWork:
        latents = torch.empty(1, *self.policy.adapter.latent_shape, device=self.device)
        scored = (self.group, lambda: self.score(latents, [""], None))
        return SamplingWork(self.group * self.num_steps, (scored,))

    def collect(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Rows:
        """Draws G pictures for each of P prompts.

        The rows hold text (P, L, D) or tokens, control images and `key`, of prompt and condition; what kept() keeps,
        (P, G, ...) each; and reward/score and reward/<part>, (P, G) each.
        """
        return self.begin(items, positions)()

    def begin(self, items: Sequence[str] | Sequence[Sample], positions: range) -> Callable[[], Rows]:
        """Starts collect(). The rewards may still be computed when it returns."""
        captions = [item.caption for item in items] if self.pictures else list(items)
        ids = [(item.caption, item.id) if self.pictures else (item,) for item in items]
        told = [item.told for item in items] if self.pictures else captions
        tokens = self.policy.adapter.tokenize(told)
        rows = {
            "prompt": torch.tensor(positions, device=self.device),
            "key": torch.tensor([noise.key(*name) for name in ids], device=self.device),
            "text": tokens.to(self.device) if self.policy.trains_text else self.policy.adapter.embed(tokens),
        }
        prompt, asked = torch.arange(len(positions), device=self.device).repeat_interleave(self.group), None
        if self.pictures:
            images = torch.stack([item.image for item in items]).to(self.device)
            maps, drawn = asked_in_training(items, self.task, images)
            rows["control"] = packed(drawn, self.task)
            asked = Asked(maps, unpacked(rows["control"]), prompt)
        text, features = self.embedded(rows["text"][prompt]), self.features(rows.get("control"), prompt)
        keys = [f"{position}/{member}" for position in positions for member in range(self.group)]
        trajectory = self.trajectory(keys, text, features)
        finished = trajectory[-1].following
        rewarded = self.overlapped(lambda: self.score(finished, captions, asked), finished.device)
        pictures = self.kept(trajectory)
        self.round = {}

        def end() -> Rows:
            columns = pictures | {f"reward/{part}": of for part, of in rewarded().items()}
            return rows | {name: column.unflatten(0, (-1, self.group)) for name, column in columns.items()}

        return end

    def trajectory(self, keys: list[str], text: Tensor, features: Tensor | None) -> list[Step]:
        """The steps of one trajectory for each of N keys, which name its noise; text and features have N rows."""
        return list(
            rollout(
                lambda x, t: self.predict(x, t, text, features),
                self.policy.adapter.process,
                self.keyed(keys, "rollout"),
                num_steps=self.num_steps,
                eta=self.eta,
                noise=lambda index: self.keyed(keys, f"rollout/{index}"),
                noisy=range(self.window.start, self.window.stop) if self.noisy == "window" else None,
            )
        )

    def kept(self, trajectory: list[Step]) -> Rows:
        """What an update reads of the trajectories of N pictures: columns with N rows."""
        return {"latents": trajectory[-1].following}

    def embedded(self, text: Tensor) -> Tensor:
        """Embeds rows of a round's text if they are tokens, which they are while the text encoder learns."""
        return self.policy.adapter.embed(text) if self.policy.trains_text else text

    def features(self, control: Tensor | None, row: Tensor) -> Tensor | None:
        """Encodes control images (U, ...) once each and returns those of `row` (N,); None without a task."""
        return None if control is None else self.policy.features(unpacked(control))[row]

    def score(self, latents: Tensor, captions: list[str], asked: Asked | None) -> dict[str, Tensor]:
        """Grades finished latents (P G, C, h, w) of P captions: `score` and its named parts, (P G,) each."""
        captions = [caption for caption in captions for _ in range(self.group)]
        if isinstance(self.reward, StepReward):
            return {"score": checked(name_of(self.reward), score_latents(self.reward, latents, captions), len(latents))}
        images = torch.cat([self.policy.adapter.decode(part) for part in latents.split(self.group)])
        return parts(self.reward, images.mul(255).round().div(255), captions, asked)  # 8 bits, as a file has them


class Trajectories(Graded):
    """Base of methods that learn from whole trajectories. Settings that are not listed are those of Graded.

    Args:
        eta: noise of the sampler; 1 is ancestral sampling. For flow models it is the a of Flow-GRPO, 0.7 there.
        window: [first, last + 1] of the steps that are trained; null for all.
        slide: rounds after which the window moves on by one step; it returns to the first place after the last. Null
            keeps it in place.
        noisy: whether `all` steps draw noise or those of the `window` only, as in MixGRPO (arXiv:2507.21802).
        weighting: of the trained steps in the update; diffusion/weighting.py defines the choices.

    Attributes:
        t, weights: (K,), timesteps and weights of the K steps that this round trains.
    """

    def __init__(
        self,
        *,
        window: tuple[Whole, Whole] | None = None,
        slide: Count | None = None,
        noisy: Literal["all", "window"] = "all",
        weighting: Weighting = "none",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        num_steps = self.num_steps
        self.weighting = weighting
        first, last = window or (0, num_steps)
        if not 0 <= first < last <= num_steps:
            raise UserError(f"method.window=[{first}, {last}]: what works: 0 <= first < last <= {num_steps}")
        if slide is not None and slide < 1:
            raise UserError(f"method.slide={slide}: what works: a number of rounds, or null for a window that stays")
        self.first, self.slide, self.noisy = range(first, last), slide, noisy
        self.place(0)
        t, _, std = steps(self.policy.adapter.process, num_steps, self.eta)
        reached = slice(None) if slide else self.window
        silent = t[reached][std[reached] <= 0].tolist()
        if silent:
            raise UserError(
                f"method.eta={self.eta}: the step from t={silent[0]} draws no noise, so it has no probability; "
                "what works: method.eta above 0, and a method.window that leaves out a step from t=0"
            )

    @classmethod
    def small(cls, settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
        own, group = super().small(settings, processes), min(4, settings["group"])
        first, last = settings.get("window") or (0, settings["num_steps"])
        kept = int((last - first) * settings.get("fraction", 1.0))
        return own | {"group": group, "batch": own["prompts"] * group * kept}

    def place(self, number: int) -> None:
        """Moves the window to its place in round `number`."""
        process, kept = self.policy.adapter.process, self.first
        if self.slide is not None:
            start = (kept.start + number // self.slide) % (self.num_steps - len(kept) + 1)
            kept = range(start, start + len(kept))
        self.window = slice(kept.start, kept.stop)
        self.t, slope, std = (of[self.window] for of in steps(process, self.num_steps, self.eta))
        self.weights = step_weights(self.weighting, slope, std)

    def sample_round(self, number: int, items: Sequence[str] | Sequence[Sample], micro_batch: int) -> list[Batch]:
        self.place(number)
        return super().sample_round(number, items, micro_batch)

    def kept(self, trajectory: list[Step]) -> Rows:
        """latents (N, K + 1, C, h, w) and log_prob (N, K) in float32."""
        kept = trajectory[self.window]
        return {
            "latents": torch.stack([*(step.x for step in kept), kept[-1].following], 1),
            "log_prob": torch.stack([step.gaussian.log_prob(step.following) for step in kept], 1),
        }
