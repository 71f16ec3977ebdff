"""What pictures look like, whatever they show: numbers that drift when a reward is exploited. Pure functions.

Pictures are (B, 3, H, W) in [0, 1], results (B,). Luma is that of ITU-R BT.601.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DARK, EDGE = 0.2, 0.05
LUMA = (0.299, 0.587, 0.114)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def appearance(images: Tensor) -> dict[str, Tensor]:
    """All of them by name."""
    images = images.float()
    gray = luma(images)
    return {
        "brightness": gray.mean((1, 2)),
        "dark_share": (gray < DARK).float().mean((1, 2)),
        "edge_density": edge_density(gray),
        "saturation": saturation(images),
        "sharpness": sharpness(gray),
        "diversity": diversity(images),
    }


def luma(images: Tensor) -> Tensor:
    """(B, H, W) in [0, 1]."""
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1)


def edge_density(gray: Tensor) -> Tensor:
    """Share of inner pixels of (B, H, W) whose gradient by Sobel, in luma per pixel, is longer than EDGE."""
    across, down = _filtered(gray, SOBEL) / 8, _filtered(gray, tuple(zip(*SOBEL, strict=True))) / 8
    return ((across.square() + down.square()).sqrt() > EDGE).float().mean((1, 2))


def saturation(images: Tensor) -> Tensor:
    """Mean of HSV's (max - min) / max over the channels, 0 for a black pixel."""
    high, low = images.amax(1), images.amin(1)
    return torch.where(high > 0, (high - low) / high.clamp_min(1e-6), 0).mean((1, 2))


def sharpness(gray: Tensor) -> Tensor:
    """Variance of the Laplacian over the inner pixels of (B, H, W)."""
    return _filtered(gray, LAPLACE).flatten(1).var(1, correction=0)


def diversity(images: Tensor) -> Tensor:
    """Mean root-mean-square distance of each picture to the others; nan for a single one."""
    if len(images) < 2:
        return images.new_full((len(images),), torch.nan)
    flat = images.flatten(1).double()
    squares = flat.square().mean(1)
    distances = (squares[:, None] + squares - 2 * flat @ flat.T / flat.shape[1]).clamp_min(0).sqrt()
    return (distances.fill_diagonal_(0).sum(1) / (len(flat) - 1)).float()


def _filtered(gray: Tensor, kernel: tuple[tuple[float, ...], ...]) -> Tensor:
    """Correlation of (B, H, W) with a 3 x 3 kernel where it lies inside: (B, H - 2, W - 2)."""
    return F.conv2d(gray[:, None], gray.new_tensor(kernel)[None, None])[:, 0]
