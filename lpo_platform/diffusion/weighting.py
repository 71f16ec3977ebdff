"""How much each step of a stochastic sampler weighs in a policy gradient (methods/README.md, "DDPO")."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lpo_platform.diffusion.process import Process

Weighting = Literal["none", "unit", "noise"]


def steps(process: Process, num_steps: int, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of every step its t, the derivative of its mean by the model's output, and its standard deviation: (T,) each."""
    t = process.times(num_steps)
    zero = torch.zeros(len(t), 1, 1, 1, device=t.device)
    step = process.step(zero + 1, t, process.previous(t, num_steps, eta=eta), zero, eta=eta)
    return t, step.mean.flatten(), step.std.flatten()


def step_weights(rule: Weighting, slope: Tensor, std: Tensor) -> Tensor:
    """Weights of mean 1 for steps with these derivatives and standard deviations, all (T,).

    The gradient of a step's log-probability is proportional to |slope| / std, which at 50 steps is nine times larger
    at t = 21 than at most others. `none` leaves that as DDPO has it, `unit` divides by it, `noise` weighs by std: what
    is decided early matters more (TempFlow-GRPO, arXiv:2508.04324). Raises ValueError for an unknown rule.
    """
    if rule not in get_args(Weighting):
        raise ValueError(f"weighting={rule!r}: there are {', '.join(get_args(Weighting))}")
    weight = {"none": torch.ones_like(std), "unit": std / slope.abs(), "noise": std}[rule]
    return weight / weight.mean()
