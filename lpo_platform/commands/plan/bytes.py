"""Bytes, in the memory of each process and on the disk of a run: parameters counted, activations measured on meta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.utils import get_class
from torch import nn

from lpo_platform.config.signature import attribute
from lpo_platform.methods.optim import Optim
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.models.policy import Policy

if TYPE_CHECKING:
    from lpo_platform.commands.plan.work import PlannedJob

HALF, FULL = 2, 4
FLOATS = ("target", "features")  # columns of numbers beside moments and text
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
    reference = sum(count(part) for part in (policy.reference_copy or {}).values())
    reward = getattr(getattr(job.method, "reward", None), "model", None)
    return Counts(trained, sum(map(count, parts.values())) - trained, reference, count(reward) if reward else 0)


def frozen(policy: Policy, small: int) -> int:
    """Bytes of the weights that do not learn, `small` for each number that is kept in the frozen precision."""
    halved = {id(weight) for weight in policy.tune.halved(dict(policy.learning.items()))}
    parts = {id(part): part for part in (*policy.adapter.parts, *policy.learning.values())}
    total = 0
    for part in parts.values():
        weights = list(part.parameters())
        learns = any(weight.requires_grad for weight in weights)
        for weight in weights:
            if not weight.requires_grad:
                total += weight.numel() * (FULL if learns and id(weight) not in halved else small)
    return total


def memory(job: PlannedJob, activations: float, *, half: bool) -> dict[str, float]:
    """Bytes of each process. half: bf16 or 16-mixed, where frozen parts and activations have 2 bytes a number."""
    found, small = counts(job), HALF if half else FULL
    shards = job.hardware.processes if job.hardware.strategy == "fsdp" else 1
    return {
        "frozen weights": frozen(job.policy, small),
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
        "caches": cache(job, half=half),
    }


def checkpoint(policy: Policy, optim: Optim, *, averaged: bool) -> int:
    """Bytes of a checkpoint: what learns, its moving average, the optimiser's state."""
    return FULL * learning(policy) * (1 + averaged) + optim.state_bytes(policy.trainable().values())


def exported(policy: Policy) -> int:
    """Bytes of what learns as models/export.py writes it: a reward model's UNet is whole again, and its head stands in
    two files."""
    total = 0
    for module in policy.learning.values():
        adapter = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        if hasattr(module, "peft_config"):
            total += adapter + (count(module) - adapter if policy.tune.merged else 0)
        elif isinstance(module, LatentReward):
            towers = count(module.unet) + count(module.text_encoders)
            total += count(module) + count(policy.adapter.unet) - count(module.unet) + count(module) - towers
        else:
            total += count(module)
    return FULL * total


def cache(job: PlannedJob, *, half: bool) -> float:
    """Bytes of the training samples' frozen parts, as data/ keeps them."""
    if job.method.online:
        return 0
    preferences, columns = "labels" in job.needs, job.columns(1)
    row = sum(columns[name]().nbytes for name in ("moments", "tokens"))
    row -= columns["moments"]().nbytes // 2 if preferences else 0  # half precision
    if "text" in job.needs or not preferences:
        row += columns["text"]().nbytes // (2 if half else 1)
    planes = 1 if job.cfg.get("task") and get_class(job.cfg.task._target_).gray else 3
    row += planes * job.policy.adapter.resolution**2 * len({"control", "loser"} & {*job.needs})
    row += sum(columns[name]().nbytes // (2 if half or name == "target" else 1) for name in FLOATS if name in job.needs)
    if attribute(job.cfg.data._target_, "draws", False):
        row += job.pictures * 3 * job.policy.adapter.resolution**2
    return row * job.rows


def size(number: float) -> str:
    """`12.3 GB`."""
    power = min(max(0, int(math.log10(max(1, number)) // 3)), 4)
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
