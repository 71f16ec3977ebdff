"""The Gaussian that one step of a stochastic sampler draws from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian over latents, in float32.

    Attributes:
        mean: (B, C, H, W).
        std: (B, 1, 1, 1). It is 0 where the step is deterministic.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise for standard normal `noise` (..., B, C, H, W). Leading axes are further samples."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std), the MEAN over C, H, W as in kvablack/ddpo-pytorch: (B,).

        Raises ValueError on a deterministic step, which has no density. On a GPU it is a RuntimeError, because reading
        the value would stall the queue.
        """
        positive = (self.std > 0).all()
        if self.std.device.type == "cpu" and not positive:
            raise ValueError(
                "a log-probability was asked for on a deterministic step (std = 0): "
                "sample with eta > 0 and a scheduler whose last step keeps noise (steps_offset=1)"
            )
        torch._assert_async(positive)
        squared = ((x.float() - self.mean) / self.std) ** 2
        return (-0.5 * squared - torch.log(self.std) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)
