"""Exponential moving average of the trained weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lpo_platform.hardware.sharding import kept, like


def decay_at(update: int, limit: float = 0.9999) -> float:
    """Decay of the n-th update, n >= 1: 0, then min(limit, (1 + k) / (10 + k)) with k = n - 1 (diffusers' EMAModel)."""
    k = update - 1
    return 0.0 if k <= 0 else min(limit, (1 + k) / (10 + k))


class EMA(Callback):
    """Averages the trainable weights after every optimiser step, in float32; its state is saved in checkpoints.

    Of sharded weights each process averages its own share.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        self.decay, self.updates, self.shadow = decay, 0, {}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > self.updates:  # not after a micro-batch that only accumulated
            self.update(module.policy.trainable(), trainer.global_step)

    @torch.no_grad()
    def update(self, weights: dict[str, nn.Parameter], step: int) -> None:
        self.updates = step
        keep = decay_at(step, self.decay)
        present = {name: weight.detach().float() for name, weight in weights.items()}
        for name, weight in present.items():
            if name not in self.shadow:  # in the order of the weights, in which processes gather what is sharded
                self.shadow[name] = weight.clone()
        torch._foreach_lerp_([self.shadow[name] for name in present], list(present.values()), 1 - keep)

    @contextmanager
    def averaged(self, weights: dict[str, nn.Parameter]) -> Iterator[None]:
        """Inside, the weights are the averaged ones; afterwards the trained ones again."""
        trained = {name: weight.detach().clone() for name, weight in weights.items()}
        _assign(weights, self.shadow or trained)
        try:
            yield
        finally:
            _assign(weights, trained)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": {name: kept(value) for name, value in self.shadow.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.shadow = state["updates"], state["shadow"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        weights = module.policy.trainable()
        self.shadow = {name: like(value.to(module.device), weights[name]) for name, value in self.shadow.items()}


@torch.no_grad()
def _assign(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
