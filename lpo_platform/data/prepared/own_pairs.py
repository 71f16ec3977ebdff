"""Preference data from the model's own pictures: several for each prompt, labelled by a reward.

A latent reward model must know the pictures of the policy that it will score. One that has seen only clean or drawn
pictures is exploited at once (methods/README.md, "lrm").
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from hydra.utils import get_class
from torch import Tensor, nn

from lpo_platform.config.numbers import Count, NotNegative, Positive, Seed, Several
from lpo_platform.data.source import Data, Preference, Source
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, parts_of, sample_latents
from lpo_platform.rewards.reward import Reward, checked
from lpo_platform.runs.files import fingerprint

VERSION = 2  # raise it when pictures are drawn or scored differently
SEED = 0  # the pictures are data: a run's seed leaves them as they are


def labels_of(scores: Tensor, temperature: float) -> Tensor:
    """(n,) scores -> (n, n): sigmoid((s_i - s_j) / temperature), so that a small difference is nearly a tie."""
    return torch.sigmoid((scores[:, None] - scores[None, :]) / temperature)


class GeneratedPairs:
    """Preferences between the model's own pictures of the captions of another data option.

    Args:
        prompts: the data option whose captions are drawn.
        labeller: the reward of pictures that labels them.
        num_images: pictures of each prompt.
        eta: noise of the sampler; 1 as in LPO's rollouts.
        temperature: the difference of scores that is preferred with probability 0.73.
        num_validation: training prompts that choose the best model and are not trained on.
        resolution: side of the pictures in pixels.
    """

    gives: ClassVar[tuple[str, ...]] = ("pairs",)
    draws: ClassVar[bool] = True

    def __init__(
        self,
        prompts: Data,
        labeller: Reward,
        num_images: Several = 4,
        eta: NotNegative = 1.0,
        temperature: Positive = 0.1,
        num_validation: Count = 100,
        *,
        resolution: Count,
    ) -> None:
        self.prompts, self.labeller = prompts, labeller
        self.num_images, self.eta, self.temperature = num_images, eta, temperature
        self.num_validation = num_validation

    @classmethod
    def count(cls, settings: Mapping[str, Any]) -> int | None:
        prompts = settings["prompts"]
        found = get_class(prompts["_target_"]).count(prompts)
        return None if found is None else found - settings["num_validation"]

    def few(self, cut: Callable[[Data], Data], count: int) -> "GeneratedPairs":
        """The same with few prompts, of which a quarter chooses the best model."""
        small = copy.copy(self)
        small.prompts, small.num_validation = cut(self.prompts), count // 4
        return small

    def open(self, policy: Policy, batch: int) -> None:
        """Opens the splits. Their pictures are drawn, `batch` at a time, when they are needed."""
        train, test = self.prompts.train, self.prompts.test
        learned = range(len(train) - self.num_validation)
        make = partial(GeneratedSplit, pairs=self, policy=policy, batch=batch)
        self.train = make(train, learned)
        self.validation = make(train, range(len(learned), len(train)))
        self.test = make(test, range(len(test)))


@torch.no_grad()
def generate(
    policy: Policy,
    captions: list[str],
    keys: list[Any],
    num_images: Several,
    sampling: Sampling,
    batch: int,
    reward: Reward,
    *,
    seed: Seed,
) -> tuple[Tensor, Tensor]:
    """Pictures (P, n, 3, H, W) of P prompts, rounded to 8 bits, and what a reward says of them (P, n), on the CPU."""
    policy.eval()
    adapter, images, scores = policy.adapter, [], []
    if isinstance(reward, nn.Module):
        reward.to(adapter.device)
    wanted = [(caption, f"{key}/{n}") for caption, key in zip(captions, keys, strict=True) for n in range(num_images)]
    for part, new in parts_of(len(wanted), batch):
        prompts, ids = zip(*wanted[part], strict=True)
        condition = Condition(adapter.embed(adapter.tokenize(list(prompts))))
        latents = sample_latents(policy, condition, ids, sampling, seed=seed, stream="generate")
        drawn = adapter.decode(latents).mul(255).round().div(255)
        scores.append(checked(type(reward).__name__, reward(drawn, list(prompts)), len(prompts))[new].cpu())
        images.append(drawn[new].cpu())
    shape = (len(captions), num_images)
    return torch.cat(images).unflatten(0, shape), torch.cat(scores).view(shape)


@dataclass(frozen=True)
class Prompt:
    """What the pictures of a row are drawn from. Its number keys the noise."""

    number: int
    caption: str


class GeneratedSplit:
    """Some prompts of a source, and how their pictures are drawn and labelled."""

    weights = None

    def __init__(self, source: Source, numbers: range, *, pairs: GeneratedPairs, policy: Policy, batch: int) -> None:
        self.source, self.numbers, self.pairs, self.policy, self.batch = source, numbers, pairs, policy, batch
        adapter, labeller = policy.adapter, pairs.labeller
        self.sampling = Sampling(adapter.num_inference_steps, adapter.guidance, pairs.eta)
        self.fingerprint = fingerprint(
            "generated", VERSION, source.fingerprint, numbers.start, numbers.stop, adapter.fingerprint,
            self.sampling.num_steps, self.sampling.guidance, pairs.eta, pairs.num_images, pairs.temperature,
            type(labeller).__name__, getattr(labeller, "fingerprint", None),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Prompt:
        return Prompt(self.numbers[i], self.caption(i))

    def caption(self, i: int) -> str:
        return self.source.caption(self.numbers[i])

    def draw(self, prompts: list[Prompt]) -> list[Preference]:
        """The pictures of some prompts, with their labels."""
        captions, keys = [prompt.caption for prompt in prompts], [prompt.number for prompt in prompts]
        count, labeller = self.pairs.num_images, self.pairs.labeller
        images, scores = generate(self.policy, captions, keys, count, self.sampling, self.batch, labeller, seed=SEED)
        labels = [labels_of(row, self.pairs.temperature) for row in scores]
        return [
            Preference(str(key), caption, *row)
            for key, caption, *row in zip(keys, captions, images, labels, strict=True)
        ]
