"""Multi-scale structural similarity of line maps (Wang et al. 2003), per item."""

import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, as published
KERNEL = 11


def weights_for(side: int) -> tuple[float, ...]:
    """The weights of as many scales as pictures of that side have room for, summing to 1; all five from 176 px on."""
    fitting = [n for n in range(1, len(WEIGHTS) + 1) if side // max(1, (n - 1) ** 2) > KERNEL - 1 and side >= 2**n]
    if not fitting:
        raise ValueError(f"MS-SSIM: a side of {side} pixels is too short for its window of {KERNEL}")
    chosen = WEIGHTS[: fitting[-1]]
    return WEIGHTS if chosen == WEIGHTS else tuple(weight / sum(chosen) for weight in chosen)


def ms_ssim(maps: Tensor, target: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1] -> (B,), by torchmetrics with its defaults and data_range 1, in the type of the maps.

    In float32 a map's similarity to itself can be 1 - 1e-4, because variances are differences of large numbers.
    """
    betas = weights_for(min(maps.shape[-2:]))
    # torchmetrics forgets the first axis of a batch of one
    values = multiscale_structural_similarity_index_measure(maps, target, data_range=1.0, betas=betas, reduction="none")
    return torch.atleast_1d(values)
