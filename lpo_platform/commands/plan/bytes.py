"""Bytes, in the memory of each process and on the disk of a run: parameters counted, activations measured on meta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from hydra.utils import get_class
from torch import nn

from lpo_platform.commands.plan.reading import Reading, reading_of
from lpo_platform.config.signature import attribute
from lpo_platform.methods.optim import Optim
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.models.policy import Policy

if TYPE_CHECKING:
    from lpo_platform.commands.plan.work import PlannedJob

HALF, FULL = 2, 4
CHECKPOINTS = 3  # the last two are kept, and the next one is written before the older goes


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters: trained, frozen (all parts that are loaded), those of the reference's copy and of a latent
    reward model."""

    trained: int
    frozen: int
    reference: int
    reward: int


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def learning(policy: Policy) -> int:
    """Number of parameters that learn."""
    return sum(weight.numel() for weight in policy.trainable().values())


def counts(job: PlannedJob) -> Counts:
    policy = job.policy
    trained = learning(policy)
    parts = {id(part): part for part in (*policy.adapter.parts, *policy.learning.values())}
    reference = sum(count(part) for part in policy.frozen)
    reward = getattr(getattr(job.method, "reward", None), "model", None)
    return Counts(trained, sum(map(count, parts.values())) - trained, reference, count(reward) if reward else 0)


def frozen(policy: Policy, dtype: torch.dtype) -> int:
    """Bytes of the weights that do not learn, where frozen parts are in dtype."""
    halved = {id(weight) for weight in policy.tune.halved(dict(policy.learning.items()))}
    parts = {id(part): part for part in (*policy.adapter.parts, *policy.learning.values())}
    total = 0
    for part in parts.values():
        weights, small = list(part.parameters()), policy.adapter.kept_in(part, dtype).itemsize
        learns = any(weight.requires_grad for weight in weights)
        for weight in weights:
            if not weight.requires_grad:
                total += weight.numel() * (FULL if learns and id(weight) not in halved else small)
    return total


def memory(job: PlannedJob, activations: float, *, half: bool) -> dict[str, float]:
    """Bytes of each process. half: bf16 or 16-mixed, where frozen parts and activations have 2 bytes a number."""
    found, small = counts(job), HALF if half else FULL
    low = torch.float16 if job.cfg.hardware.precision == "16-mixed" else torch.bfloat16
    shards = job.hardware.processes if job.hardware.strategy == "fsdp" else 1
    return {
        "frozen weights": frozen(job.policy, low if half else torch.float32),
        "trained weights": FULL * found.trained / shards,
        "gradients": FULL * found.trained / shards,
        "optimiser moments": job.method.optim.state_bytes(job.policy.trainable().values()) / shards,
        "moving average": FULL * found.trained / shards if job.cfg.callbacks.ema_decay is not None else 0,
        "reference copy": FULL * found.reference / shards,
        "reward model": FULL * found.reward,
        f"activations, {job.micro} samples": activations * small / FULL,
    }


def disk(job: PlannedJob, *, half: bool) -> dict[str, float]:
    """Bytes that the run writes: at their most, and to caches that later runs read."""
    averaged = job.cfg.callbacks.ema_decay is not None
    once, exports = checkpoint(job.policy, job.method.optim, averaged=averaged), 1 + averaged
    exports += attribute(job.cfg.metrics._target_, "of_rewards", False)  # the best one, too
    return {
        f"checkpoints, {CHECKPOINTS} x {size(once)}": CHECKPOINTS * once,
        f"export, {exports} x {size(exported(job.policy))}": exports * exported(job.policy),
    } | caches(job, half=half)


def caches(job: PlannedJob, *, half: bool) -> dict[str, float]:
    """Bytes of the training samples that are kept."""
    found = reading(job, half=half)
    each = sample(job, half=half) if found else 0
    return {f"cache, {found.kept:,} samples x {size(each)}": found.kept * each} if found and found.kept else {}


def checkpoint(policy: Policy, optim: Optim, *, averaged: bool) -> int:
    """Bytes of a checkpoint: the trained weights, their moving average, the optimiser's state."""
    return FULL * learning(policy) * (1 + averaged) + optim.state_bytes(policy.trainable().values())


def exported(policy: Policy) -> int:
    """Bytes of the trained weights as models/export.py writes them: the UNet of a reward model is whole again, and its
    head stands in two files."""
    total = 0
    for module in policy.learning.values():
        adapter = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        if hasattr(module, "peft_config"):
            total += adapter + (count(module) - adapter if policy.tune.merged else 0)
        elif isinstance(module, LatentReward):
            total += count(module)
            if module.trains_text:
                towers = count(module.unet) + count(module.text_encoders)
                total += count(policy.adapter.unet) - count(module.unet) + count(module) - towers
        else:
            total += count(module)
    return FULL * total


def reading(job: PlannedJob, *, half: bool) -> Reading | None:
    """What the run reads of its training samples; None where the method makes its own."""
    return None if job.method.online else reading_of(job.cfg, sample(job, half=half))


def sample(job: PlannedJob, *, half: bool) -> float:
    """Bytes of one training sample's frozen parts, as data/ keeps them."""
    columns, small = job.columns(1), 2 if half else 1
    planes = 1 if job.cfg.get("task") and get_class(job.cfg.task._target_).gray else 3
    picture = planes * job.policy.adapter.resolution**2
    if "labels" in job.needs:
        always_half = columns["moments"]().nbytes // 2 + columns["tokens"]().nbytes
        return always_half + ("text" in job.needs) * columns["text"]().nbytes // small + 4 * job.pictures**2
    bytes_of = {name: columns[name]().nbytes // small for name in ("moments", "text", "features") if name in job.needs}
    bytes_of |= {name: picture for name in ("control", "loser") if name in job.needs}
    bytes_of |= {name: columns[name]().nbytes for name in ("tokens", "target") if name in job.needs}
    return sum(bytes_of.values())


def size(number: float) -> str:
    """`12.3 GB`."""
    power = min(max(0, int(math.log10(max(1, number)) // 3)), 4)
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
