"""What a diffusion or flow process offers to methods and samplers."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lpo_platform.diffusion import noise
from lpo_platform.diffusion.gaussian import Gaussian


class Process(Protocol):
    """The contract of DDIM and Flow. A time t grows with the noise: integers in [0, 1000) for DDIM, reals for Flow.

    x0, noise, x and output are (B, C, H, W); t and previous are (B,). Everything is computed in float32. up_to() tells
    the time with as much noise as DDIM's timestep, and how likely training draws at most that.
    """

    num_train_steps: int
    device: torch.device

    def to(self, device: torch.device | str) -> "Process": ...
    def training_times(self, positions: Sequence[noise.Key], *, seed: int, stream: str) -> Tensor: ...
    def times(self, num_steps: int) -> Tensor: ...
    def previous(self, t: Tensor, num_steps: int, *, eta: float) -> Tensor: ...
    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def clean(self, output: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def sigma(self, t: Tensor, previous: Tensor, eta: float) -> Tensor: ...
    def noise_share(self, t: Tensor) -> Tensor: ...  # (B,): noise / (signal + noise), 0 without noise
    def as_ddim(self, t: Tensor) -> Tensor: ...  # (B,): DDIM's timestep with the same ratio of noise to signal
    def up_to(self, timestep: int) -> tuple[float, float]: ...
    def step(self, output: Tensor, t: Tensor, previous: Tensor, x: Tensor, *, eta: float) -> Gaussian: ...
