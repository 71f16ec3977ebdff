"""Training samples with everything frozen already computed: VAE moments, text, the true condition and a worse one.

The true condition is annotated in the data, or else detected. The worse condition is annotated, or else it is what the
detector finds in a picture that the starting ControlNet drew from the true condition and the same caption. Nothing here
depends on the weights that learn, so it is computed ahead of the step that reads it, and kept if it is read again.
"""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from lpo_platform.data.prepared.rows import Preparation
from lpo_platform.data.prepared.store import Columns
from lpo_platform.data.source import Sample, Source
from lpo_platform.data.truth import control_of, truth_of
from lpo_platform.diffusion.noise import Key
from lpo_platform.models.adapter import Adapter, Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.runs.files import fingerprint
from lpo_platform.tasks.task import Task

SEED = 0  # losers are data: a run's seed leaves them as they are, and a sweep over seeds computes them once
VERSION = 1  # raise it when the columns change their meaning
PACKED = ("control", "loser")  # columns of control images


def preparation(
    source: Source,
    policy: Policy,
    task: Task | None,
    *,
    columns: Collection[str],
    control_digest: str | None,
    sampling: Sampling,
) -> Preparation:
    """How the columns that a method needs are computed. control_digest: of the ControlNet that draws losers."""
    parts = [VERSION, sorted(columns), source.fingerprint, policy.adapter.fingerprint, task and task.fingerprint]
    if draws(source, columns):
        parts += [control_digest, sampling.num_steps, sampling.guidance, sampling.eta]
    parts += ["features", control_digest, str(policy.adapter.unet.dtype)] if "features" in columns else []
    title = "pairs" if "loser" in columns else "conditions" if task else "latents"
    encode = partial(_encode, policy=policy, task=task, columns=columns, sampling=sampling)
    return Preparation(source, fingerprint(*parts), encode, title)


def draws(source: Source, columns: Collection[str]) -> bool:
    """Whether the policy draws losers, because the data do not give them."""
    return "loser" in columns and not getattr(source, "losers", False)


def _encode(
    samples: list[Sample], policy: Policy, task: Task | None, *, columns: Collection[str], sampling: Sampling
) -> Columns:
    adapter = policy.adapter
    images = torch.stack([sample.image for sample in samples]).to(adapter.device)
    found = {"moments": adapter.encode_moments(images).to(adapter.vae.dtype)}  # as the autoencoder computes them
    found |= _captions(
        samples, adapter, embedded="text" in columns or ("loser" in columns and samples[0].loser is None)
    )
    if "target" in columns:
        found["target"] = task.target(images, truth_of(samples, task, images)[0]).half()
    if task is not None:
        control = control_of(samples, task, images)
        found["control"] = packed(control, task)
    if "loser" in columns:
        found["loser"] = packed(_losers(samples, found, control, policy, task, sampling), task)
    if "features" in columns:
        both = [policy.features(unpacked(found[name])) for name in ("control", "loser")]
        found["features"] = torch.stack(both, 1)
    return {name: column for name, column in found.items() if name in (*columns, "num_captions")}


def _losers(
    samples: list[Sample],
    columns: Columns,
    control: Tensor,
    policy: Policy,
    task: Task,
    sampling: Sampling,
) -> Tensor:
    """The annotated losers, or the conditions of pictures that the policy draws from control images and first
    captions."""
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


def _captions(samples: list[Sample], adapter: Adapter, *, embedded: bool) -> Columns:
    """tokens and text of the captions. Where samples have several, those of all of them, and `num_captions`."""
    several = any(sample.captions for sample in samples)
    given = [sample.captions if several else (sample.told,) for sample in samples]
    most = max(map(len, given))
    tokens = adapter.tokenize([text for texts in given for text in (*texts, *[""] * (most - len(texts)))])
    both = {"tokens": tokens} | ({"text": adapter.embed(tokens)} if embedded else {})
    if not several:
        return both
    counts = torch.tensor([len(texts) for texts in given])
    return {name: column.unflatten(0, (-1, most)) for name, column in both.items()} | {"num_captions": counts}


def packed(control: Tensor, task: Task) -> Tensor:
    """Control images as caches keep them: in 8 bits, or in half precision for tasks whose values leave [0, 1]."""
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
