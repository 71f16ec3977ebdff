"""The optimiser and its learning-rate schedule."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from importlib.util import find_spec
from typing import ClassVar, Literal

import torch
import transformers
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Decay, NotNegative, Positive, Whole


class Optim:
    """Base of the optimisers: the learning rate rises over the warm-up, then stays or falls to 0 over the run.

    Args:
        warmup_steps: optimiser steps of the warm-up. (The scripts of CPO count otherwise; see the README.)
        warmup: `linear`, whose first step has 1 / warmup_steps of the rate; `from_zero`, whose first step has a rate of
            0, as diffusers' get_scheduler gives it to CPO, ControlNet++ and Diffusion-DPO; or `log`, with the logarithm
            of the step, as DeepSpeed's WarmupDecayLR gives it to LRM and SPO, whose first step has a rate of 0, too.
        schedule: after the warm-up: `constant`, or to 0 at the end of the run along a `linear` or a `cosine` curve.
        clip: limit of the gradient's global norm; null for none.
    """

    smaller: ClassVar[str | None] = None
    """The option of optim that does the same with a smaller state."""

    def __init__(self, *, warmup_steps: int, warmup: str, schedule: str, clip: float | None) -> None:
        self.warmup_steps, self.warmup, self.schedule, self.clip = warmup_steps, warmup, schedule, clip

    def check(self) -> None:
        """UserError where this machine lacks what the optimiser needs. A plan is made without it."""

    @abstractmethod
    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer: ...

    def state_bytes(self, parameters: Iterable[nn.Parameter]) -> int:
        """Bytes of the optimiser's state: two moments in float32."""
        return 8 * sum(weight.numel() for weight in parameters)

    def build(self, parameters: Iterable[nn.Parameter], steps: int) -> tuple[Optimizer, LambdaLR]:
        """Optimiser and schedule for a run of `steps` optimiser steps."""
        optimizer = self.optimizer(list(parameters))
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """The factor of the learning rate at `step` of `steps`."""
        if step < self.warmup_steps:
            return self._rise(step)
        done = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[self.schedule]

    def _rise(self, step: int) -> float:
        if self.warmup == "log":
            return math.log(step + 1) / math.log(max(2, self.warmup_steps))
        return (step + (self.warmup == "linear")) / self.warmup_steps


class AdamW(Optim):
    """torch's AdamW (arXiv:1711.05101), fused on a GPU.

    Args:
        lr: learning rate after the warm-up.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled from the gradient. Published: 0.01 (CPO), 1e-4 (LPO, SPO, DDPO), 0.3 (LRM).
        warmup_steps, warmup, schedule, clip: see Optim.
    """

    smaller: ClassVar[str | None] = "adamw8bit"

    def __init__(
        self,
        lr: Positive = 1e-4,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NotNegative = 0.01,
        warmup_steps: Whole = 0,
        warmup: Literal["linear", "from_zero", "log"] = "linear",
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        clip: Positive | None = 1.0,
    ) -> None:
        super().__init__(warmup_steps=warmup_steps, warmup=warmup, schedule=schedule, clip=clip)
        self.lr, self.betas, self.eps, self.weight_decay = lr, tuple(betas), eps, weight_decay

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return torch.optim.AdamW(parameters, **options, fused=parameters[0].is_cuda or None)


class AdamW8bit(AdamW):
    """AdamW with its moments in 8 bits each (arXiv:2110.02861), 2 bytes per weight instead of 8. It needs a GPU.

    The settings are those of AdamW. Pose RL was trained with it.

    `check` asks for bitsandbytes, of the extra `8bit`.
    """

    smaller: ClassVar[str | None] = None
    unsharded: ClassVar[dict[str, str]] = {"": "its state is packed and cannot be sharded; use optim=adamw"}

    def state_bytes(self, parameters: Iterable[nn.Parameter]) -> int:
        """A byte for each moment."""
        return 2 * sum(weight.numel() for weight in parameters)

    def check(self) -> None:
        if find_spec("bitsandbytes") is None:
            raise UserError(
                "optim=adamw8bit: bitsandbytes is not installed here; pip install 'lpo-platform[8bit]', or optim=adamw"
            )

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        from bitsandbytes.optim import AdamW8bit as Packed

        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return Packed(parameters, **options)


class Adafactor(Optim):
    """Adafactor (arXiv:1804.04235) as Diffusion-DPO trains SDXL with it: a third of AdamW's memory.

    The rate is lr itself: steps are neither relative nor scaled by the weights, for which torch's own class has no
    switch. There is no first moment, and an update is limited to a root mean square of 1.

    Args:
        lr: learning rate after the warm-up.
        weight_decay: decoupled from the gradient.
        warmup_steps, warmup, schedule: see Optim.
        clip: null by default, since updates are limited already.
    """

    unsharded: ClassVar[dict[str, str]] = {"": "its factored state cannot be sharded; use optim=adamw"}

    def __init__(
        self,
        lr: Positive = 1e-4,
        weight_decay: NotNegative = 0.01,
        warmup_steps: Whole = 0,
        warmup: Literal["linear", "from_zero", "log"] = "linear",
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        clip: Positive | None = None,
    ) -> None:
        super().__init__(warmup_steps=warmup_steps, warmup=warmup, schedule=schedule, clip=clip)
        self.lr, self.weight_decay = lr, weight_decay

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        return transformers.Adafactor(
            parameters, lr=self.lr, weight_decay=self.weight_decay, scale_parameter=False, relative_step=False
        )

    def state_bytes(self, parameters: Iterable[nn.Parameter]) -> int:
        """The second moment in float32, of a matrix its rows and columns."""
        factored = lambda w: w.numel() // w.shape[-1] + w.numel() // w.shape[-2] if w.ndim > 1 else w.numel()  # noqa: E731
        return 4 * sum(map(factored, parameters))
