"""Pairs of pictures of one condition, of which one follows it better: the data of image-DPO for control.

The starting policy draws a group of pictures from each caption and condition. The best and the worst aligned one, by
the task's own distance, are kept with their rewards. Nothing here depends on the weights that learn, so it is computed
once and kept in a cache.
"""

from functools import partial

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.conditions import packed
from lpo_platform.data.prepared.rows import Preparation
from lpo_platform.data.prepared.store import Columns
from lpo_platform.data.source import Sample, Source
from lpo_platform.data.truth import asked_in_training
from lpo_platform.hardware.transfer import upload
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, parts_of, sample_latents
from lpo_platform.rewards.reward import Asked, Reward, parts
from lpo_platform.runs.files import fingerprint
from lpo_platform.tasks.task import Task

VERSION = 2  # raise it when pictures are drawn or chosen differently
SEED = 0  # the pictures are data: a run's seed leaves them as they are
WINNER_FIRST = torch.tensor([[0.5, 1.0], [0.0, 0.5]])


def preparation(
    source: Source,
    policy: Policy,
    task: Task,
    reward: Reward | None,
    *,
    settings: object,
    control_digest: str,
    sampling: Sampling,
    group: int,
    gap: float,
    batch: int,
) -> Preparation:
    """How pairs are drawn, `batch` pictures at a time.

    Pairs that are equally far from their condition are left out.

    Args:
        settings: of the reward, None without one.
        gap: the smallest difference by which the better aligned picture must also surpass the other in the reward.
    """
    if group < 2:
        raise UserError(f"method.group={group}: must be at least 2, for a better and a worse picture")
    key = fingerprint(
        "aligned", VERSION, source.fingerprint, policy.adapter.fingerprint, task.fingerprint, settings, control_digest,
        sampling.num_steps, sampling.guidance, sampling.eta, group,
    )  # fmt: skip
    encode = partial(_encode, policy=policy, task=task, reward=reward, sampling=sampling, group=group, batch=batch)
    return Preparation(source, key, encode, "groups", accepts=partial(_usable, gap=gap))


def _usable(row: Columns, gap: float) -> str:
    near, far = row["distance"].tolist()
    better, worse = row["quality"].tolist()
    if near >= far:
        return "pair that is equally far from its condition"
    rejected = better - worse <= gap  # false for nan, without a reward
    return f"pair whose better aligned picture has no reward that is higher by more than method.gap={gap}" * rejected


def _encode(
    samples: list[Sample],
    policy: Policy,
    task: Task,
    reward: Reward | None,
    sampling: Sampling,
    group: int,
    batch: int,
) -> Columns:
    adapter = policy.adapter
    images = torch.stack([sample.image for sample in samples]).to(adapter.device)
    maps, control = asked_in_training(samples, task, images)
    tokens = adapter.tokenize([sample.told for sample in samples])
    columns = {"tokens": tokens, "text": adapter.embed(tokens), "control": packed(control, task)}
    rows = [row for row in range(len(samples)) for _ in range(group)]
    names = [f"{samples[row].id}/{number % group}" for number, row in enumerate(rows)]
    drawn, distance, quality = [], [], []
    for part, new in parts_of(len(rows), batch):
        chosen = upload(torch.tensor(rows[part]), adapter.device)
        condition = Condition(columns["text"][chosen], control[chosen])
        latents = sample_latents(policy, condition, names[part], sampling, seed=SEED, stream="group")
        pictures = eight_bit(adapter.decode(latents))
        found = task.distance(task.detect(pictures), maps[chosen])
        prompts = [samples[row].caption for row in rows[part]]
        judged = parts(reward, pictures, prompts, Asked(maps, control, chosen))["score"] if reward else None
        drawn.append(latents[new])
        distance.append(found[new])
        quality.append(torch.full_like(found, torch.nan)[new] if judged is None else judged[new])
    distance, quality, latents = (torch.cat(of).unflatten(0, (-1, group)) for of in (distance, quality, drawn))
    ends = torch.stack([distance.argmin(1), distance.argmax(1)], 1)
    kept = latents.take_along_dim(ends[..., None, None, None], 1).flatten(0, 1)
    moments = [
        adapter.encode_moments(eight_bit(adapter.decode(kept[part])))[new] for part, new in parts_of(len(kept), batch)
    ]
    return columns | {
        "moments": torch.cat(moments).half().unflatten(0, (-1, 2)),
        "labels": WINNER_FIRST.expand(len(samples), 2, 2),
        "distance": distance.gather(1, ends).float(),
        "quality": quality.gather(1, ends).float(),
    }


def eight_bit(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1], rounded to 8 bits as in a file."""
    return pictures.mul(255).round().div(255)
