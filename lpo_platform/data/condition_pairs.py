"""Training samples with everything frozen already computed: VAE moments, text, the true condition and a worse one.

The worse condition is what the detector finds in a picture that the starting ControlNet drew from the true condition
and the same caption (specs/cpo.md section 1). Nothing here depends on the weights being trained, so it is computed once
and kept in a fingerprinted cache.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lpo_platform.data.cache import Cache, fingerprint
from lpo_platform.data.source import Sample, Source
from lpo_platform.distributed import deal, everywhere, wait
from lpo_platform.evaluation.generate import Sampling, sample_latents
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.tasks.task import Task

SEED = 0  # losers are data: a run's seed leaves them as they are, and a sweep over seeds computes them once
VERSION = 1  # raise it when the columns change their meaning


class ConditionPairs(Dataset):
    """Rows of a complete cache, column name -> tensor, control images as uint8; read from mapped files as needed."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return self.cache.total

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        shard = self.cache.shards[row // len(self.cache.shards[0])]
        file = _open(self.cache.path(shard))
        return {name: file.get_slice(name)[row - shard.start] for name in file.keys()}  # noqa: SIM118 (not a dict)

    def caption(self, row: int) -> str:
        shard = self.cache.shards[row // len(self.cache.shards[0])]
        return json.loads(_open(self.cache.path(shard)).metadata()["texts"])["caption"][row - shard.start]

    def column(self, shard: range, name: str) -> Tensor:
        """One column of a whole shard."""
        return _open(self.cache.path(shard)).get_tensor(name)


@lru_cache(maxsize=256)
def _open(path: Path) -> safe_open:
    """A mapped shard; the limit keeps a large cache below what a process may hold open."""
    return safe_open(path, framework="pt")


def cache_of(
    source: Source,
    policy: Policy,
    task: Task | None,
    *,
    control_digest: str | None,
    sampling: Sampling,
    folder: Path,
    target: bool = False,
) -> Cache:
    """The cache that these parts determine, existing or not. control_digest is None where no loser is wanted; target
    says whether the reward loss's is."""
    parts = [VERSION, source.fingerprint, policy.adapter.fingerprint, task and task.fingerprint]
    if control_digest is not None:
        parts += [control_digest, sampling.num_steps, sampling.guidance, sampling.eta]
    parts += ["target"] if target else []
    key = fingerprint(*parts)
    return Cache(folder, key, len(source), shard_size=128)


@torch.no_grad()
def prepare(
    cache: Cache,
    source: Source,
    policy: Policy,
    task: Task | None,
    *,
    losers: bool,
    sampling: Sampling,
    batch: int,
    target: bool = False,
) -> ConditionPairs:
    """Builds what is missing of the cache, with a progress bar, and opens it. Resumable at the last whole shard.

    The missing shards are dealt to the processes, which wait for each other.
    """
    missing = deal(cache.missing())
    title = "pairs" if losers else "conditions" if task else "latents"
    with tqdm(total=len(source), desc=title, unit="img", initial=len(source) - sum(map(len, missing))) as bar:
        for shard in missing:
            columns: dict[str, list[Tensor]] = {}
            captions: list[str] = []
            for start in range(shard.start, shard.stop, batch):
                rows = range(start, min(start + batch, shard.stop))
                samples = [source[row] for row in rows]
                encoded = _encode(samples, policy, task, losers=losers, target=target, sampling=sampling)
                for name, column in encoded.items():
                    columns.setdefault(name, []).append(column.cpu())
                captions += [sample.caption for sample in samples]
                bar.update(everywhere(len(rows), bar.total - bar.n))
            cache.write(shard, {name: torch.cat(parts) for name, parts in columns.items()}, {"caption": captions})
    wait()
    return ConditionPairs(cache)


def _encode(
    samples: list[Sample], policy: Policy, task: Task | None, *, losers: bool, target: bool, sampling: Sampling
) -> dict[str, Tensor]:
    adapter = policy.adapter
    images = torch.stack([sample.image for sample in samples]).to(adapter.device)
    tokens = adapter.tokenize([sample.caption for sample in samples])
    text = adapter.embed(tokens)
    columns = {"moments": adapter.encode_moments(images), "tokens": tokens, "text": text}
    if task is not None:
        maps = task.detect(images)
        control = task.render(maps)
        columns["control"] = to_uint8(control, gray=task.gray)
    if target:
        columns["target"] = task.target(images, maps).half()
    if losers:
        ids = [sample.id for sample in samples]
        latents = sample_latents(policy, Condition(text, control), ids, sampling, seed=SEED, stream="loser")
        columns["loser"] = to_uint8(task.render(task.detect(adapter.decode(latents))), gray=task.gray)
    return columns


def to_uint8(images: Tensor, *, gray: bool) -> Tensor:
    """[0, 1] -> uint8, rounded; one channel is kept of three equal ones."""
    return (images[:, :1] if gray else images).mul(255).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """The inverse of to_uint8: (B, 1 or 3, H, W) uint8 -> (B, 3, H, W) float32 in [0, 1]."""
    return images.float().div(255).expand(-1, 3, -1, -1)
