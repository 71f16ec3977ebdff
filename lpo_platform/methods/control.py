"""Supervised denoising: trains a ControlNet on its condition, or (control=none) the denoiser on its captions."""

from typing import ClassVar

from torch import Tensor

from lpo_platform.losses import denoising_error
from lpo_platform.methods.method import Batch, Method


class Control(Method):
    """min E || output(x_t, t, y, c) - target ||^2, mean over C, H, W, with t ~ U and a fresh draw of the VAE posterior.

    It makes the tiny models, it is stage 1 of CPO, and continued for the same steps it is CPO's control experiment.
    """

    needs: ClassVar[tuple[str, ...]] = ("moments", "text", "control")

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process = self.policy.adapter.process
        z, e, t = self.latents(batch), self.normal(batch, "pretrain"), self.times(batch, "pretrain")
        encoded = self.policy.encode(process.add_noise(z, e, t), t, self.text(batch))
        output = self.policy.decode(encoded, batch.get("control"))
        return denoising_error(output, process.target(z, e, t)).mean(), {}
