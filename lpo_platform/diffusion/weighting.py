"""How much each step of a stochastic sampler weighs in a policy gradient (methods/README.md, "DDPO")."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lpo_platform.diffusion.process import Process

Weighting = Literal["none", "unit", "noise"]


def steps(process: Process, num_steps: int, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """For every step: t, the derivative of its mean by the model's output, and its standard deviation, (T,) each."""
    t = process.times(num_steps)
    zero = torch.zeros(len(t), 1, 1, 1, device=t.device)
    step = process.step(zero + 1, t, process.previous(t, num_steps, eta=eta), zero, eta=eta)
    return t, step.mean.flatten(), step.std.flatten()


def step_weights(rule: Weighting, slope: Tensor, std: Tensor) -> Tensor:
    """Weights of mean 1 for steps with these derivatives and standard deviations, (T,) each.

    The gradient of a step's log-probability is proportional to |slope| / std. With 50 steps it is 3.3 at t = 21 and 0.4
    to 0.8 at most other steps. Raises ValueError for an unknown rule.

    Args:
        rule: `none` leaves the gradients as DDPO has them, `unit` divides by |slope| / std, `noise` multiplies by std,
            so that early steps weigh more (TempFlow-GRPO, arXiv:2508.04324).
        slope: derivatives of the means by the output.
        std: standard deviations.
    """
    if rule not in get_args(Weighting):
        raise ValueError(f"weighting={rule!r}: must be one of {', '.join(get_args(Weighting))}")
    weight = {"none": torch.ones_like(std), "unit": std / slope.abs(), "noise": std}[rule]
    return weight / weight.mean()
