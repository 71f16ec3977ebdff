"""What tests of the benchmark share."""

import torch

from lpo_platform.commands.benchmark.cpo import CPOStep


def gradient(bench: CPOStep, *losses: torch.Tensor) -> torch.Tensor:
    parameters = [weight for weight in bench.plain.control.parameters() if weight.requires_grad]
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses]
    return torch.cat([sum(g for g in all_ if g is not None).flatten() for all_ in zip(*gradients, strict=True)])
