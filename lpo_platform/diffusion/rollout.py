"""The sampling loop: from noise to latents, one Gaussian step at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.diffusion.process import Process

Predict = Callable[[Tensor, Tensor], Tensor]
NoiseOf = Callable[[int], Tensor]
ChoiceOf = Callable[[int], Tensor]


@dataclass(frozen=True)
class Step:
    """One step of a trajectory: x_t (B, C, H, W) at t (B,), the Gaussian it led to and the point drawn from it.

    candidates: (K, B, C, H, W), all points drawn, where there are several; `following` is one of them.
    """

    index: int
    t: Tensor
    x: Tensor
    gaussian: Gaussian
    following: Tensor
    candidates: Tensor | None = None


def rollout(
    predict: Predict,
    process: Process,
    x: Tensor,
    *,
    num_steps: int,
    eta: float = 0.0,
    noise: NoiseOf | None = None,
    choice: ChoiceOf | None = None,
    noisy: range | None = None,
) -> Iterator[Step]:
    """Yields the steps of one trajectory from x_T; the last `following` is the clean latent.

    predict(x, t) is the model's output with guidance and condition already inside. noise(i) gives step i's standard
    normal noise (B, C, H, W); ValueError when eta > 0 comes without it. With choice, noise(i) is (K, B, C, H, W) and
    choice(i) (B,) says with which of the K points each trajectory goes on. noisy: the steps that draw noise, None for
    all; the others are deterministic.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"eta={eta} draws noise at every step: pass noise=")
    times = process.times(num_steps)
    for index in range(num_steps):
        t = times[index].expand(x.shape[0])
        here = eta if noisy is None or index in noisy else 0.0
        gaussian = process.step(predict(x, t), t, process.previous(t, num_steps, eta=here), x, eta=here)
        following, candidates = gaussian.sample(noise(index)) if here > 0 else gaussian.mean, None
        if choice is not None:
            candidates = following
            following = candidates[choice(index), torch.arange(len(x), device=x.device)]
        yield Step(index, t, x, gaussian, following, candidates)
        x = following
