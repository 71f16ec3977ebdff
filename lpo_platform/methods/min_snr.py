"""Supervised denoising whose timesteps weigh by their signal-to-noise ratio, up to a limit (arXiv:2303.09556)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lpo_platform.methods.losses import denoising_error
from lpo_platform.methods.method import Batch, Method


class MinSNR(Method):
    """Minimises min(SNR, gamma) / SNR |noise - predicted noise|^2, which teaches all timesteps at an even rate.

    Args:
        gamma: the largest signal-to-noise ratio that counts. Published: 5.
    """

    trains: ClassVar[tuple[str, ...]] = ("control", "denoiser")
    rewards: ClassVar[tuple[str, ...]] = ("none",)
    denoisers: ClassVar[tuple[str, ...]] = ("unet",)  # the ratio is that of DDIM's noise levels
    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "control")

    def __init__(self, *, gamma: float = 5.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.gamma = gamma

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process = self.policy.adapter.process
        z, e, t = self.latents(batch), self.normal(batch, "pretrain"), self.times(batch, "pretrain")
        x = process.add_noise(z, e, t)
        encoded, features = self.policy.encode(x, t, self.text(batch)), self.policy.features(batch.get("control"))
        output = self.policy.decode(encoded, features)
        errors = denoising_error(output, process.target(z, e, t))
        weights = weight(signal_to_noise(process.add_noise, z, t), self.gamma)
        self.note("loss", errors, t)
        return (weights * errors).mean(), {}


def signal_to_noise(add_noise: Any, z: Tensor, t: Tensor) -> Tensor:
    """(B,): the squared ratio of what a process leaves of the signal to what it adds of noise."""
    one, zero = torch.ones_like(z[:, :1, :1, :1]), torch.zeros_like(z[:, :1, :1, :1])
    return (add_noise(one, zero, t) / add_noise(zero, one, t)).square().flatten()


def weight(ratio: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR, for models that predict the noise."""
    return ratio.clamp_max(gamma) / ratio
