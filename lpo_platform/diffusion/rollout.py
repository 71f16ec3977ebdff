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
    """One step of a trajectory.

    Attributes:
        index: of the step, from 0.
        t: (B,).
        x: (B, C, H, W), x_t.
        gaussian: of the step.
        following: (B, C, H, W), the point from which the trajectory continues.
        candidates: (K, B, C, H, W), all points that were drawn, `following` among them; None if there is one only.
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
    """Yields the steps of one trajectory per row of x. The last `following` is the clean latent.

    Args:
        predict: (x, t) -> the output of the model, with guidance and condition.
        process: of the model.
        x: (B, C, H, W), x_T.
        num_steps: of the sampler.
        eta: noise of the sampler; 0 is deterministic.
        noise: step number -> standard normal noise, (B, C, H, W), or with `choice` (K, B, C, H, W).
        choice: step number -> (B,), the number of the candidate, of K, with which each trajectory continues.
        noisy: numbers of the steps that draw noise; None for all. The others are deterministic.

    Raises:
        ValueError: eta is above 0 and there is no `noise`.
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
