"""What tests of the benchmark share."""

from collections.abc import Iterable

import torch

from lpo_platform.commands.benchmark.bench import Bench
from lpo_platform.commands.benchmark.cpo import CPOStep
from lpo_platform.commands.plan.count import flops


def gradient(bench: CPOStep, *losses: torch.Tensor) -> torch.Tensor:
    parameters = [weight for weight in bench.plain.control.parameters() if weight.requires_grad]
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses]
    return torch.cat([sum(g for g in all_ if g is not None).flatten() for all_ in zip(*gradients, strict=True)])


def step_flops(bench: Bench, variants: Iterable[str]) -> dict[str, int]:
    """FLOPs of a step of each variant; the bench may lie on the meta device."""
    return {variant: flops(lambda v=variant: bench.step(v)) for variant in variants}
