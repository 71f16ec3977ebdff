"""The checks that cost nothing: what the first round and the first step of any training already show.

Every training has this callback, which stops one that is pointless and warns of what is doubtful. It draws no random
number and changes no weight, so a run with it is the run without it.
"""

import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lpo_platform.commands.doctor.finding import Finding, doubtful, failed, ok, skipped
from lpo_platform.commands.plan.bytes import CHECKPOINTS, checkpoint, exported, learning, size
from lpo_platform.config.errors import UserError
from lpo_platform.hardware.distributed import lead, world
from lpo_platform.methods.expectations import FirstLoss
from lpo_platform.methods.method import Method
from lpo_platform.methods.online import Online
from lpo_platform.models.policy import Policy

DISCONNECTED = "its branch is disconnected, or skipped in the forward pass: check tune= and control="
log = logging.getLogger(__name__)


class Checkup(Callback):
    """folder: of the run; stops: whether a failed check ends the training, else findings are only kept."""

    def __init__(self, folder: Path, *, averaged: bool, stops: bool = True) -> None:
        self.folder, self.averaged, self.stops = folder, averaged, stops
        self.findings: list[Finding] = []
        self._stepped = False

    def _note(self, *findings: Finding) -> None:
        self.findings += findings
        for finding in findings:
            if self.stops and finding.state == "FAILED":
                raise UserError(f"{finding.check}: {finding.reason}")
            if self.stops and finding.state == "doubtful" and lead():
                log.warning("%s: %s", finding.check, finding.reason)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stepped = trainer.global_step > 0  # a resumed run has passed
        self._note(trainable(module.policy))
        if self.stops and not self._stepped:  # the doctor asks about another run than this one
            self._note(disk(module, self.folder, averaged=self.averaged))

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._stepped and module.online:
            self._note(*first_round(module))

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if not self._stepped and not loss.requires_grad:
            self._note(failed("gradient", "the loss does not depend on anything that learns", DISCONNECTED))

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        if not self._stepped and not getattr(module, "_nothing", False):
            scaled = trainer.precision_plugin.precision == "16-mixed"
            self._note(gradient(module.policy, scaled=scaled), same_gradient(module.policy))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        if self._stepped or "loss" not in (outputs or {}):  # a round without a sample
            return
        self._stepped = True
        exact = trainer.precision_plugin.precision == "32-true" and module.device.type == "cpu"
        self._note(first_loss(module, outputs["loss"] * trainer.accumulate_grad_batches, batch, exact=exact))


def trainable(policy: Policy) -> Finding:
    weights = policy.trainable()
    if not weights:
        return failed("trainable", "nothing learns: no parameter requires a gradient", "choose another tune=")
    total = learning(policy)
    return ok("trainable", f"{total:,} parameters in {len(weights)} tensors learn ({', '.join(policy.learning)})")


def disk(method: Method, folder: Path, *, averaged: bool) -> Finding:
    """What is still to be written, but for caches, which are there already."""
    needed = CHECKPOINTS * checkpoint(method.policy, method.optim, averaged=averaged)
    needed += (1 + averaged) * exported(method.policy)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    what = f"checkpoints and exports take {size(needed)}, {size(free)} are free in {folder}"
    if needed > free:
        return failed("disk", what, "free space, or run from a folder on a larger disk")
    return ok("disk", what)


def first_round(method: Online) -> Iterator[Finding]:
    """Whether the rewards of the first round differ, each by name."""
    if not float(method.round.get("rollout/samples", 1)):
        yield doubtful("round", "the first round gave nothing to learn from", method.without_samples())
    elif (same := method.constant_rewards()) is None:
        yield ok("round", "rewards of the first round differ")
    elif same.hopeless:
        yield failed("round", same.what, "nothing can be learned from it: check reward= and its weights")
    else:
        yield doubtful("round", same.what, "nothing is learned from it: check reward= and its weights")


def gradient(policy: Policy, *, scaled: bool = False) -> Finding:
    """Where the gradient is: None and 0 are where nothing is learned. scaled: for half precision, as 16-mixed tries out
    by how much, its first ones may overflow."""
    found = {name: weight.grad for name, weight in policy.trainable().items()}
    bad = [name for name, grad in found.items() if grad is not None and not bool(torch.isfinite(_local(grad)).all())]
    if bad and not scaled:
        advice = "lower optim.lr, or use hardware.precision=32-true to see where it comes from"
        return doubtful("gradient", f"not finite in {len(bad)} of {len(found)} tensors, first {bad[0]}", advice)
    moved = [name for name, grad in found.items() if grad is not None and bool(_local(grad).any())]
    if not moved:
        return failed("gradient", f"zero in all {len(found)} tensors that learn", DISCONNECTED)
    return ok("gradient", f"reaches {len(moved)} of {len(found)} tensors that learn")


def same_gradient(policy: Policy) -> Finding:
    """Whether all processes have one gradient: each tensor's sum and sum of magnitudes, bit for bit."""
    if world()[1] == 1:
        return skipped("processes", "one process")
    grads = [weight.grad for weight in policy.trainable().values() if weight.grad is not None]
    if any(hasattr(grad, "to_local") for grad in grads):
        return skipped("processes", "sharded: every process has its part of the gradient")
    own = torch.stack([torch.stack([grad.double().sum(), grad.double().abs().sum()]) for grad in grads])
    everyone = [torch.empty_like(own) for _ in range(world()[1])]
    dist.all_gather(everyone, own)
    if all(torch.equal(own, other) for other in everyone):
        return ok("processes", f"{world()[1]} processes have the same gradient")
    advice = "they learn apart: check that the loss of every process has a gradient in the same parameters"
    return failed("processes", f"{world()[1]} processes have different gradients", advice)


def _local(grad: Tensor) -> Tensor:
    return grad.to_local() if hasattr(grad, "to_local") else grad


def first_loss(method: Method, loss: Tensor, batch: dict[str, Tensor], *, exact: bool) -> Finding:
    """The first loss against its closed form: policy and reference are still one, so ratios are 1 and KL is 0.

    exact: whether only the rounding of float32 may be between them; that of TF32 and half precision beta makes large.
    """
    value = float(loss)
    if not math.isfinite(value):
        return failed("loss", f"the first loss is {value}", "lower optim.lr or use hardware.precision=32-true")
    if (found := method.first_loss(value, batch)) is not None:
        return _judged(found, exact)
    return ok("loss", f"the first loss is {value:.4g}, finite; it has no closed form")


def _judged(found: FirstLoss, exact: bool) -> Finding:
    if not found.error > found.limit:
        return ok("loss", found.what)
    if exact:
        return failed("loss", found.what, found.advice)
    return doubtful("loss", found.what, f"rounding, or {found.advice}; hardware.precision=32-true tells them apart")
