"""The optimiser and its learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn


class AdamW:
    """torch's AdamW; the rate rises over warmup_steps, then stays or falls to 0 over the run.

    clip is the gradient's global norm limit. Warm-up counts optimiser steps (the original CPO scripts count
    differently: specs/cpo.md section 2). warmup: linear, or with the logarithm of the step as DeepSpeed's WarmupDecayLR
    does by default, whose first step has a rate of 0 (LRM and SPO: specs/lpo.md 2.5).
    """

    def __init__(
        self,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        warmup: Literal["linear", "log"] = "linear",
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        clip: float = 1.0,
    ) -> None:
        self.lr, self.betas, self.eps, self.weight_decay = lr, tuple(betas), eps, weight_decay
        self.warmup_steps, self.warmup, self.schedule, self.clip = warmup_steps, warmup, schedule, clip

    def build(
        self, parameters: Iterable[nn.Parameter], steps: int
    ) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        """Optimiser and schedule for a run of `steps` optimiser steps; fused on a GPU."""
        parameters = list(parameters)
        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        optimizer = torch.optim.AdamW(parameters, **options, fused=parameters[0].is_cuda or None)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """What multiplies lr at `step` of `steps`."""
        if step < self.warmup_steps:
            return self._rise(step)
        done = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[self.schedule]

    def _rise(self, step: int) -> float:
        if self.warmup == "log":
            return math.log(step + 1) / math.log(max(2, self.warmup_steps))
        return (step + 1) / self.warmup_steps
