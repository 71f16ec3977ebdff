"""Preference data from the model's own pictures: several for each prompt, labelled by a reward.

A latent reward model must know the pictures of the policy that it will score. One that has seen only clean or drawn
pictures is exploited at once (methods/README.md, "lrm").
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lpo_platform.data.prepared.cache import Cache
from lpo_platform.data.prepared.conditions import ConditionPairs
from lpo_platform.data.source import Data, Preference, Source
from lpo_platform.hardware.distributed import deal, everywhere, wait
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.rewards.reward import Reward, checked
from lpo_platform.runs.files import fingerprint

VERSION = 1  # raise it when pictures are drawn or scored differently
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
        num_images: int = 4,
        eta: float = 1.0,
        temperature: float = 0.1,
        num_validation: int = 100,
        *,
        resolution: int,
    ) -> None:
        self.prompts, self.labeller = prompts, labeller
        self.num_images, self.eta, self.temperature = num_images, eta, temperature
        self.num_validation = num_validation

    def few(self, cut: Callable[[Data], Data], count: int) -> "GeneratedPairs":
        """The same with few prompts, of which a quarter chooses the best model."""
        small = copy.copy(self)
        small.prompts, small.num_validation = cut(self.prompts), count // 4
        return small

    def draw(self, policy: Policy, folder: Path, batch: int) -> None:
        """Draws what the cache lacks, with a progress bar, and opens both splits."""
        rows = self._rows("train", self.prompts.train, policy, folder, batch)
        learned = range(len(rows) - self.num_validation)
        self.train = GeneratedSplit(rows, learned, self.temperature)
        self.validation = GeneratedSplit(rows, range(len(learned), len(rows)), self.temperature)
        rows = self._rows("test", self.prompts.test, policy, folder, batch)
        self.test = GeneratedSplit(rows, range(len(rows)), self.temperature)

    def _rows(self, name: str, source: Source, policy: Policy, folder: Path, batch: int) -> ConditionPairs:
        adapter = policy.adapter
        sampling = Sampling(adapter.num_inference_steps, adapter.guidance, self.eta)
        reward = [type(self.labeller).__name__, getattr(self.labeller, "fingerprint", None)]
        key = fingerprint(
            "generated", VERSION, source.fingerprint, adapter.fingerprint, sampling.num_steps, sampling.guidance,
            self.eta, self.num_images, reward,
        )  # fmt: skip
        cache = Cache(folder, key, len(source), shard_size=100)
        missing = deal(cache.missing())
        done = len(source) - sum(map(len, missing))
        with tqdm(total=len(source), desc=f"pictures ({name})", unit="prompt", initial=done) as bar:
            for shard in missing:
                captions = [source.caption(i) for i in shard]
                cache.write(shard, self._columns(captions, list(shard), policy, sampling, batch), {"caption": captions})
                bar.update(everywhere(len(shard), bar.total - bar.n))
        wait()
        return ConditionPairs(cache)

    def _columns(
        self, captions: list[str], rows: list[int], policy: Policy, sampling: Sampling, batch: int
    ) -> dict[str, Tensor]:
        """images (P, n, 3, H, W) uint8 and scores (P, n)."""
        images, scores = generate(policy, captions, rows, self.num_images, sampling, batch, self.labeller, seed=SEED)
        return {"images": images.mul(255).round().byte(), "scores": scores}


@torch.no_grad()
def generate(
    policy: Policy,
    captions: list[str],
    keys: list[Any],
    num_images: int,
    sampling: Sampling,
    batch: int,
    reward: Reward,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Pictures (P, n, 3, H, W) of P prompts, rounded to 8 bits, and what a reward says of them (P, n), on the CPU."""
    policy.eval()
    adapter, images, scores = policy.adapter, [], []
    if isinstance(reward, nn.Module):
        reward.to(adapter.device)
    wanted = [(caption, f"{key}/{n}") for caption, key in zip(captions, keys, strict=True) for n in range(num_images)]
    for start in range(0, len(wanted), batch):
        prompts, ids = zip(*wanted[start : start + batch], strict=True)
        condition = Condition(adapter.embed(adapter.tokenize(list(prompts))))
        latents = sample_latents(policy, condition, ids, sampling, seed=seed, stream="generate")
        drawn = adapter.decode(latents).mul(255).round().div(255)
        scores.append(checked(type(reward).__name__, reward(drawn, list(prompts)), len(prompts)).cpu())
        images.append(drawn.cpu())
    shape = (len(captions), num_images)
    return torch.cat(images).unflatten(0, shape), torch.cat(scores).view(shape)


class GeneratedSplit:
    """Pictures, scores and captions of some rows of a cache, read as needed."""

    def __init__(self, rows: ConditionPairs, numbers: range, temperature: float) -> None:
        self.rows, self.numbers, self.temperature = rows, numbers, temperature
        self.fingerprint = fingerprint(rows.cache.fingerprint, numbers.start, numbers.stop, temperature)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Preference:
        row = self.rows[self.numbers[i]]
        labels = labels_of(row["scores"], self.temperature)
        name = f"{self.rows.cache.fingerprint[:8]}-{self.numbers[i]:06d}"
        return Preference(name, self.caption(i), row["images"].float() / 255, labels)

    def caption(self, i: int) -> str:
        return self.rows.caption(self.numbers[i])
