"""Pairs of pictures of one condition, of which one follows it better: the data of image-DPO for control.

The starting policy draws a group of pictures from each caption and condition. The best and the worst aligned one, by
the task's own distance, are kept with their rewards. Nothing here depends on the weights that learn, so it is computed
once and kept in a cache.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.cache import Cache
from lpo_platform.data.prepared.conditions import ConditionPairs, fill, to_uint8
from lpo_platform.data.source import Sample, Source
from lpo_platform.data.truth import truth_of
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.rewards.reward import Asked, Reward, parts
from lpo_platform.runs.files import fingerprint
from lpo_platform.tasks.task import Task

VERSION = 1  # raise it when pictures are drawn or chosen differently
SEED = 0  # the pictures are data: a run's seed leaves them as they are
WINNER_FIRST = torch.tensor([[0.5, 1.0], [0.0, 0.5]])


class AlignedPairs(ConditionPairs):
    """Pairs of pictures, the better aligned one first: moments (2, 2C, h, w), labels, control, tokens and text.

    Pairs that are equally far from their condition are left out.

    Args:
        cache: complete.
        gap: the smallest difference by which the first must also surpass the second in the reward, if there is one.

    Raises:
        UserError: no pair is left.
    """

    def __init__(self, cache: Cache, gap: float) -> None:
        super().__init__(cache)
        near, far = self._whole("distance").unbind(1)
        better, worse = self._whole("quality").unbind(1)
        kept = (near < far) & (better.isnan() | (better - worse > gap))
        usable, self.numbers = len(self.numbers), [row for row in self.numbers if kept[row]]
        if not self.numbers:
            raise UserError(
                f"method.gap={gap}: none of {usable} pairs has a better aligned picture whose reward is higher by more "
                "than that; lower it, or draw more pictures with method.group"
            )

    def _whole(self, name: str) -> Tensor:
        return torch.cat([self.column(shard, name) for shard in self.cache.shards])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return super().__getitem__(row) | {"labels": WINNER_FIRST}


def cache_of(
    source: Source,
    policy: Policy,
    task: Task,
    *,
    reward: object,
    control_digest: str,
    sampling: Sampling,
    group: int,
    folder: Path,
) -> Cache:
    """The cache that these parts determine, existing or not. reward: the settings of the reward, or None."""
    key = fingerprint(
        "aligned", VERSION, source.fingerprint, policy.adapter.fingerprint, task.fingerprint, reward, control_digest,
        sampling.num_steps, sampling.guidance, sampling.eta, group,
    )  # fmt: skip
    return Cache(folder, key, len(source), shard_size=32)


def prepare(
    cache: Cache,
    source: Source,
    policy: Policy,
    task: Task,
    reward: Reward | None,
    *,
    sampling: Sampling,
    group: int,
    gap: float,
    batch: int,
) -> AlignedPairs:
    """Draws what is missing of the cache, `batch` pictures at a time, and opens it."""
    if group < 2:
        raise UserError(f"method.group={group}: must be at least 2, for a better and a worse picture")
    encode = partial(_encode, policy=policy, task=task, reward=reward, sampling=sampling, group=group, batch=batch)
    fill(cache, source, encode, title="groups", batch=max(1, batch // group))
    return AlignedPairs(cache, gap)


def _encode(
    samples: list[Sample],
    policy: Policy,
    task: Task,
    reward: Reward | None,
    sampling: Sampling,
    group: int,
    batch: int,
) -> dict[str, Tensor]:
    adapter = policy.adapter
    maps, control = truth_of(samples, task, torch.stack([sample.image for sample in samples]).to(adapter.device))
    tokens = adapter.tokenize([sample.told for sample in samples])
    columns = {"tokens": tokens, "text": adapter.embed(tokens), "control": to_uint8(control, gray=task.gray)}
    rows = torch.arange(len(samples), device=adapter.device).repeat_interleave(group)
    drawn, distance, quality = [], [], []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        ids = [f"{samples[number // group].id}/{number % group}" for number in range(start, start + len(part))]
        condition = Condition(columns["text"][part], control[part])
        drawn.append(sample_latents(policy, condition, ids, sampling, seed=SEED, stream="group"))
        pictures = eight_bit(adapter.decode(drawn[-1]))
        distance.append(task.distance(task.detect(pictures), maps[part]))
        prompts = [samples[row].caption for row in part.tolist()]
        judged = parts(reward, pictures, prompts, Asked(maps, control, part))["score"] if reward else None
        quality.append(torch.full_like(distance[-1], torch.nan) if judged is None else judged)
    distance, quality, latents = (torch.cat(of).unflatten(0, (-1, group)) for of in (distance, quality, drawn))
    ends = torch.stack([distance.argmin(1), distance.argmax(1)], 1)
    kept = latents.take_along_dim(ends[..., None, None, None], 1).flatten(0, 1)
    moments = torch.cat([adapter.encode_moments(eight_bit(adapter.decode(part))) for part in kept.split(batch)])
    return columns | {
        "moments": moments.half().unflatten(0, (-1, 2)),
        "distance": distance.gather(1, ends).float(),
        "quality": quality.gather(1, ends).float(),
    }


def eight_bit(pictures: Tensor) -> Tensor:
    """As a file has them, in [0, 1]."""
    return pictures.mul(255).round().div(255)
