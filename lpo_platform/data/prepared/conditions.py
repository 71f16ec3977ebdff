"""Training samples with everything frozen already computed: VAE moments, text, the true condition and a worse one.

The true condition is annotated in the data, or else detected. The worse condition is annotated, or else it is what the
detector finds in a picture that the starting ControlNet drew from the true condition and the same caption. Nothing here
depends on the weights that learn, so it is computed once and kept in a cache. Rows that cannot be read are left out,
and each opening of the cache says which.
"""

import json
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.cache import Cache
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.source import Sample, Source
from lpo_platform.data.tables.decode import Unusable
from lpo_platform.data.truth import control_of, truth_of
from lpo_platform.diffusion.noise import Key
from lpo_platform.hardware.distributed import deal, everywhere, lead, wait
from lpo_platform.models.adapter import Adapter, Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.runs.files import fingerprint
from lpo_platform.tasks.task import Task

SEED = 0  # losers are data: a run's seed leaves them as they are, and a sweep over seeds computes them once
VERSION = 1  # raise it when the columns change their meaning
PACKED = ("control", "loser")  # columns of control images
log = logging.getLogger(__name__)


class ConditionPairs(Dataset):
    """Rows of a complete cache, column name -> tensor, control images as uint8; read from mapped files as needed.

    Where rows have several captions, `num_captions` says how many, and text and tokens have a first axis of them.
    numbers: of the rows in the cache, without those that could not be read. Raises UserError if none is left.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self.findings = cache, Findings()
        self.numbers = [row for shard in cache.shards for row in self._usable(shard)]
        if lead() and (line := self.findings.line()):
            log.warning("%s", line)
        if cache.total and not self.numbers:
            raise UserError(f"none of the {cache.total} rows can be used [{self.findings.line()}]")

    def _usable(self, shard: range) -> list[int]:
        problems = self._texts(shard).get("problem", [""] * len(shard))
        for problem in filter(None, problems):
            self.findings.skip(*json.loads(problem))
        return [row for row, problem in zip(shard, problems, strict=True) if not problem]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        shard, place = self._place(row)
        file = _open(self.cache.path(shard))
        return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (not a dict)

    def caption(self, row: int) -> str:
        shard, place = self._place(row)
        return self._texts(shard)["caption"][place]

    def _place(self, row: int) -> tuple[range, int]:
        number = self.numbers[row]
        shard = self.cache.shards[number // len(self.cache.shards[0])]
        return shard, number - shard.start

    def _texts(self, shard: range) -> dict[str, list[str]]:
        return json.loads(_open(self.cache.path(shard)).metadata()["texts"])

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
    features: bool = False,
) -> Cache:
    """The cache that these parts determine, existing or not. control_digest is None where no loser is wanted; target
    says whether the reward loss's is, features whether those of both conditions are, in the frozen parts' precision."""
    parts = [VERSION, source.fingerprint, policy.adapter.fingerprint, task and task.fingerprint]
    if control_digest is not None and getattr(source, "losers", False):
        parts += ["annotated losers"]
    elif control_digest is not None:
        parts += [control_digest, sampling.num_steps, sampling.guidance, sampling.eta]
    parts += ["target"] if target else []
    parts += ["features", control_digest, str(policy.adapter.unet.dtype)] if features else []
    key = fingerprint(*parts)
    return Cache(folder, key, len(source), shard_size=128)


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
    features: bool = False,
) -> ConditionPairs:
    """Builds what is missing of the cache and opens it."""
    title = "pairs" if losers else "conditions" if task else "latents"
    wanted = {"losers": losers, "target": target, "features": features}
    encode = partial(_encode, policy=policy, task=task, sampling=sampling, **wanted)
    fill(cache, source, encode, title=title, batch=batch)
    return ConditionPairs(cache)


@torch.no_grad()
def fill(
    cache: Cache, source: Source, encode: Callable[[list[Sample]], dict[str, Tensor]], *, title: str, batch: int
) -> None:
    """Builds what is missing of the cache, with a progress bar: encode gives the columns of at most `batch` samples.

    Resumable at the last whole shard. The missing shards are dealt to the processes, which wait for each other.
    """
    missing = deal(cache.missing())
    with tqdm(total=len(source), desc=title, unit="img", initial=len(source) - sum(map(len, missing))) as bar:
        for shard in missing:
            parts: list[dict[str, Tensor]] = []
            usable: list[int] = []
            captions, problems = [""] * len(shard), [""] * len(shard)
            for start in range(0, len(shard), batch):
                samples, places = [], range(start, min(start + batch, len(shard)))
                for place in places:
                    try:
                        samples.append(source[shard[place]])
                    except Unusable as error:
                        problems[place] = json.dumps([error.reason, error.where])
                    else:
                        captions[place] = samples[-1].caption
                        usable.append(place)
                if samples:
                    parts.append({name: column.cpu() for name, column in encode(samples).items()})
                bar.update(everywhere(len(places), bar.total - bar.n))
            cache.write(shard, _spread(parts, usable, len(shard)), {"caption": captions, "problem": problems})
    wait()


def _encode(
    samples: list[Sample],
    policy: Policy,
    task: Task | None,
    *,
    sampling: Sampling,
    losers: bool,
    target: bool,
    features: bool,
) -> dict[str, Tensor]:
    adapter = policy.adapter
    images = torch.stack([sample.image for sample in samples]).to(adapter.device)
    columns = {"moments": adapter.encode_moments(images)} | _captions(samples, adapter)
    if target:
        columns["target"] = task.target(images, truth_of(samples, task, images)[0]).half()
    if task is not None:
        control = control_of(samples, task, images)
    if task is not None:
        columns["control"] = packed(control, task)
    if losers:
        columns["loser"] = packed(_losers(samples, columns, control, policy, task, sampling), task)
    if features:
        both = [policy.features(unpacked(columns[name])) for name in ("control", "loser")]
        columns["features"] = torch.stack(both, 1)
    return columns


def _losers(
    samples: list[Sample],
    columns: dict[str, Tensor],
    control: Tensor,
    policy: Policy,
    task: Task,
    sampling: Sampling,
) -> Tensor:
    """Annotated, or of pictures that the policy draws from the control images and the first captions."""
    if samples[0].loser is not None:
        return torch.stack([sample.loser for sample in samples])
    text = columns["text"][:, 0] if "num_captions" in columns else columns["text"]
    return worse(policy, task, Condition(text, control), [sample.id for sample in samples], sampling, seed=SEED)


def worse(
    policy: Policy, task: Task, condition: Condition, ids: Sequence[Key], sampling: Sampling, *, seed: int
) -> Tensor:
    """The conditions (B, 3, H, W) of pictures that the policy draws under these; each id has its own noise."""
    drawn_from = Condition(condition.text, condition.control.clamp(0, 1))  # a picture, as the released code makes it
    latents = sample_latents(policy, drawn_from, ids, sampling, seed=seed, stream="loser")
    return task.worse(policy.adapter.decode(latents), condition.control)


def _captions(samples: list[Sample], adapter: Adapter) -> dict[str, Tensor]:
    """tokens and text of the captions; where the data give several, of all, and how many there are."""
    if not any(sample.captions for sample in samples):
        tokens = adapter.tokenize([sample.told for sample in samples])
        return {"tokens": tokens, "text": adapter.embed(tokens)}
    given = [sample.captions for sample in samples]
    most = max(map(len, given))
    tokens = adapter.tokenize([text for texts in given for text in (*texts, *[""] * (most - len(texts)))])
    both = {"tokens": tokens, "text": adapter.embed(tokens)}
    counts = torch.tensor([len(texts) for texts in given])
    return {name: column.unflatten(0, (-1, most)) for name, column in both.items()} | {"num_captions": counts}


def _spread(parts: list[dict[str, Tensor]], places: list[int], total: int) -> dict[str, Tensor]:
    """Columns of `total` rows, those at `places` from the parts in order, the others zeros.

    A part whose rows have fewer captions is filled up with zeros.
    """
    columns = {}
    for name in parts[0] if parts else ():
        rows = [row for part in parts for row in part[name]]
        shape = torch.tensor([row.shape for row in rows], dtype=torch.long).amax(0)
        columns[name] = rows[0].new_zeros(total, *shape.tolist())
        for place, row in zip(places, rows, strict=True):
            columns[name][(place, *map(slice, row.shape))] = row
    return columns


def packed(control: Tensor, task: Task) -> Tensor:
    """Control images as caches keep them: 8 bits in [0, 1], half precision where a task does not keep to that."""
    if task.bounded:
        return to_uint8(control, gray=task.gray)
    return (control[:, :1] if task.gray else control).half()


def unpacked(control: Tensor) -> Tensor:
    """The inverse of packed: (B, 3, H, W) float32."""
    return from_uint8(control) if control.dtype == torch.uint8 else control.float().expand(-1, 3, -1, -1)


def to_uint8(images: Tensor, *, gray: bool) -> Tensor:
    """[0, 1] -> uint8, rounded; one channel is kept of three equal ones."""
    return (images[:, :1] if gray else images).mul(255).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """The inverse of to_uint8: (B, 1 or 3, H, W) uint8 -> (B, 3, H, W) float32 in [0, 1]."""
    return images.float().div(255).expand(-1, 3, -1, -1)
