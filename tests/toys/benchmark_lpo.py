"""What tests of the LRM and LPO benchmarks share."""

import pytest
import torch
from torch import Tensor, nn
from toys.shapes import TOY, TOY_XL

SHAPES = pytest.mark.parametrize("shape", [TOY, TOY_XL], ids=["sd", "xl"])


def perturb(module: nn.Module, size: float) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape)


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    weights = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(weights, found, strict=True)])
